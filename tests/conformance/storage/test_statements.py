"""Statements by name: each once, printable, and explained by both databases."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from storage_tools import StudyDatabase, shared_study_database

from tuner.storage.sql import prepared_statements, statements
from tuner.storage.sql.prepared_statements import HeldStatement, Statement, statement
from tuner.storage.sql.tables import reports


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def db(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudyDatabase]:
    with shared_study_database(request, tmp_path_factory, "statements") as db:
        yield db


ALL = [one for one in vars(statements).values() if isinstance(one, Statement | HeldStatement)]
TABLE = statements.trial_user_attributes
VARIANTS: dict[str, tuple[Any, ...]] = {
    "standing": (True,),
    "load trials": (True,),
    "trial details": (True,),
    "extend lease": ((),),
    "extend lease, reported": ((),),
    "insert row": (TABLE, ("key", "value_json")),
    "upsert rows": (TABLE, ("key", "value_json"), "key", 2, None),
    "delete rows": (reports, "epoch"),
    "insert record": (("outcome",),),
    "open trial's row": (TABLE, ("key", "value_json"), ("value_json",)),
}


def test_no_two_statements_have_one_name() -> None:
    name = ALL[0].name
    with pytest.raises(ImportError, match=f"two SQL statements have the name '{name}'"):
        statement(name)(lambda dialect: sa.text("SELECT 1"))


@pytest.mark.parametrize("what", ALL, ids=lambda one: one.name)
def test_each_statement_is_explained_by_its_database(db: StudyDatabase, what: Statement | HeldStatement) -> None:
    what = what.of(*VARIANTS.get(what.name, ()))
    dialect = db.engine.dialect.name
    if what.name == "rebase" and dialect != "sqlite":
        return  # of SQLite's clock only
    names = set(what.make(dialect).compile().params)
    others = {
        "ids": [1],
        "also": [1],
        "still_open": [1],
        "is_promoted": True,
        "value_type": "FINITE",
        "w_state": "FAIL",
        "worker": "one",
    }
    values: dict[str, Any] = {name: others.get(name, 1) for name in names}
    if dialect == "sqlite":
        values = {name: "[1]" if isinstance(value, list) else value for name, value in values.items()}
    with db.engine.connect() as connection:
        plan = prepared_statements.explain(connection, what, values)
    # SQLite has no plan for an INSERT of given values.
    assert plan or "VALUES" in prepared_statements.text_of(what, dialect)


def test_a_statement_is_printed_as_it_is_sent() -> None:
    assert prepared_statements.text_of(statements.load_trial, "sqlite").split() == [
        "SELECT", "trials.trial_id,", "trials.number,", "trials.state,", "trials.datetime_start,",
        "trials.datetime_complete", "FROM", "trials", "WHERE", "trials.trial_id", "=", "?",
    ]  # fmt: skip
