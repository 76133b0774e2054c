"""Our storage as Optuna uses it: trials that are held, what is read again, and that it agrees with Optuna's own."""

import copy
import datetime
import itertools
import json
import math
import pickle
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import event
from storage_tools import add_trials, new_database, opened, sent_statements

from tuner.errors import LeaseLost
from tuner.storage import parse_url
from tuner.storage.optuna import held as held_module
from tuner.storage.optuna import loading
from tuner.storage.optuna.storage import Storage
from tuner.storage.sql import prepared_statements
from tuner.storage.sql.retry import Patience, patient
from tuner.storage.sql.tables import (
    trial_intermediate_values,
    trial_params,
    trial_system_attributes,
    trial_user_attributes,
    trial_values,
    trials,
)
from tuner.storage.worker import claims, leases
from tuner.storage.worker.fences import Lease
from tuner.trial import Outcome

inf, nan = math.inf, math.nan
START = datetime.datetime(2024, 2, 29, 23, 59, 59, 123456)
NASTY = [
    "",
    " ",
    "äß€ 漢字 🦙",
    "'",
    '"',
    "''\\'",
    "%",
    "%s %(x)s %%",
    ":name",
    "$1 $2",
    "{} {0} {x}",
    "a\nb\tc\\n",
    "\x00 \x7f",
]


@contextmanager
def plain_optuna(url: str) -> Iterator[RDBStorage]:
    storage = RDBStorage(parse_url(url).for_optuna)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def as_text(trial: FrozenTrial) -> dict[str, str]:
    """Return a trial's fields so that NaN equals NaN, and 1 neither 1.0 nor True; params keep their order."""
    fields = dict(trial.__dict__)
    for name in ("intermediate_values", "_user_attrs", "_system_attrs"):
        fields[name] = sorted(fields[name].items())
    return {name: repr(value) for name, value in fields.items()}


def same(some: list[FrozenTrial], others: list[FrozenTrial]) -> bool:
    assert [as_text(trial) for trial in some] == [as_text(trial) for trial in others]
    return True


class Place:
    """A study of its own in a shared database, which two of our storages and one of Optuna's have open."""

    def __init__(self, url: str, one: Storage, two: Storage, plain: RDBStorage) -> None:
        self.url, self.one, self.two, self.plain = url, one, two, plain
        self.name = uuid.uuid4().hex
        self.study_id = one.create_new_study([StudyDirection.MINIMIZE], self.name)

    def claim(self, worker: str = "one", lease_s: float = 300.0) -> Lease:
        claimant = claims.Claimant(self.study_id, worker, trials=10_000, lease_s=lease_s)
        lease = claims.claim(self.one.engine, claimant)
        assert isinstance(lease, Lease)
        return lease

    def study(self, storage: Any = None) -> optuna.Study:
        return optuna.load_study(study_name=self.name, storage=storage or self.one, sampler=RandomSampler(seed=0))

    def hold(self, storage: Storage | None = None, **claim: Any) -> tuple[Lease, optuna.Trial]:
        storage = storage or self.one
        lease = self.claim(**claim)
        storage.hold(lease, self.study_id)
        return lease, optuna.Trial(self.study(storage), lease.trial_id)

    def stored(self) -> list[FrozenTrial]:
        """Return the trials as plain Optuna reads them, without a cache."""
        return self.plain.get_all_trials(self.study_id)

    def run(self, text: str, **values: Any) -> Any:
        """Change the database behind the storages' backs."""
        with self.two.engine.begin() as connection:
            return connection.execute(sa.text(text), values)

    def add_finished(self, count: int) -> None:
        """Add complete trials set by set, with everything that may belong to one."""
        if not count:
            return
        with self.two.engine.begin() as connection:
            of_study = trials.c.study_id == self.study_id
            first = connection.execute(sa.select(sa.func.count()).where(of_study)).scalar_one()
            rows = [
                {"number": first + at, "study_id": self.study_id, "state": "COMPLETE"}
                | {"datetime_start": START, "datetime_complete": START + datetime.timedelta(seconds=at)}
                for at in range(count)
            ]
            connection.execute(trials.insert(), rows)
            query = sa.select(trials.c.trial_id).where(of_study, trials.c.number >= first)
            ids = connection.execute(query.order_by(trials.c.number)).scalars().all()
            several: dict[sa.Table, list[dict[str, Any]]] = {}
            for at, trial_id in enumerate(ids):
                for table, row in belongings(at):
                    several.setdefault(table, []).append({"trial_id": trial_id, **row})
            for table, rows in several.items():
                connection.execute(table.insert(), rows)


def belongings(at: int) -> Iterator[tuple[sa.Table, dict[str, Any]]]:
    """Yield rows for a trial; neither by name nor by step."""
    space = {"x": FloatDistribution(0.0, 1.0), "n": IntDistribution(0, 1_000_000), "c": KINDS["choice"][0]}
    for name, value in (("x", 1.0 / (at + 1)), ("c", float(at % 5)), ("n", float(at))):
        text = distribution_to_json(space[name])
        yield trial_params, {"param_name": name, "param_value": value, "distribution_json": text}
    yield trial_values, {"objective": 0, "value": at / 7, "value_type": "FINITE"}
    for step, value, kind in ((2, None, "NAN"), (1, at / 3, "FINITE"), (7, None, "INF_NEG")):
        yield (
            trial_intermediate_values,
            {"step": step, "intermediate_value": value, "intermediate_value_type": kind},
        )
    for table in (trial_user_attributes, trial_system_attributes):
        yield table, {"key": f"k{at % 3}", "value_json": json.dumps([at, {"a": None}])}


KINDS: dict[str, tuple[BaseDistribution, list[Any]]] = {
    "float": (FloatDistribution(-1.0, 1e9), [-1.0, 0.1, 1e9, 1 / 3]),
    "log": (FloatDistribution(1e-300, 1.0, log=True), [1e-300, 1e-7, 1.0]),
    "step": (FloatDistribution(0.0, 1.0, step=0.25), [0.0, 0.75]),
    "point": (FloatDistribution(0.5, 0.5), [0.5]),
    "int": (IntDistribution(-5, 2**40), [-5, 0, 2**40]),
    "int log": (IntDistribution(1, 1024, log=True), [1, 7, 1024]),
    "int step": (IntDistribution(0, 10, step=5), [0, 5, 10]),
    "choice": (CategoricalDistribution([None, True, 3, 2.5, "a"]), [None, True, 3, 2.5, "a"]),
    "false": (CategoricalDistribution([False, 0.5, 7]), [False, 0.5, 7]),
    "one": (CategoricalDistribution(["%s"]), ["%s"]),
    "texts": (CategoricalDistribution(NASTY), NASTY),
}


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, ...]]:
    url = f"sqlite:///{tmp_path_factory.mktemp('optuna') / 'study.db'}"
    if request.param == "postgres":
        url = new_database(request.getfixturevalue("postgres_server"))
    with opened(url) as one, opened(url) as two, plain_optuna(url) as plain:
        yield url, one, two, plain


@pytest.fixture
def place(shared: tuple[Any, ...]) -> Place:
    return Place(*shared)


# --- Trials that are held


def suggest_three(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "z": trial.suggest_float("z", 0.0, 1.0),
        "a": trial.suggest_int("a", 1, 9),
        "m": trial.suggest_categorical("m", ["%s", ":x", None]),
    }


def test_what_is_suggested_for_a_held_trial_is_written_together_and_in_order(place: Place) -> None:
    lease, trial = place.hold()
    suggest_three(trial)
    place.one.flush(lease.trial_id)  # the text of the statement is made, and on Postgres prepared

    lease, trial = place.hold()
    suggested = suggest_three(trial)
    assert trial.params == suggested == place.one.get_trial(lease.trial_id).params
    assert place.stored()[1].params == {}
    with sent_statements(place.one) as sent:
        place.one.flush(lease.trial_id)
    stored = place.stored()[1]
    assert (stored.params, list(stored.params)) == (suggested, ["z", "a", "m"])
    assert stored.distributions == trial.distributions
    # On SQLite, where it costs no round trip, the lease is renewed by a statement before.
    assert len(sent) == (2 if place.url.startswith("sqlite") else 1), sent

    with sent_statements(place.one) as sent:
        place.one.flush(lease.trial_id)  # there is nothing new
    assert sent == []
    trial.suggest_float("late", 0.0, 1.0)
    place.one.flush(lease.trial_id)
    assert list(place.stored()[1].params) == ["z", "a", "m", "late"]


def test_a_held_new_trial_is_never_read(place: Place) -> None:
    study, lease = place.study(), place.claim()
    study._storage.get_study_directions(study._study_id)
    assert lease.is_new
    with sent_statements(place.one) as sent:
        place.one.hold(lease, place.study_id)
        trial = optuna.Trial(study, lease.trial_id)
        assert (trial.number, trial.params, trial.user_attrs) == (lease.number, {}, {})
        assert place.one.get_trial(lease.trial_id).state is TrialState.RUNNING
    assert sent == []

    with sent_statements(place.one) as sent:
        suggest_three(trial)
    assert len(sent) == 3  # whether others know the names with other distributions, asked once for each
    lease = place.claim()
    with sent_statements(place.one) as sent:
        place.one.hold(lease, place.study_id)
        suggest_three(optuna.Trial(study, lease.trial_id))
    assert sent == []


def test_a_list_of_trials_does_not_change_afterwards(place: Place) -> None:
    """Optuna's successive halving stores the value of a trial, and then compares it with those of the list."""
    lease, trial = place.hold()
    listed = place.one.get_all_trials(place.study_id, deepcopy=False)
    place.one.set_trial_system_attr(lease.trial_id, "completed_rung_0", 0.5)
    trial.suggest_float("x", 0.0, 1.0)
    (before,) = [one for one in listed if one.number == lease.number]
    assert (before.system_attrs, before.params) == ({}, {})
    (after,) = [one for one in place.one.get_all_trials(place.study_id, deepcopy=False) if one.number == lease.number]
    assert (after.system_attrs, list(after.params)) == ({"completed_rung_0": 0.5}, ["x"])


def test_a_wrong_distribution_is_refused_for_a_held_trial_too(place: Place) -> None:
    theirs = place.study(place.plain).ask()
    theirs.suggest_int("x", 1, 9)
    lease, _ = place.hold()

    with pytest.raises(ValueError, match="distribution"):
        place.one.set_trial_param(lease.trial_id, "x", 0.5, FloatDistribution(0.0, 1.0))
    assert place.one.get_trial(lease.trial_id).params == {}
    place.one.flush(lease.trial_id)
    assert place.stored()[1].params == {}


@pytest.mark.parametrize("text", NASTY[:-1])
def test_attributes_of_a_held_trial_go_through(place: Place, text: str) -> None:
    _, trial = place.hold()
    value = {"list": [1, None, {text: text}], "tuple": [1.5, True]}

    trial.set_user_attr(f"u {text}", {**value, "tuple": (1.5, True)})
    trial.set_user_attr(f"u {text}", {**value, "tuple": (1.5, True)})  # again
    trial.storage.set_trial_system_attr(trial._trial_id, f"s {text}", text)
    assert place.stored()[0].system_attrs == {}, "what a sampler notes is written with what it suggests"
    place.one.flush(trial._trial_id)
    trial.storage.set_trial_system_attr(trial._trial_id, f"s {text}", text)  # later at once
    assert place.stored()[0].system_attrs == {f"s {text}": text}
    trial.storage.set_trial_system_attr(trial._trial_id, f"s {text}", [text])
    trial.suggest_float("later", 0.0, 1.0)
    place.one.flush(trial._trial_id)
    assert place.stored()[0].system_attrs == {f"s {text}": [text]}, "what is written once is not written again"
    trial.storage.set_trial_system_attr(trial._trial_id, f"s {text}", text)
    (stored,), held = place.stored(), place.one.get_trial(trial._trial_id)
    assert stored.user_attrs == held.user_attrs == {f"u {text}": value}
    assert stored.system_attrs == held.system_attrs == {f"s {text}": text}
    assert isinstance(held.user_attrs[f"u {text}"]["tuple"], list)  # as it will be read


@pytest.mark.parametrize("taker", ["one", "two"])
def test_nothing_is_written_to_a_trial_that_was_taken_over(place: Place, taker: str) -> None:
    lease, trial = place.hold(lease_s=-1.0)
    suggest_three(trial)
    taken = place.claim(taker)
    assert taken.trial_id == lease.trial_id
    before = place.stored()

    calls: list[Callable[[], Any]] = [
        lambda: place.one.flush(lease.trial_id),
        lambda: place.one.set_trial_user_attr(lease.trial_id, "k", 1),
        lambda: place.one.set_trial_system_attr(lease.trial_id, "k", 1),
    ]
    for call in calls:
        with pytest.raises(LeaseLost, match=f"trial {lease.number} no longer belongs to one: "):
            call()
    assert same(place.stored(), before)
    held = place.one.get_trial(lease.trial_id)
    assert (held.user_attrs, held.system_attrs) == ({}, {})
    place.one.drop(lease.trial_id)
    assert same([place.one.get_trial(lease.trial_id)], before)


def test_suggestions_for_several_trials_are_written_in_one_transaction(place: Place) -> None:
    held = [place.hold(worker=f"worker {at}") for at in range(3)]
    suggested = [suggest_three(trial) for _, trial in held]
    commits: list[sa.Connection] = []
    event.listen(place.one.engine, "commit", commits.append)
    place.one.flush_together([lease.trial_id for lease, _ in [*reversed(held), held[0]]])  # one is named twice
    assert len(commits) == 1
    assert [trial.params for trial in place.stored()] == suggested
    with sent_statements(place.one) as sent:
        place.one.flush_together([lease.trial_id for lease, _ in held])
        for lease, _ in held:
            place.one.flush(lease.trial_id)
    assert sent == [], "what is written once is not written again"


def test_suggestions_for_a_trial_that_was_taken_over_are_not_written_with_others(place: Place) -> None:
    lost, trial = place.hold(lease_s=-1.0)
    suggest_three(trial)
    taken = place.claim("two")
    assert taken.trial_id == lost.trial_id
    other, trial = place.hold(worker="three")
    expected = suggest_three(trial)
    place.one.flush_together([lost.trial_id, other.trial_id])
    assert [trial.params for trial in place.stored()] == [{}, expected]
    with pytest.raises(LeaseLost, match=f"trial {lost.number} no longer belongs to one: "):
        place.one.flush(lost.trial_id)


def test_suggestions_that_could_not_be_written_together_are_written_one_by_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [place.hold(worker=f"worker {at}") for at in range(2)]
    suggested = [suggest_three(trial) for _, trial in held]

    def fail(*given: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(held_module, "store_suggested_together", fail)
    with pytest.raises(RuntimeError, match="no"):
        place.one.flush_together([lease.trial_id for lease, _ in held])
    assert [trial.params for trial in place.stored()] == [{}, {}]
    for lease, _ in held:
        place.one.flush(lease.trial_id)
    assert [trial.params for trial in place.stored()] == suggested


def test_a_trial_that_was_taken_over_is_held_with_what_its_first_worker_wrote(place: Place) -> None:
    lease, trial = place.hold(lease_s=-1.0)
    suggested = suggest_three(trial)
    leases.store_suggested(
        place.two.engine, leases.Suggested(lease, place.one._held[lease.trial_id].new_params, {"noted": "1"})
    )
    trial.set_user_attr("k", [1])

    taken, again = place.hold(place.two, worker="two")
    assert (taken.trial_id, taken.is_new) == (lease.trial_id, False)
    assert (again.params, again.user_attrs) == (suggested, {"k": [1]})
    assert place.one.get_trial(lease.trial_id).system_attrs == {} != place.two.get_trial(lease.trial_id).system_attrs
    with sent_statements(place.two) as sent:
        assert suggest_three(again) == suggested
        place.two.flush(taken.trial_id)
    assert sent == []
    again.suggest_float("more", 0.0, 1.0)
    place.two.flush(taken.trial_id)
    assert list(place.stored()[0].params) == ["z", "a", "m", "more"]


def test_a_dropped_trial_is_read_again(place: Place) -> None:
    lease, trial = place.hold()
    suggest_three(trial)
    place.one.flush(lease.trial_id)
    place.study(place.plain)._storage.set_trial_user_attr(lease.trial_id, "theirs", 1)
    assert place.one.get_trial(lease.trial_id).user_attrs == {}  # nobody else may write to a held trial
    assert place.one.get_all_trials(place.study_id)[0].user_attrs == {}

    place.one.drop(lease.trial_id)
    place.one.drop(lease.trial_id)  # nothing to forget
    assert same([place.one.get_trial(lease.trial_id)], place.stored())
    assert same(place.one.get_all_trials(place.study_id), place.stored())
    leases.tell(place.one.engine, lease, Outcome.COMPLETE, [0.5], {})
    assert same(place.one.get_all_trials(place.study_id), place.stored())


def test_a_held_trial_is_listed_as_running_with_its_params(place: Place) -> None:
    place.add_finished(2)
    lease, trial = place.hold()
    suggested = suggest_three(trial)

    for deepcopy in (True, False):
        *_, listed = place.one.get_all_trials(place.study_id, deepcopy=deepcopy)
        assert (listed.number, listed.state, listed.params) == (2, TrialState.RUNNING, suggested)
        (running,) = place.one.get_all_trials(place.study_id, deepcopy, states=(TrialState.RUNNING,))
        assert running.params == suggested
    for copied in (place.one.get_all_trials(place.study_id)[-1], place.one.get_trial(lease.trial_id)):
        copied._params.clear()
        copied._user_attrs["k"] = 1
        copied.intermediate_values[1] = 1.0
    assert place.one.get_trial(lease.trial_id).params == suggested
    assert place.one.get_trial(lease.trial_id).user_attrs == {}
    assert place.one.get_trial(lease.trial_id).intermediate_values == {}
    *_, elsewhere = place.two.get_all_trials(place.study_id)
    assert (elsewhere.number, elsewhere.params) == (2, {})


def test_trials_held_in_one_study_are_not_listed_in_another(place: Place, shared: tuple[Any, ...]) -> None:
    place.hold()

    assert place.one.get_all_trials(Place(*shared).study_id) == []


def test_a_trial_that_does_not_exist_cannot_be_held(place: Place) -> None:
    with pytest.raises(KeyError):
        place.one.hold(Lease(10**6, 0, "one", 1, 300.0), place.study_id)
    assert 10**6 not in place.one._held


# --- What is read again


@pytest.mark.parametrize("known", [0, 1, 300])
def test_only_new_and_unfinished_trials_are_read(place: Place, known: int, monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[list[int]] = []
    fill = loading._fill

    def noting(found: dict[int, FrozenTrial], rows: Any) -> None:
        rows = rows.all()
        assert {row[1] for row in rows} <= found.keys()  # nothing was sent for others
        filled.append([trial.number for trial in found.values()])
        fill(found, rows)

    def listed() -> list[str]:
        filled.clear()
        with sent_statements(place.one) as sent:
            assert len(place.one.get_all_trials(place.study_id, deepcopy=False)) == count
        return [text for text in sent if not text.startswith("PREPARE")]

    place.add_finished(known)
    count = known
    monkeypatch.setattr(loading, "_fill", noting)
    assert len(listed()) <= 2
    assert filled == ([list(range(known))] if known else [])
    assert len(listed()) == 1
    assert filled == []  # nothing has changed

    place.study(place.plain).enqueue_trial({})
    running = place.plain.create_new_trial(place.study_id)
    place.add_finished(1)
    count = known + 3
    for again in (False, True):
        assert len(listed()) == 2
        assert filled == [[known, known + 1] if again else [known, known + 1, known + 2]]
    place.plain.set_trial_state_values(running, TrialState.FAIL)
    assert len(listed()) == 2
    assert len(listed()) == 2
    assert filled == [[known]]  # the queued one
    found = place.one.get_all_trials(place.study_id)[known:]
    assert same(found, [place.plain.get_trial(running + at) for at in (-1, 0, 1)])


def test_a_trial_that_has_ended_is_not_read_again(place: Place) -> None:
    place.add_finished(1)
    running = place.two.create_new_trial(place.study_id)
    place.two.set_trial_user_attr(running, "k0", "before")
    ended, _ = place.one.get_all_trials(place.study_id)
    place.run(
        "UPDATE trial_user_attributes SET value_json = '\"tampered\"' "
        "WHERE trial_id IN (SELECT trial_id FROM trials WHERE study_id = :id)",
        id=place.study_id,
    )

    again, other = place.one.get_all_trials(place.study_id)
    assert same([again], [ended])
    assert other.user_attrs == {"k0": "tampered"}
    # One that is asked for by itself is always read.
    assert place.one.get_trial(ended._trial_id).user_attrs == {"k0": "tampered"}


def test_names_and_directions_are_read_once(place: Place) -> None:
    study_id = place.two.create_new_study([StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE], f"{place.name} %s ä")

    def read() -> None:
        assert place.one.get_study_name_from_id(study_id) == f"{place.name} %s ä"
        directions = place.one.get_study_directions(study_id)
        assert directions == [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
        directions.clear()

    read()
    with sent_statements(place.one) as sent:
        read()
    assert sent == []


# --- Two storages


def test_what_one_storage_writes_the_other_sees(place: Place) -> None:
    def assert_seen() -> list[FrozenTrial]:
        found = place.two.get_all_trials(place.study_id)
        assert same(found, place.one.get_all_trials(place.study_id))
        assert same(found, place.stored())
        return found

    mine, study = place.one, place.study()
    assert assert_seen() == []
    study.enqueue_trial({"x": 0.5}, user_attrs={"queued": True})
    study.enqueue_trial({"x": 0.25})
    assert [trial.state.name for trial in assert_seen()] == ["WAITING", "WAITING"]
    trial = study.ask()
    assert [trial.state.name for trial in assert_seen()] == ["RUNNING", "WAITING"]
    assert trial.suggest_float("x", 0.0, 1.0) == 0.5
    assert_seen()
    trial.report(nan, 1)
    trial.report(0.5, 2)
    trial.set_user_attr("k", [1])
    assert_seen()
    trial.set_user_attr("k", [2])
    mine.set_trial_system_attr(trial._trial_id, "s", {"a": "%s"})
    assert assert_seen()[0].user_attrs == {"queued": True, "k": [2]}
    study.tell(trial, -inf)
    assert assert_seen()[0].values == [-inf]
    study.tell(study.ask(), state=TrialState.FAIL)
    assert [trial.state.name for trial in assert_seen()] == ["COMPLETE", "FAIL"]
    pruned = study.ask()
    pruned.report(3.0, 1)
    study.tell(pruned, state=TrialState.PRUNED)
    assert assert_seen()[2].value == 3.0
    assert same([place.two.get_best_trial(place.study_id)], [place.plain.get_best_trial(place.study_id)])


def test_trials_come_by_number(place: Place) -> None:
    for number, state in [(3, "COMPLETE"), (0, "RUNNING"), (4, "WAITING")]:
        place.run(f"INSERT INTO trials (number, study_id, state) VALUES ({number}, {place.study_id}, '{state}')")
    assert [trial.number for trial in place.one.get_all_trials(place.study_id)] == [0, 3, 4]
    for number, state in [(2, "FAIL"), (1, "WAITING"), (5, "COMPLETE")]:
        place.run(f"INSERT INTO trials (number, study_id, state) VALUES ({number}, {place.study_id}, '{state}')")

    for storage in (place.one, place.two):
        found = storage.get_all_trials(place.study_id)
        assert [trial.number for trial in found] == list(range(6))
        states = ["RUNNING", "WAITING", "FAIL", "COMPLETE", "WAITING", "COMPLETE"]
        assert [trial.state.name for trial in found] == states
        assert same(found, sorted(place.stored(), key=lambda trial: trial.number))  # Optuna's come by id


def test_a_study_that_another_deleted_is_unknown(place: Place) -> None:
    place.add_finished(2)
    waiting = place.one.create_new_trial(place.study_id)
    assert len(place.one.get_all_trials(place.study_id)) == 3
    place.two.delete_study(place.study_id)

    calls: list[Callable[[], Any]] = [
        lambda: place.one.get_all_trials(place.study_id),
        lambda: place.one.get_all_trials(place.study_id),  # also when it is no longer cached
        lambda: place.one.get_trial(waiting),
        lambda: place.one.get_study_name_from_id(place.study_id),
        lambda: place.one.get_study_directions(place.study_id),
        lambda: place.one.get_study_user_attrs(place.study_id),
        lambda: place.one.create_new_trial(place.study_id),
        lambda: place.one.set_trial_param(waiting, "x", 0.5, FloatDistribution(0.0, 1.0)),
        lambda: place.one.set_trial_intermediate_value(waiting, 1, 0.5),
        lambda: place.one.set_trial_user_attr(waiting, "k", 1),
        lambda: place.one.set_trial_state_values(waiting, TrialState.COMPLETE, [0.5]),
        lambda: place.one.get_trial_id_from_study_id_trial_number(place.study_id, 0),
    ]
    for call in calls:
        with pytest.raises(KeyError):
            call()


def test_a_study_with_the_id_of_a_deleted_one_is_another(sqlite_url: str) -> None:
    with opened(sqlite_url) as one, opened(sqlite_url) as two:
        old = optuna.create_study(study_name="old", storage=two)
        old.add_trials([optuna.create_trial(value=1.0)] * 3)
        assert len(one.get_all_trials(old._study_id)) == 3
        assert one.get_study_name_from_id(old._study_id) == "old"
        two.delete_study(old._study_id)
        new = optuna.create_study(study_name="new", storage=two)
        new.add_trial(optuna.create_trial(value=2.0))

        assert new._study_id == old._study_id
        assert [trial.value for trial in one.get_all_trials(new._study_id)] == [2.0]
        assert [study.study_name for study in one.get_all_studies()] == ["new"]
        assert one.get_study_name_from_id(new._study_id) == "new"


def test_a_study_made_anew_under_the_same_name_is_another(storage_url: str) -> None:
    with opened(storage_url) as one, opened(storage_url) as two:
        for at, direction in enumerate([StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]):
            study = optuna.create_study(study_name="again", storage=two, direction=direction)
            for value in range(3 - at):
                study.add_trial(optuna.create_trial(value=float(10 * at + value)))
            seen = optuna.load_study(study_name="again", storage=one)
            # On SQLite the new study and its trials have the ids of the old.
            assert [trial.value for trial in seen.trials] == [float(10 * at + value) for value in range(3 - at)]
            assert seen.direction is direction
            optuna.delete_study(study_name="again", storage=two)


@pytest.mark.parametrize(
    "wanted", [(), (TrialState.COMPLETE,), {TrialState.RUNNING, TrialState.FAIL}, list(TrialState), None]
)
@pytest.mark.parametrize("deepcopy", [True, False])
def test_states_are_filtered(place: Place, wanted: Any, deepcopy: bool) -> None:
    for state in TrialState:
        value = 0.5 if state is TrialState.COMPLETE else None
        place.plain.create_new_trial(place.study_id, optuna.create_trial(state=state, value=value))

    for _ in range(2):  # read, then partly known
        found = place.one.get_all_trials(place.study_id, deepcopy=deepcopy, states=wanted)
        assert [trial.state for trial in found] == [s for s in TrialState if wanted is None or s in wanted]
        found.clear()  # the list is the caller's


def assert_copied(copied: Any, original: Any) -> None:
    """Check that nothing that may be changed is shared."""
    assert type(copied) is type(original)
    if isinstance(original, dict | list):
        assert copied is not original
        pairs = (
            [(copied[key], original[key]) for key in original]
            if isinstance(original, dict)
            else zip(copied, original, strict=True)
        )
        for one, other in pairs:
            assert_copied(one, other)  # fmt: skip


def test_copies_share_a_distribution_among_themselves_only(place: Place) -> None:
    distribution = FloatDistribution(0.0, 1.0)
    for value in (0.25, 0.5):
        made = optuna.create_trial(params={"x": value}, distributions={"x": distribution}, value=0.0)
        place.plain.create_new_trial(place.study_id, made)
    kept = place.one.get_all_trials(place.study_id, deepcopy=False)
    for both in (copy.deepcopy(kept), place.one.get_all_trials(place.study_id)):
        first, second = (trial._distributions["x"] for trial in both)
        assert first is second
        assert first is not kept[0]._distributions["x"]


def test_a_copied_trial_is_what_deepcopy_would_make(place: Place) -> None:
    nested = {"list": [1, [2.5, None], {"deep": [True]}], "dict": {"a": {"b": []}}, "text": "t"}
    params = {name: values[0] for name, (_, values) in KINDS.items()}
    distributions = {name: distribution for name, (distribution, _) in KINDS.items()}
    given = optuna.create_trial(
        params=params,
        distributions=distributions,
        values=[0.5, -inf],
        user_attrs=nested,
        system_attrs=nested,
        intermediate_values={1: 0.5, 2: -inf, 3: 2.0},
    )
    place.plain.create_new_trial(place.study_id, given)
    (kept,) = place.one.get_all_trials(place.study_id, deepcopy=False)
    for copied in (place.one.get_all_trials(place.study_id)[0], next(loading.copies([kept]))):
        deep = copy.deepcopy(kept)
        assert copied == deep == kept
        assert as_text(copied) == as_text(deep)
        assert type(copied) is FrozenTrial
        assert copied.__dict__.keys() == deep.__dict__.keys()
        assert copied.distributions == deep.distributions
        for name, value in deep.__dict__.items():
            assert_copied(copied.__dict__[name], kept.__dict__[name])
            assert type(copied.__dict__[name]) is type(value)
        for name, distribution in deep._distributions.items():
            assert type(copied._distributions[name]) is type(distribution)
            assert copied._distributions[name] is not kept._distributions[name]

        copied._params["float"] = copied.intermediate_values[1] = 99.0
        copied.values[0] = 99.0
        copied._user_attrs["list"][1].append(99)
        copied._system_attrs["dict"]["a"]["b"].append(99)
        copied.state = TrialState.FAIL
        for distribution in copied._distributions.values():
            vars(distribution).update(low=-99, high=-99, choices=())
        copied._distributions.clear()
        assert as_text(kept) == as_text(deep)
        assert same(place.one.get_all_trials(place.study_id), [deep])


READINGS: dict[str, Callable[[optuna.Study, int], FrozenTrial]] = {
    "get_trials": lambda study, _: study.get_trials()[0],
    "trials": lambda study, _: study.trials[0],
    "filtered": lambda study, _: study.get_trials(states=[TrialState.COMPLETE])[0],
    "get_trial": lambda study, trial_id: study._storage.get_trial(trial_id),
    "get_best_trial": lambda study, _: study._storage.get_best_trial(study._study_id),
    "best_trial": lambda study, _: study.best_trial,
    "best_trials": lambda study, _: study.best_trials[0],
}
"""All ways to read a study's only trial that give it to the caller."""


@pytest.mark.parametrize("way", READINGS)
def test_whoever_changes_a_trial_that_it_was_given_changes_no_other(place: Place, way: str) -> None:
    study = place.study()
    distributions = {"x": FloatDistribution(0.0, 1.0), "kind": CategoricalDistribution(("a", "b"))}
    own = copy.deepcopy(distributions)
    trial = study.ask(own)
    trial.set_user_attr("nested", {"list": [1, {"deep": 2}]})
    study.tell(trial, 0.5)
    for distribution in own.values():
        vars(distribution).update(low=-9.0, high=9.0, choices=("z",))
    (before,) = copy.deepcopy(study.get_trials())
    assert before.distributions == distributions

    given = READINGS[way](study, trial._trial_id)
    for distribution in given.distributions.values():
        vars(distribution).update(low=-9.0, high=9.0, choices=("z",))
    given._user_attrs["nested"]["list"][1]["deep"] = 3
    given._params["x"] = given._values[0] = 99.0  # pyright: ignore[reportOptionalSubscript]
    for other, read in READINGS.items():
        found = read(study, trial._trial_id)
        assert as_text(found)["_user_attrs"] == as_text(before)["_user_attrs"], other
        assert (found, found.distributions) == (before, distributions), other
    # Nor is a trial that is suggested now: its distribution must go with those of before.
    assert 0.0 <= study.ask(distributions).params["x"] <= 1.0


def test_whoever_changes_what_it_was_told_of_a_study_changes_nothing(place: Place) -> None:
    place.one.set_study_user_attr(place.study_id, "nested", {"list": [1]})
    for read in (
        lambda: place.one.get_study_user_attrs(place.study_id),
        lambda: next(s for s in place.one.get_all_studies() if s._study_id == place.study_id).user_attrs,
    ):
        read()["nested"]["list"].append(2)
        assert read() == {"nested": {"list": [1]}}
    for directions in (
        lambda: place.one.get_study_directions(place.study_id),
        lambda: next(s for s in place.one.get_all_studies() if s._study_id == place.study_id).directions,
    ):
        directions().clear()
        assert len(directions()) == 1


# --- Optuna's own storage as the oracle

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=20)
nested = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
# What Postgres cannot store in a text: Optuna's own storage fails as well.
keys = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20)
attributes = st.dictionaries(keys | st.sampled_from(NASTY[:-1]), nested, max_size=4)


@st.composite
def frozen_trials(draw: st.DrawFn) -> FrozenTrial:
    names = draw(st.lists(st.sampled_from(sorted(KINDS)), unique=True))
    state = draw(st.sampled_from(TrialState))
    values = None
    if state is TrialState.COMPLETE or (state is TrialState.PRUNED and draw(st.booleans())):
        values = draw(st.lists(st.floats(allow_nan=False), min_size=1, max_size=3))
    return optuna.create_trial(
        state=state,
        values=values,
        params={name: draw(st.sampled_from(KINDS[name][1])) for name in names},
        distributions={name: KINDS[name][0] for name in names},
        user_attrs=draw(attributes),
        system_attrs=draw(attributes),
        intermediate_values=draw(st.dictionaries(st.integers(-(2**31), 2**31 - 1), st.floats(), max_size=4)),
    )


@pytest.mark.timezone
@settings(deadline=None, max_examples=20)
@given(several=st.lists(frozen_trials(), min_size=1, max_size=3))
@pytest.mark.slow
def test_trials_are_loaded_as_optuna_loads_them(shared: tuple[Any, ...], several: list[FrozenTrial]) -> None:
    place = Place(*shared)
    for trial in several:
        (place.plain if trial.number else place.one).create_new_trial(place.study_id, trial)

    stored = place.stored()
    assert same(place.one.get_all_trials(place.study_id), stored)
    assert same(place.two.get_all_trials(place.study_id, deepcopy=False), stored)
    assert same([place.one.get_trial(trial._trial_id) for trial in stored], stored)
    for trial, found in zip(several, stored, strict=True):
        assert (found.state, found.params, found.user_attrs) == (trial.state, trial.params, trial.user_attrs)


@pytest.mark.timezone
@settings(deadline=None, max_examples=15)
@given(trial=frozen_trials())
def test_what_we_write_optuna_reads(shared: tuple[Any, ...], trial: FrozenTrial) -> None:
    place = Place(*shared)
    ids = []
    for storage in (place.one, place.plain):
        ids.append(storage.create_new_trial(place.study_id))
        for name, distribution in trial.distributions.items():
            number = distribution.to_internal_repr(trial.params[name])
            storage.set_trial_param(ids[-1], name, number, distribution)
        for key, value in trial.user_attrs.items():
            storage.set_trial_user_attr(ids[-1], key, value)
        for key, value in trial.system_attrs.items():
            storage.set_trial_system_attr(ids[-1], key, value)
        for step, value in trial.intermediate_values.items():
            storage.set_trial_intermediate_value(ids[-1], step, value)
        if trial.state.is_finished():
            storage.set_trial_state_values(ids[-1], trial.state, trial._values)

    ours, theirs = (as_text(place.plain.get_trial(trial_id)) for trial_id in ids)
    for name in ("_trial_id", "_number", "_datetime_start", "datetime_complete"):
        ours.pop(name, None)
        theirs.pop(name, None)
    assert ours.pop("number", None) != theirs.pop("number", "")
    assert {**ours, "datetime_start": None} == {**theirs, "datetime_start": None}
    assert same(place.two.get_all_trials(place.study_id), place.stored())


def test_every_kind_of_value_is_read_as_optuna_reads_it(place: Place) -> None:
    for name, (distribution, choices) in KINDS.items():
        for value in choices:
            trial = place.plain.create_new_trial(place.study_id)
            number = distribution.to_internal_repr(value)
            place.one.set_trial_param(trial, f"{name} %s :x $1", number, distribution)
            place.one.set_trial_state_values(trial, TrialState.FAIL)
    for value in (inf, -inf, nan, 0.0, -0.0, 5e-324, -1.7976931348623157e308, 0.1):
        trial = place.two.create_new_trial(place.study_id)
        place.two.set_trial_intermediate_value(trial, 1, value)
        if not math.isnan(value):
            place.two.set_trial_state_values(trial, TrialState.COMPLETE, [value, -value, 1])

    found = place.one.get_all_trials(place.study_id)
    assert same(found, place.stored())
    values = [next(iter(trial.params.values())) for trial in found if trial.params]
    expected = [value for _, choices in KINDS.values() for value in choices]
    assert [(type(value), value) for value in values] == [(type(value), value) for value in expected]


@pytest.mark.parametrize("size", [512, 1_000_000])
def test_long_texts_are_kept_whole(place: Place, size: int) -> None:
    text = ("'%s' :x ä " * size)[:size]
    lease, _ = place.hold()
    for key in (place.one.create_new_trial(place.study_id), lease.trial_id):
        for name, value in (("value", text), (text[:512], [text])):
            place.one.set_trial_user_attr(key, name, value)
            place.one.set_trial_system_attr(key, name, value)

    place.one.flush(lease.trial_id)
    place.one.drop(lease.trial_id)
    for trial in place.one.get_all_trials(place.study_id):
        assert trial.user_attrs == trial.system_attrs == {"value": text, text[:512]: [text]}
    assert same(place.one.get_all_trials(place.study_id), place.stored())


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(500, marks=pytest.mark.slow),
        501,
        pytest.param(1200, marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
def test_many_trials_are_read_as_few_are(place: Place, count: int) -> None:
    place.add_finished(count)
    running = place.plain.create_new_trial(place.study_id)
    place.plain.set_trial_user_attr(running, "k", 1)

    stored = place.stored()
    assert len(stored) == count + 1
    with sent_statements(place.one) as sent:
        found = place.one.get_all_trials(place.study_id)
    assert len([text for text in sent if not text.startswith("PREPARE")]) == 2
    assert same(found, stored)
    place.add_finished(count)  # the unfinished one lies below so many new ones
    place.plain.set_trial_user_attr(running, "k", 2)
    found = place.one.get_all_trials(place.study_id)
    assert same(found, place.two.get_all_trials(place.study_id))
    assert (len(found), found[count].user_attrs) == (2 * count + 1, {"k": 2})


@pytest.mark.slow
def test_trials_of_other_studies_are_left_out(place: Place, shared: tuple[Any, ...]) -> None:
    other = Place(*shared)
    for at in range(3):
        place.add_finished(1)
        other.add_finished(2)
        other.plain.create_new_trial(other.study_id)
        assert [trial.number for trial in place.one.get_all_trials(place.study_id)] == list(range(at + 1))
        assert same(other.one.get_all_trials(other.study_id), other.stored())
    other.add_finished(600)  # read as a range of ids
    assert same(other.one.get_all_trials(other.study_id), other.stored())
    assert same(other.two.get_all_trials(place.study_id), place.stored())


# --- Plain Optuna on the same study


def test_plain_optuna_may_work_on_our_study_meanwhile(place: Place) -> None:
    ours, theirs = place.study(), place.study(place.plain)

    def step(study: optuna.Study, value: float) -> None:
        trial = study.ask()
        trial.suggest_float("x", 0.0, 1.0)
        trial.suggest_categorical("c", ["a", None])
        trial.report(value, 1)
        trial.set_user_attr("by", "%s")
        study.tell(trial, value)

    for at, study in enumerate([ours, theirs] * 3):
        step(study, float(at))
        assert same(place.one.get_all_trials(place.study_id), place.stored())
        assert same(place.two.get_all_trials(place.study_id), place.stored())
    theirs.enqueue_trial({"x": 0.125})
    ours.enqueue_trial({"x": 0.375})
    assert ours.ask().suggest_float("x", 0.0, 1.0) == 0.125
    assert theirs.ask().suggest_float("x", 0.0, 1.0) == 0.375
    for study, value in ((theirs, -1.0), (ours, -0.5)):
        distributions: dict[str, Any] = {"x": FloatDistribution(0.0, 1.0)}
        study.add_trial(optuna.create_trial(value=value, params={"x": 0.5}, distributions=distributions))
    theirs.set_user_attr("theirs", [1])
    ours.set_user_attr("ours", {"a": "%s"})
    ours.set_user_attr("ours", {"a": ":x"})
    for study in (ours, theirs):
        assert study.user_attrs == {"theirs": [1], "ours": {"a": ":x"}}
        assert [trial.number for trial in study.trials] == list(range(10))
        assert (study.best_trial.number, study.best_value) == (8, -1.0)
    assert same(ours.trials, theirs.trials)
    assert same(place.one.get_all_trials(place.study_id), place.stored())


@pytest.mark.timezone
def test_a_running_trial_may_change_hands_between_storages(place: Place) -> None:
    trial_id = place.one.create_new_trial(place.study_id)
    writers = itertools.cycle([place.plain, place.one, place.two])
    for at, writer in zip(range(9), writers, strict=False):
        writer.set_trial_user_attr(trial_id, f"k{at % 2}", at)
        writer.set_trial_param(trial_id, f"p{at}", float(at), IntDistribution(0, 9))
        writer.set_trial_intermediate_value(trial_id, at, at / 3)
        for storage in (place.one, place.two):
            assert same([storage.get_trial(trial_id)], place.stored())
            assert same(storage.get_all_trials(place.study_id), place.stored())
    place.plain.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])

    for writer in (place.one, place.two):
        with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
            writer.set_trial_user_attr(trial_id, "late", 1)
        with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
            writer.set_trial_param(trial_id, "late", 1.0, IntDistribution(0, 9))
        with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
            writer.set_trial_intermediate_value(trial_id, 99, 1.0)
        with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
            writer.set_trial_state_values(trial_id, TrialState.FAIL)
    assert same(place.one.get_all_trials(place.study_id), place.stored())


def test_only_one_of_two_storages_starts_a_queued_trial(place: Place) -> None:
    place.study().enqueue_trial({})
    (waiting,) = place.two.get_all_trials(place.study_id)

    assert place.plain.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)
    assert not place.one.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)
    assert not place.two.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [pytest.param("sqlite", marks=pytest.mark.long), "postgres"], indirect=True)
def test_the_optuna_command_reads_a_database_that_we_have_open(place: Place) -> None:
    study = place.study()
    trial = study.ask()
    trial.suggest_float("x", 0.0, 1.0)
    study.tell(trial, 0.25)
    running = study.ask()

    def optuna_says(*words: str) -> Any:
        command = [str(Path(sys.executable).with_name("optuna")), *words, "--storage", parse_url(place.url).for_optuna]
        done = subprocess.run([*command, "-f", "json"], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    (found,) = [row for row in optuna_says("studies") if row["name"] == place.name]
    assert (found["direction"], found["n_trials"]) == (["MINIMIZE"], 2)
    best = optuna_says("best-trial", "--study-name", place.name)
    assert (best["number"], best["value"], best["params"]) == (0, 0.25, trial.params)
    study.tell(running, 0.125)  # we are not disturbed
    assert place.study(place.plain).best_trial.number == 1


# --- Processes and threads


def test_a_pickled_storage_opens_the_same_database(place: Place) -> None:
    place.add_finished(2)
    lease, _ = place.hold()
    copied: Storage = pickle.loads(pickle.dumps(place.one))
    with closing(copied):
        assert copied.url == place.one.url
        assert copied.url.text == place.url
        assert copied.engine.pool is not place.one.engine.pool
        assert same(copied.get_all_trials(place.study_id), place.stored())
        assert lease.trial_id not in copied._held
        copied.set_trial_user_attr(copied.create_new_trial(place.study_id), "k", 1)
    assert place.one.get_all_trials(place.study_id)[-1].user_attrs == {"k": 1}
    study: optuna.Study = pickle.loads(pickle.dumps(place.study()))
    assert len(study.trials) == 4
    storage: Any = study._storage
    storage.close()


CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tuner'"


def open_connections(url: str) -> int:
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg2"), poolclass=sa.NullPool)
    with engine.connect() as connection:
        return connection.exec_driver_sql(CONNECTIONS).scalar_one()


@pytest.mark.slow
def test_threads_share_a_storage(storage_url: str) -> None:
    most = 0
    is_postgres = storage_url.startswith("postgres")

    def objective(trial: optuna.Trial) -> float:
        nonlocal most
        x = trial.suggest_float("x", 0.0, 1.0)
        c = trial.suggest_categorical("c", [None, "a"])
        for epoch in range(3):
            trial.report(x + epoch, epoch)
            trial.should_prune()
        trial.set_user_attr("seen", [x, c])
        if is_postgres and trial.number % 8 == 0:
            most = max(most, open_connections(storage_url))
        return x

    with opened(storage_url) as storage:
        study = optuna.create_study(storage=storage, sampler=RandomSampler(), pruner=optuna.pruners.NopPruner())
        study.optimize(objective, n_trials=24, n_jobs=4)
        errors: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(4):
                    trial = study.ask()
                    study.tell(trial, objective(trial))
                    assert trial.number < len(storage.get_all_trials(study._study_id))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        found = study.trials
        with plain_optuna(storage_url) as plain:
            assert same(found, plain.get_all_trials(study._study_id))
    assert [trial.number for trial in found] == list(range(24 + 32))
    for trial in found:
        x = trial.params["x"]
        assert (trial.state, trial.value) == (TrialState.COMPLETE, x)
        assert trial.intermediate_values == {epoch: x + epoch for epoch in range(3)}
        assert trial.user_attrs == {"seen": [x, trial.params["c"]]}
    if is_postgres:
        assert 1 <= most <= 2


def test_a_closed_storage_has_no_connections(postgres_url: str, wait_until: Callable[..., Any]) -> None:
    with opened(postgres_url) as storage:
        for _ in range(3):  # a later call opens new ones
            study_id = storage.create_new_study([StudyDirection.MINIMIZE])
            storage.set_study_user_attr(study_id, "k", 1)
            storage.create_new_trial(study_id)
            assert len(storage.get_all_trials(study_id)) == 1
            assert 1 <= open_connections(postgres_url) <= 2
            storage.close()
            wait_until(lambda: open_connections(postgres_url) == 0, 5.0)
            storage.close()


# --- Statements that are prepared


@pytest.fixture
def prepares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers prepare, whatever other tests did; and what this test does is undone."""
    monkeypatch.setattr(prepared_statements, "_servers_prepare", True)


def names_prepared(storage: Storage) -> list[str]:
    """Return the names of what the storage's connection has prepared."""
    with storage.engine.connect() as connection:
        return sorted(connection.exec_driver_sql("SELECT name FROM pg_prepared_statements").scalars())


def a_trial(storage: Storage, study_id: int, value: float) -> FrozenTrial:
    """Do what a trial of plain Optuna does."""
    trial_id = storage.create_new_trial(study_id)
    storage.set_trial_param(trial_id, "x %", value, FloatDistribution(0.0, 1.0))
    storage.set_trial_user_attr(trial_id, "%s $1", ["%(id)s", "$2"])
    storage.set_trial_intermediate_value(trial_id, 1, value)
    storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [value])
    assert storage.get_trial(trial_id).params == {"x %": value}
    trial = storage.get_all_trials(study_id)[-1]
    assert (trial.value, trial.user_attrs) == (value, {"%s $1": ["%(id)s", "$2"]})
    return trial


@pytest.mark.usefixtures("prepares")
def test_a_statement_is_prepared_once_for_a_connection(postgres_url: str) -> None:
    with opened(postgres_url) as storage, plain_optuna(postgres_url) as plain:
        study_id = storage.create_new_study([StudyDirection.MINIMIZE])
        with sent_statements(storage) as sent:
            for value in (0.5, 1.0):  # what is read first is all there is, later what is new
                a_trial(storage, study_id, value)
        names = names_prepared(storage)
        assert len(names) == len(set(names)) == sum(text.startswith("PREPARE") for text in sent) >= 6
        with sent_statements(storage) as sent:
            for value in (0.25, 0.125):
                a_trial(storage, study_id, value)
        assert [text for text in sent if text.startswith("PREPARE")] == []
        assert names_prepared(storage) == names

        # A connection that was lost takes what was prepared with it.
        storage.engine = patient(storage.engine, Patience(30.0))
        with plain.engine.connect() as connection:
            connection.exec_driver_sql(CONNECTIONS.replace("count(*)", "pg_terminate_backend(pid)"))
        with sent_statements(storage) as sent:
            a_trial(storage, study_id, 0.75)
        assert sum(text.startswith("PREPARE") for text in sent) >= 6
        assert len(names_prepared(storage)) >= 6
        assert same(storage.get_all_trials(study_id), plain.get_all_trials(study_id))
    assert prepared_statements._servers_prepare


def calls_of(storage: Storage, study_id: int) -> dict[str, Callable[[], Any]]:
    """Return reads, single writes and transactions, each with a statement that is prepared."""
    trial_id = storage.create_new_trial(study_id)
    claimant = claims.Claimant(study_id, "one", trials=10_000, lease_s=300.0)

    def report_and_tell() -> None:
        lease = claims.claim(storage.engine, claimant)
        assert isinstance(lease, Lease)
        leases.tell(storage.engine, lease, Outcome.COMPLETE, [0.5], {})

    def create_and_end() -> None:
        storage.set_trial_state_values(storage.create_new_trial(study_id), TrialState.COMPLETE, [0.5])

    place = {"bracket": 0, "rung": 0, "values": [0.5], "reduction_factor": 3, "bootstrap_count": 0, "maximize": [False]}
    return {
        "read": lambda: storage.get_all_trials(study_id),
        "write": lambda: storage.set_trial_user_attr(trial_id, "k", "%s $1"),
        "transaction": create_and_end,
        "claim": report_and_tell,
        "rung": lambda: storage.enter_rung(study_id, trial_id, **place),
    }


@pytest.mark.usefixtures("prepares")
@pytest.mark.parametrize("trouble", ["lost", "taken"])
def test_a_server_that_keeps_nothing_prepared_is_served_all_the_same(
    postgres_url: str, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler gives each transaction another connection to the server."""
    with opened(postgres_url) as storage, plain_optuna(postgres_url) as plain:
        study_id = storage.create_new_study([StudyDirection.MINIMIZE])
        for name, run in calls_of(storage, study_id).items():
            monkeypatch.setattr(prepared_statements, "_servers_prepare", True)
            storage.close()
            run()
            run()
            names = names_prepared(storage)
            assert names != [], name
            if trouble == "taken":
                storage.close()
            with storage.engine.connect() as connection:
                connection.exec_driver_sql("DEALLOCATE ALL")
                for one in names if trouble == "taken" else []:
                    connection.exec_driver_sql(f"PREPARE {one} AS SELECT 1")
            before, count = names_prepared(storage), len(plain.get_all_trials(study_id))
            run()
            assert not prepared_statements._servers_prepare, name
            # What was done before the trouble was rolled back: all is there once.
            assert len(plain.get_all_trials(study_id)) == count + (name in ("transaction", "claim"))

            with sent_statements(storage) as sent:
                run()
                a_trial(storage, study_id, 0.5)
            assert not any(text.startswith(("PREPARE", "EXECUTE")) for text in sent), name
            assert names_prepared(storage) == before
            assert same(storage.get_all_trials(study_id), plain.get_all_trials(study_id))


def test_trials_that_our_tests_add_at_once_are_as_optuna_adds_them(place: Place) -> None:
    known = [
        create_trial(params={"x": 0.25}, distributions={"x": FloatDistribution(0, 1)}, value=math.inf,
                     intermediate_values={1: 0.5, 2: math.nan}, system_attrs={"constraints": [1.0]}),
        create_trial(state=TrialState.RUNNING), create_trial(state=TrialState.WAITING),
        create_trial(state=TrialState.FAIL),
    ]  # fmt: skip
    study = place.study(place.one)
    study.add_trials(known)
    add_trials(place.one, study._study_id, known)
    theirs, ours = study.trials[: len(known)], study.trials[len(known) :]
    for one, other in zip(theirs, ours, strict=True):
        assert as_text(other) == {**as_text(one), "_number": repr(other.number), "_trial_id": repr(other._trial_id)}
