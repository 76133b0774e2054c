"""TPE and Gaussian processes find better values than random search, on a function and on a table of recorded trials."""

import importlib.util
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SEEDS = range(6)


@pytest.fixture(scope="module")
def quality() -> Any:
    """Return the benchmark, whose results are in `benchmarks/README.md`."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import search_quality  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(BENCHMARKS))
    return search_quality


def gains(quality: Any, problem: str, side: str, trials: int) -> list[float]:
    """Return by how many powers of ten the regret is less than that of random search, for each seed."""

    def regret(name: str, seed: int) -> float:
        return quality.Search(quality.PROBLEMS[problem], quality.SIDES[name], seed).run(trials)

    return [math.log10(regret("random", seed) / regret(side, seed)) for seed in SEEDS]


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["hartmann6", "digits", "branin, disc"])
def test_tpe_beats_random_search(quality: Any, problem: str) -> None:
    found = gains(quality, problem, "tpe", 60)
    error = statistics.stdev(found) / math.sqrt(len(found))
    assert statistics.mean(found) > max(0.2, 2 * error)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the extra gp")
def test_gp_beats_random_search(quality: Any) -> None:
    found = gains(quality, "branin", "gp", 25)
    error = statistics.stdev(found) / math.sqrt(len(found))
    assert statistics.mean(found) > max(0.5, 2 * error)
