"""Events of studies that launches send to people, and to whom each was sent."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def _study() -> sa.Column[int]:
    return sa.Column("study_id", sa.Integer, sa.ForeignKey("studies.study_id", ondelete="CASCADE"), nullable=False)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "tuner_notices",
        sa.Column("event_id", sa.String(36), primary_key=True),
        _study(),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("made_at_s", sa.Float(53), nullable=False),
    )
    op.create_index("tuner_notices_of_study", "tuner_notices", ["study_id"])
    op.create_table(
        "tuner_deliveries",
        sa.Column("event_id", sa.String(36), primary_key=True),
        sa.Column("receiver", sa.String(64), primary_key=True),
        _study(),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("first_tried_at_s", sa.Float(53)),
        sa.Column("next_at_s", sa.Float(53), nullable=False),
        sa.Column("ending", sa.String(20)),
    )
    op.create_index("tuner_deliveries_of_study", "tuner_deliveries", ["study_id"])
