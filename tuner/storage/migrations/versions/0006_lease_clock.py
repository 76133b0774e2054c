"""Columns to distinguish a jump of the wall clock, or a suspended machine, from a lease that has ended."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the columns; leases that are there go by the wall clock until they are extended."""
    op.add_column("tuner_leases", sa.Column("boot", sa.String(300)))
    op.add_column("tuner_leases", sa.Column("ahead_s", sa.Float(53)))
    op.add_column("tuner_leases", sa.Column("ahead_fence", sa.Integer))
