"""Workers that share a grid try each point once, also when trials fail, are given back or are queued meanwhile."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState
from storage_tools import LEASE_S, StudyDatabase, opened

from tuner.errors import LeaseLost
from tuner.search.sequences import POINT, GridSampler
from tuner.storage.optuna.storage import Storage
from tuner.storage.worker import claims, leases
from tuner.storage.worker.claims import Claimant, NoTrial
from tuner.storage.worker.fences import Lease
from tuner.trial import Outcome

AXES = {"n": IntDistribution(1, 5), "c": CategoricalDistribution(("a", "b", "d"))}
SIZE = 15


def sampler_of(number: int) -> GridSampler:
    return GridSampler(distributions=AXES, number=number, seed=3)


def suggest(study: optuna.Study, lease: Lease) -> dict[str, Any]:
    """Suggest a held trial's hyperparameters, as a worker does."""
    study.sampler = sampler_of(lease.number)
    trial = optuna.Trial(study, lease.trial_id)
    for name, distribution in AXES.items():
        trial._suggest(name, distribution)
    return trial.params


@pytest.mark.slow
def test_workers_at_once_try_every_point_once(db: StudyDatabase) -> None:
    deadline_s = time.monotonic() + 300.0
    for _ in range(2):
        db.study.enqueue_trial({"n": 3, "c": "a"})
    db.study.enqueue_trial({"n": 2})

    def work(index: int) -> None:
        generator = random.Random(index)
        with opened(db.url) as storage:
            study = optuna.load_study(study_name=db.name, storage=storage)
            claimant = Claimant(db.study_id, f"worker-{index}", trials=99, lease_s=LEASE_S)
            while True:
                assert time.monotonic() < deadline_s
                known = storage.get_all_trials(db.study_id, deepcopy=False)
                claimant.trials, claimant.new_trials = sampler_of(0).limits(known)
                lease = claims.claim(storage.engine, claimant)
                if lease is NoTrial.DONE:
                    return
                if not isinstance(lease, Lease):
                    time.sleep(0.005)
                    continue
                storage.hold(lease, db.study_id)
                suggest(study, lease)
                storage.flush(lease.trial_id)
                end = generator.random()
                if end < 0.2:
                    leases.release(storage.engine, lease)
                else:
                    outcome = Outcome.FAILED if end < 0.4 else Outcome.COMPLETE
                    values = [1.0] if outcome is Outcome.COMPLETE else None
                    leases.tell(storage.engine, lease, outcome, values, {})
                storage.drop(lease.trial_id)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    done = {trial.number: trial.params for trial in db.trials() if trial.state is TrialState.COMPLETE}
    points = [(params["n"], params["c"]) for params in done.values()]
    assert len(set(points)) == SIZE
    queued = sum(trial.system_attrs.get("fixed_params") == {"n": 3, "c": "a"} for trial in db.trials())
    assert queued == 2
    assert points.count((3, "a")) <= 2  # one of the two may have failed
    # The one that was queued with a part of its point may find all such points taken, if its worker is slow.
    whole = [point for number, point in zip(done, points, strict=True) if number != 2 and point != (3, "a")]
    assert len(whole) == len(set(whole)), "no other is tried twice"


@pytest.mark.slow
def test_no_trial_is_created_for_a_queued_one_that_failed_after_the_grid_was_counted(db: StudyDatabase) -> None:
    for number in range(SIZE):
        db.study.enqueue_trial({"n": number % 5 + 1, "c": "abd"[number % 3]})  # codespell:ignore abd
    db.study.enqueue_trial({"n": 1, "c": "a"})  # a second time
    claimant = Claimant(db.study_id, "one", trials=99, lease_s=LEASE_S)

    def count() -> None:
        claimant.trials, claimant.new_trials = sampler_of(0).limits(db.trials())

    def end(outcome: Outcome) -> None:
        lease = claims.claim(db.engine, claimant)
        assert isinstance(lease, Lease)
        leases.tell(db.engine, lease, outcome, [1.0] if outcome is Outcome.COMPLETE else None, {})

    for _ in range(SIZE):
        count()
        end(Outcome.COMPLETE)
    count()
    assert claimant.trials == SIZE + 1
    end(Outcome.FAILED)  # the last in the queue; a worker that counted before still asks for one more
    assert claims.claim(db.engine, claimant) is NoTrial.WAIT
    count()
    assert claims.claim(db.engine, claimant) is NoTrial.DONE


def test_a_point_is_taken_from_the_moment_that_it_is_chosen(db: StudyDatabase) -> None:
    with opened(db.url) as one, opened(db.url) as two:
        first, second = db.claim("one"), db.claim("two")
        noted = []
        for storage, lease in ((one, first), (two, second)):
            study = optuna.load_study(study_name=db.name, storage=storage)
            storage.hold(lease, db.study_id)
            study.sampler = GridSampler(distributions=AXES, number=0, seed=3)  # both would like the same
            optuna.Trial(study, lease.trial_id)  # nothing is suggested yet
            noted.append(storage.get_trial(lease.trial_id).system_attrs[POINT])
        assert noted[0] != noted[1]
        stored = [trial.system_attrs[POINT] for trial in db.trials()]
        assert stored == noted


def test_a_point_is_free_if_its_trial_failed_after_the_trials_were_read(
    db: StudyDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = {"n": IntDistribution(1, 2)}

    def start(storage: Storage, lease: Lease, number: int) -> int:
        study = optuna.load_study(study_name=db.name, storage=storage)
        storage.hold(lease, db.study_id)
        study.sampler = GridSampler(distributions=axes, number=number, seed=3)
        return optuna.Trial(study, lease.trial_id).suggest_int("n", 1, 2)

    def fail(lease: Lease) -> None:
        leases.tell(db.engine, lease, Outcome.FAILED, None, {})

    with opened(db.url) as storage, opened(db.url) as elsewhere:
        first, second = db.claim("one"), db.claim("two")
        points = [start(storage, first, 0), start(storage, second, 1)]
        storage.flush(first.trial_id)
        storage.flush(second.trial_id)
        assert sorted(points) == [1, 2]
        fail(first)
        third = db.claim("three")
        take = storage.take_point

        def take_late(*arguments: Any) -> Any:  # the third has read that the second is running
            fail(second)
            points.append(start(elsewhere, db.claim("four"), 0))
            return take(*arguments)

        monkeypatch.setattr(storage, "take_point", take_late)
        points.append(start(storage, third, 0))
        assert points[2:] == points[:2], "the fourth takes the point of the first, so that of the second is left"


def test_a_trial_that_was_given_back_keeps_its_point(db: StudyDatabase) -> None:
    with opened(db.url) as storage:
        study = optuna.load_study(study_name=db.name, storage=storage)
        lease = db.claim("one")
        storage.hold(lease, db.study_id)
        study.sampler = sampler_of(0)
        optuna.Trial(study, lease.trial_id)
        noted = storage.get_trial(lease.trial_id).system_attrs[POINT]
        leases.release(db.engine, lease)
        storage.drop(lease.trial_id)
        other, again = db.claim("two"), db.claim("three")
        assert other.number == 0
        with opened(db.url) as elsewhere:
            elsewhere.hold(other, db.study_id)
            assert suggest(optuna.load_study(study_name=db.name, storage=elsewhere), other) == noted
        storage.hold(again, db.study_id)
        assert suggest(study, again) != noted


def test_whoever_lost_its_trial_takes_no_point(db: StudyDatabase) -> None:
    lease = db.claim("one", lease_s=-1.0)
    with opened(db.url) as storage:
        study = optuna.load_study(study_name=db.name, storage=storage)
        storage.hold(lease, db.study_id)
        assert db.claim("two").number == 0
        study.sampler = sampler_of(0)
        with pytest.raises(LeaseLost):
            optuna.Trial(study, lease.trial_id)
    assert POINT not in db.trials()[0].system_attrs


def test_a_grid_serves_a_study_of_plain_optuna_too(db: StudyDatabase) -> None:
    study = db.study
    for number in range(SIZE):
        study.sampler = sampler_of(number)
        trial = study.ask(dict(AXES))
        study.tell(trial, 1.0)
    assert len({tuple(trial.params.values()) for trial in db.trials()}) == SIZE
