"""Trains a stored trial again: with the same seed, to check that its results match, or with other seeds."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import optuna
from sqlalchemy import Engine

from tuner.errors import ArtifactsURLError, StudyChanged, StudyError, UsageError
from tuner.results.rows import OTHER_FILE, best_rows, check_file, no_feasible
from tuner.storage.artifacts import LAST, artifacts_of
from tuner.storage.read.extensions import find_extension
from tuner.storage.read.lineage import StudyFile, read_metrics, read_study_file
from tuner.storage.read.population import read_copies
from tuner.storage.read.queries import (
    StudyRow,
    find_baseline,
    find_study,
    read_by_ids,
    read_numbers,
    read_programs,
    read_trial,
)
from tuner.storage.worker.confirmations import read_confirmations, store_confirmation
from tuner.storage.worker.studies import mode_of
from tuner.study import StudyData, StudySpec, trial_seed
from tuner.study.costs import LATENCY
from tuner.study.file import Settings, function_study, split_target, study_in
from tuner.study.population import Stretch, lineage
from tuner.study.source import call_study_code
from tuner.trial import Outcome, Report, all_finite
from tuner.trial.environment import DEVICES_VARIABLE
from tuner.worker.extension import copy_last
from tuner.worker.population import ReplayedMember
from tuner.worker.runtime import Runtime, make_runtime
from tuner.worker.trainables.choose import make_trainable
from tuner.worker.trainables.trainable import Trainable, UnstoredRun, check_objectives, ranking_values


@dataclass(frozen=True)
class Rerunner:
    """A study for training its trials again: its row, the `Study`, its file, and what trains a trial.

    `of_one_seed` trains with a single seed if trials of the study have several.
    """

    engine: Engine
    row: StudyRow
    study: StudySpec
    file: Path
    trainable: Trainable
    runtime: Runtime
    of_one_seed: Trainable | None = None

    def train(
        self,
        number: int,
        seed: int | None,
        say: Callable[[Report], bool],
        *,
        trainable: Trainable | None = None,
    ) -> list[float]:
        """Train with a trial's stored hyperparameters; return the values of the objectives.

        Args:
            number: The trial.
            seed: The seed of the training; None for those of the trial and of the trials that it copied.
            say: Called with each report; returns whether to end the training.
            trainable: What trains; by default what trains a trial of the study, maybe with several seeds.
        """
        trainable = trainable or self.trainable
        stretches = self.lineage(number)
        first, stages = stretches[0], self.stages(number)
        seeded_as = stages[0].trial if len(stages) > 1 else number
        own = first.trial if len(stages) == 1 else seeded_as
        with tempfile.TemporaryDirectory(prefix="tuner-") as folder:
            root, run = Path(folder), None
            for at, stage in enumerate(stages):
                run = _Rerun(self.study, number, first.hparams, _seed(self.study, own, seed), root / str(at), say)
                run.stage, run.seeded_as = stage, seeded_as
                run.is_resumed, run.keeps_last, run.resumes_later = at > 0, at < len(stages) - 1, len(stages) > 1
                if at:
                    copy_last(root / str(at - 1) / LAST, run.root)
                if len(stretches) > 1:
                    run.others = ReplayedMember(self.study, stretches, reseed=seed is None)
                with trainable.saved(run) as saved:
                    trainable.run(run, saved)
                    if run.keeps_last and not saved.write_last(run.root / LAST):
                        raise StudyError(
                            f"trial {number} cannot be trained again: trial {stage.trial} has no last state"
                        )
            assert run is not None
            return run.values

    def stages(self, number: int) -> list[Stage]:
        """Return the trainings that a trial consists of: its own, and before that of trials that it continues."""
        trial = read_trial(self.engine, self.row, number)
        extension = find_extension(self.engine, trial.trial_id)
        if extension is None:
            return [Stage(number, self.study.epochs)]
        return [*self.stages(extension.of), Stage(number, extension.epochs)]

    def lineage(self, number: int) -> list[Stretch]:
        """Return the training that led to a trial's last state: its own, and before that of trials that it copied."""
        copies = read_copies(self.engine, self.row.study_id)
        numbers = (
            {number, *copies, *(copy.trial for taken in copies.values() for copy in taken)} if copies else {number}
        )
        initial = {trial.number: trial.hparams for trial in read_numbers(self.engine, self.row, numbers)}
        return lineage(number, copies, initial)

    def lanes(self, number: int) -> int:
        """Return the number of trainings that the program of a trial ran at once; 1 if it trained alone."""
        return read_programs(self.engine, read_trial(self.engine, self.row, number).trial_id).lanes


def _seed(study: StudySpec, number: int, given: int | None) -> int:
    return trial_seed(study.seed, number, "training") if given is None else given


@dataclass(frozen=True)
class Stage:
    """A training that another one continues: its trial, and the total number of epochs up to its end."""

    trial: int
    epochs: int | None


class _Rerun(UnstoredRun):
    """A run of a trial that stores nothing; implements `tuner.worker.trainables.trainable.Run`.

    Args:
        study: The study.
        number: The trial.
        params: Its stored hyperparameters.
        seed: The seed of the training.
        root: A folder for its files, which is removed afterwards.
        say: Called with each report; returns whether to end the training.
    """

    is_resumed = resumes_later = keeps_last = False

    def __init__(
        self,
        study: StudySpec,
        number: int,
        params: Mapping[str, object],
        seed: int,
        root: Path,
        say: Callable[[Report], bool],
    ) -> None:
        super().__init__(study, number, params, seed, root)
        self.stage = Stage(number, study.epochs)
        self.trial = _ReportingTrial(params, number, self)
        if study.space is not None:
            study.sample(cast("Any", self.trial))  # its `params` are those that were suggested
        self.values: list[float] = []
        self.curve: dict[int, float] = {}
        self.must_end = False
        self._say = say

    @property
    def epochs(self) -> int | None:
        return self.stage.epochs

    def keep(self, earlier: Iterable[Report]) -> None:
        """Note the values of the training that this one continues."""
        self.curve |= {report.epoch: report.values(self.objectives)[0] for report in earlier}

    def report(self, report: Report, *, is_last: bool = False) -> bool:
        check_objectives(report, self.objectives)
        values = report.values(self.objectives)
        self.curve[report.epoch] = values[0]
        self.values = ranking_values(self.curve, values, self.study)
        self.must_end = self._say(report) or not all_finite(report.values(self.objectives))
        return self.must_end

    def store(self, report: Report, *, may_prune: bool = True) -> bool:
        return self._say(report)

    def set_values(self, values: Sequence[float]) -> None:
        self.values = list(values)


class _ReportingTrial(optuna.trial.FixedTrial):
    """An Optuna trial with stored hyperparameters whose reports go to a run.

    Args:
        params: The stored hyperparameters.
        number: The trial.
        run: The run.
    """

    def __init__(self, params: Mapping[str, Any], number: int, run: _Rerun) -> None:
        super().__init__(dict(params), number)
        self._run, self._must_end = run, False

    def report(self, value: float, step: int) -> None:
        name = self._run.objectives[0]
        self._must_end = self._run.store(Report(int(step), int(step), {name: float(value)})) or self._must_end

    def should_prune(self) -> bool:
        return self._must_end

    def set_constraint(self, key: str, value: float) -> None:
        """Do nothing: the stored trial keeps its constraints. Optuna's `FixedTrial` lacks this method."""


def open_study(engine: Engine, name: str, file: str | None, fixed: Mapping[str, str]) -> Rerunner:
    """Load a stored study from the file of its last launch, or from another file.

    Args:
        engine: The storage's engine.
        name: The study.
        file: `FILE` or `FILE:NAME`; by default the file of its latest worker.
        fixed: Hyperparameters that are not searched, as in the launch: name -> text.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: its file does not exist, or the study in it has changed.
    """
    row = find_study(engine, name)
    if not row.record:
        raise UsageError(f"study {name!r} was not created by tuner: only trials of `tuner launch` can be trained again")
    recorded = read_study_file(engine, row.study_id)
    if file is None and recorded is None:
        raise UsageError(f"the file of study {name!r} is not recorded: pass `file`")
    if file is None and recorded is not None and not Path(recorded.path).is_file():
        raise UsageError(f"the file of study {name!r} is not on this machine: no file {recorded.path}; pass `file`")
    if file is not None:
        found, asked = split_target(file)
    else:
        assert recorded is not None
        found, asked = Path(recorded.path), name if recorded.function is None else None
    study = load_again(row, recorded, found, asked)
    study = study.changed(seed=row.record["seed"], fixed=fixed)
    _check_same(study, row, found)
    devices, artifacts = os.environ.get(DEVICES_VARIABLE, ""), None
    with contextlib.suppress(ArtifactsURLError):  # only for the compile cache
        given = artifacts_of(None)
        artifacts = given if given.folder.is_dir() else None  # the study's may be elsewhere
    runtime = make_runtime(devices, needs_jax=study.trainer is not None, artifacts=artifacts)
    data_for = None
    if study.data is not None:
        data = StudyData(study.data, study.seed)
        data_for = partial(call_study_code, data.failure, data.for_hparams)
    choose = partial(mode_of, engine, row.study_id)
    trainable, one = (
        make_trainable(each, data_for, runtime, {}, row.record, choose) for each in (study, study.changed(seeds=1))
    )
    return Rerunner(engine, row, study, found, trainable, runtime, one)


def _check_same(study: StudySpec, row: StudyRow, path: Path) -> None:
    """Raise StudyChanged if the study in a file is not the stored one: its trials would train otherwise."""
    changes = study.changes_since(row.record)
    if not changes:
        return
    about_fixed = [change for change in changes if " fixed at " in change]
    ways = ["pass the hyperparameters that the launch fixed as `fixed`"] if about_fixed else []
    if len(about_fixed) < len(changes):
        ways.append("change the file back, or pass a copy of it as it was at the launch as `file`")
    raise StudyChanged(
        f"study {row.name!r} has changed since its first launch, so its trials would not train as before ({path}): "
        f"{'; '.join(changes)}; {'; also '.join(ways)}"
    )


def load_again(row: StudyRow, recorded: StudyFile | None, path: Path, asked: str | None) -> StudySpec:
    """Return a stored study as a file has it now: its `Study`, or that of the function that was launched.

    Args:
        row: The study.
        recorded: The file of its latest worker.
        path: The file.
        asked: The name of a study or a function in the file; None if it has one, or for the recorded function.

    Raises:
        StudyFileError: the file has an error, or no such study.
    """
    if recorded is None or recorded.function is None:
        return study_in(path, asked)
    settings = Settings(
        name=row.name,
        objectives=row.record["objective"],
        directions=row.record["direction"],
        epochs=row.record["epochs"],
        trials=1,
    )
    return function_study(path, asked or recorded.function, settings)


# --- With the same seed


@dataclass(frozen=True)
class Comparison:
    """One metric, recorded and found again: a row of `tuner reproduce`."""

    metric: str
    """Its name; `trial's NAME` for the trial's value in an objective."""
    epochs: int
    """How many epochs have it in both; 0 for a value of the trial."""
    recorded: float
    found: float
    """Its last value then and now."""
    difference: float
    """The largest difference over all epochs, as a share of the larger of the two; infinite if only one is finite."""


def reproduce(rerunner: Rerunner, number: int, say: Callable[[Report], None]) -> list[Comparison]:
    """Train a trial again from its seed, for the same number of epochs, and compare all metrics of all epochs.

    The values of a complete trial of a function, an Optuna objective or a command are compared as well. If the trial
    copied others, the epochs before are those of the trials that it copied.

    Raises:
        UnknownStudy: the study has no such trial.
        UsageError: the trial has neither reports nor values, or the study's file has changed since it ran.
    """
    engine = rerunner.engine
    trial = read_trial(engine, rerunner.row, number)
    check_file(engine, trial, rerunner.file, OTHER_FILE)
    recorded = _recorded(rerunner, number)
    values = None if rerunner.study.kind == "trainer" else trial.values  # a trainer's are among its reports
    if not (recorded or values):
        raise UsageError(f"trial {number} has no reports and no value to compare with")
    found: dict[int, dict[str, float]] = {}
    is_complete = trial.outcome is Outcome.COMPLETE  # it ends by itself, maybe with a value that it returns

    def note(report: Report) -> bool:
        say(report)
        found[report.epoch] = dict(report.metrics)
        return not is_complete and report.epoch >= max(recorded)

    again = rerunner.train(number, None, note)
    names = dict.fromkeys(name for metrics in recorded.values() for name in metrics)
    if LATENCY in rerunner.study.measure:
        names.pop(LATENCY, None)  # a time is never the same
    rows = [_compare(name, recorded, found) for name in names]
    return [*rows, *_compare_values(rerunner.study.objectives, values or [], again)]


def _compare_values(names: Sequence[str], recorded: Sequence[float], found: Sequence[float]) -> list[Comparison]:
    """Return a row for each objective, if values were recorded; the training may have ended without any now."""
    found = [*found, *[math.nan] * len(recorded)]
    pairs = zip(names, recorded, found, strict=False)
    return [Comparison(f"trial's {name}", 0, then, now, relative(then, now)) for name, then, now in pairs]


def _recorded(rerunner: Rerunner, number: int) -> dict[int, Mapping[str, float]]:
    """Return the metrics of the training that led to a trial's last state, by epoch."""
    found: dict[int, Mapping[str, float]] = {}
    for stretch in rerunner.lineage(number):
        trial_id = read_trial(rerunner.engine, rerunner.row, stretch.trial).trial_id
        for epoch, (_, metrics) in read_metrics(rerunner.engine, trial_id).items():
            if stretch.first <= epoch and (stretch.last is None or epoch <= stretch.last):
                found[epoch] = metrics
    return found


def _compare(
    name: str, recorded: Mapping[int, Mapping[str, float]], found: Mapping[int, Mapping[str, float]]
) -> Comparison:
    epochs = [epoch for epoch in recorded if name in recorded[epoch] and name in found.get(epoch, {})]
    pairs = [(recorded[epoch][name], found[epoch][name]) for epoch in epochs]
    is_whole = len(epochs) == sum(name in metrics for metrics in recorded.values())
    difference = max((relative(*pair) for pair in pairs), default=0.0) if is_whole else math.inf
    last = pairs[-1] if pairs else (math.nan, math.nan)
    return Comparison(name, len(epochs), *last, difference)


def relative(first: float, second: float) -> float:
    """Return the relative difference of two numbers; 0 for the same infinity, and for two NaN."""
    if first == second or (math.isnan(first) and math.isnan(second)):
        return 0.0
    if not (math.isfinite(first) and math.isfinite(second)):
        return math.inf
    return abs(first - second) / max(abs(first), abs(second))


# --- With other seeds


def confirm(rerunner: Rerunner, count: int, seeds: int, say: Callable[[int, int, float | None], None]) -> None:
    """Train the best trials again, and the study's baseline, each with `seeds` other seeds; store their objectives.

    Stored results are not computed again. Trials that were confirmed before get the same number of seeds, because only
    seeds that all trials have are compared.

    Args:
        rerunner: The study.
        count: The number of best trials.
        seeds: The number of seeds for each trial.
        say: Called with trial, repeat and objective after each training.

    Raises:
        UsageError: the study has several objectives or no complete trial, or its file has changed since a trial ran.
    """
    engine, study, row = rerunner.engine, rerunner.study, rerunner.row
    if len(study.objectives) > 1:
        raise UsageError(f"cannot confirm trials of several objectives: {study.name!r} has {len(study.objectives)}")
    numbers = [best["number"] for best in best_rows(engine, row.name, count, confirmed=False)]
    if not numbers:
        missing = f"study {row.name!r} has no complete trials to confirm yet"
        raise UsageError(no_feasible(engine, row.name) or missing)
    baseline = find_baseline(engine, row)
    if baseline is not None and baseline not in numbers:
        numbers.append(baseline)
    known = read_confirmations(engine, row.study_id)
    chosen = [read_trial(engine, row, number) for number in numbers]
    chosen += [trial for trial in read_by_ids(engine, row, list(known)) if trial.number not in numbers]
    for trial in chosen:
        check_file(engine, trial, rerunner.file, OTHER_FILE)
    for trial in chosen:
        for repeat in range(1, seeds + 1):
            if repeat in known.get(trial.trial_id, {}):
                continue
            seed = trial_seed(study.seed, repeat, "confirmation")
            values = rerunner.train(trial.number, seed, lambda report: False, trainable=rerunner.of_one_seed)
            value = values[0] if values and math.isfinite(values[0]) else None
            store_confirmation(engine, row.study_id, trial.trial_id, repeat, value)
            say(trial.number, repeat, value)
            rerunner.runtime.tidy()
