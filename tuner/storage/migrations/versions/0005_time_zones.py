"""Marks trials that have times of an unknown zone: earlier versions stored local time."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create the table; `tuner.storage.sql.schema` fills it."""
    if sa.inspect(op.get_bind()).has_table("tuner_unknown_zones"):
        return  # made before Optuna's tables were upgraded, which hides that they are of an older Optuna
    op.create_table(
        "tuner_unknown_zones",
        sa.Column("trial_id", sa.Integer, sa.ForeignKey("trials.trial_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("is_start", sa.Boolean, nullable=False),
        sa.Column("is_end", sa.Boolean, nullable=False),
    )
