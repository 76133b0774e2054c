"""Columns for how far each trial ever got, because only deaths since then count."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the columns; for leases that are there, the next report counts as progress."""
    op.add_column("tuner_leases", sa.Column("farthest_epoch", sa.Integer))
    op.add_column("tuner_leases", sa.Column("farthest_fence", sa.Integer))
