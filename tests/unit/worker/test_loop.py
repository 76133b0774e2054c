"""A worker's loop beside what each trial needs anew."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from fake_trainer import FakeTrainer, small_data
from interrupted import wait_interrupted
from optuna.search_space import IntersectionSearchSpace
from storage_tools import opened

from tuner import Space, Study, choice, log_uniform, uniform
from tuner.errors import TrialPruned
from tuner.search import intersection
from tuner.search.intersection import SharedIntersection
from tuner.storage.worker.reporter import Reporter
from tuner.trial import Event, Report, Stop
from tuner.trial.events import EpochEnded, TrialEnded, TrialRestarted
from tuner.worker import run_worker


class Searched(Space):
    slope: float = uniform(-2.0, 6.0)
    learning_rate: float = log_uniform(1e-4, 1.0)
    kind: str = choice("a", "b", "c")


class Trainer(FakeTrainer):
    def values(self, hparams: Searched, epoch: int) -> dict[str, float]:
        return {"loss": abs(hparams.slope) + len(hparams.kind) * math.log(hparams.learning_rate)}


class Noting(optuna.samplers.RandomSampler):
    """Notes which trials its hooks are shown."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.seen: list[tuple[str, int, list[int]]] = []

    def before_trial(self, study: Any, trial: Any) -> None:
        self.seen.append(("before", trial.number, [one.number for one in study.get_trials(deepcopy=False)]))

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        self.seen.append(("after", trial.number, [one.number for one in study.get_trials(deepcopy=False)]))


class ConstantTrainer(FakeTrainer):
    def values(self, hparams: Searched, epoch: int) -> dict[str, float]:
        return {"loss": hparams.slope}


@pytest.mark.slow
def test_under_hyperband_a_sampler_is_shown_the_bracket(tmp_path: Path) -> None:
    """As by Optuna itself, before a trial and after it."""
    name, trials, epochs = "brackets", 14, 9
    plain = optuna.create_study(
        study_name=name, sampler=Noting(0), pruner=optuna.pruners.HyperbandPruner(max_resource=epochs)
    )

    def objective(trial: optuna.Trial) -> float:
        slope = trial.suggest_float("slope", -2.0, 6.0)
        trial.suggest_float("learning_rate", 1e-4, 1.0, log=True)
        trial.suggest_categorical("kind", ["a", "b", "c"])
        for epoch in range(1, epochs):
            trial.report(slope, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return slope

    plain.optimize(objective, n_trials=trials)
    sampler = Noting(0)
    study = Study(
        name=name,
        space=Searched,
        trainer=ConstantTrainer(),
        data=small_data,
        objective="loss",
        direction="minimize",
        epochs=epochs,
        trials=trials,
        sampler=sampler,
        pruner=optuna.pruners.HyperbandPruner(max_resource=epochs),
        keep_best=0,
    )
    url = f"sqlite:///{tmp_path}/study.db"
    run_worker(study, url, artifacts=str(tmp_path))

    assert sampler.seen == plain.sampler.seen  # type: ignore[attr-defined]
    assert len({tuple(shown) for hook, _, shown in sampler.seen if hook == "after"}) > 3
    assert any(len(shown) < number for _, number, shown in sampler.seen), "a bracket is not the study"


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
@pytest.mark.slow
def test_what_all_trials_have_in_common_is_found_quickly(
    sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suggestions are those with Optuna's own comparison of all distributions."""
    compared: list[str] = []

    def noted(name: str, calculate: Any) -> Any:
        return lambda *given, **options: compared.append(name) or calculate(*given, **options)

    def run(name: str) -> list[dict[str, Any]]:
        study = Study(
            name="common",
            space=Searched,
            trainer=Trainer(),
            data=small_data,
            objective="loss",
            direction="minimize",
            epochs=1,
            trials=16,
            sampler=sampler,
            keep_best=0,
        )
        url = f"sqlite:///{tmp_path}/{name}.db"
        run_worker(study, url, artifacts=str(tmp_path / name))
        with opened(url) as storage:
            return [trial.params for trial in storage.get_all_trials(storage.get_study_id_from_name("common"))]

    monkeypatch.setattr(SharedIntersection, "calculate", noted("ours", SharedIntersection.calculate))
    monkeypatch.setattr(IntersectionSearchSpace, "calculate", noted("Optuna's", IntersectionSearchSpace.calculate))
    found = run("one")
    assert compared == ["ours"] * 16
    compared.clear()
    monkeypatch.setattr(intersection, "with_shared_intersection", lambda made: made)
    assert run("two") == found
    assert compared == ["Optuna's"] * 16


class Wide(FakeTrainer):
    """Saves at each epoch; its checkpoints fit those of its width alone. It gives up after some epochs."""

    def __init__(self, width: int, *, reported: int) -> None:
        self.width, self.reported = width, reported

    def train_model(
        self, hparams: Searched, splits: Any, *, epochs: int, stop: Any, checkpoints: Any, **options: Any
    ) -> Any:
        checkpoints.restore({"w": np.zeros(self.width)})
        for epoch in range(1, epochs + 1):
            checkpoints.save(epoch, {"w": np.zeros(self.width)}, {"reports": []})
            if stop():
                return
            yield Report(epoch, epoch, {"loss": float(self.width)})
            if epoch == self.reported:
                raise TrialPruned


@pytest.mark.slow
def test_a_trial_whose_checkpoint_no_longer_fits_restarts_and_says_so_and_the_study_goes_on(tmp_path: Path) -> None:
    def study(trainer: Wide) -> Study:
        return Study(
            name="wide", space=Searched, trainer=trainer, data=small_data, objective="loss", direction="minimize",
            epochs=4, trials=2, sampler="random", pruner="none", keep_best=0,
        )  # fmt: skip

    url, artifacts, stop = f"sqlite:///{tmp_path / 'study.db'}", str(tmp_path / "artifacts"), Stop()

    def stop_after_three(event: Event) -> None:
        stop.requested |= isinstance(event, EpochEnded) and event.epoch == 3

    run_worker(study(Wide(2, reported=9)), url, artifacts=artifacts, say=stop_after_three, stop=stop)
    said: list[Event] = []

    run_worker(study(Wide(3, reported=1)), url, artifacts=artifacts, say=said.append)

    (restart,) = [event for event in said if isinstance(event, TrialRestarted)]
    assert restart.trial == 0
    assert restart.error.startswith("its checkpoint has another state, ")
    ended = [(event.trial, event.outcome) for event in said if isinstance(event, TrialEnded)]
    assert ended == [(0, "pruned"), (1, "pruned")]
    with opened(url) as storage:
        trials = optuna.load_study(study_name="wide", storage=storage).trials
    assert [trial.intermediate_values for trial in trials] == [{1: 3.0}, {1: 3.0}], "nothing is left of before"


class Resumed(FakeTrainer):
    """Its first worker stores the report of epoch 1 alone; its checkpoint has those of epochs 1 to 3."""

    def train_model(self, hparams: Searched, splits: Any, *, epochs: int, checkpoints: Any, **options: Any) -> Any:
        reports = [Report(epoch, 10 * epoch, {"loss": 1 / epoch}) for epoch in range(1, epochs + 1)]
        state = {"w": np.zeros(1)}
        if checkpoints.restore(state) is None:
            checkpoints.save(30, state, {"reports": [dataclasses.asdict(one) for one in reports[:3]]})
            yield reports[0]
        else:
            yield reports[3]


class Stoppable(FakeTrainer):
    def train_model(self, hparams: Searched, splits: Any, *, epochs: int, stop: Any, **options: Any) -> Any:
        for epoch in range(1, epochs + 1):
            if stop():
                return
            yield Report(epoch, epoch, {"loss": 1 / epoch})


@pytest.mark.parametrize("last", [2, 3])
def test_reports_that_wait_for_the_database_are_stored_before_a_trial_ends_or_is_given_back(
    last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reporter, "store", lambda reporter, one: reporter.keep([one]) is not None)  # as if it were away
    stop = Stop()
    study = Study(
        name="away", space=Searched, trainer=Stoppable(), data=small_data, objective="loss", direction="minimize",
        epochs=3, trials=1, sampler="random", pruner="none", keep_best=0,
    )  # fmt: skip

    def stop_after_the_last(event: Event) -> None:
        stop.requested |= isinstance(event, EpochEnded) and event.epoch == last

    url = f"sqlite:///{tmp_path / 'study.db'}"
    run_worker(study, url, artifacts=str(tmp_path / "artifacts"), say=stop_after_the_last, stop=stop)

    with opened(url) as storage:
        (trial,) = optuna.load_study(study_name="away", storage=storage).trials
    assert trial.state.name == ("COMPLETE" if last == 3 else "RUNNING")
    assert trial.intermediate_values == {epoch: 1 / epoch for epoch in range(1, last + 1)}


class Curves(optuna.samplers.RandomSampler):
    """Notes the values that it is told of at the end of a trial."""

    def __init__(self) -> None:
        super().__init__(0)
        self.told: list[dict[int, float]] = []

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        self.told.append(trial.intermediate_values)


@pytest.mark.slow
def test_reports_that_only_a_checkpoint_has_are_stored_by_the_worker_that_resumes_it(tmp_path: Path) -> None:
    """Those of a worker that was killed before it could store them, as while the database was away."""
    sampler, stop = Curves(), Stop()
    study = Study(
        name="resumed", space=Searched, trainer=Resumed(), data=small_data, objective="loss", direction="minimize",
        epochs=4, trials=1, sampler=sampler, pruner="none", keep_best=0,
    )  # fmt: skip
    url, artifacts = f"sqlite:///{tmp_path / 'study.db'}", str(tmp_path / "artifacts")

    def stop_at_once(event: Event) -> None:
        stop.requested |= isinstance(event, EpochEnded)

    def stored() -> dict[int, float]:
        with opened(url) as storage:
            (trial,) = optuna.load_study(study_name="resumed", storage=storage).trials
        return trial.intermediate_values

    run_worker(study, url, artifacts=artifacts, say=stop_at_once, stop=stop)
    assert stored() == {1: 1.0}

    run_worker(study, url, artifacts=artifacts)

    assert stored() == {1: 1.0, 2: 1 / 2, 3: 1 / 3, 4: 1 / 4}
    assert sampler.told == [stored()]


class Placed(FakeTrainer):
    """Notes where each trial saves its checkpoints."""

    def __init__(self) -> None:
        self.folders: list[Path] = []

    def train_model(self, hparams: Searched, splits: Any, *, checkpoints: Any, **options: Any) -> Any:
        assert not checkpoints.has_latest()
        self.folders.append(checkpoints.folder)
        checkpoints.save(1, {"w": np.zeros(1)}, {"reports": []})
        yield Report(1, 1, {"loss": hparams.slope})


@pytest.mark.slow
def test_no_two_trials_use_one_folder_also_of_studies_with_one_name(tmp_path: Path) -> None:
    trainer, count = Placed(), 12  # with numbers of two digits
    study = Study(
        name="placed", space=Searched, trainer=trainer, data=small_data, objective="loss", direction="minimize",
        epochs=1, trials=count, sampler="random", pruner="none", keep_best=0,
    )  # fmt: skip
    for database in ("one", "two"):
        run_worker(study, f"sqlite:///{tmp_path / database}.db", artifacts=str(tmp_path / "artifacts"))

    assert len(set(trainer.folders)) == len(trainer.folders) == 2 * count
    assert not any(one in other.parents for one in trainer.folders for other in trainer.folders)
    assert len({folder.parent for folder in trainer.folders}) == 2, "one for each study"
    assert {folder.parent.parent for folder in trainer.folders} == {tmp_path / "artifacts"}


class Interrupted(FakeTrainer):
    """Its first training is interrupted."""

    is_first = True

    def train_model(self, hparams: Searched, splits: Any, **options: Any) -> Any:
        if self.is_first:
            self.is_first = False
            wait_interrupted()
        yield Report(1, 1, {"loss": hparams.slope})


def test_a_trial_that_is_interrupted_in_the_middle_of_threading_has_not_failed(tmp_path: Path) -> None:
    study = Study(
        name="interrupted", space=Searched, trainer=Interrupted(), data=small_data, objective="loss",
        direction="minimize", epochs=1, trials=1, sampler="random", pruner="none", keep_best=0, retries=0,
    )  # fmt: skip
    url, artifacts = f"sqlite:///{tmp_path / 'study.db'}", str(tmp_path / "artifacts")
    with pytest.raises(RuntimeError, match="un-acquired lock"):
        run_worker(study, url, artifacts=artifacts)
    ended: list[Event] = []

    run_worker(study, url, artifacts=artifacts, say=ended.append)

    assert [(event.trial, event.outcome) for event in ended if isinstance(event, TrialEnded)] == [(0, "complete")]
