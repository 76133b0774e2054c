"""Attempts, records, reports, rungs, budgets and workers; user attributes become records."""

import datetime
import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_SECONDS = sa.Float(53)


def _trial_id() -> sa.Column[int]:
    return sa.Column("trial_id", sa.Integer, sa.ForeignKey("trials.trial_id", ondelete="CASCADE"), primary_key=True)


def _study_id(primary_key: bool = False) -> sa.Column[int]:
    target = sa.ForeignKey("studies.study_id", ondelete="CASCADE")
    return sa.Column("study_id", sa.Integer, target, primary_key=primary_key, nullable=False)


def upgrade() -> None:
    """Create the tables and carry over what the first versions kept elsewhere."""
    op.create_table(
        "tuner_attempts",
        _trial_id(),
        sa.Column("fence", sa.Integer, primary_key=True),
        _study_id(),
        sa.Column("worker", sa.String(200), nullable=False),
        sa.Column("devices", sa.Integer, nullable=False),
        sa.Column("started_at_s", _SECONDS, nullable=False),
        sa.Column("ended_at_s", _SECONDS),
        sa.Column("ending", sa.String(20)),
        sa.Column("error", sa.Text),
    )
    op.create_index("tuner_attempts_by_end", "tuner_attempts", ["study_id", "ended_at_s"])
    op.create_table(
        "tuner_records",
        _trial_id(),
        _study_id(),
        sa.Column("outcome", sa.String(20), nullable=False),
        sa.Column("ended_at_s", _SECONDS, nullable=False),
        sa.Column("worker", sa.String(200)),
        sa.Column("compile_s", sa.Float(53)),
        sa.Column("compilations", sa.Integer),
        sa.Column("train_s", sa.Float(53)),
        sa.Column("checkpoint", sa.Text),
        sa.Column("error_kind", sa.Text),
        sa.Column("error", sa.Text),
    )
    op.create_index("tuner_records_by_end", "tuner_records", ["study_id", "ended_at_s"])
    op.create_table(
        "tuner_reports",
        _trial_id(),
        sa.Column("epoch", sa.Integer, primary_key=True),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("metrics", sa.Text, nullable=False),
    )
    op.create_table(
        "tuner_rungs",
        _trial_id(),
        sa.Column("rung", sa.Integer, primary_key=True),
        _study_id(),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("bracket", sa.Integer, nullable=False),
        sa.Column("value", sa.Float(53), nullable=False),
        sa.Column("is_promoted", sa.Boolean, nullable=False),
    )
    op.create_index("tuner_rungs_by_position", "tuner_rungs", ["study_id", "position"], unique=True)
    op.create_table(
        "tuner_budgets",
        _study_id(primary_key=True),
        sa.Column("identity", sa.String(32), nullable=False),
        sa.Column("trials", sa.Integer),
        sa.Column("wall_s", sa.Float(53)),
        sa.Column("device_s", sa.Float(53)),
        sa.Column("stopped_at_s", _SECONDS),
    )
    op.create_table(
        "tuner_workers",
        sa.Column("worker", sa.String(200), primary_key=True),
        _study_id(),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("devices", sa.String(255), nullable=False),
        sa.Column("started_at_s", _SECONDS, nullable=False),
        sa.Column("seen_at_s", _SECONDS, nullable=False),
        sa.Column("ended_at_s", _SECONDS),
        sa.Column("about", sa.Text, nullable=False),
    )
    op.create_index("tuner_workers_of_study", "tuner_workers", ["study_id"])
    _carry_over(op.get_bind())


def _carry_over(connection: sa.Connection) -> None:
    """Turn the user attributes of the first versions into records, and the studies' identities into budgets."""
    rows = connection.execute(
        sa.text(
            "SELECT trials.trial_id, study_id, datetime_complete, key, value_json FROM trials "
            "JOIN trial_user_attributes USING (trial_id) WHERE state IN ('COMPLETE', 'PRUNED', 'FAIL')"
        ).columns(datetime_complete=sa.DateTime)
    )
    found: dict[int, dict[str, Any]] = {}
    for trial_id, study_id, ended, key, text in rows:
        record = found.setdefault(trial_id, {"trial_id": trial_id, "study_id": study_id})
        record["ended_at_s"] = (ended - _EPOCH).total_seconds() if ended else 0.0
        if key in _RECORDED:
            record[key] = json.loads(text)
    records: list[dict[str, Any]] = [
        dict.fromkeys(_RECORDED) | record for record in found.values() if record.get("outcome") in _OUTCOMES
    ]
    if records:
        op.bulk_insert(_RECORDS, records)
    identities = connection.execute(
        sa.text("SELECT study_id, value_json FROM study_system_attributes WHERE key = 'tuner:id'")
    )
    budgets = [{"study_id": study_id, "identity": json.loads(text)} for study_id, text in identities]
    if budgets:
        op.bulk_insert(_BUDGETS, budgets)


_EPOCH = datetime.datetime(1970, 1, 1)
_OUTCOMES = ("complete", "pruned", "diverged", "out_of_memory", "failed")
_RECORDED = (
    "outcome", "worker", "compile_s", "compilations", "train_s", "checkpoint", "error_kind", "error",
)  # fmt: skip
_RECORDS = sa.table("tuner_records", *map(sa.column, ("trial_id", "study_id", "ended_at_s", *_RECORDED)))
_BUDGETS = sa.table("tuner_budgets", sa.column("study_id"), sa.column("identity"))
