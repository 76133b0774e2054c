"""Trials that violate a constraint are never the best, on both databases: against what Optuna itself calls the best."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState, create_trial
from storage_tools import opened

from tuner.errors import UsageError
from tuner.results.compare import compare_rows, importance_rows
from tuner.results.confidence import rank
from tuner.results.export import best_number, export_trials
from tuner.results.rows import best_rows, no_feasible, progress, show_row, study_rows, trial_rows
from tuner.storage.optuna.storage import Storage
from tuner.storage.read import ranking
from tuner.storage.read.activity import read_checkpoints
from tuner.storage.read.queries import BASELINE_KEY
from tuner.storage.read.ranking import is_among_best, removable
from tuner.storage.sql import tables
from tuner.storage.sql.encoding import stored_number
from tuner.storage.worker.confirmations import store_confirmation
from tuner.storage.worker.studies import agree, register
from tuner.trial import optuna_private as private

pytestmark = pytest.mark.with_tables

inf, nan = math.inf, math.nan


@pytest.fixture
def storage(storage_url: str) -> Iterator[Storage]:
    with opened(storage_url) as storage:
        yield storage


def new_study(storage: Storage, *directions: str, **record: Any) -> optuna.Study:
    register(storage, storage.engine, "ours", directions, record)
    return optuna.load_study(study_name="ours", storage=storage)


def add(study: optuna.Study, *values: float, old: Any = None, x: float = 0.5, **constraints: float) -> int:
    """Add a complete trial, its constraints as Optuna 5 stores them, or `old` as those before did; return its id."""
    attributes: dict[str, Any] = {f"constraints:{name}": value for name, value in constraints.items()}
    if old is not None:
        attributes["constraints"] = None if old == "none" else old
    space: dict[str, Any] = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
    study.add_trial(create_trial(values=values, params={"x": x}, distributions=space, system_attrs=attributes))
    return study.get_trials(deepcopy=False)[-1]._trial_id


def numbers(rows: Sequence[Any]) -> list[int]:
    return [row["number"] for row in rows]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_best_satisfies_its_constraints(storage: Storage, direction: str) -> None:
    study, engine, sign = new_study(storage, direction), storage.engine, 1 if direction == "minimize" else -1
    kinds: list[tuple[float, bool | None, dict[str, Any]]] = [
        (-9.0, False, {"memory": 1e-300}),
        (-8.0, False, {"old": [-1.0, 0.5]}),
        (-7.0, False, {"memory": inf}),
        (-6.0, False, {"memory": -1.0, "time": 2}),
        (-inf, False, {"old": [-1.0], "memory": 1.0}),
        (-5.0, False, {"old": [1.0, -1.0], "memory": -1.0}),
        (-4.5, None, {"old": "none"}),  # the function that computes them failed: Optuna takes it for feasible
        (-4.0, True, {"memory": 0.0}),
        (-3.0, True, {"old": [0, -0.0], "time": -inf}),
        (-2.0, None, {"old": []}),
        (-1.0, None, {}),
    ]
    order = random.Random(0).sample(kinds, len(kinds))
    for value, _, constraints in order:
        add(study, sign * value, **constraints)

    rows = trial_rows(engine, "ours")
    assert [row["is_feasible"] for row in rows] == [feasible for _, feasible, _ in order]
    feasible = sorted(value for value, is_feasible, _ in kinds if is_feasible is not False)
    best = best_rows(engine, "ours", None)
    assert [row["value"] for row in best] == [sign * value for value in feasible]
    assert {row["is_feasible"] for row in best} == {True, None}
    for count in (1, 2, 4, 5, 99):
        assert best_rows(engine, "ours", count) == best[:count]
    assert best[0]["number"] == study.best_trial.number

    # Everything else that tells the best of it.
    assert best_number(engine, "ours") == study.best_trial.number
    assert study_rows(engine)[0]["best"] == study.best_value
    assert progress(engine, "ours", 11)["study"]["best"] == study.best_value
    assert sum(row["is_feasible"] is False for row in progress(engine, "ours", 11)["ended"]) == 6
    (compared,) = compare_rows(engine, ["ours"])
    assert (compared["best"], compared["median"], compared["complete"]) == (study.best_value, -3.0 * sign, 11)
    for keep in range(1, 7):
        for value in (-9.5, -4.25, -0.5):
            better = sum(one < value for one in feasible)
            found = is_among_best(engine, study._study_id, sign * value, keep, maximize=direction == "maximize")
            assert found == (better < keep), (keep, value)
        gone = removable(engine, study._study_id, range(11), keep, maximize=direction == "maximize")
        assert set(range(11)) - {*gone} == {*numbers(best[:keep])}


@pytest.mark.slow
def test_what_a_trial_violates_is_shown(storage: Storage, tmp_path: Path) -> None:
    study = new_study(storage, "minimize")
    add(study, 1.0, old=[0.5, -2.0], memory=inf)
    add(study, 2.0)

    shown = show_row(storage.engine, "ours", 0)
    assert shown["constraints"] == {"0": 0.5, "1": -2.0, "memory": "inf"}
    assert shown["constraints"].keys() == study.trials[0].constraints.keys()
    assert (shown["is_feasible"], show_row(storage.engine, "ours", 1)["constraints"]) == (False, None)
    export_trials(storage.engine, "ours", tmp_path / "trials.json")
    first, second = json.loads((tmp_path / "trials.json").read_text())
    assert (first["is_feasible"], first["constraints.1"], first["constraints.memory"]) == (False, -2.0, "inf")
    assert (second["is_feasible"], "constraints.1" in second) == (None, False)
    assert numbers(trial_rows(storage.engine, "ours", where=["is_feasible=false"])) == [0]


@pytest.mark.parametrize("directions", [("minimize", "maximize"), ("maximize", "minimize", "maximize")])
@pytest.mark.slow
def test_a_front_is_of_feasible_trials(storage: Storage, directions: tuple[str, ...]) -> None:
    """Infeasible trials neither belong to it nor hide those that they beat."""
    study, chance = new_study(storage, *directions), random.Random(1)
    for at in range(40):
        values = [chance.random() + (at % 2 == 0) * (5 if one == "maximize" else -5) for one in directions]
        add(study, *values, **({"memory": chance.random()} if at % 2 == 0 else {"memory": -1.0} if at % 3 else {}))

    front = best_rows(storage.engine, "ours", None)
    assert numbers(front) == [trial.number for trial in study.best_trials]
    assert 1 < len(front) < 20
    assert all(row["number"] % 2 for row in front)


def test_a_study_without_a_feasible_trial_has_no_best(storage: Storage) -> None:
    study, engine = new_study(storage, "minimize"), storage.engine
    assert no_feasible(engine, "ours") is None, "none is complete"
    add(study, 1.0, memory=1.0)
    add(study, 2.0, old=[1.0])

    assert (best_rows(engine, "ours", None), study_rows(engine)[0]["best"]) == ([], None)
    (compared,) = compare_rows(engine, ["ours"])
    assert (compared["best"], compared["median"]) == (None, None)
    with pytest.raises(ValueError, match="feasible"):
        _ = study.best_trial
    with pytest.raises(
        UsageError, match=r"none of the 2 complete trials of 'ours' satisfies all constraints; run `tuner s"
    ):
        best_number(engine, "ours")
    add(study, 3.0)
    assert no_feasible(engine, "ours") is None
    assert best_number(engine, "ours") == 2


def test_thousands_of_infeasible_trials_are_passed_over(storage: Storage) -> None:
    study, count = new_study(storage, "minimize"), 2 * ranking._PAGE + 100
    ids = range(10_000, 10_000 + count)
    with storage.engine.begin() as connection:
        shared = {"study_id": study._study_id, "state": "COMPLETE"}
        connection.execute(
            tables.trials.insert(), [{"trial_id": one, "number": at, **shared} for at, one in enumerate(ids)]
        )
        values = [{"trial_id": one, "objective": 0, "value": at, "value_type": "FINITE"} for at, one in enumerate(ids)]
        connection.execute(tables.trial_values.insert(), values)
        violated = [{"trial_id": one, "key": "constraints", "value_json": "[1.0]"} for one in ids[:-3]]
        connection.execute(tables.trial_system_attributes.insert(), violated)

    assert numbers(best_rows(storage.engine, "ours", 1)) == [count - 3]
    assert numbers(best_rows(storage.engine, "ours", 5)) == [count - 3, count - 2, count - 1]
    assert study.best_trial.number == count - 3
    assert not is_among_best(storage.engine, study._study_id, count, 3, maximize=False)
    assert is_among_best(storage.engine, study._study_id, count, 4, maximize=False)


def test_a_confirmed_trial_that_is_infeasible_is_not_the_best(storage: Storage) -> None:
    """Nor tied with it; an infeasible baseline is still what the best is compared with."""
    study, engine = new_study(storage, "maximize", objective=["accuracy"], baseline={"x": 0.0}), storage.engine
    ids = [add(study, 0.95, memory=1.0), add(study, 0.9), add(study, 0.8), add(study, 0.7)]
    repeats = {0: [0.99, 0.97, 0.98], 1: [0.9, 0.88, 0.89], 2: [0.91, 0.86, 0.89]}
    for number, values in repeats.items():
        for repeat, value in enumerate(values, 1):
            store_confirmation(engine, study._study_id, ids[number], repeat, value)
    agree(engine, study._study_id, BASELINE_KEY, {"number": 0})

    rows: Any = best_rows(engine, "ours", None)
    assert numbers(rows) == [1, 2, 3]
    assert [row["confirmed"] and row["confirmed"]["is_tied"] for row in rows] == [True, True, None]
    assert rows[0]["confirmed"]["tied_with"] == [2]
    assert rows[0]["baseline"]["number"] == 0
    assert rows[0]["baseline"]["better_by"] == pytest.approx(-0.09)
    assert rows[0]["baseline"]["low"] < -0.09 < rows[0]["baseline"]["high"]
    # The margin is of all three, whichever may be the best.
    table = {number: dict(enumerate(values)) for number, values in repeats.items()}
    assert rows[0]["confirmed"]["margin"] == pytest.approx(rank(table, maximize=True)[0].margin)


def test_checkpoints_of_infeasible_trials_are_not_among_the_best(storage: Storage) -> None:
    study = new_study(storage, "minimize")
    ids = [add(study, 1.0, memory=1.0), add(study, 2.0, memory=0.0), add(study, 3.0)]
    with storage.engine.begin() as connection:
        for trial_id in ids:
            told = {"outcome": "complete", "ended_at_s": 1.0, "checkpoint": "/best"}
            connection.execute(tables.records.insert().values(trial_id=trial_id, study_id=study._study_id, **told))

    assert [row["trial"] for row in read_checkpoints(storage.engine, study._study_id)] == [1, 2]
    assert [row["trial"] for row in read_checkpoints(storage.engine, study._study_id, 1)] == [1]


def test_importances_say_how_many_are_infeasible(sqlite_url: str) -> None:
    with opened(sqlite_url) as storage:
        study = new_study(storage, "minimize")
        for at in range(12):
            add(study, float(at), x=at / 12, **({"memory": 1.0} if at < 4 else {}))
    _, notes = importance_rows(sqlite_url, "ours")
    assert notes[0] == "from 12 complete trials (4 of them infeasible)"


def test_an_attribute_of_a_similar_name_is_no_constraint(storage: Storage) -> None:
    study = new_study(storage, "minimize")
    for name in ("Constraints:memory", "constraints_:memory", "constraint", "fixed_params"):
        study.add_trial(create_trial(value=1.0, system_attrs={name: 1.0}))
    assert [row["is_feasible"] for row in trial_rows(storage.engine, "ours")] == [None] * 4
    assert [trial.constraints for trial in study.trials] == [{}] * 4


def test_pruned_and_failed_trials_have_constraints_too(storage: Storage) -> None:
    study = new_study(storage, "minimize")
    for state in (TrialState.PRUNED, TrialState.FAIL):
        study.add_trial(create_trial(state=state, system_attrs={"constraints": [1.0]}))
    assert [row["is_feasible"] for row in trial_rows(storage.engine, "ours")] == [False, False]


def test_every_row_with_an_infinite_constraint_is_json(storage: Storage) -> None:
    study = new_study(storage, "minimize")
    add(study, 1.0, memory=-inf)
    rows = [show_row(storage.engine, "ours", 0), *best_rows(storage.engine, "ours")]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    with storage.engine.connect() as connection:
        text = connection.execute(sa.select(tables.trial_system_attributes.c.value_json)).scalar_one()
    assert text == "-Infinity", "as Optuna writes it"


# --- Optuna as the oracle


def random_trials(seed: int, objectives: int, count: int) -> list[FrozenTrial]:
    """Return trials of all states, some of whose values and constraints are infinite."""
    chance = random.Random(seed)
    values = [inf, -inf, 0.0, 1.0, *(round(chance.random(), 1) for _ in range(6))]
    limits = [[-1.0, 0.0], [-1.0, 0.0, 1.0], [1.0, inf], [-inf, -0.0, 1e-9]][seed % 4]
    made = []
    for _ in range(count):
        state = chance.choice([TrialState.COMPLETE] * 4 + [TrialState.PRUNED, TrialState.FAIL])
        attributes: dict[str, Any] = {}
        if chance.random() < 0.7:
            attributes |= {f"constraints:{name}": chance.choice(limits) for name in ("memory", "time")}
        if chance.random() < 0.2:
            attributes["constraints"] = chance.choice([None, [], [chance.choice(limits)]])
        is_complete = state == TrialState.COMPLETE
        made.append(
            create_trial(
                state=state,
                values=[chance.choice(values) for _ in range(objectives)] if is_complete else None,
                intermediate_values={1: chance.choice([*values, nan])} if objectives == 1 else {},
                system_attrs=attributes,
                user_attrs={} if is_complete else {"outcome": chance.choice(["diverged", "pruned", "failed"])},
            )
        )
    return made


@dataclass
class Rows:
    """Rows of studies, which are inserted together and without Optuna's storages."""

    by_table: dict[sa.Table, list[dict[str, Any]]] = field(default_factory=dict[sa.Table, list[dict[str, Any]]])
    last_id: int = 0

    def add(self, name: str, directions: Sequence[str], several: Sequence[FrozenTrial]) -> None:
        study_id = self._id()
        self._row(tables.studies, study_id=study_id, study_name=name)
        of_directions = private.table_models().StudyDirectionModel.__table__
        for at, direction in enumerate(directions):
            self._row(of_directions, study_id=study_id, objective=at, direction=direction.upper())
        for number, trial in enumerate(several):
            trial_id = self._id()
            self._row(tables.trials, trial_id=trial_id, study_id=study_id, number=number, state=trial.state.name)
            for at, value in enumerate(trial.values or ()):
                stored, kind = stored_number(value)
                self._row(tables.trial_values, trial_id=trial_id, objective=at, value=stored, value_type=kind)
            for key, value in trial.system_attrs.items():
                self._row(tables.trial_system_attributes, trial_id=trial_id, key=key, value_json=json.dumps(value))

    def insert(self, engine: sa.Engine) -> None:
        with engine.begin() as connection:
            for table, rows in self.by_table.items():
                connection.execute(table.insert(), rows)

    def _id(self) -> int:
        self.last_id += 1
        return self.last_id

    def _row(self, table: sa.Table, **row: Any) -> None:
        self.by_table.setdefault(table, []).append(row)


@pytest.mark.parametrize(
    ("seeds", "count"),
    [
        (range(200), 9),
        pytest.param(range(1000, 1100), 60, marks=pytest.mark.slow),
        pytest.param(range(1100, 1300), 60, marks=[pytest.mark.slow, pytest.mark.long]),
    ],
    ids=["small", "large", "more"],
)
def test_the_best_of_any_study_is_that_of_optuna(sqlite_url: str, seeds: range, count: int) -> None:
    made: list[tuple[str, optuna.Study]] = []
    found: set[int] = set()
    rows = Rows()
    for seed in seeds:
        chance, objectives = random.Random(seed), 1 + seed % 3
        directions: Any = [chance.choice(["minimize", "maximize"]) for _ in range(objectives)]
        several = random_trials(seed, objectives, chance.randint(0, count))
        theirs = optuna.create_study(directions=directions)
        theirs.add_trials(several)
        rows.add(f"study {seed}", directions, several)
        made.append((f"study {seed}", theirs))
    with opened(sqlite_url) as storage:
        rows.insert(storage.engine)
        totals = {row["study"]: row["best"] for row in study_rows(storage.engine)}
        for name, theirs in made:
            ours = numbers(best_rows(storage.engine, name, None))
            if len(theirs.directions) > 1:
                assert ours == [trial.number for trial in theirs.best_trials], name
                found.add(len(ours))
                continue
            try:
                best = theirs.best_trial.number
            except ValueError:  # none is complete and feasible
                best = None
            assert (ours[0] if ours else None) == best, name
            value = None if best is None else theirs.best_value
            assert totals[name] in (value, str(value)), name  # infinite ones are texts
    assert {0, 1, 2, 3} <= found
