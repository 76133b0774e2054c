"""Which metrics a study's pruner follows: `pruner={"name": "asha", "metric": "val_loss", "mode": "min"}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tuner.errors import StudyError

_SEVERAL = ("asha", "hyperband")
_WITHOUT_METRIC = {"none": "prunes nothing", "pbt": "compares trials by the objective"}
_MODES = {"min": "minimize", "max": "maximize"}


@dataclass(frozen=True)
class Followed:
    """The metrics that a pruner compares.

    Attributes:
        names: Their names: the objectives, or one other metric.
        maximize: For each, whether larger is better.
        metric: The other metric; None for the objectives.
    """

    names: tuple[str, ...]
    maximize: tuple[bool, ...]
    metric: str | None = None

    def of(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """Return the values among the metrics of a report."""
        return tuple(metrics[name] for name in self.names)


def without_metric(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a pruner itself."""
    return {name: value for name, value in options.items() if name not in ("metric", "mode")}


def prunes_nothing(pruner: object) -> bool:
    """Return whether a study's pruner never stops a trial."""
    from optuna.pruners import NopPruner

    return isinstance(pruner, NopPruner) or pruner in ("none", {"name": "none"})


def followed_metrics(pruner: object, objectives: Sequence[str], directions: Sequence[str]) -> Followed:
    """Return the metrics that a study's pruner follows.

    Args:
        pruner: A name, a mapping with `name`, perhaps `metric` and `mode`, and the pruner's options, or an object.
        objectives: The study's objectives.
        directions: Their directions.

    Raises:
        StudyError: metric or mode is wrong, or the pruner cannot follow several objectives.
    """
    options: Mapping[str, Any] = cast("Any", pruner) if isinstance(pruner, Mapping) else {}
    metric, mode = options.get("metric"), options.get("mode")
    if metric is None and mode is None:
        _check_several(pruner, options.get("name", pruner), objectives)
        return Followed(tuple(objectives), tuple(one == "maximize" for one in directions))
    direction = _direction(metric, mode, dict(zip(objectives, directions, strict=True)))
    assert isinstance(metric, str)
    name = options.get("name")
    if name in _WITHOUT_METRIC or (name == "wilcoxon" and len(objectives) > 1):
        why = _WITHOUT_METRIC.get(name, "compares trials with the best one, which only one objective has")
        raise StudyError(f"the pruner {name!r} {why}: remove metric={metric!r}, or choose another pruner")
    is_objective = list(objectives) == [metric]
    return Followed((metric,), (direction == "maximize",), None if is_objective else metric)


def _direction(metric: Any, mode: object, known: Mapping[str, str]) -> str:
    """Return the direction of the metric that a pruner follows."""
    if not isinstance(metric, str) or not metric:
        raise StudyError(f"a pruner's metric must be the name of a reported metric: got {metric!r} with mode={mode!r}")
    if mode not in (*_MODES, None):
        raise StudyError(f"a pruner's mode must be 'min' or 'max': got {mode!r} for the metric {metric!r}")
    direction = known.get(metric) if mode is None else _MODES[str(mode)]
    if direction is None:
        raise StudyError(f"a pruner's metric needs mode='min' or mode='max': got only metric={metric!r}")
    if direction != known.get(metric, direction):
        raise StudyError(f"the study's objective {metric!r} has direction {known[metric]!r}: got mode={mode!r}")
    return direction


def _check_several(pruner: object, name: object, objectives: Sequence[str]) -> None:
    if len(objectives) == 1 or prunes_nothing(pruner):
        return
    if name in _SEVERAL:
        options = pruner if isinstance(pruner, Mapping) else {}
        auto = [option for option in ("min_resource", "max_resource") if options.get(option) == "auto"]
        if auto:
            raise StudyError(f"with several objectives, {auto[0]} must be a number of epochs: got 'auto'")
        return
    raise StudyError(
        f"only the pruners {' and '.join(_SEVERAL)} compare several objectives: got pruner={pruner!r}; use one of "
        "these, 'none', or a mapping with metric= and mode= of one metric"
    )
