"""Folders in object storage, on fsspec's file system in memory."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec  # pyright: ignore[reportMissingTypeStubs]
import pytest

from tuner.errors import ArtifactsLost, ArtifactsURLError, CheckpointError, UsageError
from tuner.object_storage import ObjectStore, cached_folder, fetched, parse_artifacts_url
from tuner.storage.artifacts import VARIABLE, Artifacts, StudyArtifacts, describe_checkpoint, local_checkpoint
from tuner.worker.trainables.saves import TrialSaves, load_state

MEMORY: Any = fsspec.filesystem("memory")  # pyright: ignore[reportUnknownMemberType]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = ObjectStore(parse_artifacts_url(f"memory://{uuid.uuid4().hex}/p"))
    yield store
    store.remove("")


class Spy:
    """fsspec's file system, which notes what is written and removed, and can fail."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.written, self.removed = inner, [], []
        self.failure: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        if self.failure is not None:
            raise self.failure
        if name == "put":
            return self.put
        return getattr(self.inner, name)

    def put(self, ours: list[str], theirs: list[str]) -> None:
        self.written += [path.rpartition("/")[2] for path in theirs]
        self.inner.put(ours, theirs)

    def rm_file(self, path: str) -> None:
        self.removed.append(path.rpartition("/")[2])
        self.inner.rm_file(path)

    def rm(self, path: str, recursive: bool) -> None:
        self.removed.append("rest")
        self.inner.rm(path, recursive=recursive)


def spy(store: ObjectStore) -> Spy:
    store._files = Spy(store._files)
    return store._files


def saved(root: Path) -> Path:
    """Save a state as a training function does; return its folder."""
    with TrialSaves(root, {"trial": 3}) as saves:
        saves.save({"weights": [1, 2.5]}, 2)
        best = saves.write_best()
        assert best is not None
        return best


def test_what_is_uploaded_can_be_listed_downloaded_and_removed(store: ObjectStore, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "inner").mkdir(parents=True)
    (folder / "a").write_bytes(b"abc")
    (folder / "inner" / "empty").write_bytes(b"")
    assert (store.names("s"), store.sizes("s"), store.remove("s")) == ([], {}, 0)

    store.upload(folder, "s/3")

    assert (store.names("s"), store.sizes("s/3")) == (["3"], {"a": 3, "inner/empty": 0})
    store.download("s/3", tmp_path / "copy", store.sizes("s/3"))
    assert (tmp_path / "copy" / "a").read_bytes() == b"abc"
    assert (tmp_path / "copy" / "inner" / "empty").read_bytes() == b""
    assert (store.remove("s/3"), store.sizes("s")) == (3, {})


def test_the_record_is_written_last_and_removed_first(store: ObjectStore, tmp_path: Path) -> None:
    folder = saved(tmp_path / "trial")
    (folder / "zzz").write_text("after the record by name")
    files = spy(store)
    store.upload(folder, "s/3")
    assert files.written == ["arrays.npz", "zzz", "record.json"]
    store.remove("s/3")
    assert files.removed == ["record.json", "rest"]


def test_a_file_that_a_user_calls_like_a_record_is_none(store: ObjectStore, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "record.json").write_text("[]")
    with TrialSaves(tmp_path / "trial", {}) as saves:
        saves.save(mine, 1)
        best = saves.write_best()
    assert best is not None
    store.upload(best, "s/3/1/best")
    assert load_state(fetched(store.url_of("s/3/1/best")), None).joinpath("record.json").read_text() == "[]"


def test_a_checkpoint_is_fetched_to_the_cache_once(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.upload(saved(tmp_path / "trial"), "s-12345678/3/1/best")
    url = store.url_of("s-12345678/3/1/best")

    folder = fetched(url)

    assert folder == cached_folder(store.url) / "s-12345678" / "3" / "1" / "best"
    assert load_state(folder, None) == {"weights": [1, 2.5]}
    before = (folder / "arrays.npz").stat().st_ino
    assert fetched(url) == folder
    assert (folder / "arrays.npz").stat().st_ino == before, "it is not copied again"
    about = describe_checkpoint(url)
    assert about == describe_checkpoint(str(folder))
    assert about is not None
    assert (about.step, about.epoch, about.files) == (2, 2, 1)

    with monkeypatch.context() as patch:
        patch.setattr(type(MEMORY), "find", fail)
        assert fetched(url) == folder, "a complete copy is used while the store is away"
        (folder / "arrays.npz").unlink()
        with pytest.raises(ArtifactsLost, match=r"cannot list memory://.*: OSError: away"):
            fetched(url)


def fail(*_: object, **__: object) -> None:
    raise OSError("away")


@pytest.mark.parametrize("damage", ["shorter", "gone", "no record"])
def test_half_a_checkpoint_is_not_taken_for_one(damage: str, store: ObjectStore, tmp_path: Path) -> None:
    folder = saved(tmp_path / "trial")
    if damage == "shorter":
        (folder / "arrays.npz").write_bytes((folder / "arrays.npz").read_bytes()[:-1])
    else:
        (folder / ("arrays.npz" if damage == "gone" else "record.json")).unlink()
    store.upload(folder, "s/3/1/best")
    url = store.url_of("s/3/1/best")
    with pytest.raises(CheckpointError, match="no saved state in" if damage == "no record" else "is incomplete: "):
        load_state(fetched(url), None)
    assert describe_checkpoint(url) is None or damage == "shorter"


def test_a_digest_is_checked_as_well_as_a_size(store: ObjectStore, tmp_path: Path) -> None:
    folder = tmp_path / "best" / "1"
    folder.mkdir(parents=True)
    (folder / "arrays").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of abc, from FIPS 180
    (folder / "record.json").write_text(json.dumps({"files": {"arrays": digest}}))
    store.upload(folder.parent, "s/3/1/best")
    assert (fetched(store.url_of("s/3/1/best")) / "1" / "arrays").read_bytes() == b"abc"
    (folder / "arrays").write_bytes(b"abx")
    store.upload(folder.parent, "s/3/2/best")
    with pytest.raises(CheckpointError, match="is incomplete: arrays differs from its record"):
        fetched(store.url_of("s/3/2/best"))


def test_names_that_lead_out_of_a_folder_are_left_out(store: ObjectStore) -> None:
    for name in ("../../outside", "files/../../outside", "files/inside"):
        MEMORY.pipe_file(f"{store._path('s/3/1')}/{name}", b"x")
    assert store.sizes("s/3/1") == {"files/inside": 1}


def test_nothing_at_a_url(store: ObjectStore) -> None:
    url = store.url_of("s/3/1/best")
    with pytest.raises(CheckpointError, match="there is nothing at memory://"):
        fetched(url)
    with pytest.raises(
        UsageError, match=r"cannot read the checkpoint of trial 3 of 's': there is nothing at memory://"
    ):
        local_checkpoint(url, "trial 3 of 's'")
    assert describe_checkpoint(url) is None


def test_the_files_of_a_trial_are_fetched_with_its_checkpoint(store: ObjectStore, tmp_path: Path) -> None:
    best = saved(tmp_path / "trial")
    (best.parent / "files").mkdir()
    (best.parent / "files" / "curve.csv").write_text("1,2")
    store.upload(best.parent, "s/3/1")
    folder = local_checkpoint(store.url_of("s/3/1/best"), "trial 3")
    assert (folder.parent / "files" / "curve.csv").read_text() == "1,2"


@pytest.mark.parametrize("read", [lambda url: local_checkpoint(url, "trial 3"), describe_checkpoint])
def test_a_recorded_url_leads_to_object_storage_only(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    best = saved(tmp_path / "store" / "s-12345678" / "3" / "1")
    monkeypatch.delenv(VARIABLE, raising=False)
    for url in (f"file://{best}", f"local://{best}", "http://127.0.0.1:9/s/3/1/best"):
        with pytest.raises(ArtifactsURLError, match=r"must be one of object storage, such as s3 or gs: got "):
            read(url)
    monkeypatch.setenv(VARIABLE, f"file://{tmp_path}/other")
    with pytest.raises(ArtifactsURLError, match=rf"set \$TUNER_ARTIFACTS=file://{tmp_path}/store$"):
        read(f"file://{best}")
    monkeypatch.setenv(VARIABLE, f"file://{tmp_path}/store/")
    assert read(f"file://{best}") is not None


class NoCredentialsError(Exception):
    """As botocore calls it."""


class HttpError(Exception):
    """As gcsfs calls it."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class ClientError(Exception):
    """As botocore calls it."""

    def __init__(self, status: int) -> None:
        super().__init__("An error occurred when calling the HeadObject operation")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.mark.parametrize(
    ("failure", "kind", "told"),
    [
        (FileNotFoundError("The specified bucket does not exist"), ArtifactsURLError, "the bucket of memory://"),
        (NoCredentialsError("Unable to locate credentials"), ArtifactsURLError, "give credentials with the right to"),
        (PermissionError("Access Denied"), ArtifactsURLError, "give credentials with the right to"),
        (HttpError("Anonymous caller has no access, 401", 401), ArtifactsURLError, "give credentials with the right"),
        (HttpError("Invalid Credentials", 401), ArtifactsURLError, "give credentials with the right to"),
        (ClientError(403), ArtifactsURLError, "give credentials with the right to"),
        (ClientError(500), ArtifactsLost, "cannot write to"),
        (OSError("Forbidden: bucket/x\nmore"), ArtifactsURLError, "give credentials with the right to"),
        (
            OSError('Could not connect to the endpoint URL: "http://127.0.0.1:9/bucket/s-12345678/403/1/best"'),
            ArtifactsLost,
            "cannot write to",
        ),
        (OSError("no answer for http://h/b/Forbidden/3/NoSuchBucket/1"), ArtifactsLost, "cannot write to"),
        (HttpError("Backend error after 403 bytes", 503), ArtifactsLost, "cannot write to"),
        (
            OSError("connection refused\nmore"),
            ArtifactsLost,
            r"cannot write to .*: OSError: connection refused$",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_failures_are_told_in_a_line(failure: Exception, kind: Any, told: str, store: ObjectStore) -> None:
    files = spy(store)
    files.failure = failure
    try:
        with pytest.raises(kind, match=told) as caught:
            store.check()
    finally:
        files.failure = None
    assert len(str(caught.value).splitlines()) == 1


def test_a_store_that_is_away_is_a_warning_at_the_start(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts, files = Artifacts(Path("here"), store), spy(store)
    artifacts.check_or_warn()
    assert capsys.readouterr().err == ""
    files.failure = OSError("away")
    artifacts.check_or_warn()
    assert capsys.readouterr().err.count("OSError: away; the launch continues, and workers upload when they can") == 1
    files.failure = PermissionError("Access Denied")
    with pytest.raises(ArtifactsURLError, match="give credentials"):
        artifacts.check_or_warn()
    files.failure = None


def test_a_local_file_that_cannot_be_read_is_no_refusal_of_the_store(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "trial")
    unreadable(monkeypatch, folder / "arrays.npz")
    with pytest.raises(PermissionError, match=r"arrays\.npz"):
        store.upload(folder, "s/3")
    assert store.sizes("s/3") == {}


def unreadable(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Make a file unreadable, also for root."""
    real = Path.open

    def opened(self: Path, *args: Any, **options: Any) -> Any:
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))
        return real(self, *args, **options)

    monkeypatch.setattr(Path, "open", opened)


def test_a_check_leaves_nothing(store: ObjectStore) -> None:
    store.check()
    assert store.sizes("") == {}


def test_a_study_is_collected_in_the_store_and_here(store: ObjectStore, tmp_path: Path) -> None:
    study = Artifacts(tmp_path / "here", store).of_study("tiny", "12345678")
    assert not study.exist()
    for number in range(3):
        (study.folder / str(number) / "1").mkdir(parents=True)
        (study.folder / str(number) / "1" / "best").write_bytes(bytes(100))
    for number in (1, 2, 7):
        store.upload(study.folder / "1", f"{study.key}/{number}")

    assert study.collect(lambda numbers: [one for one in numbers if one != 2]) == ([0, 1, 7], 200)

    assert store.names(study.key) == ["2"]
    assert [path.name for path in study.folder.iterdir()] == ["2"]
    assert study.exist()
    study.remove()
    assert not study.exist()
    assert StudyArtifacts(study.folder).exist() is False
