"""Training functions: their three forms, what they may report, states, pruning, and trials that start again."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from storage_tools import opened, plain_trials

import tuner
from tuner import Space, Study, Trial, load_state, uniform
from tuner.errors import CheckpointError, StudyError, StudyStopped, TrialPruned
from tuner.results.rows import show_row
from tuner.storage.read.lineage import read_metrics
from tuner.study.trial import numbers
from tuner.trial import Stop
from tuner.worker import run_worker
from tuner.worker.trainables.saves import TrialSaves


class HParams(Space):
    x: float = uniform(0.0, 1.0)


class Runs:
    """Runs studies of one trial or several, and reads what is stored with plain Optuna."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"sqlite:///{folder}/study.db"

    def __call__(self, train: Any, *, stop: Stop | None = None, **settings: Any) -> list[optuna.trial.FrozenTrial]:
        given = {"objective": "loss", "direction": "minimize", "trials": 1, "pruner": "none", "retries": 0}
        study = Study(name="one", **{"space": HParams, "train": train, **given, **settings})
        run_worker(study, self.url, artifacts=str(self.folder / "artifacts"), stop=stop)
        return self.trials()

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return plain_trials(self.url, "one")

    def metrics(self, trial: optuna.trial.FrozenTrial) -> dict[int, tuple[int, dict[str, float]]]:
        storage: Any = tuner.open_storage(self.url)
        try:
            return {
                epoch: (step, dict(found))
                for epoch, (step, found) in read_metrics(storage.engine, trial._trial_id).items()
            }
        finally:
            storage.close()


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


# --- Three forms


def generator(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
    for epoch in range(3):
        yield {"loss": 1.0 / (epoch + 1), "x": hparams.x}


def reporter(hparams: HParams, trial: Trial) -> None:
    for epoch in range(3):
        trial.report({"loss": 1.0 / (epoch + 1), "x": hparams.x})


def with_numbers(hparams: HParams, trial: Trial) -> Iterator[tuple[int, dict[str, float]]]:
    for epoch in range(1, 4):
        yield epoch, {"loss": 1.0 / epoch, "x": hparams.x}


@pytest.mark.parametrize("train", [generator, reporter, with_numbers])
def test_a_function_reports_after_each_epoch(runs: Runs, train: Any) -> None:
    (trial,) = runs(train)
    x = trial.params["x"]
    assert trial.state == TrialState.COMPLETE
    assert trial.value == 1 / 3
    assert trial.intermediate_values == {1: 1.0, 2: 0.5, 3: 1 / 3}
    assert runs.metrics(trial) == {epoch: (epoch, {"loss": 1 / epoch, "x": x}) for epoch in (1, 2, 3)}


@pytest.mark.parametrize("returned", [0.25, np.float32(0.25), {"loss": 0.25, "size": 4}])
@pytest.mark.slow
def test_a_function_may_only_return_its_result(runs: Runs, returned: Any) -> None:
    (trial,) = runs(lambda hparams, trial: returned)
    more = {"size": 4.0} if isinstance(returned, dict) else {}
    assert trial.value == 0.25
    assert runs.metrics(trial) == {1: (1, {"loss": 0.25, **more})}


def test_what_a_function_returns_replaces_the_values_of_its_last_report(runs: Runs) -> None:
    def train(hparams: HParams, trial: Trial) -> float:
        trial.report({"loss": 3.0, "size": 4}, step=10)
        trial.report({"loss": 2.0, "size": 5}, step=20)
        return 1.0

    (trial,) = runs(train)
    assert trial.value == 1.0
    assert runs.metrics(trial) == {1: (10, {"loss": 3.0, "size": 4.0}), 2: (20, {"loss": 1.0, "size": 5.0})}


def test_epochs_may_have_their_own_numbers(runs: Runs) -> None:
    def train(hparams: HParams, trial: Trial) -> None:
        for epoch in (0, 5, 10):
            trial.report({"loss": float(epoch)}, epoch=epoch, step=epoch * 7)

    (trial,) = runs(train)
    assert runs.metrics(trial) == {epoch: (epoch * 7, {"loss": float(epoch)}) for epoch in (0, 5, 10)}


def test_several_objectives_are_those_of_the_last_report(runs: Runs) -> None:
    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
        yield {"loss": 2.0, "size": 1.0}
        yield {"loss": 1.0, "size": 3.0}

    settings = {"objective": ["loss", "size"], "direction": None, "directions": ["minimize", "maximize"]}
    (trial,) = runs(train, **settings)
    assert trial.values == [1.0, 3.0]


def test_the_best_epoch_counts_if_the_study_says_so(runs: Runs) -> None:
    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
        for loss in (3.0, 1.0, 2.0):
            yield {"loss": loss}
            trial.save({"loss": loss})

    (trial,) = runs(train, value="best")
    assert trial.value == 1.0
    (best,) = runs.folder.glob("artifacts/*/0/best")
    assert load_state(best) == {"loss": 1.0}


@pytest.mark.parametrize(("value", "expected"), [("last", 2.5), ("best", 2.0)])
@pytest.mark.slow
def test_a_returned_value_replaces_that_of_the_last_report_also_for_the_best_epoch(
    runs: Runs, value: str, expected: float
) -> None:
    def train(hparams: HParams, trial: Trial) -> Any:
        for loss in (3.0, 2.0, 1.0):
            yield {"loss": loss}
        return 2.5

    (trial,) = runs(train, value=value)
    assert trial.value == expected
    assert trial.intermediate_values == {1: 3.0, 2: 2.0, 3: 2.5}


@pytest.mark.parametrize(("epochs", "state"), [(3, TrialState.COMPLETE), (4, TrialState.PRUNED)])
def test_the_report_of_the_last_epoch_is_not_pruned(runs: Runs, epochs: int, state: TrialState) -> None:
    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
        for _ in range(3):
            yield {"loss": float(trial.number)}

    pruner = {"name": "asha", "min_resource": 3, "reduction_factor": 2}  # one rung, at the third epoch
    assert [one.state for one in runs(train, trials=2, pruner=pruner, epochs=epochs)] == [TrialState.COMPLETE, state]


def test_files_without_a_state_are_kept_with_the_best_trials(runs: Runs) -> None:
    def train(hparams: HParams, trial: Trial) -> float:
        (trial.folder / "out.txt").write_text("kept")
        return 0.5

    runs(train)
    with opened(runs.url) as storage:
        path = show_row(storage.engine, "one", 0)["checkpoint"]
    assert path is not None
    assert [file.name for file in Path(path).iterdir()] == ["out.txt"]


def test_a_trial_has_its_number_seed_folder_and_attributes(runs: Runs) -> None:
    seen: list[Any] = []

    def train(hparams: HParams, trial: Trial) -> float:
        (trial.folder / "note.txt").write_text("hello")
        trial.set_user_attr("size", [1, 2])
        seen.append((trial.number, trial.seed, trial.devices, dict(trial.user_attrs)))
        return hparams.x

    first, second = runs(train, trials=2, sampler="random")
    assert [one[0] for one in seen] == [0, 1]
    assert seen[0][1] != seen[1][1]
    assert all(0 <= one[1] < 2**31 for one in seen)
    assert seen[0][3] == {"size": [1, 2]}
    assert first.user_attrs["size"] == second.user_attrs["size"] == [1, 2]
    assert len(list(runs.folder.glob("artifacts/*/*/files/note.txt"))) == 2


# --- What is refused


@pytest.mark.parametrize(
    ("reported", "reason"),
    [
        (
            {"los": 1.0},
            r"the objective 'loss' is missing from the metrics of epoch 1: .* reported los; did you mean 'los'",
        ),
        ({"loss": "high"}, r"the metric 'loss' must be a number: got 'high' \(epoch 1\)"),
        ({"loss": None}, r"the metric 'loss' must be a number: got None \(epoch 1\)"),
        ({"loss": np.ones(2)}, r"the metric 'loss' must be a number: got array\(\[1., 1.\]\) \(epoch 1\)"),
        ({1: 2.0}, r"the name of a metric must be a text: got 1 \(epoch 1\)"),
        (1.0, r"metrics must be a mapping from names to numbers: got 1.0 \(epoch 1\)"),
    ],
)
def test_a_wrong_report_ends_the_worker_and_gives_back_the_trial(runs: Runs, reported: Any, reason: str) -> None:
    def train(hparams: HParams, trial: Trial) -> Iterator[Any]:
        yield reported

    with pytest.raises(StudyError, match=f"^{reason}"):
        runs(train)
    assert [one.state for one in runs.trials()] == [TrialState.RUNNING]
    (trial,) = runs(generator)  # the file was fixed
    assert trial.state == TrialState.COMPLETE
    assert trial.number == 0


def test_a_function_cannot_hide_a_wrong_report(runs: Runs) -> None:
    def train(hparams: HParams, trial: Trial) -> float:
        with contextlib.suppress(Exception):
            trial.report({"loss": "high"})
        return 1.0

    with pytest.raises(StudyError, match=r"^the metric 'loss' must be a number"):
        runs(train)


def test_a_function_that_reports_nothing_is_refused(runs: Runs) -> None:
    with pytest.raises(StudyError, match=r"^train reported nothing: yield metrics, call trial.report"):
        runs(lambda hparams, trial: None)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"train": 3}, r"train must be a function of \(hparams, trial\), a Command or an OptunaObjective: got 3"),
        ({"train": lambda x: 1.0}, r"train must be a function of \(hparams, trial\): got \(x\)"),
        ({"train": HParams}, r"train must be a function of \(hparams, trial\), a Command"),
        ({"train": generator, "trainer": object()}, "study 'one' needs either trainer=, .* got both"),
        (
            {"trainer": generator, "data": print, "epochs": 1},
            r"trainer must be a TrainerModule .* pass a function as train=",
        ),
        ({"train": generator, "data": print}, "study 'one' has data=, which only a trainer uses"),
        ({"train": generator, "picture": print}, "study 'one' has picture=, which needs the model of a trainer"),
        ({"train": generator, "space": None}, "space must be a Space class or a function"),
        ({"train": generator, "value": "first"}, "value must be 'last' or 'best': got 'first'"),
        ({"train": generator, "epochs": 0}, "epochs must be an integer of at least 1: got 0"),
        ({"train": generator, "pruner": "hyperband"}, "the pruner 'hyperband' needs to know how long a trial trains"),
        ({}, r"study 'one' has nothing to run: set trainer= or train=, or use ask\(\) and tell\(\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_stored(
    runs: Runs, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(StudyError, match=f"^{reason}"):
        runs(**{"train": None, **settings})
    assert not (runs.folder / "study.db").exists()


# --- Ends


@pytest.mark.slow
def test_a_value_that_is_not_finite_ends_the_trial_as_diverged(runs: Runs) -> None:
    after: list[int] = []

    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
        yield {"loss": math.nan}
        after.append(1)

    (trial,) = runs(train)
    assert trial.state == TrialState.PRUNED
    assert trial.user_attrs["outcome"] == "diverged"
    assert after == []


@pytest.mark.parametrize("error", [TrialPruned("enough"), optuna.TrialPruned()])
def test_a_function_may_prune_its_trial(runs: Runs, error: Exception) -> None:
    def train(hparams: HParams, trial: Trial) -> None:
        trial.report({"loss": 2.0})
        raise error

    (trial,) = runs(train)
    assert trial.state == TrialState.PRUNED
    assert trial.value == 2.0


def test_pruning_closes_the_generator_and_raises_in_the_function(runs: Runs) -> None:
    closed: list[int] = []

    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
        try:
            for epoch in range(10):
                yield {"loss": float(trial.number) + 1 / (epoch + 1)}
        finally:
            closed.append(trial.epoch)

    threshold = optuna.pruners.ThresholdPruner(upper=1.5)
    first, second = runs(train, trials=2, pruner=threshold)
    assert (first.state, second.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert closed == [10, 1]

    def reports(hparams: HParams, trial: Trial) -> None:
        with pytest.raises(TrialPruned):
            trial.report({"loss": 9.0})
        trial.report({"loss": 0.0})  # a function that goes on is told again

    third = runs(reports, trials=3, pruner=threshold)[2]
    assert third.state == TrialState.PRUNED
    assert third.intermediate_values == {1: 9.0}


def test_an_error_fails_the_trial_with_its_traceback(runs: Runs) -> None:
    def train(hparams: HParams, trial: Trial) -> float:
        raise KeyError("no such thing")

    with pytest.raises(StudyStopped, match=r"the same error ended 3 trials in a row.*\n(.*\n)*.*no such thing"):
        runs(train, trials=10)
    assert [one.state for one in runs.trials()] == [TrialState.FAIL] * 3


# --- States, and trials that are resumed


def test_a_stopped_trial_resumes_from_its_state(runs: Runs) -> None:
    stop, seen = Stop(), []

    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
        state = trial.restore()
        done = 0 if state is None else state["done"]
        seen.append((trial.number, done, trial.epoch, hparams.x))
        for epoch in range(done, 5):
            if state is None and epoch == 2:
                stop.requested = True
            yield {"loss": 10.0 - epoch}
            trial.save({"done": epoch + 1, "weights": np.full(2, epoch), "more": [1, "a", None, True]})

    runs(train, stop=stop)
    (trial,) = runs.trials()
    assert trial.state == TrialState.RUNNING
    (trial,) = runs(train)
    (first, second) = seen
    assert first == (0, 0, 0, trial.params["x"])
    assert second == (0, 3, 3, trial.params["x"]), "the state of the epoch in which the stop came is not lost"
    assert trial.intermediate_values == {1: 10.0, 2: 9.0, 3: 8.0, 4: 7.0, 5: 6.0}
    assert trial.value == 6.0


@pytest.mark.slow
def test_a_stopped_trial_without_a_state_starts_again_with_its_hyperparameters(runs: Runs) -> None:
    stop, seen = Stop(), []

    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
        seen.append((trial.number, hparams.x))
        is_first = len(seen) == 1
        for epoch in range(6 if is_first else 2):
            if is_first and epoch == 3:
                stop.requested = True
            yield {"loss": float(epoch)}

    runs(train, stop=stop)
    assert list(runs.metrics(runs.trials()[0])) == [1, 2, 3, 4]
    (trial,) = runs(train)
    assert seen[0] == seen[1]
    assert trial.intermediate_values == {1: 0.0, 2: 1.0}, "the reports of the first run are gone"
    assert list(runs.metrics(trial)) == [1, 2]


@pytest.mark.slow
def test_a_report_that_is_repeated_after_a_resume_replaces_the_old_one(runs: Runs) -> None:
    stop, runs_so_far = Stop(), []

    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
        state = trial.restore()
        runs_so_far.append(trial.epoch)
        for epoch in range(trial.epoch, 4):
            yield {"loss": len(runs_so_far) + epoch / 10}
            if epoch == 0:
                trial.save({"epoch": 1})
            if state is None and epoch == 1:
                stop.requested = True

    runs(train, stop=stop)
    (trial,) = runs(train)
    assert runs_so_far == [0, 1]
    assert trial.intermediate_values == {1: 1.0, 2: 2.1, 3: 2.2, 4: 2.3}


@pytest.mark.slow
def test_a_file_or_a_folder_can_be_a_state(runs: Runs) -> None:
    stop, seen = Stop(), []

    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
        found = trial.restore()
        seen.append(None if found is None else (found.name, (found / "weights.txt").read_text()))
        for epoch in range(trial.epoch, 3):
            folder = trial.folder / "state"
            folder.mkdir(exist_ok=True)
            (folder / "weights.txt").write_text(f"after {epoch + 1}")
            yield {"loss": 1.0}
            trial.save(folder)
            (folder / "weights.txt").write_text("changed afterwards")
            stop.requested = found is None and epoch == 1

    runs(train, stop=stop)
    (trial,) = runs(train)
    assert seen == [None, ("state", "after 3")]
    assert trial.state == TrialState.COMPLETE, "although the second run had nothing more to report"
    assert trial.intermediate_values == {1: 1.0, 2: 1.0, 3: 1.0}


def test_a_function_that_stops_and_raises_trial_pruned_gives_its_trial_back(runs: Runs) -> None:
    stop = Stop()

    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
        yield {"loss": 1.0}
        stop.requested = True
        assert trial.should_stop()
        trial.save({"loss": 1.0})
        raise TrialPruned

    (trial,) = runs(train, stop=stop)
    assert trial.state == TrialState.RUNNING


@pytest.mark.parametrize(
    ("state", "reason"),
    [("model.pt", "pass a pathlib.Path to save a file or a folder"), ({"a": "text"}, None)],
)
def test_a_path_as_text_is_refused(tmp_path: Path, state: Any, reason: str | None) -> None:
    with TrialSaves(tmp_path, {}) as saves:
        if reason is None:
            saves.save(state, 1)
            saves.close()
            assert saves.restore(None) == state
        else:
            with pytest.raises(CheckpointError, match=reason):
                saves.save(state, 1)


def plain_state(**changes: Any) -> dict[str, Any]:
    state = {"w": np.ones((3, 2), np.float32), "epoch": 3, "best": 0.5, "parts": [np.arange(2), None, "sgd"]}
    return {**state, **changes}


@pytest.mark.parametrize(
    ("like", "reason"),
    [
        (plain_state(w=np.ones((2, 3), np.float32)), r"state\['w'\] is float32\[3,2\], and float32\[2,3\] in `like`"),
        (plain_state(w=np.ones((3, 2))), r"state\['w'\] is float32\[3,2\], and float64\[3,2\] in `like`"),
        (plain_state(w=None), r"state\['w'\] is float32\[3,2\], and None in `like`"),
        (plain_state(epoch="3"), r"state\['epoch'\] is of type int, and of type str in `like`"),
        (plain_state(epoch=np.ones(1)), r"state\['epoch'\] is of type int, and float64\[1\] in `like`"),
        (plain_state(more=1), r"the saved state has no state\['more'\]"),
        ({"w": np.ones((3, 2), np.float32)}, r"`like` has no state\['epoch'\]"),
        (plain_state(parts=[np.arange(2)]), r"state\['parts'\] is a list of 3, and a list of 1 in `like`"),
        (plain_state(parts=(np.arange(2), None, "a")), r"is a list of 3, and a tuple of 3 in `like`"),
        (
            plain_state(parts=[np.arange(3), None, "a"]),
            r"\['parts'\]\[0\] is int64\[2\], and int64\[3\] in `like`",
        ),
        ([1.0], r"state is of type dict, and a list of 1 in `like`"),
        (Path("state.pt"), r"it has arrays, and `like` is a path"),
    ],
)
def test_a_state_of_numpy_arrays_must_be_like_the_given_one(tmp_path: Path, like: Any, reason: str) -> None:
    with TrialSaves(tmp_path, {}) as saves:
        saves.save(plain_state(), 1)
        saves.close()
        with pytest.raises(CheckpointError, match=f"^the saved state does not fit `like`: .*{reason}"):
            saves.restore(like)


def test_a_state_of_numpy_arrays_comes_back_like_the_given_one(tmp_path: Path) -> None:
    import jax

    with TrialSaves(tmp_path, {}) as saves:
        saves.save(plain_state(), 1)
        saves.close()
        np.testing.assert_equal(saves.restore(plain_state(best=1, parts=[np.zeros(2, int), None, ""])), plain_state())
        found = saves.restore(plain_state(w=jnp.zeros((3, 2)), epoch=np.float32(0)))
        assert isinstance(found["w"], jax.Array)
        assert isinstance(found["parts"][0], np.ndarray)
        np.testing.assert_equal(found, plain_state())


def test_a_saved_file_is_not_like_arrays(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_text("weights")
    with TrialSaves(tmp_path, {}) as saves:
        saves.save(tmp_path / "state.pt", 1)
        assert saves.restore(Path("any")).read_text() == "weights"
        with pytest.raises(CheckpointError, match=r"it is the file or folder 'state.pt', and float64\[2\] in `like`"):
            saves.restore(np.ones(2))


def test_arrays_that_files_of_numpy_cannot_have_come_back(tmp_path: Path) -> None:
    state = {"w": np.asarray(jnp.arange(3, dtype=jnp.bfloat16))}
    with TrialSaves(tmp_path, {}) as saves:
        saves.save(state, 1)
        saves.close()
        for found in (saves.restore(None), saves.restore(state)):
            assert found["w"].dtype == jnp.bfloat16
            np.testing.assert_array_equal(found["w"], state["w"])


def test_a_jax_array_alone_is_restored_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TrialSaves(tmp_path, {}) as saves:
        saves.save(jnp.arange(3.0), 1)
        saves.close()
        np.testing.assert_array_equal(saves.restore(None), [0.0, 1.0, 2.0])
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(load_state("latest/1"), [0.0, 1.0, 2.0])


class Several:
    """A value of two elements that is no number, like PyTorch's tensor."""

    shape = (2,)

    def __float__(self) -> float:
        raise RuntimeError("a Tensor with 2 elements cannot be converted to Scalar")


def test_several_numbers_are_no_metric() -> None:
    with pytest.raises(StudyError, match="the metric 'loss' must be a number: got"):
        numbers({"loss": Several()}, 1)
    assert numbers({"loss": np.array([[1.5]])}, 1) == {"loss": 1.5}


def test_a_state_that_cannot_be_saved_fails_the_trial(runs: Runs) -> None:
    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
        yield {"loss": 1.0}
        trial.save(trial.folder / "missing")

    with pytest.raises(StudyStopped, match="cannot save the trial's state: no file or folder"):
        runs(train)
    assert {one.state for one in runs.trials()} == {TrialState.FAIL}


def test_the_states_of_trials_that_are_not_among_the_best_are_removed(runs: Runs) -> None:
    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
        yield {"loss": hparams.x}
        trial.save({"x": hparams.x})

    trials = runs(train, trials=6, keep_best=2, sampler="random")
    best = sorted(trials, key=lambda one: one.value or 0.0)[:2]
    kept = {path.parent.name for path in runs.folder.glob("artifacts/*/*/best")}
    assert kept == {str(one.number) for one in best}
    assert not list(runs.folder.glob("artifacts/*/*/latest"))


@pytest.mark.slow
def test_with_several_objectives_the_states_of_the_whole_front_are_kept(runs: Runs) -> None:
    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
        # Half of the trials are on the front; the others are beaten, by later ones too.
        beaten = 0.0 if trial.number % 2 else 1.0
        yield {"loss": hparams.x + beaten, "size": 1.0 - hparams.x + beaten}
        trial.save({"x": hparams.x})

    objectives = {"objective": ["loss", "size"], "direction": None, "directions": ["minimize", "minimize"]}
    trials = runs(train, trials=12, keep_best=1, sampler="random", **objectives)
    front = optuna.load_study(study_name="one", storage=runs.url).best_trials
    assert {one.number for one in front} == {1, 3, 5, 7, 9, 11}
    assert len(trials) == 12
    kept = {path.parent.name for path in runs.folder.glob("artifacts/*/*/best")}
    assert kept == {str(one.number) for one in front}


# --- JAX


def test_hyperparameters_are_a_pytree_and_one_program_serves_all_trials(runs: Runs) -> None:
    import jax
    import jax.numpy as jnp

    traces: list[int] = []

    @jax.jit
    def step(hparams: HParams, weights: jax.Array) -> jax.Array:
        traces.append(1)
        return weights * hparams.x

    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, Any]]:
        weights = jnp.ones(3) if trial.restore() is None else None
        assert weights is not None
        weights = step(hparams, weights)
        yield {"loss": weights.sum()}
        trial.save({"weights": weights, "key": trial.key()})

    trials = runs(train, trials=3, sampler="random")
    assert len(traces) == 1
    assert [one.value for one in trials] == [pytest.approx(3 * one.params["x"], rel=1e-6) for one in trials]


def test_a_state_of_jax_arrays_is_restored_like_another(runs: Runs) -> None:
    import jax
    import jax.numpy as jnp

    stop, seen = Stop(), []

    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, Any]]:
        state = {"weights": (jnp.arange(3.0), jnp.int32(2)), "key": trial.key()}
        plain = trial.restore()
        found = trial.restore(like=state)
        seen.append((plain, found))
        for epoch in range(trial.epoch, 2):
            yield {"loss": 1.0}
            trial.save(state)
            stop.requested = found is None and epoch == 0

    runs(train, stop=stop)
    runs(train)
    plain, found = seen[1]
    np.testing.assert_array_equal(plain["weights"]["0"], [0.0, 1.0, 2.0])
    assert isinstance(found["weights"][0], jax.Array)
    assert isinstance(found["weights"], tuple)
    assert found["key"].dtype == jax.random.key(0).dtype


SCRIPT = """
import sys
from pathlib import Path
from typing import Any

from tuner import Space, Study, uniform
from tuner.worker import run_worker

class HParams(Space):
    x: float = uniform(0.0, 1.0)

def train(hparams, trial):
    BODY
    return hparams.x

study = Study(name="one", space=HParams, train=train, objective="loss", direction="minimize", trials=2)
run_worker(study, "sqlite:///study.db", artifacts="artifacts")
print("jax" in sys.modules)
"""


def run_script(folder: Path, body: str) -> str:
    text = SCRIPT.replace("    BODY", textwrap.indent(textwrap.dedent(body), "    "))
    (folder / "script.py").write_text(text)
    done = subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_worker_of_a_function_without_jax_does_not_import_it(tmp_path: Path) -> None:
    body = """
    import numpy as np
    trial.report({"loss": 1.0})
    trial.save({"weights": np.ones(3)})
    assert trial.restore()["weights"].sum() == 3
    """
    assert run_script(tmp_path, body) == "False\n"


@pytest.mark.slow
def test_a_function_may_import_jax_itself(tmp_path: Path) -> None:
    body = """
    import jax
    assert float(jax.jit(lambda given: given.x * 2)(hparams)) == 2 * jax.numpy.float32(hparams.x)
    """
    assert run_script(tmp_path, body) == "True\n"


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "..", ""])
def test_a_saved_state_names_no_file_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    given = tmp_path / "weights"
    given.write_text("w")
    saves = TrialSaves(tmp_path / "trial", {})
    saves.save(given, 1)
    state = tmp_path / "trial" / "latest" / "1"
    assert load_state(state).read_text() == "w"
    record = state / "record.json"
    head = json.loads(record.read_text())
    head["record"]["name"] = name
    record.write_text(json.dumps(head))

    with pytest.raises(CheckpointError, match=r"the saved state is damaged: .* has a file outside of it"):
        load_state(state)
