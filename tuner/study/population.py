"""The rules of population-based training: which trial copies which other, and with which hyperparameters it continues.

Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846: truncation selection, then each hyperparameter is perturbed or
resampled. The population is the trials of a study. A trial compares itself with what the others had reported for the
same epoch, so they need not train at the same time. Does not import Optuna.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.errors import StudyError
from tuner.study.domains import ChoiceDomain, Domain, FloatDomain, IntDomain, Stored, parameters
from tuner.study.seeds import check_seeds
from tuner.study.space import is_space

if TYPE_CHECKING:
    from tuner.search.population import PopulationPruner

COPIES_KEY = "tuner:copies"
"""The attribute of a trial with the copies that it took of others."""

# --- Exploit


@dataclass(frozen=True)
class Member:
    """A trial of the population: its number, and its objective at the epoch of the comparison."""

    number: int
    value: float


def ranked(members: Sequence[Member], *, maximize: bool) -> list[int]:
    """Return the numbers of the members, best first; of equal ones the lower number first.

    NaN is worse than any number.
    """

    def rank(member: Member) -> tuple[bool, float, int]:
        value = -member.value if maximize else member.value
        return math.isnan(value), value, member.number

    return [member.number for member in sorted(members, key=rank)]


def truncated(quantile: float, count: int) -> int:
    """Return how many of so many members copy, and how many they copy from."""
    return int(quantile * count)


def leaders_of(number: int, order: Sequence[int], quantile: float) -> Sequence[int]:
    """Return the members of which a trial copies one; none if it is not among the last.

    Args:
        number: The trial.
        order: All members, best first.
        quantile: See `PopulationPruner`.
    """
    count = truncated(quantile, len(order))
    return order[:count] if count and number in order[-count:] else ()


# --- Explore


def copied_domains(domains: Mapping[str, Domain]) -> dict[str, Domain]:
    """Return the domains of hyperparameters that a trial can change while it trains: those of traced numbers."""
    return {name: domain for name, domain in domains.items() if domain.traced}


def explored(
    domains: Mapping[str, Domain], params: Mapping[str, Stored], settings: PopulationPruner, rng: random.Random
) -> dict[str, Stored]:
    """Return hyperparameters near those of the copied trial; each is resampled or perturbed by itself.

    Args:
        domains: The domains of those that may change. Values stay within them.
        params: The hyperparameters of the copied trial, as stored.
        settings: The settings.
        rng: The source of random numbers.
    """
    changed = dict(params)
    for name, domain in domains.items():
        if name in params:
            is_new = rng.random() < settings.resample
            changed[name] = _drawn(domain, rng) if is_new else _perturbed(domain, params[name], settings, rng)
    return changed


def _drawn(domain: Domain, rng: random.Random) -> Stored:
    match domain:
        case FloatDomain(low, high, log=True):
            return _within(low, high, math.exp(rng.uniform(math.log(low), math.log(high))))
        case FloatDomain(low, high):
            return rng.uniform(low, high)
        case IntDomain(low, high, log=True):  # each integer has the interval around it, as in Optuna
            drawn = math.exp(rng.uniform(math.log(low - 0.5), math.log(high + 0.5)))
            return int(_within(low, high, round(drawn)))
        case IntDomain(low, high, step):
            return rng.randrange(low, high + 1, step)
        case ChoiceDomain():
            return rng.choice(domain.labels)
        case _:
            raise TypeError(f"not a domain of numbers: {domain!r}")


def _perturbed(domain: Domain, value: Stored, settings: PopulationPruner, rng: random.Random) -> Stored:
    if isinstance(domain, ChoiceDomain):  # the option before it or after it
        at = domain.labels.index(value) + rng.choice((-1, 1))
        return domain.labels[int(_within(0, len(domain.labels) - 1, at))]
    assert isinstance(domain, FloatDomain | IntDomain)
    assert isinstance(value, int | float)
    moved = _within(domain.low, domain.high, value * rng.choice(settings.perturb))
    if isinstance(domain, FloatDomain):
        return float(moved)
    return domain.low + domain.step * round((moved - domain.low) / domain.step)


def _within(low: float, high: float, value: float) -> float:
    return min(max(value, low), high)


# --- What happened


@dataclass(frozen=True)
class Copy:
    """A copy that a trial took of another.

    Attributes:
        epoch: The epoch after which it took it.
        trial: The number of the copied trial, whose state after the same epoch it took.
        hparams: The hyperparameters with which it continued, as stored.
    """

    epoch: int
    trial: int
    hparams: Mapping[str, Stored]


@dataclass(frozen=True)
class Stretch:
    """A part of the training that led to a trial's state.

    Attributes:
        trial: The trial that trained it.
        first: Its first epoch.
        last: Its last epoch; None for the end of the training.
        hparams: Its hyperparameters, as stored.
    """

    trial: int
    first: int
    last: int | None
    hparams: Mapping[str, Stored]


def lineage(
    number: int, copies: Mapping[int, Sequence[Copy]], initial: Mapping[int, Mapping[str, Stored]]
) -> list[Stretch]:
    """Return the training that led to a trial's last state, from the first epoch on.

    Args:
        number: The trial.
        copies: The copies that each trial took, by its number; a trial without any may be missing.
        initial: The hyperparameters with which each trial began.
    """
    found: list[Stretch] = []
    last: int | None = None
    while True:
        earlier = [copy for copy in copies.get(number, ()) if last is None or copy.epoch < last]
        copy = max(earlier, key=lambda copy: copy.epoch, default=None)
        if copy is None:
            return [Stretch(number, 1, last, initial[number]), *reversed(found)]
        found.append(Stretch(number, copy.epoch + 1, last, copy.hparams))
        number, last = copy.trial, copy.epoch


def check_population(
    pruner: object,
    study: str,
    trainer: object,
    seeds: object,
    space: object,
    fixed: Mapping[str, object],
    sampler: object,
) -> None:
    """Raise StudyError if a study cannot be trained as a population although its pruner says so."""
    from tuner.search.population import PopulationPruner

    if not isinstance(pruner, PopulationPruner):
        return
    of, name = f"population-based training (pruner 'pbt', study {study!r})", sampler
    if trainer is None:
        raise StudyError(f"{of} needs a study with `trainer`: only its state can be copied")
    if check_seeds(seeds) != (1,):
        raise StudyError(f"{of} trains one seed in each trial: got seeds={seeds!r}; remove seeds")
    if not is_space(space):
        raise StudyError(f"{of} needs a Space class: got a define-by-run space")
    searched = {key: domain for key, domain, _ in parameters(space) if key not in fixed}
    if not copied_domains(searched):
        raise StudyError(f"{of} needs a traced hyperparameter, which can change during a training: it has none")
    if isinstance(name, Mapping):
        name = name.get("name")  # pyright: ignore[reportUnknownMemberType]
    if name not in ("random", "qmc"):
        raise StudyError(
            f"{of} needs sampler='random' or 'qmc', because others would learn from hyperparameters that trials no "
            f"longer have: got sampler={sampler!r}"
        )
