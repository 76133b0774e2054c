"""How outcomes are stored in `tuner_records`, so that earlier versions can read them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from tuner.trial import Outcome


def encode_outcome(outcome: Outcome) -> dict[str, str]:
    """Return the columns of `tuner_records` for an outcome.

    Versions without limits of time know no outcome `timed_out`, and end with an error when they read an unknown one. So
    such a trial is recorded as pruned, and the kind of its error says why.
    """
    if outcome is Outcome.TIMED_OUT:
        return {"outcome": Outcome.PRUNED.value, "error_kind": outcome.value}
    return {"outcome": outcome.value}


def recorded_outcome(records: sa.FromClause) -> sa.ColumnElement[Any]:
    """Return the outcome from the columns of `tuner_records`."""
    is_timed_out = records.c.error_kind == Outcome.TIMED_OUT.value
    return sa.case((is_timed_out, sa.literal(Outcome.TIMED_OUT.value)), else_=records.c.outcome)
