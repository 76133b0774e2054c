"""Columns for rungs of another metric than the objective, and of several objectives."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the columns; rows that are there are of the objective."""
    op.add_column("tuner_rungs", sa.Column("metric", sa.Text))
    op.add_column("tuner_rungs", sa.Column("others", sa.Text))
