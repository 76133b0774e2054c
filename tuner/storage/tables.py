"""The tables: Optuna's schema as far as our own SQL touches it, and ours, which are called `tuner_...`.

Optuna creates its own tables. They are described again here, in SQLAlchemy Core, so that queries start without
importing Optuna; a test compares the descriptions with Optuna's models.
"""

from __future__ import annotations

from sqlalchemy import (
    Column,
    DateTime,
    Enum,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

optuna_tables = MetaData()

trial_state = Enum("RUNNING", "WAITING", "COMPLETE", "PRUNED", "FAIL", name="trialstate")
study_direction = Enum("NOT_SET", "MINIMIZE", "MAXIMIZE", name="studydirection")
value_type = Enum("FINITE", "INF_POS", "INF_NEG", name="trialvaluetype")
intermediate_value_type = Enum("FINITE", "INF_POS", "INF_NEG", "NAN", name="trialintermediatevaluetype")

studies = Table(
    "studies",
    optuna_tables,
    Column("study_id", Integer, primary_key=True),
    Column("study_name", String(512), nullable=False),
)
study_directions = Table(
    "study_directions",
    optuna_tables,
    Column("study_direction_id", Integer, primary_key=True),
    Column("direction", study_direction, nullable=False),
    Column("study_id", Integer, nullable=False),
    Column("objective", Integer, nullable=False),
)
study_system_attributes = Table(
    "study_system_attributes",
    optuna_tables,
    Column("study_system_attribute_id", Integer, primary_key=True),
    Column("study_id", Integer),
    Column("key", String(512)),
    Column("value_json", Text),
)
trials = Table(
    "trials",
    optuna_tables,
    Column("trial_id", Integer, primary_key=True),
    Column("number", Integer),
    Column("study_id", Integer),
    Column("state", trial_state, nullable=False),
    Column("datetime_start", DateTime),
    Column("datetime_complete", DateTime),
)
trial_params = Table(
    "trial_params",
    optuna_tables,
    Column("param_id", Integer, primary_key=True),
    Column("trial_id", Integer),
    Column("param_name", String(512)),
    Column("param_value", Float(53)),
    Column("distribution_json", Text),
)
trial_values = Table(
    "trial_values",
    optuna_tables,
    Column("trial_value_id", Integer, primary_key=True),
    Column("trial_id", Integer, nullable=False),
    Column("objective", Integer, nullable=False),
    Column("value", Float(53)),
    Column("value_type", value_type, nullable=False),
)
trial_intermediate_values = Table(
    "trial_intermediate_values",
    optuna_tables,
    Column("trial_intermediate_value_id", Integer, primary_key=True),
    Column("trial_id", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("intermediate_value", Float(53)),
    Column("intermediate_value_type", intermediate_value_type, nullable=False),
)
trial_user_attributes = Table(
    "trial_user_attributes",
    optuna_tables,
    Column("trial_user_attribute_id", Integer, primary_key=True),
    Column("trial_id", Integer),
    Column("key", String(512)),
    Column("value_json", Text),
)
trial_system_attributes = Table(
    "trial_system_attributes",
    optuna_tables,
    Column("trial_system_attribute_id", Integer, primary_key=True),
    Column("trial_id", Integer),
    Column("key", String(512)),
    Column("value_json", Text),
)

tuner_tables = MetaData()

# Only declared so that the foreign key below has a target; Optuna owns the table.
_trials = Table("trials", tuner_tables, Column("trial_id", Integer, primary_key=True))

leases = Table(
    "tuner_leases",
    tuner_tables,
    Column("trial_id", Integer, ForeignKey("trials.trial_id", ondelete="CASCADE"), primary_key=True),
    # The worker's name; NULL once it gave the trial back in good order.
    Column("worker", String(200)),
    # Counts the owners of the trial: a write that carries an older fence is refused.
    Column("fence", Integer, nullable=False),
    # How many workers died in this trial.
    Column("deaths", Integer, nullable=False),
    # Seconds since 1970 on the database's clock; workers' clocks may differ.
    Column("expires_at_s", Float(53), nullable=False),
)
"""Who runs which trial, and until when. A row exists exactly while its trial is running under our workers."""
