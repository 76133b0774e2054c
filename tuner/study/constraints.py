"""Constraints on the metrics of a study: `Study(constraints={"latency_ms": "<= 20"})`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuner.errors import StudyError, nearest
from tuner.output.sanitize import is_unstorable

_MOST_CHARACTERS = 500  # Optuna's key has 512, and a prefix
_FORM = re.compile(r"\s*(<=|>=)\s*(\S+)\s*")


@dataclass(frozen=True)
class Constraint:
    """A bound of a metric.

    Attributes:
        metric: The name of a reported metric.
        is_upper: Whether the metric must be at most the bound; otherwise at least.
        bound: The bound, finite.
    """

    metric: str
    is_upper: bool
    bound: float

    def violation(self, value: float) -> float:
        """Return Optuna's number for a value of the metric: at most 0 if it satisfies the constraint; inf for NaN."""
        if math.isnan(value):
            return math.inf
        return value - self.bound if self.is_upper else self.bound - value

    def __str__(self) -> str:
        """Return the form in which the constraint is recorded."""
        return f"{'<=' if self.is_upper else '>='} {repr(self.bound).removesuffix('.0')}"


def parse_constraints(given: object, study: str) -> tuple[Constraint, ...]:
    """Return the constraints of a study.

    Args:
        given: What the study has: metric -> `"<= NUMBER"` or `">= NUMBER"`.
        study: The study's name, for messages.

    Raises:
        StudyError: this is not such a mapping.
    """
    if not isinstance(given, Mapping):
        raise StudyError(
            f"constraints must be a mapping from metrics to '<= NUMBER' or '>= NUMBER': got {given!r} (study {study!r})"
        )
    return tuple(_parse(metric, text, study) for metric, text in given.items())


def _parse(metric: object, text: object, study: str) -> Constraint:
    if not isinstance(metric, str) or not 0 < len(metric) <= _MOST_CHARACTERS or is_unstorable(metric):
        raise StudyError(
            f"a constraint must be on a metric, a text of 1 to {_MOST_CHARACTERS} characters: got {metric!r} "
            f"(study {study!r})"
        )
    form = _FORM.fullmatch(text) if isinstance(text, str) else None
    bound = math.nan if form is None else _number(form[2])
    if form is None or not math.isfinite(bound):
        raise StudyError(
            f"a constraint must be '<= NUMBER' or '>= NUMBER': got {text!r} for the metric {metric!r} (study {study!r})"
        )
    return Constraint(metric, form[1] == "<=", bound)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


@dataclass(frozen=True)
class Checked:
    """The constraints of a trial.

    Attributes:
        violations: Optuna's number for each constraint, by metric.
        problems: What is wrong with metrics that are missing or NaN, in one text each.
    """

    violations: Mapping[str, float]
    problems: Sequence[str]


def check_metrics(
    constraints: Sequence[Constraint], epoch: int, metrics: Mapping[str, float], *, is_complete: bool
) -> Checked:
    """Check the metrics of a trial, those of the epoch that gives the trial's value.

    A missing metric violates its constraint if the trial is complete. A trial that ended early may not have got to
    report it, so nothing is known.

    Args:
        constraints: The study's constraints.
        epoch: The epoch, for messages.
        metrics: Its metrics.
        is_complete: Whether the trial is complete.
    """
    violations: dict[str, float] = {}
    problems: list[str] = []
    for constraint in constraints:
        name = constraint.metric
        if name in metrics:
            violations[name] = constraint.violation(metrics[name])
            if math.isnan(metrics[name]):
                problems.append(f"its metric {name!r} is NaN in epoch {epoch}")
        elif is_complete:
            violations[name] = math.inf
            problems.append(
                f"epoch {epoch} has no metric {name!r}, which has a constraint: "
                f"it reported {', '.join(metrics) or 'none'}{nearest(name, metrics)}"
            )
    return Checked(violations, problems)
