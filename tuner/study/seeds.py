"""How many seeds each trial of a study trains with."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

from tuner.errors import StudyError, is_int


@dataclass(frozen=True)
class SeedPlan:
    """How many seeds a trial trains with, from its first epoch to its last.

    Attributes:
        counts: The numbers of seeds, increasing.
        rungs: The epochs after which the next number applies; one fewer than `counts`.
    """

    counts: tuple[int, ...] = (1,)
    rungs: tuple[int, ...] = ()

    @property
    def most(self) -> int:
        """The number of seeds of a trial that trains to its last epoch."""
        return self.counts[-1]

    def after(self, epoch: int) -> int:
        """Return the number of seeds that train on after the report of an epoch; 0 is before the first report."""
        return self.counts[bisect_right(self.rungs, epoch)]

    def record(self) -> dict[str, Any]:
        """Return the part of a study's record; empty for one seed, as in the records of earlier versions."""
        if self == SeedPlan():
            return {}
        return {"seeds": list(self.counts), **({"seed_rungs": list(self.rungs)} if self.rungs else {})}


def seeds_of(record: Mapping[str, Any]) -> list[int]:
    """Return the numbers of seeds of a study's trials, from its record; the last is that of complete trials."""
    return record.get("seeds", [1])


def check_seeds(given: object) -> tuple[int, ...]:
    """Return the numbers of seeds that a study asks for.

    Raises:
        StudyError: it is neither an integer of at least 1 nor a sequence of such integers, each above the one before.
    """
    several: list[Any] = list(cast("Sequence[Any]", given)) if isinstance(given, list | tuple) else [given]
    counts = [count for count in several if is_int(count) and count >= 1]
    is_rising = all(later > earlier for earlier, later in pairwise(counts))
    if not several or len(counts) < len(several) or not is_rising:
        raise StudyError(
            f"seeds must be an integer of at least 1, or several, each larger than the one before: got {given!r}"
        )
    return tuple(counts)


def make_plan(counts: tuple[int, ...], rungs: Sequence[int] | None, last_decision: int, about: str) -> SeedPlan:
    """Return the plan of a study.

    Args:
        counts: What `check_seeds` returned.
        rungs: The epochs at which the pruner compares trials; None if the pruner has no rungs.
        last_decision: The last epoch after which a trial may be pruned.
        about: The pruner and the study, for messages.

    Raises:
        StudyError: the pruner has no rungs, or a trial passes too few of them.
    """
    if len(counts) == 1:
        return SeedPlan(counts)
    given = f"seeds={counts}"
    if rungs is None:
        raise StudyError(
            f"{given} adds seeds at the rungs of the pruner, so it needs pruner='asha': got {about}; use seeds="
            f"{counts[-1]} to train each trial with all seeds from its first epoch"
        )
    passed = [rung for rung in rungs if rung <= last_decision]
    if len(passed) < len(counts) - 1:
        found = f"{len(passed)} (after epoch {', '.join(map(str, passed))})" if passed else "none"
        raise StudyError(
            f"{given} needs {len(counts) - 1} rungs before the last report of a trial: got {found} from {about}; train "
            "more epochs, set min_resource and reduction_factor of the pruner, or use fewer numbers"
        )
    return SeedPlan(counts, tuple(passed[: len(counts) - 1]))
