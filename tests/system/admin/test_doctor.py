"""`tuner doctor` on healthy and on sick places."""

import http.server
import importlib.metadata
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import tuner
from tuner.admin.doctor import _devices, _gpu_use, _health_page, _packages, _storage, _tracking, examine
from tuner.storage import parse_url
from tuner.storage.artifacts import artifacts_of

DRIVERS = "CUDA 13 (extra cuda) needs the NVIDIA driver 580 or newer, CUDA 12 (extra cuda12) 525 or newer"


@pytest.fixture
def tracker() -> Iterator[tuple[str, list[str]]]:
    """A server that answers; yields its address and the paths it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_healthy_place(tuner_on_postgres: Any) -> None:
    folder = tuner_on_postgres.folder
    rows = {row["check"]: row for row in tuner_on_postgres.rows("doctor")}
    assert list(rows) == [
        "python", "packages", "devices", "storage", "tables", "connections", "clock", "disk", "tracking",
    ]  # fmt: skip
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert rows["storage"]["found"].startswith("postgresql://postgres:@")
    assert "PostgreSQL 1" in rows["storage"]["found"]
    assert rows["tables"]["found"] == "none yet"
    used, _, most = rows["connections"]["found"].split()
    assert 1 <= int(used) < int(most)
    assert f"for checkpoints in {folder}/tuner-artifacts" in rows["disk"]["found"]
    assert not (folder / "tuner-artifacts").exists(), "nothing is created"
    assert "JAX sees " in rows["devices"]["found"]


@pytest.mark.slow
def test_a_sick_place(tuner_on_sqlite: Any) -> None:
    wrong = "postgresql://somebody:secret@127.0.0.1:1/tuner"
    done = tuner_on_sqlite.run(
        "doctor", "--storage", wrong, "--format", "csv", MLFLOW_TRACKING_URI="http://me:secret@127.0.0.1:1/mlflow"
    )
    assert done.returncode == 1
    assert "secret" not in done.stdout + done.stderr
    lines = {line.split(",")[0]: line for line in done.stdout.splitlines()}
    assert lines["storage"].startswith('storage,fail,"cannot reach the storage postgresql://somebody:***@127.0.0.1:1')
    assert lines["tracking"].startswith("tracking,warn,http://me:***@127.0.0.1:1/mlflow does not answer: ")
    assert "Connection refused" in lines["tracking"]


def test_a_file_that_is_not_there_yet_is_no_trouble(sqlite_url: str, tmp_path: Path) -> None:
    (row,) = _storage(parse_url(sqlite_url))
    assert (row["status"], row["found"]) == ("ok", f"{sqlite_url}: does not exist yet; the first launch creates it")
    assert os.listdir(tmp_path) == []


def test_another_project_called_tuner_beside_this_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _packages()["status"] == "ok"
    other = tmp_path / "tuner-0.9.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: tuner\nVersion: 0.9.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert _packages()["status"] == "ok"  # nothing was installed from it
    (other / "RECORD").write_text("tuner/__init__.py,,\n")
    row = _packages()
    assert (row["status"], row["found"]) == ("fail", "tuner 0.9.1 next to tuner-jax")
    assert row["advice"] is not None
    assert "pip uninstall tuner" in row["advice"]


def test_tables_of_another_version_and_few_connections(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner.open_storage(postgres_url).close()
    engine = sa.create_engine(parse_url(postgres_url).driver)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE tuner_alembic_version SET version_num = '0001'")
    engine.dispose()
    monkeypatch.setattr("tuner.storage.read.health._connections", lambda _: (81, 100))
    monkeypatch.setattr("tuner.admin.doctor._SLOW_S", 0.0)
    monkeypatch.setattr("tuner.admin.doctor._SKEW_S", 0.0)
    rows = {row["check"]: row for row in _storage(parse_url(postgres_url))}
    assert {check: row["status"] for check, row in rows.items()} == {
        "storage": "warn", "tables": "fail", "connections": "warn", "clock": "warn",
    }  # fmt: skip
    assert "but this installation needs" in rows["tables"]["found"]
    assert rows["connections"]["found"] == "81 of 100"


@pytest.mark.slow
def test_devices_that_jax_does_not_use_are_told(
    monkeypatch: pytest.MonkeyPatch, sqlite_url: str, tmp_path: Path
) -> None:
    """A machine with two GPUs and a JAX for CPUs."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho 0\necho 1\n")
    (tools / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    locked = tmp_path / "locked"
    locked.mkdir()
    rows = {row["check"]: row for row in examine(sqlite_url, artifacts_of(locked / "artifacts"))}
    assert rows["devices"]["status"] == "warn"
    assert rows["devices"]["found"].startswith("gpu 0,1; JAX sees ")
    assert rows["devices"]["advice"].startswith(
        "JAX does not use the gpu: run `pip install -e '.[cuda]'` in the clone of tuner; CUDA 13"
    )
    assert rows["gpu_use"]["status"] == "ok"


def test_the_package_that_reads_gpus_is_told_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    versions = {"nvidia-ml-py": "13.1"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert _gpu_use() == [], "without GPUs nothing is said"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 0\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (found,) = _gpu_use()
    assert (found["found"], found["advice"]) == ("memory and utilisation are recorded with nvidia-ml-py 13.1", None)
    versions.clear()
    (found,) = _gpu_use()
    assert found["found"] == "memory and utilisation of the GPUs are not recorded"
    assert found["advice"] == "to record them, run `pip install -e '.[gpu]'` in the clone of tuner"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-abc")
    assert _gpu_use() == [], "the row of the devices says what is wrong"


@pytest.mark.parametrize(
    ("driver", "advice"),
    [
        ("580.65.06", "run `pip install -e '.[cuda]'` in the clone of tuner"),
        ("600.1", "run `pip install -e '.[cuda]'` in the clone of tuner"),
        ("579.99", f"run `pip install -e '.[cuda12]'` in the clone of tuner, or update the NVIDIA driver: {DRIVERS}"),
        (
            "525.60",
            f"run `pip install -e '.[cuda12]'` in the clone of tuner, or update the NVIDIA driver: {DRIVERS}",
        ),
        ("470.256.02", f"update the NVIDIA driver: {DRIVERS}"),
        ("[N/A]", f"run `pip install -e '.[cuda]'` in the clone of tuner; {DRIVERS}"),
    ],
)
def test_the_advice_on_cuda_fits_the_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, driver: str, advice: str
) -> None:
    answers = f'case "$1" in --query-gpu=driver_version) echo "{driver}"; echo "{driver}";; *) echo 0; echo 1;; esac'
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answers}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("tuner.admin.doctor._JAX", "print('cpu|1|cpu')")
    row = _devices()
    assert row["found"] == "gpu 0,1; JAX sees 1 of kind cpu" + (f"; NVIDIA driver {driver}" if "." in driver else "")
    assert row["advice"] == f"JAX does not use the gpu: {advice}"
    monkeypatch.setattr("tuner.admin.doctor._JAX", "print('gpu|2|NVIDIA H200')")
    assert (_devices()["status"], _devices()["advice"]) == ("ok", None)


def test_a_tracking_server_is_asked_for_its_health(tracker: tuple[str, list[str]]) -> None:
    address, asked = tracker
    assert _tracking({"MLFLOW_TRACKING_URI": f"http://me:secret@{address}/under/"})["found"] == (
        f"http://me:***@{address}/under/ answers"
    )
    assert asked == ["/under/health"]
    assert _tracking({})["found"].startswith("off: ")
    assert _tracking({"MLFLOW_TRACKING_URI": "file:///runs"})["status"] == "ok"
    assert _health_page("https://a.b:8/c") == "https://a.b:8/c/health"
