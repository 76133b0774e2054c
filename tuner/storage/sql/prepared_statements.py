"""Statements that run for each trial or report: named, compiled once and, on Postgres, planned once.

Building, keying and compiling a statement costs SQLAlchemy far more than the database takes to run it (and SQLAlchemy
caches none with ON CONFLICT); planning it costs Postgres more than running it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from tuner.storage.sql.engine import is_pooled
from tuner.storage.sql.retry import NOT_PREPARED

if TYPE_CHECKING:
    from tuner.storage.sql.row_types import AnyResult

_names: set[str] = set()


class Prepared(Hashable, Protocol):
    """A statement with a text for each dialect. Equal objects have equal texts."""

    @property
    def name(self) -> str:
        """The name of the statement, or of its first part."""
        ...

    def make(self, dialect: str) -> Any:
        """Return the SQLAlchemy statement, with `sqlalchemy.bindparam`s for all values."""
        ...


@dataclass(frozen=True)
class Statement:
    """A named statement.

    Attributes:
        name: A unique name.
        build: Builds it from a dialect's name and the variant.
        variant: Other values on which its text depends; usually empty.
    """

    name: str
    build: Callable[..., Any]
    variant: tuple[Hashable, ...] = ()

    def of(self, *variant: Hashable) -> Statement:
        """Return the statement for a variant."""
        return Statement(self.name, self.build, variant)

    def make(self, dialect: str) -> Any:
        """See `Prepared.make`."""
        return self.build(dialect, *self.variant)

    def __str__(self) -> str:
        return f"{self.name} {self.variant}" if self.variant else self.name


class Bind:
    """Placeholders for values in a text that several writes share."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def __call__(self, name: str, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
        return sa.cast(sa.bindparam(f"{self._prefix}{name}", type_=column.type), column.type)


@dataclass(frozen=True)
class HeldStatement:
    """A named statement that has an effect only if the relation `held`, with the column `trial_id`, has a row.

    Attributes:
        name: A unique name.
        build: Builds it from a dialect's name, `held`, a `Bind`, and the variant.
        variant: See `Statement`.
    """

    name: str
    build: Callable[..., Any]
    variant: tuple[Hashable, ...] = ()

    def of(self, *variant: Hashable) -> HeldStatement:
        """Return the statement for a variant."""
        return HeldStatement(self.name, self.build, variant)

    def make(self, dialect: str) -> Any:
        """Return the statement for the trial `held_id`, which is known to be held. Other values start with `w_`."""
        held_id = sa.cast(sa.bindparam("held_id", type_=sa.Integer), sa.Integer)
        return self.make_for(dialect, sa.select(held_id.label("trial_id")).subquery("held"), Bind("w_"))

    def make_for(self, dialect: str, held: sa.FromClause, bind: Bind) -> Any:
        """Return the statement for any `held`."""
        return self.build(dialect, held, bind, *self.variant)


@dataclass(frozen=True)
class WithWrites:
    """On Postgres: a statement that changes a trial and returns its id, combined with writes for that trial.

    The values of the n-th write start with `wn_`.
    """

    change: Statement
    writes: tuple[HeldStatement, ...]

    def make(self, dialect: str) -> Any:
        """See `Prepared.make`."""
        held = self.change.make(dialect).cte("held")
        several = [
            write.make_for(dialect, held, Bind(f"w{at}_")).cte(f"write_{at}") for at, write in enumerate(self.writes)
        ]
        return sa.select(held.c.trial_id).add_cte(*several)

    @property
    def name(self) -> str:
        """The name of the change."""
        return self.change.name


def statement(name: str) -> Callable[[Callable[..., Any]], Statement]:
    """Register the statement that a function builds under its name, once per process.

    Raises:
        ImportError: another statement has this name.
    """
    return lambda build: Statement(_own_name(name), build)


def held_statement(name: str) -> Callable[[Callable[..., Any]], HeldStatement]:
    """Register the `HeldStatement` that a function builds under its name, once per process.

    Raises:
        ImportError: another statement has this name.
    """
    return lambda build: HeldStatement(_own_name(name), build)


def _own_name(name: str) -> str:
    if name in _names:
        raise ImportError(f"two SQL statements have the name {name!r}: each needs its own name")
    _names.add(name)
    return name


@dataclass(frozen=True)
class _Text:
    """A statement's text, the names of its values in order, and its constant values."""

    text: str
    names: tuple[str, ...]
    constants: Mapping[str, Any]


_texts: dict[tuple[str, Prepared], _Text] = {}
_PREPARED = "tuner_prepared"
_servers_prepare = True


def text_of(what: Prepared, dialect: str) -> str:
    """Return a statement's SQL for a dialect, as sent to the server."""
    return _made(dialect, what).text


def explain(connection: Connection, what: Prepared, values: Mapping[str, object], *, analyze: bool = False) -> str:
    """Return the database's plan of a statement for these values, as lines.

    Args:
        connection: The connection.
        what: The statement.
        values: See `run`.
        analyze: On Postgres, run the statement as well; the caller rolls back.
    """
    made = _made(connection.dialect.name, what)
    values = {**made.constants, **values}
    if connection.dialect.name == "sqlite":
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {made.text}", tuple(values[name] for name in made.names))
        return "\n".join(row[-1] for row in rows)
    options = "(ANALYZE, BUFFERS) " if analyze else ""
    rows = connection.exec_driver_sql(f"EXPLAIN {options}{_with_places(made)}", values)
    return "\n".join(row[0] for row in rows)


def run(
    connection: Connection, what: Prepared, values: Mapping[str, object], *, after: Prepared | None = None
) -> AnyResult:
    """Run a statement. Its text is built once per process and, on Postgres, planned once per connection.

    Args:
        connection: The connection.
        what: The statement.
        values: Its values by name: numbers, texts, None, and results of `ids_value`.
        after: A statement to run before it with the same values; Postgres gets both in one message.

    Returns:
        The rows of the driver, without SQLAlchemy's types.
    """
    dialect = connection.dialect.name
    statements = {one: _made(dialect, one) for one in (after, what) if one is not None}
    if dialect == "sqlite":
        results = [_run_on_sqlite(connection, made, values) for made in statements.values()]
        return results[-1]
    constants = [name for made in statements.values() for name in made.constants]
    assert len(constants) == len({*constants}), "two statements in one message must not share names"
    for made in statements.values():
        values = {**made.constants, **values}
    if not _servers_prepare or is_pooled(connection):
        return connection.exec_driver_sql("; ".join(map(_with_places, statements.values())), values)
    try:
        several = [_prepared(connection, one, made) for one, made in statements.items()]
        return connection.exec_driver_sql("; ".join(several), values)
    except DBAPIError as error:
        _note_pooler(error)
        raise


def _made(dialect: str, what: Prepared) -> _Text:
    made = _texts.get((dialect, what))
    if made is None:
        made = _texts[dialect, what] = _compile(dialect, what.make(dialect))
    return made


def _run_on_sqlite(connection: Connection, made: _Text, values: Mapping[str, object]) -> AnyResult:
    values = {**made.constants, **values}
    return connection.exec_driver_sql(made.text, tuple(values[name] for name in made.names))


def _with_places(made: _Text) -> str:
    """Return a statement for Postgres with the driver's placeholders."""
    return re.sub(r"\$(\d+)", lambda found: f"%({made.names[int(found[1]) - 1]})s", made.text.replace("%", "%%"))


def _prepared(connection: Connection, what: Prepared, made: _Text) -> str:
    """Return the call of a prepared statement; prepare it on this connection if necessary."""
    calls = connection.info.setdefault(_PREPARED, {})
    call = calls.get(what)
    if call is None:
        # Named by its text: if a pooler shares sessions, another client's statement of this name is the same.
        name = f"tuner_{hashlib.sha256(made.text.encode()).hexdigest()[:24]}"
        places = ", ".join(f"%({name})s" for name in made.names)
        connection.exec_driver_sql(f"PREPARE {name} AS {made.text}".replace("%", "%%"))
        call = calls[what] = f"EXECUTE {name} ({places})" if places else f"EXECUTE {name}"
    return call


def _compile(dialect: str, built: Any) -> _Text:
    named = sqlite.dialect() if dialect == "sqlite" else postgresql.dialect(paramstyle="numeric_dollar")
    compiled = built.compile(dialect=named)
    constants = {name: value for name, value in compiled.params.items() if value is not None}
    return _Text(str(compiled), tuple(compiled.positiontup or ()), constants)


def _note_pooler(error: DBAPIError) -> None:
    """Stop preparing statements if a pooler such as PgBouncer gives each transaction another server connection."""
    global _servers_prepare
    if getattr(error.orig, "pgcode", None) in NOT_PREPARED:
        _servers_prepare = False
