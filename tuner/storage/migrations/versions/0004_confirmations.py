"""Trials trained again with other seeds."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "tuner_confirmations",
        sa.Column("trial_id", sa.Integer, sa.ForeignKey("trials.trial_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("repeat", sa.Integer, primary_key=True),
        sa.Column("study_id", sa.Integer, sa.ForeignKey("studies.study_id", ondelete="CASCADE"), nullable=False),
        sa.Column("value", sa.Float(53)),
        sa.Column("trained_at_s", sa.Float(53), nullable=False),
    )
    op.create_index("tuner_confirmations_of_study", "tuner_confirmations", ["study_id"])
