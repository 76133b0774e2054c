"""Trials that continue finished ones with more epochs: what they compute, and what is refused."""

from __future__ import annotations

import math
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
import pytest
from after_faults import table
from storage_tools import opened, plain_trials
from worker_log import Log

from tuner import Command, Space, Study, Trial, load_state, log_uniform
from tuner.admin.edits import clear
from tuner.admin.extend import Extended, extend
from tuner.errors import StudyError, UsageError
from tuner.results.rows import best_rows, show_row
from tuner.search.view import PrunerView
from tuner.storage import connect
from tuner.storage.artifacts import artifacts_of
from tuner.storage.read.lineage import read_metrics
from tuner.storage.read.queries import find_study, read_trial
from tuner.storage.sql.tables import rungs
from tuner.storage.worker import leases
from tuner.storage.worker.claims import Claimant, claim
from tuner.storage.worker.fences import Lease
from tuner.training import ArrayDataset, OptimizerSpec, TrainerModule, WarmupCosine
from tuner.training.saved.checkpoints import read
from tuner.trial import Outcome, Stop
from tuner.trial.events import CohortChosen, EpochEnded
from tuner.worker import run_worker
from tuner.worker.rerun import Rerunner, confirm, reproduce
from tuner.worker.runtime import make_runtime
from tuner.worker.trainables.choose import make_trainable

RNG = np.random.default_rng(0)
SPLITS = ArrayDataset(
    inputs=RNG.normal(size=(50, 3)).astype(np.float32), targets=RNG.normal(size=50).astype(np.float32)
).split(0.2, seed=0)


class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1e-1)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1)(nn.relu(nn.Dense(4)(x)))[:, 0]


class Constant(TrainerModule):
    """A trainer with a constant learning rate and momentum."""

    loop = "scan"

    def init_model(self, hparams: Any) -> Any:
        return Model()

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return optax.sgd(hparams.learning_rate, momentum=0.9)

    def batch_size(self, hparams: Any) -> int:
        return 8

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (outputs - batch["targets"]) ** 2, {}


class Cosine(Constant):
    """A trainer whose epoch is one step on all examples, with a cosine."""

    def batch_size(self, hparams: Any) -> int:
        return 40

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return OptimizerSpec(name="sgd", learning_rate=hparams.learning_rate, schedule=WarmupCosine(warmup_steps=0))


CONSTANT, COSINE = Constant(), Cosine()


def make(**settings: Any) -> Study:
    given: dict[str, Any] = {
        "name": "one",
        "space": HParams,
        "trainer": CONSTANT,
        "data": lambda seed: SPLITS,
        "objective": "loss",
        "direction": "minimize",
        "epochs": 3,
        "trials": 2,
        "keep_last": 2,
        "retries": 0,
        "pruner": "none",
    }
    return Study(**{**given, **settings})


class Runs:
    """Runs a study on SQLite, and reads what is stored."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"sqlite:///{folder}/study.db"
        self.artifacts = str(folder / "artifacts")

    def __call__(self, study: Study, *, stop: Stop | None = None, say: Any = None) -> None:
        run_worker(study, self.url, artifacts=self.artifacts, stop=stop, **({} if say is None else {"say": say}))

    def extend(self, epochs: int, **which: Any) -> list[Extended]:
        return extend(self.url, "one", epochs=epochs, **which)

    def metrics(self, number: int) -> dict[int, dict[str, float]]:
        with opened(self.url) as storage:
            trial = read_trial(storage.engine, find_study(storage.engine, "one"), number)
            return {epoch: dict(found) for epoch, (_, found) in read_metrics(storage.engine, trial.trial_id).items()}

    def shown(self, number: int) -> Any:
        with opened(self.url) as storage:
            return show_row(storage.engine, "one", number)

    def params(self, number: int) -> Any:
        """Return the parameters of the kept model of a trial."""
        return read(self.shown(number)["checkpoint"])[0]["params"]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


@pytest.fixture
def whole(tmp_path: Path) -> Runs:
    """Another storage, for trainings at once."""
    (tmp_path / "whole").mkdir()
    return Runs(tmp_path / "whole")


def same(one: Any, other: Any) -> bool:
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(leaves) == len(others) and all(np.array_equal(a, b) for a, b in zip(leaves, others, strict=True))


# --- What is computed


@pytest.mark.parametrize("value", ["last", "best"])
def test_it_is_equal_to_a_training_at_once(runs: Runs, whole: Runs, value: Any) -> None:
    runs(make(value=value))
    (queued,) = runs.extend(7, numbers=[1])
    assert queued == Extended(2, 1, 3, 7)
    runs(make(value=value, trials=3))
    whole(make(value=value, epochs=7))
    assert runs.metrics(2) == whole.metrics(1)
    assert set(runs.metrics(2)) == set(range(1, 8))
    assert same(runs.params(2), whole.params(1))
    extended, at_once = (plain_trials(one.url, "one")[number] for one, number in ((runs, 2), (whole, 1)))
    assert extended.value == at_once.value
    assert extended.params == at_once.params
    assert extended.intermediate_values == at_once.intermediate_values
    assert extended.user_attrs["extends"] == 1
    assert runs.shown(2)["extends"] == 1
    assert runs.shown(1)["extends"] is None


@pytest.mark.slow
def test_ended_trials_do_not_change(runs: Runs) -> None:
    runs(make())
    before = plain_trials(runs.url, "one")
    runs.extend(5, count=2)
    runs(make(trials=4))
    after = plain_trials(runs.url, "one")
    assert after[:2] == before
    assert [trial.last_step for trial in after] == [3, 3, 5, 5]


@pytest.mark.slow
def test_an_extended_trial_is_extended(runs: Runs, whole: Runs) -> None:
    runs(make(trials=1))
    runs.extend(5)
    runs(make(trials=2))
    assert runs.extend(8) == [Extended(2, 1, 5, 8)], "the best with fewer epochs that is not continued"
    runs(make(trials=3))
    whole(make(trials=1, epochs=8))
    assert runs.metrics(2) == whole.metrics(0)


@pytest.mark.slow
def test_the_schedule_is_that_of_the_new_total(runs: Runs) -> None:
    """The reference: gradient descent by hand on all examples, with the cosine of 7 epochs from the 4th on.

    Its rounding errors are far below the change of the parameters, of which one thousandth is allowed.
    """
    runs(make(trainer=COSINE, trials=1))
    runs.extend(7)
    runs(make(trainer=COSINE, trials=2))
    found = runs.metrics(1)
    assert {epoch: found[epoch] for epoch in (1, 2, 3)} == runs.metrics(0)
    peak = plain_trials(runs.url, "one")[1].params["learning_rate"]
    params = first = jax.tree.map(jnp.asarray, runs.params(0))
    examples = SPLITS.train.host()

    def loss(params: Any) -> jax.Array:
        return jnp.mean((Model().apply({"params": params}, examples["inputs"]) - examples["targets"]) ** 2)

    slope = jax.jit(jax.grad(loss))
    for step in range(3, 7):
        rate = peak * (0.01 + 0.99 * (1 + math.cos(math.pi * step / 7)) / 2)
        params = jax.tree.map(lambda one, grad, rate=rate: one - rate * grad, params, slope(params))
    assert _distance(params, runs.params(1)) < 1e-3 * _distance(first, params)


def _distance(one: Any, other: Any) -> float:
    return float(optax.tree.norm(jax.tree.map(lambda a, b: jnp.asarray(a) - jnp.asarray(b), one, other)))


@pytest.mark.long
@pytest.mark.slow
def test_a_trial_in_a_cohort_continues(runs: Runs, whole: Runs) -> None:
    runs(make(trials=3, cohort=2))
    runs.extend(6, count=2)
    runs(make(trials=6, cohort=2))  # of the four trials, one is new and has fewer epochs
    whole(make(trials=3, epochs=6))
    extended = [one for one in plain_trials(runs.url, "one") if "extends" in one.user_attrs]
    assert len(extended) == 2
    for one in extended:
        at_once = whole.metrics(one.user_attrs["extends"])
        for epoch, metrics in runs.metrics(one.number).items():
            assert metrics == pytest.approx(at_once[epoch], rel=5e-6), "as in `test_vmap.py`"


@pytest.mark.slow
def test_trials_of_a_cohort_with_other_lengths_have_their_own_schedules(runs: Runs, whole: Runs) -> None:
    for one, cohort in ((runs, 2), (whole, 1)):
        log = Log()
        one(make(trainer=COSINE, cohort=cohort))
        one.extend(6, numbers=[0])
        one.extend(5, numbers=[1])
        one(make(trainer=COSINE, cohort=cohort, trials=4), say=log)
        assert all(event.lanes == 2 for event in log.of(CohortChosen)), log.of(CohortChosen)
    for number in (2, 3):
        found, wanted = runs.metrics(number), whole.metrics(number)
        assert found.keys() == wanted.keys()
        for epoch, metrics in found.items():
            assert metrics == pytest.approx(wanted[epoch], rel=5e-6), "as in `test_vmap.py`"


@pytest.mark.slow
def test_each_seed_continues(runs: Runs, whole: Runs) -> None:
    runs(make(trials=2, seeds=2))
    runs.extend(5, numbers=[1])
    runs(make(trials=3, seeds=2))
    whole(make(trials=2, epochs=5, seeds=2))
    assert runs.metrics(2) == whole.metrics(1)
    assert runs.shown(2)["seed_values"] == whole.shown(1)["seed_values"]


@pytest.mark.slow
def test_pruners_neither_judge_nor_see_it(runs: Runs) -> None:
    strict = {"name": "threshold", "upper": 0.0, "n_warmup_steps": 3}
    runs(make(trials=1))
    runs.extend(6)
    runs(make(trials=2, pruner=strict))
    assert runs.shown(1)["outcome"] == "complete"
    halving = {"name": "asha", "min_resource": 1, "reduction_factor": 2}
    runs.extend(9)
    runs(make(trials=5, pruner=halving))
    with opened(runs.url) as storage:
        view: Any = PrunerView(storage)
        study = optuna.load_study(study_name="one", storage=view)
        assert [trial.number for trial in study.trials] == [0, 3, 4]
    assert {row.trial_id for row in table(runs.url, rungs.c.trial_id)} == {4, 5}


# --- Functions


def counted(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
    """A training whose state is a number that depends on the seed and on each epoch."""
    state = trial.restore() or {"sum": np.float64(0.0)}
    rng = np.random.default_rng(trial.seed)
    draws = rng.normal(size=100)
    assert trial.epochs is not None
    while trial.epoch < trial.epochs:
        state = {"sum": state["sum"] * hparams.learning_rate + draws[trial.epoch]}
        yield {"loss": float(state["sum"])}
        trial.save(state)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["last", "best"])
def test_a_function_continues(runs: Runs, whole: Runs, value: Any) -> None:
    settings: dict[str, Any] = {"trainer": None, "data": None, "train": counted, "value": value}
    runs(make(**settings))
    runs.extend(8, numbers=[1])
    runs(make(**settings, trials=3))
    whole(make(**settings, epochs=8))
    assert runs.metrics(2) == whole.metrics(1)
    kept, wanted = runs.shown(2)["checkpoint"], whole.shown(1)["checkpoint"]
    assert load_state(kept, None) == load_state(wanted, None)


def stubborn(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
    trial.restore()
    while trial.epoch < 3:
        yield {"loss": 1.0}
        trial.save({"state": 1})


def test_a_function_that_does_not_go_on_fails(runs: Runs) -> None:
    settings: dict[str, Any] = {"trainer": None, "data": None, "train": stubborn, "trials": 1}
    runs(make(**settings))
    runs.extend(5)
    runs(make(**{**settings, "trials": 2}))
    shown = runs.shown(1)
    assert shown["outcome"] == "failed"
    assert shown["error"] == (
        "the training ended after epoch 3, although trial 1 continues trial 0 to epoch 5: a function must restore the "
        "state of its trial, and train until `trial.epochs`"
    )


# --- Interruptions


@pytest.mark.slow
@pytest.mark.parametrize("save_every_s", [0.0, pytest.param(60.0, marks=pytest.mark.long)])
def test_an_interrupted_trial_resumes(runs: Runs, whole: Runs, save_every_s: float) -> None:
    settings = {"save_every_s": save_every_s}
    runs(make(trials=1, **settings))
    runs.extend(9)
    stop = Stop()

    def say(event: Any) -> None:
        if isinstance(event, EpochEnded) and event.epoch == 6:
            stop.requested = True

    runs(make(trials=2, **settings), stop=stop, say=say)
    assert runs.shown(1)["outcome"] == "preempted"
    log = Log()
    runs(make(trials=2, **settings), say=log)
    assert log.of(EpochEnded)[0].epoch >= 6, "it did not start again"
    whole(make(trials=1, epochs=9))
    assert runs.metrics(1) == whole.metrics(0)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [pytest.param(1, marks=pytest.mark.long), 2])
def test_another_machine_continues_from_object_storage(
    runs: Runs, whole: Runs, monkeypatch: pytest.MonkeyPatch, seeds: int
) -> None:
    runs.artifacts = f"memory://{uuid.uuid4().hex}"
    monkeypatch.setenv("TUNER_ARTIFACTS", runs.artifacts)
    monkeypatch.setenv("XDG_CACHE_HOME", str(runs.folder / "here"))
    runs(make(trials=1, seeds=seeds))
    monkeypatch.setenv("XDG_CACHE_HOME", str(runs.folder / "there"))
    runs.extend(5)
    runs(make(trials=2, seeds=seeds))
    assert runs.shown(1)["outcome"] == "complete", runs.shown(1)["error"]
    whole(make(trials=1, epochs=5, seeds=seeds))
    assert runs.metrics(1) == whole.metrics(0)


@pytest.mark.slow
def test_a_state_of_a_queued_extension_is_kept(runs: Runs) -> None:
    runs(make(trials=3, keep_best=1, keep_last=1))
    (queued,) = runs.extend(6)
    with opened(runs.url) as storage:
        assert clear(storage.engine, "one", artifacts_of(runs.artifacts), keep=0)[0] == []
    runs(make(trials=4, keep_best=1, keep_last=1))
    assert runs.shown(queued.number)["outcome"] == "complete"
    with opened(runs.url) as storage:
        clear(storage.engine, "one", artifacts_of(runs.artifacts), keep=0)
    with pytest.raises(UsageError, match=r"cannot continue trial \d of 'one': its last state was removed"):
        runs.extend(9, numbers=[queued.of])


@pytest.mark.slow
def test_a_state_that_is_gone_fails_the_trial(runs: Runs) -> None:
    runs(make(trials=1))
    runs.extend(6)
    shutil.rmtree(runs.artifacts)
    runs(make(trials=2))
    assert runs.shown(1)["outcome"] == "failed"
    assert "the last state of trial 0, which this trial continues, is not on this machine" in runs.shown(1)["error"]


@pytest.mark.slow
def test_a_changed_trainer_fails_the_trial(runs: Runs) -> None:
    runs(make(trials=1))
    runs.extend(6)
    runs(make(trials=2, trainer=COSINE))
    assert runs.shown(1)["outcome"] == "failed"
    wanted = "cannot continue trial 0: its checkpoint has batch_size=8, this training has batch_size=40"
    assert wanted in runs.shown(1)["error"]


# --- Training it again


def rerunner(runs: Runs, study: Study, engine: Any, folder: Path) -> Rerunner:
    runtime = make_runtime("", needs_jax=True, artifacts=None)
    row = find_study(engine, "one")
    made = make_trainable(study, lambda hparams: SPLITS, runtime, {}, row.record, lambda name, measure: "scan")
    return Rerunner(engine, row, study, folder / "none.py", made, runtime, made)


@pytest.mark.parametrize("trainer", [pytest.param(CONSTANT, marks=pytest.mark.long), COSINE])
@pytest.mark.slow
def test_it_is_reproduced_in_its_stages(runs: Runs, trainer: Any) -> None:
    study = make(trainer=trainer, trials=2)
    runs(make(trainer=trainer, trials=1))
    runs.extend(7)
    runs(study)
    with opened(runs.url) as storage:
        again = rerunner(runs, study, storage.engine, runs.folder)
        assert [stage.epochs for stage in again.stages(1)] == [3, 7]
        found = reproduce(again, 1, lambda report: None)
        assert {one.difference for one in found} == {0.0}
        assert {one.epochs for one in found} == {7}
        confirm(again, 1, 1, lambda *repeat: None)
        (confirmed,) = best_rows(storage.engine, "one", 1)
    assert confirmed["confirmed"] is not None


# --- What is refused


@pytest.mark.slow
def test_what_cannot_be_continued(runs: Runs) -> None:
    runs(make(keep_last=0))
    with pytest.raises(UsageError, match=r"^study 'one' has no saved last states: set keep_last in the study's file"):
        runs.extend(6)
    with pytest.raises(
        UsageError, match=r"^cannot continue trial 0 of 'one': its last state was not saved; set keep_last"
    ):
        runs.extend(6, numbers=[0])
    runs(make(trials=3))
    with pytest.raises(UsageError, match=r"^cannot continue trial 2 of 'one': it has 3 epochs: pass more .* got 3$"):
        runs.extend(3, numbers=[2])
    with pytest.raises(UsageError, match=r"^pass either a number of best trials, at least 1, or numbers .*: got 0$"):
        runs.extend(6, count=0)
    with pytest.raises(UsageError, match=r"^pass either .*: got 1 and 2$"):
        runs.extend(6, count=1, numbers=[2])
    with pytest.raises(UsageError, match=r"^`epochs` must be at least 1: got 0$"):
        runs.extend(0)
    runs.extend(6, numbers=[2])
    with pytest.raises(UsageError, match=r"^cannot continue trial 3 of 'one': it is waiting, and only complete trials"):
        runs.extend(9, numbers=[3])
    with pytest.raises(
        UsageError, match=r"^cannot continue trial 2 of 'one': trial 3 continues it to epoch 6 already$"
    ):
        runs.extend(5, numbers=[2])
    with pytest.raises(
        UsageError, match=r"^no trial of 'one' can .* to epoch 6: each one with a last state \(2\) is not"
    ):
        runs.extend(6)


@pytest.mark.parametrize("outcome", [Outcome.PRUNED, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY, Outcome.TIMED_OUT])
def test_a_continuation_that_ended_early_does_not_count(runs: Runs, outcome: Outcome) -> None:
    runs(make(trials=1))
    (first,) = runs.extend(6)
    engine = connect(runs.url)
    held = claim(engine, Claimant(1, "worker", trials=2, lease_s=30.0))
    assert isinstance(held, Lease)
    assert held.number == first.number
    with pytest.raises(UsageError, match=r"trial 1 continues it to epoch 6 already$"):
        runs.extend(6, numbers=[0])
    leases.tell(engine, held, outcome, None, {})
    assert runs.shown(1)["outcome"] == outcome
    engine.dispose()
    assert [(one.number, one.of) for one in runs.extend(6, numbers=[0])] == [(2, 0)]


def test_a_study_of_plain_optuna_cannot_be_continued(runs: Runs) -> None:
    optuna.create_study(study_name="one", storage=runs.url).optimize(lambda trial: trial.suggest_float("x", 0, 1), 1)
    for which in ({}, {"numbers": [0]}):
        with pytest.raises(UsageError, match=r"^study 'one' was not created by tuner: only trials of `tuner launch` "):
            runs.extend(6, **which)


def test_what_keep_last_needs() -> None:
    with pytest.raises(
        StudyError, match=r"^keep_last must be at most keep_best=1, .*: got keep_last=2 \(study 'one'\)$"
    ):
        make(keep_best=1)
    with pytest.raises(StudyError, match=r"^keep_last must be an integer of at least 0: got True"):
        make(keep_last=True)
    with pytest.raises(StudyError, match=r"^keep_last needs a study with trainer= or a function as train=: got"):
        make(trainer=None, data=None, train=Command("true"), keep_last=1)


@pytest.mark.slow
def test_the_state_of_a_trial_beyond_keep_last_is_not_written(runs: Runs) -> None:
    runs(make(trials=1, keep_last=1))
    assert Path(runs.shown(0)["checkpoint"]).with_name("last").is_dir()
    runs(make(trials=6, keep_last=1))
    order = sorted(plain_trials(runs.url, "one"), key=lambda trial: trial.values[0])
    later_and_worse = [trial for trial in order[1:] if trial.number > order[0].number]
    for trial in later_and_worse:
        checkpoint = runs.shown(trial.number)["checkpoint"]
        assert checkpoint is None or not Path(checkpoint).with_name("last").exists()
