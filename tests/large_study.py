"""Writes a study of thousands of trials into a Postgres database in a second: by statements, without workers."""

from __future__ import annotations

import json

import sqlalchemy as sa
from storage_tools import connection_to, opened

from tuner.storage.read.queries import BASELINE_KEY
from tuner.storage.worker.claims import Claimant
from tuner.storage.worker.confirmations import store_confirmation
from tuner.storage.worker.studies import agree, join, register

EPOCHS = 20
TIED = (30, 53)
"""Trials that are as good as the best one with other seeds."""
_QUALITY = "(0.55 + 0.35 * abs(sin(n * 12.9898)) * (0.3 + 0.7 * n / :trials))"
_STATE = """CASE WHEN n >= :trials - 2 THEN 'RUNNING' WHEN n % 97 = 96 THEN 'FAIL'
    WHEN n % 3 = 1 THEN 'PRUNED' ELSE 'COMPLETE' END"""
_REACHED = "CASE t.state WHEN 'PRUNED' THEN 4 WHEN 'FAIL' THEN 2 WHEN 'RUNNING' THEN 11 ELSE :epochs END"
_OF_STUDY = "FROM (SELECT *, number AS n FROM trials WHERE study_id = :study_id) t"
_SPACE = {"learning_rate": "log_uniform(0.0001, 0.1)", "width": "choice(64, 128, 256)"}
_RATE = '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.1, "log": true}}'
_WIDTH = '{"name": "CategoricalDistribution", "attributes": {"choices": [64, 128, 256]}}'
_METRICS = """json_build_object(
    'accuracy', round((q * (1 - exp(-e / 4.0)))::numeric, 5),
    'loss', round((2.5 * exp(-e / 5.0) + 1 - q + 0.05 * sin(e * n))::numeric, 5),
    'train_loss', round((2.4 * exp(-e / 4.0) + 0.02 * cos(e * n))::numeric, 5))::text"""
_STATEMENTS = [
    f"""INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete)
        SELECT n, :study_id, ({_STATE})::trialstate, timezone('UTC', now()) - interval '1 day' + n * interval '10 s',
               CASE WHEN n < :trials - 2 THEN timezone('UTC', now()) - interval '1 day' + (n + 2) * interval '10 s' END
        FROM generate_series(0, :trials - 1) n""",
    f"""INSERT INTO trial_values (trial_id, objective, value, value_type)
        SELECT trial_id, 0, CASE WHEN n = :best THEN 0.96 ELSE {_QUALITY} END, 'FINITE' {_OF_STUDY}
        WHERE state = 'COMPLETE'""",
    f"""INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
        SELECT trial_id, 'learning_rate', power(10, -4 + 3 * abs(sin(n * 0.7))), :rate {_OF_STUDY}""",
    f"""INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
        SELECT trial_id, 'width', n % 3, :width {_OF_STUDY}""",
    f"""INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s)
        SELECT trial_id, e, e * 100, {_METRICS}, extract(epoch FROM now()) - 86400 + n * 10 + e
        FROM (SELECT t.*, {_REACHED} AS reached, {_QUALITY} AS q {_OF_STUDY}) s, generate_series(1, s.reached) e""",
    f"""INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
        SELECT trial_id, e, {_QUALITY} * (1 - exp(-e / 4.0)), 'FINITE'
        FROM (SELECT t.*, {_REACHED} AS reached {_OF_STUDY}) s, generate_series(1, s.reached) e""",
    f"""INSERT INTO tuner_attempts (trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending, error)
        SELECT trial_id, 1, study_id, :name || '-' || n % 2, 1, extract(epoch FROM now()) - 86400 + n * 10,
               CASE WHEN state <> 'RUNNING' THEN extract(epoch FROM now()) - 86400 + (n + 2) * 10 END,
               CASE state WHEN 'RUNNING' THEN NULL WHEN 'FAIL' THEN 'failed' ELSE lower(state::text) END,
               CASE state WHEN 'FAIL' THEN :error END {_OF_STUDY}""",
    f"""INSERT INTO tuner_records
            (trial_id, study_id, outcome, ended_at_s, worker, compile_s, compilations, train_s, error)
        SELECT trial_id, study_id, CASE state WHEN 'FAIL' THEN 'failed' ELSE lower(state::text) END,
               extract(epoch FROM now()) - 86400 + (n + 2) * 10, :name || '-' || n % 2,
               CASE WHEN n < 6 THEN 8.0 ELSE 0.1 END, CASE WHEN n < 6 THEN 3 ELSE 0 END, 18.0,
               CASE state WHEN 'FAIL' THEN :error END {_OF_STUDY} WHERE state <> 'RUNNING'""",
    f"""INSERT INTO tuner_leases (trial_id, worker, fence, deaths, expires_at_s)
        SELECT trial_id, :name || '-' || n % 2, 1, 0, extract(epoch FROM now()) + 36000 {_OF_STUDY}
        WHERE state = 'RUNNING'""",
    f"""INSERT INTO tuner_logs (trial_id, fence, lines, written_at_s)
        SELECT trial_id, 1, 'epoch 1' || chr(10) || '<script>hacked = 1</script>', extract(epoch FROM now()) {_OF_STUDY}
        WHERE n >= :trials - 2""",
]


def best_of(trials: int) -> int:
    """Return the number of the best trial of a study with so many."""
    return trials - 14


def write_large_study(url: str, name: str, trials: int) -> int:
    """Write a study with these trials: most have ended, and two run on two workers; return its id.

    Args:
        url: A Postgres database with the tables of a storage.
        name: The study.
        trials: The number of trials, at least 100. A third is pruned, and one in 97 has failed.
    """
    record = {
        "objective": ["accuracy"], "direction": ["maximize"], "epochs": EPOCHS, "space": _SPACE, "value": "last",
        "baseline": {"learning_rate": 0.001, "width": 64},
    }  # fmt: skip
    with opened(url) as storage:
        study_id = register(storage, storage.engine, name, ["maximize"], record).study_id
        for at in range(2):
            claimant = Claimant(study_id, f"{name}-{at}", trials=trials + 200, lease_s=300.0)
            join(storage.engine, claimant, {"host": "gpu-box", "pid": 100 + at, "devices": f"gpu {at}"})
        error = "Traceback (most recent call last):\n  File train.py\nValueError: <script>hacked = 1</script>"
        given = {"study_id": study_id, "trials": trials, "epochs": EPOCHS, "best": best_of(trials), "name": name}
        given |= {"rate": _RATE, "width": _WIDTH, "error": error}
        with connection_to(url) as connection:
            for statement in _STATEMENTS:
                connection.execute(sa.text(statement), given)
            connection.execute(sa.text("ANALYZE"))
            found = connection.execute(sa.text(f"SELECT number, trial_id {_OF_STUDY}"), given)
            ids = {number: trial_id for number, trial_id in found}
        agree(storage.engine, study_id, BASELINE_KEY, {"number": 0})
        for at, (number, mean) in enumerate(
            ((best_of(trials), 0.951), (TIED[0], 0.9495), (TIED[1], 0.9488), (0, 0.71))
        ):
            for repeat in range(4):
                value = mean + (-0.002, 0.003, 0.0005, -0.0015)[(repeat + at) % 4]
                store_confirmation(storage.engine, study_id, ids[number], repeat, value)
        storage.set_study_system_attr(study_id, "dashboard:note_ver", 1)
        note = "Larger widths help.\n<script>hacked = 1</script> <img src=x onerror='hacked = 1'>"
        storage.set_study_system_attr(study_id, "dashboard:note_str:0", note)
        storage.set_trial_user_attr(ids[trials - 1], "<script>hacked = 1</script>", json.dumps("<b>bold</b>"))
    return study_id
