"""What the sampler learns of trials that cannot end well: it avoids where they were; failed ones it does not see."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from fake_trainer import FakeTrainer, small_data
from optuna.samplers._tpe.sampler import _get_pruned_trial_score
from optuna.trial import TrialState, create_trial
from storage_tools import opened, plain_trials

import tuner
from tuner import Space, Study, log_uniform, uniform
from tuner.search.view import SamplerView
from tuner.storage.optuna.storage import Storage
from tuner.storage.worker import claims, leases
from tuner.storage.worker.claims import Claimant
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import register
from tuner.study import trial_seed
from tuner.trial import Outcome, Report
from tuner.worker import run_worker

TRIALS, LATEST = 50, 20
SEEDS = (0, 1, 2)


@pytest.fixture
def storage(sqlite_url: str) -> Iterator[Storage]:
    storage: Any = tuner.open_storage(sqlite_url)
    yield storage
    storage.close()


def bad_among_the_latest(storage: Storage, outcome: Outcome, seed: int) -> int:
    """Run a study whose values get the better the nearer x is to 1, but whose trials with x > 0.5 all end in `outcome`.

    Returns:
        How many of the latest trials had such an x.
    """
    name = f"{outcome} {seed}"
    study_id = register(storage, storage.engine, name, ["minimize"], {}).study_id
    sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    claimant = Claimant(study_id, "worker", trials=10**6, lease_s=300.0)
    is_bad = []
    for _ in range(TRIALS):
        lease = claims.claim(storage.engine, claimant)
        assert isinstance(lease, Lease)
        storage.hold(lease, study_id)
        x = optuna.Trial(study, lease.trial_id).suggest_float("x", 0.0, 1.0)
        storage.flush(lease.trial_id)
        is_bad.append(x > 0.5)
        if not is_bad[-1]:
            leases.tell(storage.engine, lease, Outcome.COMPLETE, [-x], {})
        else:
            if outcome is Outcome.DIVERGED:  # after a first epoch that was better than any other trial's
                several = [Report(1, 10, {"loss": -1.0}), Report(2, 20, {"loss": math.nan})]
                leases.report(storage.engine, lease, several, "loss")
            leases.tell(storage.engine, lease, outcome, None, {})
        storage.drop(lease.trial_id)
        study._thread_local.cached_all_trials = None
    return sum(is_bad[-LATEST:])


@pytest.mark.slow
@pytest.mark.parametrize("outcome", [Outcome.DIVERGED, Outcome.OUT_OF_MEMORY])
def test_a_sampler_keeps_away_from_where_trials_diverge(storage: Storage, outcome: Outcome) -> None:
    avoided = [bad_among_the_latest(storage, outcome, seed) for seed in SEEDS]
    unseen = [bad_among_the_latest(storage, Outcome.FAILED, seed) for seed in SEEDS]

    # The best values are next to the bad ones: who avoids these still meets some, who does not see them meets no other.
    assert all(fewer <= 0.6 * more for fewer, more in zip(avoided, unseen, strict=True)), f"{avoided=}, {unseen=}"
    assert sum(avoided) <= 0.5 * LATEST * len(SEEDS), f"{avoided=}"


# --- Where they rank in TPE

EPOCHS = 12


class Searched(Space):
    a: float = uniform(-3.0, 3.0)
    learning_rate: float = log_uniform(1e-4, 10.0)


def loss(a: float, learning_rate: float, epoch: int) -> float:
    """Better towards a = 1, where training diverges from epoch 6 on."""
    if a > 0 and epoch >= 6:
        return math.nan
    return (a - 1) ** 2 + (math.log10(learning_rate) + 1) ** 2 + 3 / (1 + epoch) * (1 + 0.2 * math.sin(5 * a + epoch))


class LateDivergence(FakeTrainer):
    def values(self, hparams: Searched, epoch: int) -> dict[str, float]:
        return {"loss": loss(hparams.a, hparams.learning_rate, epoch)}


def in_plain_optuna(seed: int, trials: int, *, with_reports: bool) -> list[tuple[dict[str, float], str]]:
    """Return parameters and endings of the same study in Optuna alone, told diverged trials with or without reports."""
    study = optuna.create_study(
        direction="minimize", pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=3)
    )
    found = []
    for number in range(trials):
        study.sampler = optuna.samplers.TPESampler(seed=trial_seed(seed, number, "sampler"))
        trial, ending = study.ask(), "complete"
        params = {"a": trial.suggest_float("a", -3, 3)}
        params["learning_rate"] = trial.suggest_float("learning_rate", 1e-4, 10, log=True)
        for epoch in range(1, EPOCHS + 1):
            value = loss(**params, epoch=epoch)
            if math.isnan(value):
                ending = "diverged"
                trial.report(value, epoch)
                break
            trial.report(value, epoch)
            if epoch < EPOCHS and trial.should_prune():
                ending = "pruned"
                break
        if ending == "complete":
            study.tell(trial, loss(**params, epoch=EPOCHS))
        else:
            study.tell(trial, state=TrialState.PRUNED)
        storage: Any = study._storage
        if ending == "diverged" and not with_reports:
            storage._studies[study._study_id].trials[trial.number].intermediate_values.clear()
        found.append((params, ending))
    return found


@pytest.mark.parametrize("seed", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_tpe_ranks_trials_that_diverged_late_last(seed: int, tmp_path: Path) -> None:
    """Suggestions are those of Optuna alone that is told nothing of their reports; the rows have them all the same."""
    trials, url = 36, f"sqlite:///{tmp_path / 'study.db'}"
    study = Study(
        name="late",
        space=Searched,
        trainer=LateDivergence(),
        data=small_data,
        objective="loss",
        direction="minimize",
        epochs=EPOCHS,
        trials=trials,
        seed=seed,
        sampler="tpe",
        pruner="asha",
        keep_best=0,
    )
    run_worker(study, url, artifacts=str(tmp_path))

    with opened(url) as storage:
        ours = storage.get_all_trials(storage.get_study_id_from_name("late"))
    found = [(trial.params, trial.user_attrs["outcome"]) for trial in ours]
    expected = in_plain_optuna(seed, trials, with_reports=False)
    assert [ending for _, ending in found] == [ending for _, ending in expected]
    for (params, _), (theirs, _) in zip(found, expected, strict=True):
        assert params == pytest.approx(theirs, rel=1e-12)
    endings = [ending for _, ending in expected]
    assert endings != [ending for _, ending in in_plain_optuna(seed, trials, with_reports=True)], "it matters here"
    assert {"diverged", "pruned"} <= {*endings}
    for trial, ending in zip(plain_trials(url, "late"), endings, strict=True):
        assert trial.state == (TrialState.COMPLETE if ending == "complete" else TrialState.PRUNED)
        assert math.isnan(trial.intermediate_values[trial.last_step or 0]) == (ending == "diverged")


def test_a_sampler_sees_reports_of_no_other_trials_changed() -> None:
    study = optuna.create_study()
    outcomes = ["diverged", "out_of_memory", "timed_out", "pruned", "complete", ["diverged"], None]
    for outcome in outcomes:
        attributes = {} if outcome is None else {"outcome": outcome}
        values: dict[str, Any] = {"user_attrs": attributes, "intermediate_values": {1: 0.5, 9: math.nan}}
        study.add_trial(create_trial(state=TrialState.PRUNED, **values))
    study.add_trial(create_trial(value=1.0, user_attrs={"outcome": "diverged"}, intermediate_values={1: 0.5}))
    view: Any = SamplerView(study._storage)
    seen = view.get_all_trials(study._study_id, deepcopy=False)

    assert [len(trial.intermediate_values) for trial in seen] == [0, 0, 0, 2, 2, 2, 2, 1]
    assert [trial.number for trial in seen] == list(range(8))
    ranks = [_get_pruned_trial_score(trial, study) for trial in seen[:4]]
    assert ranks[0] == ranks[1] == ranks[2] > ranks[3]
    stored = study.get_trials(deepcopy=False)
    assert [len(trial.intermediate_values) for trial in stored] == [2] * 7 + [1], "the storage's own are as they were"
    assert seen[3] is stored[3]
    assert [trial.state for trial in view.get_all_trials(study._study_id, states=[TrialState.COMPLETE])] == [
        TrialState.COMPLETE
    ]
    assert view.get_study_name_from_id(study._study_id) == study.study_name
