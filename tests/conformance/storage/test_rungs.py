"""Successive halving whose rungs lie in the database decides as Optuna's own does, which reads all trials."""

import itertools
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.pruners import BasePruner, HyperbandPruner, SuccessiveHalvingPruner
from optuna.study import StudyDirection
from optuna.trial import TrialState
from storage_tools import new_database, opened, sent_statements

from tuner.errors import LeaseLost
from tuner.search.followed import Followed
from tuner.search.halving import AshaPruner, BracketPruner
from tuner.search.pruners import TrialPruner
from tuner.storage.optuna.storage import Storage
from tuner.storage.read.lineage import read_rungs
from tuner.storage.sql.tables import leases, rungs
from tuner.storage.worker import rungs as rungs_module
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.rungs import leave_rungs

pytestmark = pytest.mark.with_tables

inf, nan = math.inf, math.nan


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def storage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    url = f"sqlite:///{tmp_path_factory.mktemp('rungs') / 'study.db'}"
    if request.param == "postgres":
        url = new_database(request.getfixturevalue("postgres_server"))
    with opened(url) as storage:
        yield storage


@dataclass
class Search:
    """Curves that are reported to a pruner: trial by trial, or some at a time."""

    direction: Literal["minimize", "maximize"]
    at_once: int
    steps: list[int]
    curves: list[list[float]]

    def study(self, storage: Any = None) -> optuna.Study:
        name = f"search {self.direction} {len(self.curves)}"  # Hyperband's brackets depend on it
        if storage is not None and name in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=name, storage=storage)
        return optuna.create_study(study_name=name, direction=self.direction, storage=storage)

    def decide(self, study: optuna.Study, judge: Any) -> list[int | None]:
        """Return for each curve the step at which it was pruned."""
        pruned: list[int | None] = [None] * len(self.curves)
        for first in range(0, len(self.curves), self.at_once):
            running = {number: judge(study) for number in range(first, min(first + self.at_once, len(self.curves)))}
            for at, step in enumerate(self.steps):
                for number in [number for number in running if pruned[number] is None]:
                    if running[number].should_prune(step, self.curves[number][at]):
                        pruned[number] = step
        return pruned


def new_lease(storage: Storage, trial_id: int) -> Lease:
    """Store and return a lease on a trial."""
    row = {"trial_id": trial_id, "worker": "one", "fence": 1, "deaths": 0, "expires_at_s": 9e9}
    with storage.engine.begin() as connection:
        connection.execute(leases.insert().values(row))
    return Lease(trial_id, storage.get_trial(trial_id).number, "one", 1, 300.0, is_new=True)


class ByWorker:
    """A trial as a worker asks about it: it holds the trial, and reports go another way."""

    def __init__(self, study: optuna.Study) -> None:
        storage = study._storage
        self.trial_id = trial_id = storage.create_new_trial(study._study_id)
        if isinstance(storage, Storage):
            storage.hold(new_lease(storage, trial_id), study._study_id)
        followed = Followed(("loss",), (study.direction == optuna.study.StudyDirection.MAXIMIZE,))
        self._pruner = TrialPruner(study, optuna.Trial(study, trial_id), followed)

    def should_prune(self, step: int, value: float) -> bool:
        return self._pruner.must_judge(step) and self._pruner.should_prune(step, value)


class ByScript:
    """A trial as a script with Optuna asks about it."""

    def __init__(self, study: optuna.Study) -> None:
        self._trial = study.ask()

    def should_prune(self, step: int, value: float) -> bool:
        self._trial.report(value, step)
        return self._trial.should_prune()


def random_search(seed: int, count: int, values: Sequence[float]) -> Search:
    generator = random.Random(seed)
    steps = sorted(generator.sample(range(1, 28), generator.choice([4, 9, 14])))
    pool = [generator.choice(values) for _ in range(6)] + [generator.random() for _ in range(3)]
    curves = [[generator.choice(pool) for _ in steps] for _ in range(count)]
    directions: list[Literal["minimize", "maximize"]] = ["minimize", "maximize"]
    return Search(generator.choice(directions), generator.randint(1, 5), steps, curves)


def random_pruners(seed: int) -> list[tuple[BasePruner, BasePruner]]:
    """Return pairs of ours and Optuna's."""
    generator = random.Random(seed)
    halving: dict[str, Any] = {
        "min_resource": generator.randint(1, 3),
        "reduction_factor": generator.choice([2, 3, 4]),
        "bootstrap_count": generator.choice([0, 0, 1, 3]),
        "min_early_stopping_rate": generator.choice([0, 0, 1, 2]),
    }
    hyperband: dict[str, Any] = {name: value for name, value in halving.items() if name != "min_early_stopping_rate"}
    hyperband["max_resource"] = generator.choice([9, 27, 30])
    return [
        (AshaPruner(**halving), SuccessiveHalvingPruner(**halving)),
        (BracketPruner(**hyperband), HyperbandPruner(**hyperband)),
    ]


VALUES = [0.0, 0.5, 0.5, 1.0, -1.0, inf, -inf]


@pytest.mark.parametrize("values", [VALUES, [*VALUES, nan]], ids=["numbers", "nan"])
@pytest.mark.parametrize("seed", range(5))
def test_a_worker_is_told_what_optunas_pruner_would_say(storage: Storage, seed: int, values: list[float]) -> None:
    search = random_search(seed, 16, values)
    for ours, theirs in random_pruners(seed):
        here, there = search.study(storage), search.study()
        here.pruner, there.pruner = ours, theirs
        assert search.decide(here, ByWorker) == search.decide(there, ByWorker), (ours, search)


@pytest.mark.parametrize("seed", range(3))
def test_a_script_is_told_what_optunas_pruner_would_say(storage: Storage, seed: int) -> None:
    search = random_search(100 + seed, 10, VALUES)
    for ours, theirs in random_pruners(100 + seed):
        here, there = search.study(storage), search.study()
        here.pruner, there.pruner = ours, theirs
        assert search.decide(here, ByScript) == search.decide(there, ByScript), (ours, search)


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed", [*range(200, 208), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(208, 260))]
)
def test_any_search_is_pruned_as_optunas_pruner_does(storage: Storage, seed: int) -> None:
    search = random_search(seed, 40, [*VALUES, nan] if seed % 2 else VALUES)
    for ours, theirs in random_pruners(seed):
        here, there = search.study(storage), search.study()
        here.pruner, there.pruner = ours, theirs
        assert search.decide(here, ByWorker) == search.decide(there, ByWorker), (ours, search)


def test_the_searches_above_compare_something() -> None:
    decided: list[int | None] = []
    for seed in range(8):
        search = random_search(seed, 16, VALUES)
        for _, theirs in random_pruners(seed):
            study = search.study()
            study.pruner = theirs
            decided += search.decide(study, ByWorker)

    # Both decisions are frequent: a pruner that always says the same would fail the tests above.
    assert 0.15 < decided.count(None) / len(decided) < 0.85
    assert len(set(decided)) > 8  # steps at which a trial was pruned


def test_a_nan_between_two_rungs_prunes_no_trial(storage: Storage) -> None:
    search = Search("minimize", 1, [1, 2, 3], [[0.5, nan, 0.5], [nan, 0.5, 0.5], [0.25, 0.25, nan]])
    for judge in (ByWorker, ByScript):
        here, there = search.study(storage), search.study()
        here.pruner = AshaPruner(min_resource=1, reduction_factor=3)
        there.pruner = SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
        assert search.decide(there, judge) == [None, 1, 3]
        assert search.decide(here, judge) == [None, 1, 3]


@pytest.mark.slow
def test_an_automatic_resource_is_optunas(storage: Storage) -> None:
    search = random_search(7, 12, VALUES)
    for ours, theirs in [
        (AshaPruner(reduction_factor=2), SuccessiveHalvingPruner(reduction_factor=2)),
        (BracketPruner(reduction_factor=2), HyperbandPruner(reduction_factor=2)),
    ]:
        decided = []
        for study, pruner in [(search.study(storage), ours), (search.study(), theirs)]:
            study.pruner = pruner
            distant = optuna.create_trial(value=0.0, intermediate_values=dict.fromkeys(range(1, 28), 0.25))
            study.add_trial(distant)
            search.at_once = 1
            decided.append(search.decide(study, ByScript))
        assert decided[0] == decided[1]


@pytest.mark.parametrize("judge", [ByWorker, ByScript])
def test_without_a_report_nothing_is_pruned(storage: Storage, judge: Any) -> None:
    study = optuna.create_study(storage=storage, pruner=AshaPruner(min_resource=1))
    for pruner in (AshaPruner(min_resource=1), BracketPruner(max_resource=9)):
        trial = study.ask()
        assert not pruner.prune(study, storage.get_trial(trial._trial_id))


# --- A rung


@dataclass
class Rung:
    storage: Storage
    study_id: int

    def add(self) -> int:
        return self.storage.create_new_trial(self.study_id)

    def hold(self) -> Lease:
        lease = new_lease(self.storage, self.add())
        self.storage.hold(lease, self.study_id)
        return lease

    def enter(self, trial_id: int, *values: float, **place: Any) -> bool:
        maximize = [False for _ in values]
        given = {"bracket": 0, "rung": 0, "reduction_factor": 2, "bootstrap_count": 0, "maximize": maximize, **place}
        return self.storage.enter_rung(self.study_id, trial_id, values=values, **given)

    def rows(self) -> list[tuple[Any, ...]]:
        columns = (rungs.c.trial_id, rungs.c.bracket, rungs.c.rung, rungs.c.value, rungs.c.is_promoted)
        query = sa.select(*columns).where(rungs.c.study_id == self.study_id).order_by(rungs.c.trial_id, rungs.c.rung)
        with self.storage.engine.connect() as connection:
            return [(*row,) for row in connection.execute(query)]


def new_rung(storage: Storage, name: str | None = None) -> Rung:
    return Rung(storage, storage.create_new_study([StudyDirection.MINIMIZE], name))


def test_a_trial_counts_once_in_a_rung_and_is_judged_once(storage: Storage) -> None:
    rung = new_rung(storage)
    first, second, third = rung.add(), rung.add(), rung.add()
    assert rung.enter(first, 0.5)
    assert not rung.enter(second, 0.75)
    before = rung.rows()
    assert before == [(first, 0, 0, 0.5, True), (second, 0, 0, 0.75, False)]

    assert not rung.enter(second, 0.0)  # would be promoted now
    assert rung.enter(first, 9.0)  # would not
    assert rung.rows() == before
    assert not rung.enter(third, 0.625)  # of three one is promoted: with a trial counted twice it were two of four
    assert rung.enter(first, 0.5, rung=1)  # another rung of the same trial
    assert len(rung.rows()) == 4


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans()), min_size=1, max_size=12),
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_trials_that_enter_together_are_decided_as_one_after_another(
    storage: Storage, values: list[tuple[float, bool]], sizes: list[int]
) -> None:
    alone, together = new_rung(storage), new_rung(storage)
    place = {"bracket": 0, "rung": 0, "reduction_factor": 2, "bootstrap_count": 1, "maximize": [False]}
    expected = [alone.enter(alone.add(), value, bootstrap_count=1, is_feasible=good) for value, good in values]
    found, at = [], 0
    for size in [*sizes, len(values)]:
        part = values[at : at + size]
        entries = [(together.hold(), {**place, "values": [value], "is_feasible": good}) for value, good in part]
        storage.enter_rungs(together.study_id, entries)
        found += [storage.enter_rung(together.study_id, lease.trial_id, **given) for lease, given in entries]
        at += size
    assert found == expected
    first = min((row[0] for row in alone.rows()), default=0) - min((row[0] for row in together.rows()), default=0)
    assert [(row[0] + first, *row[1:]) for row in together.rows()] == alone.rows()


def test_trials_that_could_not_enter_together_enter_alone(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    rung = new_rung(storage)
    place = {"bracket": 0, "rung": 0, "reduction_factor": 2, "bootstrap_count": 0, "maximize": [False]}
    entries = [(rung.hold(), {**place, "values": [value]}) for value in (0.5, 0.25, 0.75)]
    enter, entered = rungs_module._enter, itertools.count(1)

    def fail_at_the_third(*given: Any) -> Any:
        if next(entered) == 3:
            raise RuntimeError("planted")
        return enter(*given)

    with monkeypatch.context() as patched:
        patched.setattr(rungs_module, "_enter", fail_at_the_third)
        with pytest.raises(RuntimeError, match="planted"):
            storage.enter_rungs(rung.study_id, entries)
    assert rung.rows() == []
    assert [rung.enter(lease.trial_id, *given["values"]) for lease, given in entries] == [True, True, False]
    assert [row[0] for row in rung.rows()] == [lease.trial_id for lease, _ in entries], "all are stored now"


def test_a_decision_is_used_once_and_not_after_the_trial_starts_again(storage: Storage) -> None:
    rung = new_rung(storage)
    place = {"bracket": 0, "rung": 0, "reduction_factor": 2, "bootstrap_count": 0, "maximize": [False]}
    first, second, dropped = rung.hold(), rung.hold(), new_lease(storage, rung.add())
    entries = zip((first, second, dropped), (0.5, 0.75, 0.875), strict=True)
    storage.enter_rungs(rung.study_id, [(lease, {**place, "values": [value]}) for lease, value in entries])
    assert set(storage._entered) == {(first.trial_id, 0), (second.trial_id, 0)}, "nobody holds the third any more"
    assert rung.enter(first.trial_id, 0.5)
    storage.drop(second.trial_id)
    assert storage._entered == {}
    assert not rung.enter(second.trial_id, 0.0), "decided before, with 0.75"


def test_a_trial_that_was_taken_over_does_not_enter_with_the_others(storage: Storage) -> None:
    rung = new_rung(storage)
    place = {"bracket": 0, "rung": 0, "reduction_factor": 2, "bootstrap_count": 0, "maximize": [False]}
    held = [rung.hold() for _ in range(3)]
    with storage.engine.begin() as connection:
        connection.execute(leases.update().where(leases.c.trial_id == held[1].trial_id).values(fence=2, worker="two"))
    storage.enter_rungs(rung.study_id, [(lease, {**place, "values": [0.5]}) for lease in held])
    assert [row[0] for row in rung.rows()] == [held[0].trial_id, held[2].trial_id]
    with pytest.raises(LeaseLost):
        rung.enter(held[1].trial_id, 0.5)


def test_a_value_is_compared_with_those_in_the_rung_not_with_its_own_earlier_one(storage: Storage) -> None:
    rung = new_rung(storage)
    trial_ids = [rung.add() for _ in range(4)]
    # n // 2 of n are promoted, at least one; equal values are equally good.
    promoted = [rung.enter(trial_id, value) for trial_id, value in zip(trial_ids, [3.0, 2.0, 2.0, 2.5], strict=True)]

    assert promoted == [True, True, True, False]


@pytest.mark.parametrize(("maximize", "promoted"), [(False, [True, False, True]), (True, [True, True, False])])
def test_the_direction_tells_what_is_better(storage: Storage, maximize: bool, promoted: list[bool]) -> None:
    rung = new_rung(storage)

    assert [rung.enter(rung.add(), value, maximize=[maximize]) for value in (0.5, 0.75, 0.25)] == promoted


@pytest.mark.parametrize("count", [0, 1, 3])
def test_nobody_is_promoted_before_a_rung_has_enough_trials(storage: Storage, count: int) -> None:
    rung = new_rung(storage)

    promoted = [rung.enter(rung.add(), -value, bootstrap_count=count) for value in range(5)]
    assert promoted == [at >= count for at in range(5)]
    assert len(rung.rows()) == 5


def test_infinite_values_are_compared(storage: Storage) -> None:
    rung = new_rung(storage)

    entered = [rung.enter(rung.add(), value) for value in (inf, inf, 1e308, -inf, -inf, -1e308)]
    assert entered == [True, True, True, True, True, True]
    assert [row[3] for row in rung.rows()] == [inf, inf, 1e308, -inf, -inf, -1e308]
    assert not rung.enter(rung.add(), 0.0)


def test_rungs_brackets_and_studies_do_not_see_each_other(storage: Storage) -> None:
    rung, other = new_rung(storage), new_rung(storage)
    assert rung.enter(rung.add(), 0.0)
    assert not rung.enter(rung.add(), 1.0)

    assert rung.enter(rung.add(), 1.0, bracket=1)
    assert rung.enter(rung.add(), 1.0, rung=1)
    assert other.enter(other.add(), 1.0)
    assert not rung.enter(rung.add(), 2.0, bracket=1)
    assert not rung.enter(rung.add(), 2.0, rung=1)
    assert not other.enter(other.add(), 2.0)


def test_trials_that_violate_a_constraint_do_not_stop_those_that_do_not(storage: Storage) -> None:
    rung = new_rung(storage)
    for value in (0.1, 0.2, 0.3):
        rung.enter(rung.add(), value, is_feasible=False)
    feasible = rung.add()
    assert rung.enter(feasible, 0.5), "the first that counts"
    assert rung.enter(feasible, 0.5), "it is judged once"
    assert not rung.enter(rung.add(), 0.6), "it is compared with the feasible one"
    assert [row.promoted for row in read_rungs(storage.engine, rung.study_id)] == [2], "0.1 and 0.5"
    assert [row.entered for row in read_rungs(storage.engine, rung.study_id)] == [5]


def test_trials_that_violate_a_constraint_are_compared_with_all(storage: Storage) -> None:
    rung = new_rung(storage)
    rung.enter(rung.add(), 0.5)
    assert not rung.enter(rung.add(), 0.6, is_feasible=False)
    assert rung.enter(rung.add(), 0.4, is_feasible=False)
    assert rung.enter(rung.add(), 0.45, is_feasible=False), "two of four"
    assert not rung.enter(rung.add(), 0.55, is_feasible=False)


def test_a_late_worker_cannot_enter_a_rung(storage: Storage) -> None:
    study = optuna.create_study(storage=storage, pruner=AshaPruner(1, 3))
    late = ByWorker(study)
    with storage.engine.begin() as connection:
        connection.execute(leases.update().where(leases.c.trial_id == late.trial_id).values(fence=2, worker="two"))

    with pytest.raises(LeaseLost):
        late.should_prune(1, 0.5)
    assert Rung(storage, study._study_id).rows() == []


def test_a_trial_that_starts_again_leaves_its_rungs_and_is_judged_anew(storage_url: str) -> None:
    with opened(storage_url) as one, opened(storage_url) as two:
        here = new_rung(one)
        there = Rung(two, here.study_id)
        first, second = new_lease(one, here.add()), new_lease(one, here.add())
        for storage in (one, two):
            storage.hold(first, here.study_id)
            storage.hold(second, here.study_id)
        assert here.enter(first.trial_id, 0.5)
        assert not there.enter(second.trial_id, 0.75)

        leave_rungs(two.engine, first, here.study_id)
        assert here.enter(here.add(), 0.625)  # of two the best; with the first trial it would be second of three
        assert not there.enter(first.trial_id, 9.0)
        leave_rungs(one.engine, second, here.study_id)
        assert there.enter(second.trial_id, 0.6)
        assert sorted(row[3] for row in here.rows()) == [0.6, 0.625, 9.0]


def test_a_late_worker_takes_no_trial_out_of_its_rungs(storage: Storage) -> None:
    rung = new_rung(storage)
    lease = new_lease(storage, rung.add())
    assert rung.enter(lease.trial_id, 0.5)
    with storage.engine.begin() as connection:
        connection.execute(leases.update().where(leases.c.trial_id == lease.trial_id).values(fence=2, worker="two"))

    with pytest.raises(LeaseLost):
        leave_rungs(storage.engine, lease, rung.study_id)
    assert rung.rows() == [(lease.trial_id, 0, 0, 0.5, True)]


def test_two_processes_see_each_others_trials(storage_url: str) -> None:
    """Each reads what is new; together they decide as one does."""
    with opened(storage_url) as one, opened(storage_url) as two:
        rung = new_rung(one)
        several = [rung, Rung(two, rung.study_id)]
        values = [0.5, 0.75, 0.25, 0.625, 0.375, 0.875, 0.125, 0.5]
        apart = [several[at % 2].enter(rung.add(), value) for at, value in enumerate(values)]
        alone = new_rung(one)

        assert apart == [alone.enter(alone.add(), value) for value in values]
        with one.engine.connect() as connection:
            query = sa.select(rungs.c.position).where(rungs.c.study_id == rung.study_id).order_by(rungs.c.position)
            assert connection.execute(query).scalars().all() == list(range(1, 9))


def test_the_rungs_of_a_deleted_study_are_forgotten(storage: Storage) -> None:
    for _ in range(2):  # on SQLite with the same ids
        rung = new_rung(storage, "comes and goes")
        assert rung.enter(rung.add(), 0.0)
        assert not rung.enter(rung.add(), 1.0)
        assert len(rung.rows()) == 2
        storage.delete_study(rung.study_id)
        assert rung.rows() == []


# --- Several objectives, and other metrics

# Both are minimised, and n // 2 of n are promoted. The comments say how many rank before, and how many may.
VECTORS = [
    ((1.0, 9.0), True),  # 0, 0
    ((2.0, 10.0), False),  # 1: dominated; 0
    ((9.0, 1.0), True),  # 0: at the other end of the front; 0
    ((4.0, 4.0), False),  # 2: both ends; 1
    ((5.0, 5.0), False),  # 3: the front; 1
    ((2.0, 5.0), False),  # 3: both ends, and (4, 4) is further from its neighbours: 11 / 8 > 8 / 8; 2
    ((0.0, 0.0), True),  # 0: it dominates all; 2
    ((0.0, 0.0), True),  # 0; 3
    ((1.0, 9.0), True),  # 2; 3
    ((6.0, 7.0), False),  # 9; 4
]


@pytest.mark.parametrize("signs", [(1, 1), (-1, 1), (-1, -1)])
def test_vectors_by_hand(storage: Storage, signs: tuple[int, int]) -> None:
    rung, maximize = new_rung(storage), [sign < 0 for sign in signs]
    entered = [
        rung.enter(rung.add(), *(sign * value for sign, value in zip(signs, vector, strict=True)), maximize=maximize)
        for vector, _ in VECTORS
    ]
    assert entered == [promoted for _, promoted in VECTORS]


def test_vectors_are_stored_and_a_trial_is_judged_once(storage: Storage) -> None:
    rung = new_rung(storage)
    first, second = rung.add(), rung.add()
    assert rung.enter(first, 0.1, 1e300, -2.5)
    assert not rung.enter(second, 0.2, 1e300, -2.5)
    with storage.engine.connect() as connection:
        query = sa.select(rungs.c.value, rungs.c.others, rungs.c.metric).where(rungs.c.study_id == rung.study_id)
        stored = connection.execute(query.order_by(rungs.c.position)).all()
    assert [(value, json.loads(others), metric) for value, others, metric in stored] == [
        (0.1, [1e300, -2.5], None),
        (0.2, [1e300, -2.5], None),
    ]

    assert not rung.enter(second, 0.0, 0.0, -9.0)
    assert rung.enter(first, 9.0, 9e300, 9.0)
    assert not rung.enter(rung.add(), 0.0, nan, 0.0), "it is not in the rung"
    assert len(rung.rows()) == 2


def test_processes_with_vectors_decide_as_one_does_also_after_a_restart(storage_url: str) -> None:
    generator = random.Random(0)
    vectors = [tuple(generator.choice([0.0, 0.25, 0.5, 1.0]) for _ in range(3)) for _ in range(40)]
    with opened(storage_url) as one, opened(storage_url) as two:
        rung = new_rung(one)
        apart: list[bool] = []
        for at, vector in enumerate(vectors):
            if at % 7 == 0:  # a process that starts reads everything
                one._known.clear()
            apart.append(Rung([one, two][at % 2], rung.study_id).enter(rung.add(), *vector, reduction_factor=3))
        alone = new_rung(two)

        assert apart == [alone.enter(alone.add(), *vector, reduction_factor=3) for vector in vectors]
        assert 5 < sum(apart) < 35


def test_a_trial_with_a_vector_that_starts_again_is_judged_anew(storage_url: str) -> None:
    with opened(storage_url) as one, opened(storage_url) as two:
        here = new_rung(one)
        there = Rung(two, here.study_id)
        first = new_lease(one, here.add())
        for storage in (one, two):
            storage.hold(first, here.study_id)
        assert here.enter(first.trial_id, 0.5, 0.5)
        assert not there.enter(here.add(), 0.75, 0.75)
        leave_rungs(two.engine, first, here.study_id)
        assert here.enter(here.add(), 0.625, 0.625)
        assert not there.enter(first.trial_id, 9.0, 9.0)
        assert here.enter(here.add(), 0.5, 0.7), "of four two are promoted, and only one ranks before"


def test_values_of_other_metrics_are_not_compared(storage: Storage) -> None:
    rung = new_rung(storage)
    assert rung.enter(rung.add(), 0.0)
    assert rung.enter(rung.add(), 5.0, metric="val_loss"), "the first of this metric"
    assert not rung.enter(rung.add(), 6.0, metric="val_loss")
    assert rung.enter(rung.add(), 7.0, metric="seconds")
    assert rung.enter(rung.add(), 8.0, 8.0), "the first with two objectives"
    assert not rung.enter(rung.add(), 1.0), "the second without another metric"
    assert not rung.enter(rung.add(), 9.0, 9.0)


def test_a_trial_with_several_objectives_is_judged_at_each_rung(storage: Storage) -> None:
    """Rungs at 1, 3 and 9; with Hyperband, trials of another bracket do not count."""
    for pruner in (AshaPruner(1, 3), BracketPruner(1, 9, 3)):
        study = optuna.create_study(directions=["minimize", "maximize"], storage=storage, pruner=pruner)
        followed = Followed(("loss", "accuracy"), (False, True))
        for at in range(6):
            trial_id = storage.create_new_trial(study._study_id)
            storage.hold(new_lease(storage, trial_id), study._study_id)
            judge = TrialPruner(study, optuna.Trial(study, trial_id), followed)
            ended = [step for step in range(1, 10) if judge.should_prune(step, at, -at)]
            places = [
                (bracket, rung) for one, bracket, rung, *_ in Rung(storage, study._study_id).rows() if one == trial_id
            ]
            assert {bracket for bracket, _ in places} <= ({0} if isinstance(pruner, AshaPruner) else {0, 1, 2})
            if at == 0:
                assert (ended, len(places)) == ([], 3 - places[0][0])
            elif isinstance(pruner, AshaPruner):
                assert (ended, places) == ([*range(1, 10)], [(0, 0)]), "it is dominated by the first"


# --- What it costs, and where it is Optuna's


@pytest.mark.parametrize("pruner", [AshaPruner(1, 3), BracketPruner(1, 27, 3)], ids=["asha", "hyperband"])
def test_a_decision_reads_no_trials(storage: Storage, pruner: BasePruner, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("all trials were read")

    study = optuna.create_study(storage=storage, pruner=pruner)
    for _ in range(3):
        ByWorker(study).should_prune(1, 0.5)  # texts are made, on Postgres prepared
    trial = ByWorker(study)
    assert study.direction is StudyDirection.MINIMIZE
    monkeypatch.setattr(Storage, "get_all_trials", refuse)
    counts = {}
    for step in range(1, 28):
        with sent_statements(storage, without=("BEGIN", "PREPARE")) as sent:
            assert not trial.should_prune(step, 1.0 / (step + 2))
        counts[step] = len(sent)
        assert all("tuner_rungs" in text or text.startswith(("EXECUTE", "BEGIN")) or "studies" in text for text in sent)
    entered = {
        3 ** (bracket + rung)
        for trial_id, bracket, rung, *_ in Rung(storage, study._study_id).rows()
        if trial_id == trial.trial_id
    }
    messages = 3 if storage.engine.dialect.name == "sqlite" else 2  # the lock, what is new, our own place
    assert {counts[step] for step in entered} == {messages}
    assert {step for step, count in counts.items() if count} == entered
    assert entered


def test_several_rungs_at_once_cost_the_same_each(storage: Storage) -> None:
    study = optuna.create_study(storage=storage, pruner=AshaPruner(1, 3))
    ByWorker(study).should_prune(1, 0.5)
    trial = ByWorker(study)
    with sent_statements(storage, without=("BEGIN", "PREPARE")) as sent:
        assert not trial.should_prune(9, 0.25)
    assert len(sent) == (9 if storage.engine.dialect.name == "sqlite" else 6)
    with sent_statements(storage, without=("BEGIN", "PREPARE")) as sent:
        assert not trial.should_prune(10, 99.0)
    assert sent == []


@pytest.mark.parametrize("seed", range(3))
def test_on_another_storage_our_pruners_are_optunas(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    search = random_search(seed, 16, [*VALUES, nan])
    for ours, theirs in random_pruners(seed):
        decided = []
        for pruner in (ours, theirs):
            study = search.study()
            study.pruner = pruner
            decided.append(search.decide(study, ByScript))
            marks = [trial.system_attrs for trial in study.trials]
            assert any("completed_rung_0" in mark for mark in marks)  # where Optuna keeps them
        assert decided[0] == decided[1]


def test_our_rungs_leave_no_marks_on_the_trials(storage: Storage) -> None:
    study = optuna.create_study(storage=storage, pruner=AshaPruner(1, 3))
    trial = study.ask()
    trial.report(0.5, 1)
    assert not trial.should_prune()
    study.tell(trial, state=TrialState.PRUNED)

    assert storage.get_trial(trial._trial_id).system_attrs == {}
    assert Rung(storage, study._study_id).rows() == [(trial._trial_id, 0, 0, 0.5, True)]
