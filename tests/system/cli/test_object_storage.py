"""Commands that read, remove and check artifacts in S3, on a machine that has trained nothing."""

from __future__ import annotations

import json
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
import pytest
from command_line import Tuner
from object_server import ObjectServer

import tuner
from tuner.dashboard.descriptions import Descriptions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    server = ObjectServer(tmp_path_factory.mktemp("moto"))
    yield server
    server.close()


@pytest.fixture
def shell(
    tuner_on_sqlite: Tuner, server: ObjectServer, tiny_function: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Tuner]:
    """The command line, whose commands in this process use S3 and an empty cache folder."""
    url = f"s3://bucket/{uuid.uuid4().hex}"
    tuner_on_sqlite.env |= server.env | {"TUNER_ARTIFACTS": url}
    for name, value in (server.env | {"TUNER_ARTIFACTS": url}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tuner_on_sqlite.folder / "another"))
    _forget_connections()
    yield tuner_on_sqlite
    _forget_connections()


def _forget_connections() -> None:
    kind: Any = fsspec.get_filesystem_class("s3")
    kind.clear_instance_cache()


def keys(server: ObjectServer, shell: Tuner) -> set[str]:
    """Return trial, attempt and file of each key of the study."""
    prefix = shell.env["TUNER_ARTIFACTS"].rpartition("/")[2]
    return {key.split("/", 2)[2] for key in server.keys(f"{prefix}/")}


def test_each_command_reads_or_removes_what_is_in_the_store(shell: Tuner, server: ObjectServer) -> None:
    launched = shell.run("launch", "tiny.py", "--workers", "2", XDG_CACHE_HOME=str(shell.folder / "trained"))
    assert launched.returncode == 0, launched.stderr
    best = shell.rows("best", "tiny", "-n", "3")
    assert keys(server, shell) == {
        f"{row['number']}/1/best/{name}" for row in best for name in ("arrays.npz", "record.json")
    }

    shown = shell.rows("show", "tiny", str(best[0]["number"]))
    assert shown["checkpoint"].startswith(f"{shell.env['TUNER_ARTIFACTS']}/tiny-")
    assert np.shape(tuner.load_state(shown["checkpoint"])) == (3,)
    exported = shell.run_here("export", "tiny", "best.zip")
    assert exported.returncode == 0, exported.stderr
    with zipfile.ZipFile(shell.folder / "best.zip") as bundle:
        assert json.loads(bundle.read("checkpoint/record.json"))["record"]["trial"] == best[0]["number"]

    urls = [shell.rows("show", "tiny", str(row["number"]))["checkpoint"] for row in best]
    described = Descriptions().read([*urls, f"{urls[0]}-gone"])
    assert [about and (about.epoch, about.files) for about, _ in described] == [(3, 1)] * 3 + [None]
    assert [is_known for _, is_known in described] == [True] * 4

    size = sum(len(server.get(key)) for key in server.keys("") if f"/{best[1]['number']}/1/" in key)
    cleared = shell.run_here("gc", "tiny", "--keep", "1")
    first, second = sorted(row["number"] for row in best[1:])
    assert cleared.stderr == f"tuner: removed {2 * size / 1e6:.1f} MB of checkpoints of trials {first}, {second}\n"
    assert {key.partition("/")[0] for key in keys(server, shell)} == {str(best[0]["number"])}
    refused = shell.run_here("export", "tiny", "second.zip", "--trial", str(best[1]["number"]))
    assert refused.returncode == 2
    assert "there is nothing at s3://" in refused.stderr

    deleted = shell.run_here("delete", "tiny", "--yes")
    assert f"and {shell.env['TUNER_ARTIFACTS']}/tiny-" in deleted.stderr
    assert keys(server, shell) == set()


def test_the_doctor_tries_to_write(shell: Tuner, server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuner.admin.doctor import _artifacts
    from tuner.storage.artifacts import artifacts_of

    (row,) = _artifacts(artifacts_of(None))
    assert (row["status"], row["found"]) == ("ok", f"{shell.env['TUNER_ARTIFACTS']} can be written")
    assert keys(server, shell) == set()
    (row,) = _artifacts(artifacts_of("s3://none/x"))
    assert (row["status"], "the bucket of s3://none/x does not exist" in row["found"]) == ("fail", True)
    assert _artifacts(artifacts_of("folder")) == []
    server.gate.shut()
    try:
        _forget_connections()
        (row,) = _artifacts(artifacts_of(None))
        assert (row["status"], "cannot write to s3://" in row["found"]) == ("fail", True)
        assert Descriptions().read(["s3://bucket/x/tiny-12345678/3/1/best"]) == [(None, False)]
    finally:
        server.gate.open()


CANNOT_BE_USED = [
    ("foo://bucket", {}, 2, "must have a protocol of fsspec"),
    ("s3://none/x", {}, 2, "the bucket of s3://none/x does not exist; create it first"),
    ("s3://key:secret@bucket", {}, 2, "no user and no key: got s3://***@bucket; set $AWS_ACCESS_KEY_ID"),
    ("s3://bucket/x", {"AWS_ACCESS_KEY_ID": "", "AWS_EC2_METADATA_DISABLED": "true"}, 2, "give credentials with"),
]


@pytest.mark.parametrize(
    ("command", "url", "changed", "status", "told"),
    [
        *(("launch", *case) for case in CANNOT_BE_USED),
        *(
            pytest.param("worker", *case, marks=[] if case[0] == "s3://none/x" else pytest.mark.long)
            for case in CANNOT_BE_USED
        ),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_before_any_trial(
    command: str, url: str, changed: dict[str, str], status: int, told: str, shell: Tuner
) -> None:
    done = shell.run(command, "tiny.py", "--artifacts", url, "--trials", "1", TINY_EPOCHS="1", **changed)
    assert "secret" not in done.stdout + done.stderr
    assert len([line for line in done.stderr.splitlines() if told in line]) == 1
    assert done.returncode == status
    assert shell.run_here("studies").returncode != 0 or shell.rows("studies") == []


@pytest.mark.parametrize("command", ["launch", pytest.param("worker", marks=pytest.mark.long)])
def test_trials_run_while_the_store_cannot_be_reached(command: str, shell: Tuner) -> None:
    away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "TINY_EPOCHS": "1"}
    done = shell.run(command, "tiny.py", "--artifacts", "s3://bucket/403", "--trials", "1", **away)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("s3://bucket/403: EndpointConnectionError") == (2 if command == "launch" else 1)
    assert done.stderr.count("the launch continues, and workers upload when they can") == (command == "launch")
    assert done.stderr.count("training continues, and uploads are tried again") == 1
    (row,) = shell.rows("best", "tiny")
    assert Path(shell.rows("show", "tiny", str(row["number"]))["checkpoint"]).is_dir()
