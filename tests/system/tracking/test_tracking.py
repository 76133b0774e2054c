"""Studies in a real MLflow server on Postgres, in TensorBoard's files and in W&B's, through the real command line."""

from __future__ import annotations

import math
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa
from storage_tools import new_database, study_database
from tracking_tools import ODD, RecordedProgress, curves, fill, rows

from tuner.errors import UsageError
from tuner.launch.mirror_process import MirrorProcess
from tuner.launch.options import LaunchOptions, MirrorOptions
from tuner.launch.progress import Progress
from tuner.output.log import LogLine
from tuner.storage import parse_url
from tuner.tracking.mlflow import address, allowed_name
from tuner.trial.events import RowsSent

LAUNCH = ("launch", "tiny.py", "--workers", "2")
SERVER_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes, of which tracking uses none
}


class Server:
    """`mlflow server` on a database of its own, and that database."""

    def __init__(self, folder: Path, database: str) -> None:
        self.folder, self.database = folder, database
        self.engine = sa.create_engine(database)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = {
            "host": "127.0.0.1", "port": self.port, "workers": 1, "backend-store-uri": self.database,
            "artifacts-destination": self.folder / "artifacts",
        }  # fmt: skip
        words = [f"--{name}={value}" for name, value in options.items()]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **SERVER_SETTINGS},
                start_new_session=True,
            )

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            return False

    def send(self, sent: signal.Signals) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, sent)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.send(signal.SIGKILL)
            self.process.wait()

    def rows(self, query: str, **values: Any) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(sa.text(query), values))

    # What is in its database, without MLflow's own code.

    def runs(self, identity: str) -> dict[str, dict[str, Any]]:
        """Return the runs of a study that are not deleted, with their tags and hyperparameters."""
        found = {
            row.run_uuid: {**row._mapping, "tags": {}, "params": {}}
            for row in self.rows(
                "SELECT runs.* FROM runs JOIN tags USING (run_uuid) WHERE tags.key = 'tuner.identity' "
                "AND tags.value = :identity AND lifecycle_stage = 'active'",
                identity=identity,
            )
        }
        for table in ("tags", "params"):
            for row in self.rows(f"SELECT * FROM {table}"):
                if row.run_uuid in found:
                    found[row.run_uuid][table][row.key] = row.value
        return found

    def trials(self, identity: str) -> dict[int, dict[str, Any]]:
        """Return the runs of a study's trials by number."""
        found = [run for run in self.runs(identity).values() if "tuner.trial" in run["tags"]]
        doubled = Counter(run["tags"]["tuner.trial"] for run in found)
        assert set(doubled.values()) <= {1}, "no trial is doubled"
        return {int(run["tags"]["tuner.trial"]): run for run in found}

    def points(self, run: str) -> dict[tuple[str, int], float]:
        """Return the metrics of a run, but for those that are ours: (name, step) -> value."""
        found = self.rows("SELECT * FROM metrics WHERE run_uuid = :run AND key NOT LIKE 'tuner.%'", run=run)
        assert len({(row.key, row.step) for row in found}) == len(found), "no point is doubled"
        return {(row.key, row.step): math.nan if row.is_nan else row.value for row in found}


@pytest.fixture(scope="module")
def server(
    postgres_server: str, tmp_path_factory: pytest.TempPathFactory, wait_until: Callable[..., Any]
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("mlflow")
    made = Server(folder, new_database(postgres_server))
    made.start()
    wait_until(made.answers)
    yield made
    made.stop()
    made.engine.dispose()


@pytest.fixture
def mlflow(server: Server, wait_until: Callable[..., Any]) -> Server:
    """The server, under way."""
    if server.process is None or server.process.poll() is not None:
        server.start()
    wait_until(server.answers)
    return server


def identity_of(url: str, study: str = "tiny") -> str:
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg2://"))
    with engine.connect() as connection:
        query = "SELECT identity FROM tuner_budgets JOIN studies USING (study_id) WHERE study_name = :study"
        found = connection.execute(sa.text(query), {"study": study}).scalar_one()
    engine.dispose()
    return found


STATUS = {"complete": "FINISHED", "pruned": "KILLED", "running": "RUNNING"}


def check(server: Server, url: str, study: str = "tiny") -> dict[int, dict[str, Any]]:
    """Compare what MLflow's database has with what the study's has; return the trials' runs."""
    found, known, told = server.trials(identity_of(url, study)), curves(url, study), rows(url, study)
    assert found.keys() == known.keys()
    for number, run in found.items():
        row = told[number]
        expected = {(allowed_name(name), step): value for (name, step), value in known[number].items()}
        assert server.points(run["run_uuid"]) == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
        assert run["params"] == {allowed_name(name): str(value) for name, value in row["hparams"].items()}
        assert run["tags"]["tuner.outcome"] == row["outcome"]
        assert run["status"] == STATUS.get(row["outcome"], "FAILED")
        assert (run["end_time"] is None) == (row["outcome"] == "running")
        results = server.rows("SELECT key, value FROM metrics WHERE run_uuid = :run", run=run["run_uuid"])
        ours = {row.key: row.value for row in results if row.key.startswith("tuner.value")}
        values = {"value": row["value"]} if "value" in row else {}
        assert ours == {f"tuner.{name}": value for name, value in values.items() if value is not None}
    return found


# --- A study that is launched


@pytest.mark.slow
def test_a_launched_study_is_in_mlflow_with_equal_numbers(
    tuner_on_postgres: Any, tiny_study: Path, mlflow: Server
) -> None:
    tuner, url = tuner_on_postgres, tuner_on_postgres.env["TUNER_STORAGE"]
    alone = ("launch", "tiny.py", "--workers", "1")
    tuner.env["TUNER_STORAGE"] = url.replace("postgres:@", "postgres:Secret-7@")  # the server asks for none

    done = tuner.run(*alone, "--mlflow", mlflow.url)

    assert done.returncode == 0, done.stderr
    assert "[track]" not in done.stderr
    assert "not all of study" not in done.stderr
    trials = check(mlflow, url)
    assert len(trials) == 6
    runs = mlflow.runs(identity_of(url))
    (parent,) = [run for run in runs.values() if "tuner.trial" not in run["tags"]]
    assert (parent["name"], parent["status"]) == ("tiny", "FINISHED")
    assert parent["tags"]["tuner.space.noise"] == "uniform(0.0, 1.0)"
    assert parent["tags"]["tuner.objective"] == "loss"
    assert {run["tags"]["mlflow.parentRunId"] for run in trials.values()} == {parent["run_uuid"]}
    tags = trials[0]["tags"]
    assert re.fullmatch(r".+:\d+:0\.1", tags["tuner.worker"])
    assert tags["tuner.devices"].startswith("cpu")
    assert {"tuner.versions.jax", "tuner.versions.python", "tuner.host", "tuner.file"} <= tags.keys()
    assert "postgres:***@" in parent["tags"]["tuner.storage"]
    assert "Secret-7" not in str(mlflow.runs(identity_of(url)))

    more = tuner.run(*alone, "--trials", "8", MLFLOW_TRACKING_URI=mlflow.url)
    assert more.returncode == 0, more.stderr
    assert len(check(mlflow, url)) == 8


@pytest.mark.slow
@pytest.mark.parametrize("how", [pytest.param(signal.SIGKILL, marks=pytest.mark.long), signal.SIGSTOP])
def test_a_server_that_is_away_or_stands_still_is_caught_up(
    tuner_on_postgres: Any, tiny_function: Path, mlflow: Server, wait_until: Callable[..., Any], how: signal.Signals
) -> None:
    tuner, url = tuner_on_postgres, tuner_on_postgres.env["TUNER_STORAGE"]
    launched = tuner.start(
        *LAUNCH, "--mlflow", mlflow.url, TINY_PAUSE_S="0.3", TINY_EPOCHS="8", TINY_TRIALS="8",
        MLFLOW_HTTP_REQUEST_TIMEOUT="2",
    )  # fmt: skip

    def reported() -> int:
        engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg2://"))
        try:
            return sum(map(len, curves(url, "tiny").values())) if sa.inspect(engine).has_table("tuner_reports") else 0
        finally:
            engine.dispose()

    def sent() -> int:
        return mlflow.rows("SELECT count(*) FROM metrics JOIN runs USING (run_uuid) WHERE name LIKE 'tiny %'")[0][0]

    before = sent()
    wait_until(lambda: sent() > before)
    mlflow.send(how)
    try:
        there = reported()
        wait_until(lambda: reported() >= min(there + 40, 64))  # trials go on meanwhile
    finally:
        if how is signal.SIGSTOP:
            mlflow.send(signal.SIGCONT)
    if how is signal.SIGKILL:
        assert mlflow.process is not None
        mlflow.process.wait()
        mlflow.start()
        wait_until(mlflow.answers)
    output, _ = launched.communicate(timeout=300)

    assert launched.returncode == 0, output
    if "not all of study" in output:  # the server took longer than the study
        assert tuner.run("track", "tiny", "--once", "--mlflow", mlflow.url).returncode == 0
    assert len(check(mlflow, url)) == 8


@pytest.mark.slow
def test_a_launch_with_a_server_that_is_never_there_says_so_and_is_fine(
    tuner_on_sqlite: Any, tiny_function: Path, mlflow: Server
) -> None:
    tuner = tuner_on_sqlite
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"http://me:secret%40@127.0.0.1:{free.getsockname()[1]}"

        done = tuner.run("launch", "tiny.py", "--workers", "1", MLFLOW_TRACKING_URI=gone, TINY_TRIALS="2")

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trials continue; missing data is sent when the tracker answers") == 1
    assert "not all of study 'tiny' was sent to its trackers (exit status 1); `tuner track --once`" in done.stderr
    assert "secret" not in done.stderr

    later = tuner.run("track", "tiny", "--once", "--mlflow", mlflow.url)
    assert later.returncode == 0, later.stderr
    assert len(check(mlflow, tuner.env["TUNER_STORAGE"])) == 2


@pytest.mark.slow
def test_a_launcher_hears_of_each_thing_that_a_tracker_takes(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with study_database(sqlite_url) as db:
        fill(db)
        name = db.name
    heard, shown, put = [], RecordedProgress(), queue.Queue.put
    launched = MirrorProcess(MirrorOptions([f"--tensorboard={tmp_path / 'tb'}"]), parse_url(sqlite_url))
    monkeypatch.setattr(queue.Queue, "put", lambda self, message: (heard.append(message), put(self, message))[1])

    launched.start(name)
    launched.end(cast("Progress", shown), threading.Event())

    told = [message.said for message in heard if not isinstance(message.said, LogLine)]
    assert told == [RowsSent()] * len(told)
    assert len(told) >= 1 + 1 + 9 + 8, "the start, the study, nine trials, eight ends"
    assert not any("not all of study" in line for line in shown.lines), shown.lines
    assert len(list((tmp_path / "tb").glob("*/[0-9]*"))) == 9


@pytest.mark.slow
def test_a_mirror_ends_with_its_launcher_however_it_ends(
    tuner_on_sqlite: Any, tiny_function: Path, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    tuner, marker = tuner_on_sqlite, f"--tensorboard={tmp_path / 'tb'}"
    launched = tuner.start(*LAUNCH, "--tensorboard", "tb", TINY_PAUSE_S="1", TINY_EPOCHS="50")

    def mirrors() -> list[int]:
        return [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if f"track\0{marker}".encode() in _bytes(path)
        ]

    wait_until(mirrors)
    (process,) = mirrors()
    wait_until(lambda: os.getpriority(os.PRIO_PROCESS, process) == 10)
    launched.kill()
    launched.communicate(timeout=300)
    wait_until(lambda: not mirrors())


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


# --- Every kind of trial


@pytest.mark.slow
def test_every_kind_of_trial_and_odd_names(tuner_on_postgres: Any, mlflow: Server) -> None:
    tuner, url = tuner_on_postgres, tuner_on_postgres.env["TUNER_STORAGE"]
    with study_database(url) as db:
        fill(db)
        name = db.name

    done = tuner.run_here("track", name, "--once", "--mlflow", mlflow.url)

    assert done.returncode == 0, done.stderr
    found = mlflow.trials(identity_of(url, name))
    odd = found[7]
    assert set(odd["params"]) == {allowed_name(name) for name in ODD}
    assert {key for key, _ in mlflow.points(odd["run_uuid"])} == {"loss", *map(allowed_name, ODD)}
    diverged = mlflow.points(found[2]["run_uuid"])
    assert math.isnan(diverged["loss", 30])
    largest = sys.float_info.max  # what MLflow makes of infinities
    assert (diverged["accuracy", 30], diverged["low", 30]) == (largest, -largest)
    outcomes = ["complete", "pruned", "diverged", "out_of_memory", "failed", "complete", "complete", "complete"]
    assert [found[number]["tags"]["tuner.outcome"] for number in range(9)] == [*outcomes, "running"]
    statuses = ["FINISHED", "KILLED", "FAILED", "FAILED", "FAILED", "FINISHED", "FINISHED", "FINISHED", "RUNNING"]
    assert [found[number]["status"] for number in range(9)] == statuses
    assert found[4]["tags"]["tuner.error"].endswith("ValueError: no")
    known = curves(url, name)
    for number in {*range(9)} - {2}:
        expected = {(allowed_name(key), step): value for (key, step), value in known[number].items()}
        assert mlflow.points(found[number]["run_uuid"]) == expected


@pytest.mark.slow
def test_several_objectives_and_a_study_without_trials(tuner_on_postgres: Any, mlflow: Server) -> None:
    import optuna

    import tuner as ours

    tuner, url = tuner_on_postgres, tuner_on_postgres.env["TUNER_STORAGE"]
    storage: Any = ours.open_storage(url)
    pair = optuna.create_study(storage=storage, study_name="pair", directions=["minimize", "maximize"])
    pair.optimize(lambda trial: (trial.suggest_float("x", 0.0, 1.0), 2.0), n_trials=2)
    optuna.create_study(storage=storage, study_name="none")
    storage.close()

    for name in ("pair", "none"):
        done = tuner.run_here("track", name, "--once", "--mlflow", mlflow.url)
        assert done.returncode == 0, done.stderr

    (parent,) = mlflow.runs(identity_of(url, "none")).values()
    assert parent["tags"]["tuner.study"] == "none"
    told = rows(url, "pair")
    for number, run in mlflow.trials(identity_of(url, "pair")).items():
        found = mlflow.rows("SELECT key, value FROM metrics WHERE run_uuid = :run", run=run["run_uuid"])
        values = {row.key: row.value for row in found}
        assert [values["tuner.value.0"], values["tuner.value.1"]] == told[number]["values"]
        assert run["params"] == {"x": str(told[number]["hparams"]["x"])}


# --- Mirrors that die, and several at once


def long_study(url: str) -> str:
    """Fill a storage with a study that takes seconds to send; return its name."""
    with study_database(url) as db:
        fill(db)
        insert = (
            "INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) SELECT trial_id, 100 + n, "
            "1000 + n, '{\"loss\": 0.' || n || ', \"other\": 1.5}', 1e9 + n "
            "FROM trials, generate_series(1, 300) AS s (n) WHERE study_id = :id AND state <> 'RUNNING'"
        )
        with db.engine.begin() as connection:
            connection.execute(sa.text(insert), {"id": db.study_id})
        return db.name


@pytest.mark.slow
def test_a_mirror_killed_in_the_middle_of_a_batch(
    tuner_on_postgres: Any, mlflow: Server, wait_until: Callable[..., Any]
) -> None:
    tuner, url = tuner_on_postgres, tuner_on_postgres.env["TUNER_STORAGE"]
    name = long_study(url)
    total = sum(map(len, curves(url, name).values()))

    def sent() -> int:
        query = (
            "SELECT count(*) FROM metrics JOIN tags USING (run_uuid) WHERE tags.key = 'tuner.study' "
            "AND tags.value = :name AND metrics.key NOT LIKE 'tuner.%'"
        )
        return mlflow.rows(query, name=name)[0][0]

    process = tuner.start("track", name, "--mlflow", mlflow.url)
    wait_until(lambda: sent() > total / 4)
    process.kill()
    process.communicate(timeout=300)
    assert sent() < total

    with sa.create_engine(url.replace("postgresql://", "postgresql+psycopg2://")).begin() as connection:
        connection.execute(sa.text("UPDATE tuner_mirrors SET expires_at_s = 0"))  # else it is waited for
    done = tuner.run("track", name, "--once", "--mlflow", mlflow.url)

    assert done.returncode == 0, done.stderr
    assert sent() == total
    found, known = mlflow.trials(identity_of(url, name)), curves(url, name)
    assert found.keys() == known.keys()
    for number in {*found} - {2, 7}:  # those with infinities and odd names have a test of their own
        assert mlflow.points(found[number]["run_uuid"]) == known[number]


@pytest.mark.slow
def test_of_two_mirrors_one_sends(tuner_on_postgres: Any, mlflow: Server, wait_until: Callable[..., Any]) -> None:
    tuner, url = tuner_on_postgres, tuner_on_postgres.env["TUNER_STORAGE"]
    name = long_study(url)

    both = [tuner.start("track", name, "--once", "--mlflow", mlflow.url) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]

    assert [process.returncode for process in both] == [0, 0], outputs
    waited = [output for output in outputs if f"another process is sending '{name}' to mlflow {mlflow.url}" in output]
    assert len(waited) == 1, outputs
    found, known = mlflow.trials(identity_of(url, name)), curves(url, name)
    assert found.keys() == known.keys()
    assert mlflow.points(found[0]["run_uuid"]) == known[0]


@pytest.mark.slow
def test_a_mirror_ends_on_signals(
    tuner_on_sqlite: Any, tmp_path: Path, sqlite_url: str, wait_until: Callable[..., Any]
) -> None:
    with study_database(sqlite_url) as db:
        fill(db)
        name = db.name
    for sent in (signal.SIGTERM, signal.SIGINT):
        process = tuner_on_sqlite.start("track", name, "--tensorboard", f"tb-{sent}")
        wait_until(lambda sent=sent: list((tmp_path / f"tb-{sent}").glob("*/8/*")))
        process.send_signal(sent)
        output, _ = process.communicate(timeout=300)
        assert (process.returncode, output) == (130, "")


# --- TensorBoard and W&B


@pytest.mark.slow
def test_tensorboards_files_have_the_numbers(tuner_on_sqlite: Any, tmp_path: Path, sqlite_url: str) -> None:
    import numpy as np
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with study_database(sqlite_url) as db:
        fill(db)
        name = db.name
    known = curves(sqlite_url, name)

    def read() -> dict[int, dict[tuple[str, int], float]]:
        found = {}
        for folder in (tmp_path / "tb").glob("*/[0-9]*"):
            events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
            events.Reload()
            scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"] if not tag.startswith("tuner/")}
            assert all(len({one.step for one in several}) == len(several) for several in scalars.values())
            found[int(folder.name)] = {(tag, one.step): one.value for tag in scalars for one in scalars[tag]}
        return found

    def in_32_bits(points: dict[int, dict[tuple[str, int], float]]) -> str:
        return repr(
            {n: sorted((*key, float(np.float32(value))) for key, value in points[n].items()) for n in sorted(points)}
        )

    done = tuner_on_sqlite.run("track", name, "--once", "--tensorboard", "tb")
    assert done.returncode == 0, done.stderr
    assert in_32_bits(read()) == in_32_bits(known)

    # A process that died after it had written, and before it could remember that.
    engine = sa.create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE tuner_mirrored SET epoch = 0, digest = '', is_ended = false"))
    engine.dispose()
    again = tuner_on_sqlite.run("track", name, "--once", "--tensorboard", "tb")
    assert again.returncode == 0, again.stderr
    assert in_32_bits(read()) == in_32_bits(known)


def wandb_records(path: Path) -> Iterator[Any]:
    """Read a W&B file, which is a LevelDB log of messages: 7 bytes before blocks of 32 KiB."""
    import struct

    from wandb.proto import wandb_internal_pb2

    raw, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", raw[at : at + 7])
        part += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            messages: Any = wandb_internal_pb2
            yield messages.Record.FromString(part)
            part = b""


@pytest.mark.slow
def test_wandbs_files_have_the_numbers(tuner_on_sqlite: Any, tmp_path: Path, sqlite_url: str) -> None:
    import json

    with study_database(sqlite_url) as db:
        fill(db)
        name = db.name

    done = tuner_on_sqlite.run("track", name, "--once", "--wandb", "team/project", WANDB_MODE="offline")

    assert done.returncode == 0, done.stderr
    known, found = curves(sqlite_url, name), {}
    for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb"):
        records = list(wandb_records(path))
        (run,) = [record.run for record in records if record.HasField("run")]
        number = int(run.run_id.rpartition("-")[2])
        assert (run.project, run.display_name) == ("project", f"{name} {number}")
        points: dict[tuple[str, int], float] = {}
        for record in records:
            if record.HasField("history"):
                row = {item.nested_key[0]: float(json.loads(item.value_json)) for item in record.history.item}
                step = record.history.step.num
                points |= {(key, step): row[key] for key in row if not key.startswith(("_", "tuner."))}
        found[number] = points
        told = {item.key: json.loads(item.value_json) for record in records for item in record.config.update}
        assert told["tuner"]["outcome"] == rows(sqlite_url, name)[number]["outcome"]
    assert found.keys() == known.keys()
    for number, points in found.items():
        assert repr(sorted((*key, points[key]) for key in points)) == repr(
            sorted((*key, value) for key, value in known[number].items())
        )


# --- What is typed wrong


@pytest.mark.slow
def test_wrong_trackers_are_refused_in_one_line(tuner_on_sqlite: Any, tmp_path: Path, sqlite_url: str) -> None:
    (tmp_path / "file").touch()
    with study_database(sqlite_url):
        pass
    none = tuner_on_sqlite.run_here("track", "tiny")
    assert none.returncode == 2
    assert none.stderr.startswith("tuner: no tracker given: pass --mlflow URI")
    unknown = tuner_on_sqlite.run("track", "tony", "--tensorboard", "tb")
    assert unknown.returncode == 2
    assert "no study 'tony' in this storage" in unknown.stderr
    with pytest.raises(UsageError, match=r"^an MLflow URI must be http\(s\)://HOST:PORT, or .*: got 'mlruns'$"):
        LaunchOptions(mlflow="mlruns").mirror_options()
    with pytest.raises(UsageError, match=r"got a URL with a password$"):
        LaunchOptions(mlflow="ftp://me:secret@host").mirror_options()
    with pytest.raises(UsageError, match=r"^cannot write to the folder of `tensorboard`: .*file: "):
        LaunchOptions(tensorboard=str(tmp_path / "file")).mirror_options()


def test_addresses_are_shown_without_logins() -> None:
    assert address("http://me:p%40ss@host:5000/x") == "http://host:5000/x"
    assert address("https://token@host") == "https://host"
    assert address("postgresql+psycopg2://u:p@host/mlflow") == "postgresql+psycopg2://host/mlflow"


def test_a_uri_is_not_on_the_mirrors_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert LaunchOptions().mirror_options() == MirrorOptions()
    assert LaunchOptions(mlflow="http://me:secret@host", wandb="p").mirror_options() == MirrorOptions(
        ["--wandb=p"], {"MLFLOW_TRACKING_URI": "http://me:secret@host"}
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other")
    assert LaunchOptions().mirror_options().environment == {"MLFLOW_TRACKING_URI": "http://other"}


def test_names_that_mlflow_does_not_take_are_replaced() -> None:
    assert [allowed_name(name) for name in ("loss", "a b", "a/b", "x-1.5_y", "a:b")] == [
        "loss", "a b", "a/b", "x-1.5_y", "a:b"
    ]  # fmt: skip
    odd = ["x@y", "x#y", "ä", "ö", "../up", "/x", "a//b", "a/", "..", ".", "", "long" * 80, "long" * 80 + "x", "a\nb"]
    mapped = [allowed_name(name) for name in odd]
    assert len(set(mapped)) == len(odd), "they are kept apart"
    for name in mapped:
        # As in MLflow's mlflow.utils.validation; its server has the last word, in the slow tests.
        assert re.fullmatch(r"[/\w.\- :]{1,250}", name, re.ASCII), name
        assert os.path.normpath(name) == name, name
        assert not name.startswith(("/", "..")), name
        assert name != "."


# --- Models


PREDICT = """
import sys
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[2])
model = mlflow.pyfunc.load_model(sys.argv[1])
inputs = np.load("inputs.npy")
np.save("registered.npy", model.predict(inputs))
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_registered_model_predicts_bit_for_bit_in_another_process(
    tuner_on_postgres: Any, tiny_study: Path, mlflow: Server, tmp_path: Path
) -> None:
    import numpy as np

    from tuner.training import load_from_checkpoint

    tuner, url = tuner_on_postgres, tuner_on_postgres.env["TUNER_STORAGE"]
    assert tuner.run(*LAUNCH, TINY_TRIALS="3").returncode == 0
    best = tuner.rows("best", "tiny")[0]
    checkpoint = tuner.rows("show", "tiny", str(best["number"]))["checkpoint"]
    inputs = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    np.save(tmp_path / "inputs.npy", inputs)
    expected = np.asarray(load_from_checkpoint(checkpoint, trust=True)(inputs))

    done = tuner.run("register", "tiny", "--mlflow", mlflow.url, "--name", "model")
    assert (done.returncode, done.stdout) == (0, "models:/model/1\n"), done.stderr
    again = tuner.run("register", "tiny", "--mlflow", mlflow.url, "--name", "model", "--trial", "1")
    assert (again.returncode, again.stdout) == (0, "models:/model/2\n"), again.stderr

    # As on another machine: neither the study's file nor its artifacts are there.
    tiny_study.rename(tmp_path / "elsewhere.txt")
    (tmp_path / "tuner-artifacts").rename(tmp_path / "gone")
    subprocess.run(
        [sys.executable, "-c", PREDICT, "models:/model/1", mlflow.url], cwd=tmp_path, env=tuner.env, check=True
    )
    found = np.load(tmp_path / "registered.npy")
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()
    assert len(check(mlflow, url)) == 3  # the study is there as well
    told = {row.key: row.value for row in mlflow.rows("SELECT * FROM model_version_tags WHERE version = 1")}
    assert (told["tuner.study"], told["tuner.trial"]) == ("tiny", str(best["number"]))
    assert float(told["tuner.value.loss"]) == best["value"]

    refused = tuner.run("register", "tiny", "--mlflow", mlflow.url)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"tuner: the checkpoint of trial {best['number']} of study 'tiny' is not on ")


@pytest.mark.slow
def test_what_cannot_be_registered_is_refused_in_one_line(
    tuner_on_sqlite: Any, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with study_database(sqlite_url) as db:
        fill(db)
        empty = db.register("empty")
        assert empty
        name = db.name
    cases = {
        ("register", name): "no MLflow server given",
        ("register", name, "--mlflow", "http://127.0.0.1:1"): "trial 0 of study",
        ("register", "empty", "--mlflow", "http://127.0.0.1:1"): "study 'empty' has no complete trial",
    }
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for at, (words, message) in enumerate(cases.items()):
        done = tuner_on_sqlite.run(*words) if at == 0 else tuner_on_sqlite.run_here(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"tuner: {message}"), done.stderr
        assert len(done.stderr.splitlines()) == 1
