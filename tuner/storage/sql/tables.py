"""The tables: those of Optuna's that our SQL uses, and our own, which are called `tuner_...`.

Optuna creates its own tables. They are described again here, in SQLAlchemy Core, so that queries start without
importing Optuna; a test compares the descriptions with Optuna's models.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Enum,
    Float,
    ForeignKey,
    Index,
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
study_user_attributes = Table(
    "study_user_attributes",
    optuna_tables,
    Column("study_user_attribute_id", Integer, primary_key=True),
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
    # UTC without a zone; local times for trials in `tuner_unknown_zones`.
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
trial_heartbeats = Table(
    "trial_heartbeats",
    optuna_tables,
    Column("trial_heartbeat_id", Integer, primary_key=True),
    Column("trial_id", Integer, nullable=False),
    Column("heartbeat", DateTime, nullable=False),
)

CHILDREN_OF_TRIALS = (
    "trial_heartbeats", "trial_intermediate_values", "trial_params", "trial_system_attributes", "trial_user_attributes",
    "trial_values",
)  # fmt: skip
CHILDREN_OF_STUDIES = ("study_directions", "study_system_attributes", "study_user_attributes")

tuner_tables = MetaData()
VERSION_TABLE = "tuner_alembic_version"

# Only declared so that foreign keys below have targets; Optuna owns the tables.
Table("studies", tuner_tables, Column("study_id", Integer, primary_key=True))
Table("trials", tuner_tables, Column("trial_id", Integer, primary_key=True))

# Seconds since 1970 on the database's clock; workers' clocks may differ.
_Seconds = Float(53)


def _trial_id() -> Column[int]:
    return Column("trial_id", Integer, ForeignKey("trials.trial_id", ondelete="CASCADE"), primary_key=True)


def _study_id(primary_key: bool = False) -> Column[int]:
    target = ForeignKey("studies.study_id", ondelete="CASCADE")
    return Column("study_id", Integer, target, primary_key=primary_key, nullable=False)


leases = Table(
    "tuner_leases",
    tuner_tables,
    _trial_id(),
    # The worker's name; NULL after it has given back the trial.
    Column("worker", String(200)),
    # Counts the owners of the trial: writes with an older fence are refused.
    Column("fence", Integer, nullable=False),
    # The number of workers that died in this trial since it last got further.
    Column("deaths", Integer, nullable=False),
    # On the wall clock; the columns below correct it on SQLite, and are NULL on Postgres.
    Column("expires_at_s", _Seconds, nullable=False),
    # Boot, time namespace and host in which the lease was last extended.
    Column("boot", String(300)),
    # How far the wall clock was ahead of the time since boot (without suspension) at that time.
    Column("ahead_s", Float(53)),
    # The fence at that time. If it differs, a version without these columns has the lease.
    Column("ahead_fence", Integer),
    # The greatest epoch that was ever reported, also by attempts whose reports were forgotten; NULL for none.
    Column("farthest_epoch", Integer),
    # The fence of the attempt that was the first to report it.
    Column("farthest_fence", Integer),
)
"""Leases: one row while a worker runs a trial. A trial that another tool ended keeps its row."""

attempts = Table(
    "tuner_attempts",
    tuner_tables,
    _trial_id(),
    Column("fence", Integer, primary_key=True),
    _study_id(),
    Column("worker", String(200), nullable=False),
    Column("devices", Integer, nullable=False),
    Column("started_at_s", _Seconds, nullable=False),
    # NULL while it runs.
    Column("ended_at_s", _Seconds),
    # An outcome, `preempted` (given back, to be resumed) or `died`.
    Column("ending", String(20)),
    # The traceback of a failed attempt.
    Column("error", Text),
    Index("tuner_attempts_by_end", "study_id", "ended_at_s"),
)
"""Attempts: each time that a worker held a trial. Device hours are computed from them."""

records = Table(
    "tuner_records",
    tuner_tables,
    _trial_id(),
    _study_id(),
    Column("outcome", String(20), nullable=False),
    Column("ended_at_s", _Seconds, nullable=False),
    Column("worker", String(200)),
    Column("compile_s", Float(53)),
    Column("compilations", Integer),
    Column("train_s", Float(53)),
    # The memory in use of the fullest of the worker's GPUs, at most; of all of them, on average; and what it has.
    Column("gpu_peak_bytes", BigInteger),
    Column("gpu_mean_bytes", BigInteger),
    Column("gpu_total_bytes", BigInteger),
    # Their mean utilisation, 0 to 100. All four are the devices' own: whatever else runs there is included.
    Column("gpu_percent", Float(53)),
    Column("checkpoint", Text),
    # The kind of the error, equal for similar errors; and the traceback. The kind `timed_out` is an outcome
    # (tuner.storage.sql.outcomes).
    Column("error_kind", Text),
    Column("error", Text),
    Index("tuner_records_by_end", "study_id", "ended_at_s"),
)
"""Records: how each trial ended, its timings, and its error."""

reports = Table(
    "tuner_reports",
    tuner_tables,
    _trial_id(),
    Column("epoch", Integer, primary_key=True),
    # Optimizer updates so far.
    Column("step", Integer, nullable=False),
    # Name -> value as a JSON object; NaN and infinities are the texts `nan`, `inf`, `-inf`.
    Column("metrics", Text, nullable=False),
    # When the epoch was first reported, so that a tracker gets the same time if it is sent again. NULL in rows that are
    # older than this column.
    Column("reported_at_s", _Seconds),
)
"""Curves: all metrics of each epoch. Optuna's table has only those of one objective."""

rungs = Table(
    "tuner_rungs",
    tuner_tables,
    _trial_id(),
    Column("rung", Integer, primary_key=True),
    _study_id(),
    # Counts the rows of a study in the order of insertion.
    Column("position", Integer, nullable=False),
    # Hyperband's bracket, else 0; -1 after the trial has left the rung, because it started again.
    Column("bracket", Integer, nullable=False),
    Column("value", Float(53), nullable=False),
    # The decision when the trial reached the rung; it is not decided again after a restart from a checkpoint.
    Column("is_promoted", Boolean, nullable=False),
    # The metric that the pruner follows; null for the objective, or for all objectives.
    Column("metric", Text),
    # With several objectives: the values of all but the first, a JSON list.
    Column("others", Text),
    Index("tuner_rungs_by_position", "study_id", "position", unique=True),
)
"""The rungs of successive halving: each trial counts once in each."""

budgets = Table(
    "tuner_budgets",
    tuner_tables,
    _study_id(primary_key=True),
    # Distinguishes a study from a later one with the same name and id.
    Column("identity", String(32), nullable=False),
    # The budget of the latest launch.
    Column("trials", Integer),
    Column("wall_s", Float(53)),
    Column("device_s", Float(53)),
    # Set by `tuner stop`: workers claim no trials, and give back running ones.
    Column("stopped_at_s", _Seconds),
)
"""Budgets: one row for each study that was launched."""

workers = Table(
    "tuner_workers",
    tuner_tables,
    Column("worker", String(200), primary_key=True),
    _study_id(),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("devices", String(255), nullable=False),
    Column("started_at_s", _Seconds, nullable=False),
    # The last sign of life.
    Column("seen_at_s", _Seconds, nullable=False),
    Column("ended_at_s", _Seconds),
    # JSON: versions of Python and packages, the study file, and the state of its Git repository.
    Column("about", Text, nullable=False),
    Index("tuner_workers_of_study", "study_id"),
)
"""Workers: each worker that ever joined a study, with its versions."""

logs = Table(
    "tuner_logs",
    tuner_tables,
    _trial_id(),
    # The attempt that printed them.
    Column("fence", Integer, primary_key=True),
    # The last lines, separated by line breaks.
    Column("lines", Text, nullable=False),
    Column("written_at_s", _Seconds, nullable=False),
)
"""Logs: the last lines that each attempt of a trial printed. The whole log is a file in the trial's folder."""

notices = Table(
    "tuner_notices",
    tuner_tables,
    # The same for every launch that sees the event: made of the study's identity and what happened.
    Column("event_id", String(36), primary_key=True),
    _study_id(),
    Column("kind", String(20), nullable=False),
    # The event as a JSON object.
    Column("body", Text, nullable=False),
    Column("made_at_s", _Seconds, nullable=False),
    Index("tuner_notices_of_study", "study_id"),
)
"""Notices: events of studies that `tuner launch --notify` sends."""

deliveries = Table(
    "tuner_deliveries",
    tuner_tables,
    Column("event_id", String(36), primary_key=True),
    # A digest of the receiver's address, which may be a secret.
    Column("receiver", String(64), primary_key=True),
    _study_id(),
    Column("tries", Integer, nullable=False),
    Column("first_tried_at_s", _Seconds),
    # The next try. During a try, when another launch may try instead, because the one that tries has died.
    Column("next_at_s", _Seconds, nullable=False),
    # `sent`, `given up` or `older` than the first launch with this receiver; NULL while it is to be sent.
    Column("ending", String(20)),
    Index("tuner_deliveries_of_study", "study_id"),
)
"""Deliveries: to whom each notice was or will be sent."""

confirmations = Table(
    "tuner_confirmations",
    tuner_tables,
    _trial_id(),
    # Repeats with the same number have the same seed in all trials.
    Column("repeat", Integer, primary_key=True),
    _study_id(),
    # The objective; NULL if it was not finite.
    Column("value", Float(53)),
    Column("trained_at_s", _Seconds, nullable=False),
    Index("tuner_confirmations_of_study", "study_id"),
)
"""Confirmations: trials that were trained again with other seeds."""

mirrors = Table(
    "tuner_mirrors",
    tuner_tables,
    _study_id(primary_key=True),
    # The tracker, without passwords.
    Column("target", String(300), primary_key=True),
    # The process that sends; NULL after it has exited normally.
    Column("owner", String(200)),
    Column("expires_at_s", _Seconds, nullable=False),
    # The tracker's name of the study: another name means another tracker, to which nothing was sent yet.
    Column("place", String(200)),
)
"""Mirrors: the process that sends a study to a tracker, until its lease ends."""

mirrored = Table(
    "tuner_mirrored",
    tuner_tables,
    _trial_id(),
    Column("target", String(300), primary_key=True),
    # The tracker's name of the trial.
    Column("run", String(200), nullable=False),
    # The last accepted epoch (0 for none), and a digest of all reports up to it.
    Column("epoch", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("is_ended", Boolean, nullable=False),
)
"""Mirrored trials: the data of each trial that a tracker has."""

unknown_zones = Table(
    "tuner_unknown_zones",
    tuner_tables,
    _trial_id(),
    Column("is_start", Boolean, nullable=False),
    Column("is_end", Boolean, nullable=False),
)
"""Trials whose start or end is local time of an unknown zone, stored by earlier versions."""
