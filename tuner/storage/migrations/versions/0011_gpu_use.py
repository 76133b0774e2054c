"""Columns for the memory and the utilisation of the GPUs on which a trial trained."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the columns; they stay empty for trials that have ended."""
    for name in ("gpu_peak_bytes", "gpu_mean_bytes", "gpu_total_bytes"):
        op.add_column("tuner_records", sa.Column(name, sa.BigInteger))
    op.add_column("tuner_records", sa.Column("gpu_percent", sa.Float(53)))
