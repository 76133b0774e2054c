"""Pruners by name. Their resource is the epoch, and they keep their state in the storage, not in an object.

Optuna's `"auto"` resources are estimated from the first finished trials and kept on the pruner, so two workers can
disagree about the rungs; here they are set from the study.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tuner.errors import StudyError
from tuner.search.followed import Followed, without_metric
from tuner.search.options import Named, call, split
from tuner.trial import optuna_private as private

if TYPE_CHECKING:
    import optuna
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

    from tuner.search.halving import AshaPruner, BracketPruner, Judged


@dataclass(frozen=True)
class Trains:
    """How a trial trains.

    Attributes:
        epochs: The number of epochs; None if the study does not say.
        value: The epoch whose objective is the value of a trial.
    """

    epochs: int | None
    value: Literal["last", "best"]


def _asha(options: dict[str, object], trains: Trains) -> BasePruner:
    from tuner.search.halving import AshaPruner

    # Two rungs, at a ninth and a third of the epochs: the usual ones at 1, 3, 9, ... would judge a long training by
    # its warm-up, and leave one trial in dozens to the end.
    first_rung = 1 if trains.epochs is None else -(-trains.epochs // 9)
    return call("pruner", "asha", AshaPruner, options, min_resource=first_rung, reduction_factor=3)


def _hyperband(options: dict[str, object], trains: Trains) -> BasePruner:
    from tuner.search.halving import BracketPruner

    if trains.epochs is None and "max_resource" not in options:
        raise StudyError("the pruner 'hyperband' needs to know how long a trial trains: set epochs, or max_resource")
    return call("pruner", "hyperband", BracketPruner, options, min_resource=1, max_resource=trains.epochs)


def _pbt(options: dict[str, object], trains: Trains) -> BasePruner:
    from tuner.search.population import PopulationPruner

    if "every" not in options:
        raise StudyError("the pruner 'pbt' needs the number of epochs between two comparisons: every=...")
    made = call("pruner", "pbt", PopulationPruner, options)
    if trains.epochs is None or made.every >= trains.epochs:
        raise StudyError(f"the pruner 'pbt' needs more epochs than every={made.every}: got epochs={trains.epochs}")
    return made


def _curve(options: dict[str, Any], trains: Trains) -> BasePruner:
    from tuner.search.curves import CurvePruner

    epochs, takes_best = trains.epochs, trains.value == "best"
    if epochs is None:
        raise StudyError("the pruner 'curve' needs to know how long a trial trains: set epochs")

    def curve(min_epochs: int = 4, probability: float = 0.05) -> BasePruner:
        return CurvePruner(epochs, min_epochs=min_epochs, probability=probability, takes_best=takes_best)

    return call("pruner", "curve", curve, options)


def _median(options: dict[str, object], trains: Trains) -> BasePruner:
    from optuna.pruners import MedianPruner

    return call("pruner", "median", MedianPruner, options)


def _percentile(options: dict[str, object], trains: Trains) -> BasePruner:
    from optuna.pruners import PercentilePruner

    return call("pruner", "percentile", PercentilePruner, options, percentile=25.0)


def _patient(options: dict[str, Any], trains: Trains) -> BasePruner:
    from optuna.pruners import PatientPruner

    inner = options.pop("wrapped", "median")
    if isinstance(inner, dict) and not {"metric", "mode"}.isdisjoint(inner):
        raise StudyError(f"metric and mode belong to the pruner 'patient', not to the one that it wraps: got {inner!r}")
    wrapped = make_pruner(inner, trains.epochs, trains.value)

    def patient(patience: int, min_delta: float = 0.0) -> BasePruner:
        return PatientPruner(wrapped, patience=patience, min_delta=min_delta)

    return call("pruner", "patient", patient, options, patience=3)


def _threshold(options: dict[str, object], trains: Trains) -> BasePruner:
    from optuna.pruners import ThresholdPruner

    return call("pruner", "threshold", ThresholdPruner, options)


def _wilcoxon(options: dict[str, object], trains: Trains) -> BasePruner:
    from optuna.pruners import WilcoxonPruner

    return call("pruner", "wilcoxon", WilcoxonPruner, options)


def _none(options: dict[str, object], trains: Trains) -> BasePruner:
    from optuna.pruners import NopPruner

    return call("pruner", "none", NopPruner, options)


PRUNERS: dict[str, Callable[[dict[str, Any], Trains], BasePruner]] = {
    "asha": _asha,
    "curve": _curve,
    "hyperband": _hyperband,
    "median": _median,
    "none": _none,
    "patient": _patient,
    "pbt": _pbt,
    "percentile": _percentile,
    "threshold": _threshold,
    "wilcoxon": _wilcoxon,
}
"""Name -> a function that takes the options and how a trial trains."""


def make_pruner(given: Named | BasePruner, epochs: int | None, value: Literal["last", "best"] = "last") -> BasePruner:
    """Return the pruner for a name or options; an Optuna object is returned unchanged.

    Args:
        given: A name, a mapping with `name` and the pruner's own options, or an Optuna pruner. A mapping may have
            `metric` and `mode` as well: see `tuner.search.followed`.
        epochs: The study's epochs per trial; None if it does not say.
        value: The epoch whose objective is the value of a trial, which `curve` predicts.

    Raises:
        StudyError: the name or an option is unknown.
    """
    from optuna.pruners import BasePruner

    if isinstance(given, BasePruner):
        return given
    if not isinstance(given, str | dict):
        raise StudyError(f"the pruner must be a name, a mapping or an Optuna pruner: got {given!r}")
    name, options = split("pruner", given, PRUNERS)
    return PRUNERS[name](without_metric(options), Trains(epochs, value))


def rungs_of(pruner: BasePruner, below: int) -> list[int] | None:
    """Return the epochs below a number at which successive halving compares trials; None for another pruner.

    Hyperband has other rungs for each bracket of trials, and Optuna's `min_resource="auto"` is not known beforehand:
    None for them too.
    """
    from optuna.pruners import SuccessiveHalvingPruner

    if not isinstance(pruner, SuccessiveHalvingPruner):
        return None
    settings = private.halving(pruner)
    if settings.min_resource is None:
        return None
    rungs, rung = [], settings.min_resource * settings.reduction_factor**settings.min_early_stopping_rate
    while rung < below:
        rungs.append(rung)
        rung *= settings.reduction_factor
    return rungs


class TrialPruner:
    """Asks a study's pruner about a running trial, of which it keeps its own copy.

    Args:
        study: The study. If the pruner follows another metric than the objective, its storage is a `MetricView`.
        trial: The trial.
        followed: The metrics that the pruner follows; the objective if None.
    """

    def __init__(
        self, study: optuna.Study, trial: optuna.Trial | FrozenTrial, followed: Followed | None = None
    ) -> None:
        self._study, self._followed = study, followed
        self._trial = private.storage_of(study).get_trial(private.trial_id(trial))
        # A trial that was taken over may have reports of its dead worker for later epochs.
        self._trial.intermediate_values = {}

    def must_judge(self, epoch: int) -> bool:
        """Return whether the pruner has something to decide at an epoch; if not, it need not be asked."""
        from optuna.pruners import NopPruner

        halving = self._halving()
        if halving is not None:
            return halving.has_reached_rung(self._study, self._trial, epoch)
        return not isinstance(self._study.pruner, NopPruner)

    def should_prune(self, epoch: int, *values: float, is_feasible: bool | None = None) -> bool:
        """Return whether to stop the trial after this epoch.

        Args:
            epoch: The epoch.
            values: What the trial reported for it.
            is_feasible: Whether the trial satisfies its constraints at this epoch; None if it has none. If so, it is
                only compared with trials that do.
        """
        self._trial.intermediate_values[epoch] = values[0]
        private.forget_trials(self._study)
        is_hopeless = self._ask(epoch, values, is_feasible)
        # Optuna's own pruners store the rungs that a trial has passed.
        stored = private.storage_of(self._study).get_trial(private.trial_id(self._trial))
        private.system_attrs(self._trial).update(stored.system_attrs)
        return is_hopeless

    def _halving(self) -> AshaPruner | BracketPruner | None:
        """Return the pruner if it decides from rungs in the database, by the metrics that it is given."""
        from tuner.search.halving import AshaPruner, BracketPruner

        pruner: object = self._study.pruner
        if self._followed is None or not isinstance(pruner, AshaPruner | BracketPruner):
            return None
        return pruner if pruner.has_rungs(self._study) else None

    def next_place(self, epoch: int, *values: float, is_feasible: bool | None = None) -> dict[str, Any] | None:
        """Return the rung that `should_prune` would enter first, as arguments of the storage's `enter_rung`.

        Returns:
            The arguments; None if it enters none.
        """
        if self._followed is None or (halving := self._halving()) is None:
            return None
        judged = _judged(self._followed, epoch, values, is_feasible)
        return halving.next_place(self._study, self._trial, judged)

    def _ask(self, epoch: int, values: tuple[float, ...], is_feasible: bool | None) -> bool:
        from tuner.search.view import FeasibleView

        study, trial, followed, halving = self._study, self._trial, self._followed, self._halving()
        if followed is None or halving is None:
            if is_feasible:
                study = private.with_storage(study, FeasibleView(private.storage_of(study)), trial)
            return study.pruner.prune(study, trial)
        return halving.judge(study, trial, _judged(followed, epoch, values, is_feasible))


def _judged(followed: Followed, epoch: int, values: tuple[float, ...], is_feasible: bool | None) -> Judged:
    from tuner.search.halving import Judged

    return Judged(epoch, values, followed.maximize, followed.metric, is_feasible is not False)
