"""Population-based training: trials that are behind continue with copies of others, and everything can be repeated."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
import pytest
from worker_log import Log, logged

import tuner
from tuner import Space, Study, choice, log_uniform, uniform
from tuner.errors import CheckpointError, StorageLost, StudyError
from tuner.storage import connected
from tuner.storage.artifacts import artifacts_of
from tuner.storage.read.population import read_copies
from tuner.storage.read.queries import find_study
from tuner.study import trial_seed
from tuner.study.population import Copy, Member
from tuner.training import ArrayDataset, TrainerModule
from tuner.trial import Event, Outcome, Report, Stop
from tuner.trial.events import EpochEnded, TrialCopied, TrialEnded
from tuner.worker.population import Population, RunningMember
from tuner.worker.rerun import Rerunner, reproduce

EPOCHS, TRIALS, EVERY = 20, 12, 1
SPLITS = ArrayDataset(inputs=np.zeros((8, 1), np.float32), targets=np.zeros(8, np.float32)).split(0.5, seed=0)


class Rates(Space):
    first: float = log_uniform(0.01, 1.0)
    second: float = log_uniform(0.01, 1.0)


class Widths(Rates):
    width: int = choice(1, 2)
    scale: float = uniform(0.0, 1.0)


class Variances(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return jnp.broadcast_to(self.param("variances", lambda key: jnp.ones(2)), (x.shape[0], 2))


class NoisyQuadratic(TrainerModule):
    """SGD on a quadratic in two parameters, with a learning rate for each, whose gradients have noise of variance 1.

    It follows the variances v of the parameters, which is exact: with rate h, a step makes of v the sum of (1 - h)^2 v
    and h^2. The best rate for a step is v / (v + 1), which makes of v the value v / (v + 1): from 1, it is 1 / (1 + t)
    after t steps. The loss has the gradient with which plain SGD takes this step.
    """

    loop = "step"

    def init_model(self, hparams: Any) -> Any:
        return Variances()

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return optax.sgd(1.0)

    def batch_size(self, hparams: Any) -> int:
        return 4

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        rates = jnp.stack([hparams.first, hparams.second])[None]
        losses = jnp.sum(0.5 * outputs**2 * (1 - (1 - rates) ** 2) - rates**2 * outputs, axis=-1)
        return losses, {"variance": jnp.sum(outputs, axis=-1)}


class Shuffled(NoisyQuadratic):
    """Its result depends on the trial's random numbers as well."""

    def augment(self, batch: Any, hparams: Any, key: Any) -> Any:
        return {**batch, "inputs": batch["inputs"] + jax.random.normal(key, batch["inputs"].shape)}

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        losses, metrics = super().loss(outputs, batch, hparams)
        return losses + 1e-3 * jnp.sum(batch["inputs"]) * outputs[:, 0], metrics


TRAINER, SHUFFLED = NoisyQuadratic(), Shuffled()
OPTIMUM = 2 / (1 + EPOCHS)


def best_constant() -> float:
    """Return the least sum of variances with one rate for the whole training, by trying many."""

    def after(rate: float) -> float:
        variance = 1.0
        for _ in range(EPOCHS):
            variance = (1 - rate) ** 2 * variance + rate**2
        return 2 * variance

    return min(after(number / 1000) for number in range(10, 1001))


def study_of(**settings: Any) -> Study:
    given: dict[str, Any] = {
        "name": "population", "space": Rates, "trainer": TRAINER, "data": lambda seed: SPLITS, "objective": "variance",
        "direction": "minimize", "epochs": EPOCHS, "trials": TRIALS, "sampler": "random",
        "pruner": {"name": "pbt", "every": EVERY}, "save_every_s": 1e9,
    }  # fmt: skip
    return Study(**{**given, **settings})


SMALL = {"epochs": 8, "trials": 6, "trainer": SHUFFLED, "pruner": {"name": "pbt", "every": 2, "quantile": 0.5}}


@pytest.fixture
def work(tmp_path: Path) -> Callable[..., Log]:
    def run(study: Study, place: str = "first", log: Any = None, **options: Any) -> Log:
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        return logged(study, f"sqlite:///{folder / 'tuner.db'}", folder / "files", log, **options)

    return run


def curves(folder: Path) -> dict[int, dict[int, float]]:
    storage = tuner.open_storage(f"sqlite:///{folder / 'tuner.db'}")
    trials = optuna.load_study(study_name="population", storage=storage).trials
    return {trial.number: trial.intermediate_values for trial in trials}


def copies_in(folder: Path) -> dict[int, list[Copy]]:
    with connected(f"sqlite:///{folder / 'tuner.db'}") as engine:
        return read_copies(engine, find_study(engine, "population").study_id)


@pytest.mark.slow
def test_a_population_in_a_cohort_beats_every_constant_rate(tmp_path: Path, work: Callable[..., Log]) -> None:
    log = work(study_of(cohort=TRIALS))
    values = [event.values[0] for event in log.of(TrialEnded)]
    assert len(values) == TRIALS
    assert OPTIMUM - 1e-6 < min(values) < 0.9 * best_constant()
    found, reported = copies_in(tmp_path / "first"), curves(tmp_path / "first")
    # All have reported an epoch before the first of them is compared, so the rule can be applied to the curves: the
    # last quarter, three of twelve, copies each one of the first quarter.
    for epoch in range(EVERY, EPOCHS, EVERY):
        order = sorted(range(TRIALS), key=lambda number, epoch=epoch: reported[number][epoch])
        taken = {number: copy.trial for number, copies in found.items() for copy in copies if copy.epoch == epoch}
        assert taken.keys() == set(order[-3:])
        assert set(taken.values()) <= set(order[:3])
    assert not (tmp_path / "first" / "files" / "population").exists()
    assert not list((tmp_path / "first" / "files").glob("*/population"))  # all trials have ended


@pytest.mark.slow
def test_a_copy_continues_with_the_state_of_the_copied_trial(tmp_path: Path, work: Callable[..., Log]) -> None:
    work(study_of(**{**SMALL, "trainer": TRAINER}))
    found, reported = copies_in(tmp_path / "first"), curves(tmp_path / "first")
    assert found
    for number, copies in found.items():
        for copy in copies:
            # Each parameter has half of the sum or another share, so a step leaves the sum between two bounds.
            before, after = reported[copy.trial][copy.epoch], reported[number][copy.epoch + 1]
            rates: Any = list(copy.hparams.values())
            steps = [
                sum((1 - rate) ** 2 * part + rate**2 for rate, part in zip(rates, (x, before - x), strict=True))
                for x in (0.0, before)
            ]
            assert min(steps) - 1e-5 <= after <= max(steps) + 1e-5


def rerunner(study: Study, folder: Path, engine: Any) -> Rerunner:
    from tuner.study import StudyData
    from tuner.worker.runtime import make_runtime
    from tuner.worker.trainables.choose import make_trainable

    row = find_study(engine, "population")
    assert study.data is not None
    data = StudyData(study.data, study.seed)
    runtime = make_runtime("", needs_jax=True, artifacts=artifacts_of(str(folder / "files")))
    trainable = make_trainable(study, data.for_hparams, runtime, {}, row.record, lambda program, measure: measure())
    return Rerunner(engine, row, study, Path(__file__), trainable, runtime)


@pytest.mark.slow
def test_the_lineage_of_each_trial_can_be_reproduced_bit_for_bit(tmp_path: Path, work: Callable[..., Log]) -> None:
    study, folder = study_of(**SMALL), tmp_path / "first"
    work(study)
    found = copies_in(folder)
    assert found
    assert any(copy.trial in found for copies in found.values() for copy in copies)  # a copy of a copy
    with connected(f"sqlite:///{folder / 'tuner.db'}") as engine:
        again = rerunner(study, folder, engine)
        seen: list[Report] = []
        for number in sorted(found):
            compared = reproduce(again, number, seen.append)
            assert [(one.metric, one.epochs) for one in compared if one.difference != 0] == []
            assert {one.epochs for one in compared} == {8}
        number = max(found)
        first = again.lineage(number)[0]
        values = again.train(number, 5, lambda report: False)  # another seed: the schedule with other random numbers
        assert values != [curves(folder)[number][8]]
        assert first.trial != number


@pytest.mark.slow
@pytest.mark.parametrize(("cohort", "at"), [(3, 2), pytest.param(1, 4, marks=pytest.mark.long)])
def test_a_trial_that_is_interrupted_at_a_copy_continues_the_same(
    tmp_path: Path, work: Callable[..., Log], cohort: int, at: int
) -> None:
    study = study_of(**SMALL, cohort=cohort)
    work(study)
    assert any(copy.epoch == at for copies in copies_in(tmp_path / "first").values() for copy in copies)

    class Interrupting(Log):
        """Ends the worker as soon as a copy was stored, before the copied state is saved."""

        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if isinstance(event, TrialCopied) and event.epoch == at:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(study, "second", Interrupting())
    work(study, "second")
    assert copies_in(tmp_path / "second") == copies_in(tmp_path / "first")
    assert curves(tmp_path / "second") == curves(tmp_path / "first")


@pytest.mark.slow
def test_a_trial_that_is_stopped_continues_the_same(tmp_path: Path, work: Callable[..., Log]) -> None:
    study = study_of(**SMALL)
    work(study)
    for after in itertools.count(1):
        stop = Stop()

        class Stopping(Log):
            def __call__(self, event: Event, stop: Stop = stop) -> None:
                super().__call__(event)
                stop.requested = stop.requested or len(self.of(EpochEnded)) >= 3

        if not work(study, "second", Stopping(), stop=stop).of(EpochEnded) or after > 40:
            break
    assert copies_in(tmp_path / "second") == copies_in(tmp_path / "first")
    assert curves(tmp_path / "second") == curves(tmp_path / "first")


@pytest.mark.slow
def test_trials_of_other_static_hyperparameters_are_other_populations(tmp_path: Path, work: Callable[..., Log]) -> None:
    work(study_of(space=Widths, **{**SMALL, "trials": 12}))
    storage = tuner.open_storage(f"sqlite:///{tmp_path / 'first' / 'tuner.db'}")
    widths = [trial.params["width"] for trial in optuna.load_study(study_name="population", storage=storage).trials]
    found = copies_in(tmp_path / "first")
    assert {widths[number] for number in found} == {1, 2}
    for number, copies in found.items():
        for copy in copies:
            assert widths[copy.trial] == widths[number] == copy.hparams["width"]


@pytest.mark.slow
def test_the_baseline_copies_nobody_and_can_be_copied(tmp_path: Path, work: Callable[..., Log]) -> None:
    def copied(rate: float, place: str) -> set[int]:
        work(study_of(**SMALL, baseline=Rates(first=rate, second=rate)), place)
        found = copies_in(tmp_path / place)
        assert 0 not in found
        return {copy.trial for copies in found.values() for copy in copies}

    assert 0 not in copied(0.01, "slow")  # it is the last at each epoch
    assert 0 in copied(0.2, "good")


@pytest.mark.slow
def test_the_best_checkpoint_says_the_hyperparameters_of_its_epoch(tmp_path: Path, work: Callable[..., Log]) -> None:
    study = study_of(**SMALL, keep_best=6)
    work(study)
    folder = tmp_path / "first"
    found = copies_in(folder)
    number = min(found)
    from tuner.training.saved.checkpoints import read

    with connected(f"sqlite:///{folder / 'tuner.db'}") as engine:
        from tuner.results.rows import show_row

        row = show_row(engine, "population", number)
    assert row["copies"] == [
        {"epoch": copy.epoch, "trial": copy.trial, "hparams": copy.hparams} for copy in found[number]
    ]
    assert row["checkpoint"] is not None
    arrays, record = read(row["checkpoint"])
    own = jax.random.key_data(jax.random.key(trial_seed(study.seed, number, "training")))
    np.testing.assert_array_equal(arrays["key"], own)  # it keeps its own random numbers
    assert record["epoch"] == 8
    assert record["hparams"] == found[number][-1].hparams != row["hparams"]


@pytest.mark.slow
def test_a_copy_that_nobody_offers_is_not_taken(
    tmp_path: Path, work: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Population, "find", lambda *args: None)
    log = work(study_of(**SMALL))
    assert log.of(TrialCopied) == []
    assert len(log.of(TrialEnded)) == 6
    assert copies_in(tmp_path / "first") == {}


class Diverging(NoisyQuadratic):
    """Trials with a large rate diverge."""

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        losses, metrics = super().loss(outputs, batch, hparams)
        return losses, {"variance": jnp.where(hparams.first > 0.1, jnp.nan, metrics["variance"])}


@pytest.mark.slow
def test_a_trial_that_diverges_at_a_comparison_leaves_no_state(
    work: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    close = Population.close

    def noted(self: Population) -> None:
        close(self)
        left.append(len(self._kept))

    monkeypatch.setattr(Population, "close", noted)
    log = work(study_of(**{**SMALL, "trainer": Diverging(), "pruner": {"name": "pbt", "every": 1}}))
    outcomes = {event.outcome for event in log.of(TrialEnded)}
    assert outcomes == {Outcome.COMPLETE, Outcome.DIVERGED}
    assert set(left) == {0}


def population(folder: Path, place: str | None = None, **settings: Any) -> Population:
    artifacts = artifacts_of(place or str(folder)).of_study("population", "1")
    return Population(study_of(**settings), 1, None, artifacts)  # pyright: ignore[reportArgumentType]


def settled(made: Population, order: Sequence[int]) -> None:
    for number in order:
        made.offer(2, number, Rates(first=0.1, second=0.1 * (number + 1)), {"x": np.full(3, number, np.float32)})
    for number in order:
        made.settle(2, number, order)
    made.close()


def test_only_states_that_can_be_copied_are_kept(tmp_path: Path) -> None:
    settled(population(tmp_path, trials=8), [4, 2, 7, 1, 0])
    other = population(tmp_path, trials=8)
    found = {number: other.find(2, number) for number in range(8)}
    assert [number for number, one in found.items() if one is not None] == [2, 4]  # the best quarter of 8
    assert found[4] is not None
    assert found[4].record == {"epoch": 2, "trial": 4, "hparams": {"first": 0.1, "second": 0.5}}
    np.testing.assert_array_equal(found[4].plain["x"], np.full(3, 4, np.float32))
    settled(other, [6, 4, 2])  # a better one comes later
    third = population(tmp_path, trials=8)
    assert [number for number in range(8) if third.find(2, number) is not None] == [4, 6]
    third.remove()
    assert not list(tmp_path.rglob("population"))


def test_members_are_ordered_with_the_own_value_that_may_not_be_stored_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuner.worker import population as module

    stored = [Member(0, 3.0), Member(1, 1.0), Member(2, 9.0)]
    monkeypatch.setattr(module, "read_members", lambda engine, study_id, epoch: stored)
    assert population(tmp_path).order(2, Member(2, 2.0)) == [1, 2, 0]
    assert population(tmp_path, direction="maximize").order(2, Member(3, 2.0)) == [2, 0, 3, 1]


class FakeTrial:
    """A trial that may copy others, and what it has stored."""

    number = 9

    def __init__(self, *copies: Copy) -> None:
        self.stored, self.noted = list(copies), list[Copy]()

    def may_copy(self) -> bool:
        return True

    def copies(self) -> list[Copy]:
        return list(self.stored)

    def set_copies(self, copies: Sequence[Copy]) -> None:
        self.stored = list(copies)

    def note_copy(self, copy: Copy) -> None:
        self.noted.append(copy)


def test_a_copy_that_was_recorded_before_a_death_is_taken_again_or_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = population(tmp_path, trials=8)
    settled(made, [4, 2, 7])
    made = population(tmp_path, trials=8)
    # Others have reported since, so the trial would not be compared with trial 2 any more.
    monkeypatch.setattr(Population, "order", lambda *args: [4, 0, 1, 3, 5, 6, 7, 8, 9, 2])
    earlier, now = Copy(1, 3, {"first": 0.2, "second": 0.2}), Copy(2, 2, {"first": 0.3, "second": 0.4})
    trial, taken = FakeTrial(earlier, now), []

    def take(hparams: Any, *, state: Any = None, seed: int | None = None) -> None:
        taken.append((hparams, state["x"][0]))

    RunningMember(made, trial).compare(2, 1.0, take)
    assert (trial.stored, trial.noted) == ([earlier, now], [now])
    assert taken == [(Rates(first=0.3, second=0.4), 2.0)]
    gone = FakeTrial(earlier, Copy(2, 6, {"first": 0.3, "second": 0.4}))
    RunningMember(made, gone).compare(2, 1.0, take)
    assert (gone.stored, gone.noted, len(taken)) == ([earlier], [], 1)  # nobody has kept the state of trial 6
    made.close()


def test_a_trial_goes_on_without_a_database_and_without_a_state_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = population(tmp_path, trials=8)
    settled(made, [4, 2, 7])
    made, trial = population(tmp_path, trials=8), FakeTrial()

    def is_down(*args: Any) -> Any:
        raise StorageLost("the database is down")

    def does_not_fit(hparams: Any, *, state: Any = None, seed: int | None = None) -> None:
        raise CheckpointError("another shape")

    monkeypatch.setattr(Population, "order", is_down)
    RunningMember(made, trial).offer(2, Rates(first=0.1, second=0.1), {"x": np.zeros(3)})
    RunningMember(made, trial).compare(2, 1.0, does_not_fit)
    assert made.find(2, trial.number) is None, "it is not kept in memory for ever"
    monkeypatch.setattr(Population, "order", lambda *args: [4, 2, 0, 1, 3, 5, 8, 9])
    RunningMember(made, trial).compare(2, 1.0, does_not_fit)
    assert (trial.stored, trial.noted) == ([], [])
    made.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "tpe"}, "needs sampler='random' or 'qmc', .*: got sampler='tpe'"),
        ({"pruner": {"name": "pbt", "every": 20}}, "'pbt' needs more epochs than every=20: got epochs=20"),
        ({"pruner": "pbt"}, "'pbt' needs the number of epochs between two comparisons: every="),
        ({"pruner": {"name": "pbt", "every": 2, "quantile": 2}}, "quantile must be above 0 and at most 0.5: got 2"),
        ({"fixed": {"first": 0.1, "second": 0.1}}, "needs a traced hyperparameter"),
        ({"space": lambda trial: Rates(first=0.1, second=0.1)}, "needs a Space class"),
        ({"trainer": None, "data": None, "train": lambda hparams, trial: 1.0}, "needs a study with `trainer`"),
    ],
)
def test_studies_that_cannot_be_trained_as_a_population(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        study_of(**settings)
