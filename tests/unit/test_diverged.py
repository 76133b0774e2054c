"""What the sampler learns of trials that cannot end well: it avoids where they were; failed ones it does not see."""

import math
from collections.abc import Iterator
from typing import Any

import optuna
import pytest

import tuner
from tuner.storage import claims, leases
from tuner.storage.claims import Claimant
from tuner.storage.fences import Lease
from tuner.storage.optuna_storage import Storage
from tuner.storage.studies import register
from tuner.trial import Outcome, Report

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


@pytest.mark.parametrize("outcome", [Outcome.DIVERGED, Outcome.OUT_OF_MEMORY])
def test_a_sampler_keeps_away_from_where_trials_diverge(storage: Storage, outcome: Outcome) -> None:
    avoided = [bad_among_the_latest(storage, outcome, seed) for seed in SEEDS]
    unseen = [bad_among_the_latest(storage, Outcome.FAILED, seed) for seed in SEEDS]

    # The best values are next to the bad ones: who avoids these still meets some, who does not see them meets no other.
    assert all(fewer <= 0.6 * more for fewer, more in zip(avoided, unseen, strict=True)), f"{avoided=}, {unseen=}"
    assert sum(avoided) <= 0.5 * LATEST * len(SEEDS), f"{avoided=}"
