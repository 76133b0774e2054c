"""Compares studies, and ranks hyperparameters by importance."""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from sqlalchemy import Engine

from tuner.errors import UsageError
from tuner.output.numbers import plain
from tuner.results.json_rows import CompareJson, ImportanceJson, SharesJson
from tuner.results.rows import ended_counts
from tuner.storage.read.lineage import Effort, read_efforts, read_train_seconds
from tuner.storage.read.queries import find_study, outcome_counts, read_standings
from tuner.storage.read.ranking import is_feasible, read_values
from tuner.trial import Outcome

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from tuner.storage import AnyURL

MOST_TRIALS = 2000
"""The maximum number of trials for PED-ANOVA's importances; of more trials, this many are used at equal distances."""
FANOVA_TRIALS = 500
"""The same for fANOVA, whose time grows with the square: half a minute for 1,000 trials."""
_FEWEST_TRIALS = 10


def compare_rows(engine: Engine, names: Sequence[str]) -> list[CompareJson]:
    """Return one row for each study: best and median objective, counts, hours, and hours that pruning saved.

    Best and median use complete trials that satisfy their constraints. With several objectives, the first is compared.

    Raises:
        UnknownStudy: there is no such study.
    """
    return [_compare_row(engine, name) for name in names]


def _compare_row(engine: Engine, name: str) -> CompareJson:
    study = find_study(engine, name)
    counts = outcome_counts(engine, study.study_id)
    values = read_values(engine, study.study_id)
    efforts = read_efforts(engine, study.study_id)
    better = max if study.maximize[0] else min
    epochs = study.record.get("epochs")
    standing = read_standings(engine, study.study_id).get(study.study_id) if study.record else None
    return {
        "study": study.name,
        "objective": next(iter(study.record.get("objective", [])), None),
        "direction": study.directions[0],
        "best": plain(better(values)) if values else None,
        "median": plain(statistics.median(values)) if values else None,
        "trials": sum(counts.values()),
        **ended_counts(counts),
        "device_hours": None if standing is None else _hours([standing.used.device_s]),
        "hours_saved": _hours_saved(efforts, epochs) if efforts and epochs else None,
    }


def saved_s(effort: Effort, epochs: int, typical_s: float | None) -> float | None:
    """Return the device seconds that were saved by pruning a trial; 0 if it was not pruned, None if not known.

    This is an estimate: each epoch that was not run counts as long as the trial's epochs after the first. If their time
    is not known, because the trial was pruned after one epoch or taken over, the time of a typical epoch is used.

    Args:
        effort: The time and epochs of the trial.
        epochs: The epochs of a trial that is not pruned.
        typical_s: Device seconds of an epoch of the study; see `typical_epoch_s`.
    """
    left = max(0, epochs - effort.epochs)
    if effort.outcome is not Outcome.PRUNED or not left:
        return 0.0
    epoch_s = effort.epoch_device_s or typical_s
    return None if epoch_s is None else left * epoch_s


def typical_epoch_s(efforts: Iterable[Effort]) -> float | None:
    """Return the median device seconds of an epoch, over the trials for which it is known; None if there are none."""
    known = [effort.epoch_device_s for effort in efforts if effort.epoch_device_s > 0]
    return statistics.median(known) if known else None


def _hours_saved(efforts: Sequence[Effort], epochs: int) -> float | None:
    typical_s = typical_epoch_s(efforts)
    saved = [saved_s(effort, epochs, typical_s) for effort in efforts]
    return None if None in saved else _hours(one for one in saved if one is not None)


def _hours(seconds: Iterable[float]) -> float:
    return round(sum(seconds) / 3600, 4)


# --- Importances


def importance_rows(
    url: AnyURL, name: str, of: Literal["objective", "seconds"] = "objective"
) -> tuple[list[ImportanceJson], list[str]]:
    """Return the importance of each hyperparameter by two methods, and texts about them.

    PED-ANOVA (Watanabe et al., 2023, arXiv:2304.10255) measures what distinguishes the best tenth of the trials from
    all trials; fANOVA (Hutter et al., 2014) measures the share of the objective's variance over the whole space that
    each hyperparameter explains. Both sum to one over the hyperparameters.

    Args:
        url: The storage's URL.
        name: The study.
        of: What the hyperparameters are important for: each objective, or the training time of a complete trial. That
            is its seconds without compiling, if it ran in one attempt; of a trial of plain Optuna, its duration.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: `of` is neither; there are too few complete trials, or no hyperparameter varies.
    """
    import optuna

    from tuner.storage import connected, open_to_read

    if of not in ("objective", "seconds"):
        raise UsageError(f"`of` must be objective or seconds: got {of!r}")
    with connected(url) as engine:
        study = find_study(engine, name)
        seconds = read_train_seconds(engine, study.study_id) if of == "seconds" else {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with contextlib.closing(open_to_read(url)) as storage:
        whole = optuna.load_study(study_name=name, storage=storage)
        complete = whole.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    if len(complete) < _FEWEST_TRIALS:
        raise UsageError(
            f"importances need at least {_FEWEST_TRIALS} complete trials: study {name!r} has {len(complete)} so far"
        )
    notes = [f"from {len(complete)} complete trials"]
    infeasible = sum(not is_feasible(trial.constraints) for trial in complete)
    notes[0] += f" ({infeasible} of them infeasible)" if infeasible else ""
    used = {"PED-ANOVA": MOST_TRIALS, "fANOVA": FANOVA_TRIALS}
    fewer = [f"{method} from {most} of them" for method, most in used.items() if len(complete) > most]
    notes[0] += "".join(f", {part}" for part in fewer)
    rows: list[ImportanceJson] = []
    directions, objectives = study.directions, study.named_objectives
    if of == "seconds":
        timed = _timed(complete, seconds, is_ours=bool(study.record))
        if len(timed) < len(complete):
            notes.append(f"without {len(complete) - len(timed)} trials whose time is not known or had several attempts")
        complete, directions, objectives = timed, ("minimize",), ["seconds"]
    for at, objective in enumerate(objectives or [f"objective {at}" for at, _ in enumerate(directions)]):
        found = _importances(complete, at, directions[at], name)
        for one, shares in found.items():
            rows.append({"objective": objective, "hparam": one, **shares})
        notes.append(f"{objective}: {_verdict(found)}")
    return rows, notes


def _timed(complete: Sequence[FrozenTrial], seconds: Mapping[int, float], *, is_ours: bool) -> list[FrozenTrial]:
    """Return the trials whose time is known, with it as their only value."""
    timed: list[FrozenTrial] = []
    for trial in complete:
        duration = None if is_ours or trial.duration is None else trial.duration.total_seconds()
        value = seconds.get(trial.number, duration)
        if value is not None:
            timed.append(copy.copy(trial))
            timed[-1].values = [value]
    return timed


def _importances(complete: Sequence[FrozenTrial], objective: int, direction: str, name: str) -> dict[str, SharesJson]:
    """Return each hyperparameter's importance for one objective, from studies of that alone, the largest first."""
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

    finite = [trial for trial in complete if math.isfinite(trial.values[objective])]
    if len(finite) < _FEWEST_TRIALS:
        raise UsageError(
            f"importances need at least {_FEWEST_TRIALS} complete trials with a finite value: study {name!r} has "
            f"{len(finite)} so far"
        )
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # for equal values
            ped_anova, fanova = (
                get_param_importances(_drawn(finite, most, objective, direction), evaluator=evaluator)
                for most, evaluator in (
                    (MOST_TRIALS, PedAnovaImportanceEvaluator()),
                    (FANOVA_TRIALS, FanovaImportanceEvaluator(seed=0)),
                )
            )
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"cannot compute importances from the trials of study {name!r}: {error}") from None
    names = sorted({*ped_anova, *fanova}, key=lambda one: -ped_anova.get(one, 0.0) - fanova.get(one, 0.0))
    if not names:
        raise UsageError(
            f"importances need hyperparameters that vary: all complete trials of study {name!r} have the same"
        )
    return {one: {"ped_anova": ped_anova.get(one), "fanova": fanova.get(one)} for one in names}


def _drawn(complete: Sequence[FrozenTrial], most: int, objective: int, direction: str) -> optuna.Study:
    """Return an in-memory study with one objective and a limited number of trials.

    Objectives are divided by a power of two, so that the largest is near 1. Importances do not depend on the scale, but
    fANOVA's variances could overflow.
    """
    import optuna

    study = optuna.create_study(direction=optuna.study.StudyDirection[direction.upper()])
    count = min(len(complete), most)
    chosen = [complete[len(complete) * at // count] for at in range(count)]
    values = scaled([trial.values[objective] for trial in chosen])
    for trial, value in zip(chosen, values, strict=True):
        copied = optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=value)
        study.add_trial(copied)
    return study


def scaled(values: Sequence[float]) -> list[float]:
    """Return finite values divided by a power of two, so that the largest magnitude is in [0.5, 1)."""
    exponent = max((math.frexp(value)[1] for value in values if value), default=0)
    return [math.ldexp(value, -exponent) for value in values]


def _verdict(shares: Mapping[str, SharesJson]) -> str:
    """Describe whether the two methods agree."""
    both = {
        one: (row["ped_anova"], row["fanova"])
        for one, row in shares.items()
        if row["ped_anova"] is not None and row["fanova"] is not None
    }
    if len(both) < 2:
        return "nothing to compare"
    first, second = (max(both, key=lambda one: both[one][method]) for method in (0, 1))
    tau = _kendall([pair[0] for pair in both.values()], [pair[1] for pair in both.values()])
    ranks = f"rank correlation {tau:.2f}"
    if first != second:
        return (
            f"the methods disagree: {first} matters most for being among the best (PED-ANOVA), {second} over the "
            f"whole space (fANOVA); {ranks}"
        )
    if tau < 0.5:
        return f"the methods agree that {first} matters most, but not on the rest; {ranks}"
    return f"the methods agree that {first} matters most; {ranks}"


def _kendall(first: Sequence[float], second: Sequence[float]) -> float:
    from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

    tau, _ = cast("Any", stats).kendalltau(first, second)
    return 0.0 if math.isnan(tau) else float(tau)  # if one of them finds no difference
