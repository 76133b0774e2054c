"""Mirrors: which process sends a study to a tracker, and what it has sent; the time of each epoch's first report."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_SECONDS = sa.Float(53)


def upgrade() -> None:
    """Create the tables and the column."""
    op.create_table(
        "tuner_mirrors",
        sa.Column("study_id", sa.Integer, sa.ForeignKey("studies.study_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("target", sa.String(300), primary_key=True),
        sa.Column("owner", sa.String(200)),
        sa.Column("expires_at_s", _SECONDS, nullable=False),
        sa.Column("place", sa.String(200)),
    )
    op.create_table(
        "tuner_mirrored",
        sa.Column("trial_id", sa.Integer, sa.ForeignKey("trials.trial_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("target", sa.String(300), primary_key=True),
        sa.Column("run", sa.String(200), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("is_ended", sa.Boolean, nullable=False),
    )
    op.add_column("tuner_reports", sa.Column("reported_at_s", _SECONDS))
