"""Types of what a query gives, with columns of any type: SQLAlchemy 2.1 has a type parameter for each column."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from typing import Any

    import sqlalchemy as sa

    AnyRow: TypeAlias = sa.Row[*tuple[Any, ...]]
    AnyResult: TypeAlias = sa.CursorResult[*tuple[Any, ...]]
    AnySelect: TypeAlias = sa.Select[*tuple[Any, ...]]
