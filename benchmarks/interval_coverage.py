"""How often does the 95 % interval that `tuner best` shows after `tuner confirm` cover the true mean of its trial?

Simulates `value[trial, seed] = mean[trial] + effect[seed] + noise[trial, seed]`, all normally distributed. The effect
of a seed is the same for all trials, because `tuner confirm` trains them with the same seeds. The resulting table is in
docs/decisions/0020-an-interval-is-of-one-trial.md.

    python benchmarks/interval_coverage.py
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import numpy as np

from tuner.results.confidence import rank

TRIALS = 5
SEEDS = (2, 3, 10)
SEED_SD = (0.0, 3.0)
"""Standard deviations of the effect of a seed."""
NOISE_SD = ((1.0,) * TRIALS, (0.2, 0.2, 1.0, 1.0, 5.0))
"""Standard deviations of the noise of each trial: equal and unequal."""


def coverage(seeds: int, seed_sd: float, noise_sd: Sequence[float], rounds: int) -> tuple[list[float], float]:
    """Return how often intervals cover the means, by simulation with a fixed random seed.

    Args:
        seeds: The number of seeds for each trial.
        seed_sd: The standard deviation of the effect of a seed.
        noise_sd: The standard deviation of the noise of each trial.
        rounds: The number of simulated confirmations.

    Returns:
        The share for each trial, and for the trial with the best mean.
    """
    generator = np.random.default_rng(20)
    covered, first_covered = np.zeros(len(noise_sd)), 0
    for _ in range(rounds):
        effects = seed_sd * generator.normal(size=seeds)
        table = effects + np.array(noise_sd)[:, None] * generator.normal(size=(len(noise_sd), seeds))
        ranked = rank({at: dict(enumerate(row.tolist())) for at, row in enumerate(table)}, maximize=True)
        hits = {at: (one.low or 0.0) <= 0 <= (one.high or 0.0) for at, one in ranked.items()}
        covered += [hits[at] for at in range(len(noise_sd))]
        first_covered += next(iter(hits.values()))
    return (covered / rounds).tolist(), first_covered / rounds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4000)
    rounds = parser.parse_args().rounds
    print("| seeds | sd of the seeds' effect | sd of the trials' noise | all trials | worst trial | the best mean |")
    print("| --- | --- | --- | --- | --- | --- |")
    for seeds, seed_sd, noise_sd in itertools.product(SEEDS, SEED_SD, NOISE_SD):
        shares, first = coverage(seeds, seed_sd, noise_sd, rounds)
        noise = ", ".join(f"{one:g}" for one in dict.fromkeys(noise_sd))
        worst = min(shares)
        print(f"| {seeds} | {seed_sd:g} | {noise} | {np.mean(shares):.3f} | {worst:.3f} | {first:.3f} |", flush=True)


if __name__ == "__main__":
    main()
