"""Uploads of a worker's trials: what the store has at each moment, while a training saves, ends or is taken over."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from tuner.errors import ArtifactsLost, StorageDenied, StorageLost, StorageSchemaError
from tuner.object_storage import ObjectStore, cached_folder, parse_artifacts_url
from tuner.storage.artifacts import StudyArtifacts
from tuner.storage.worker.fences import Lease
from tuner.trial import Stop
from tuner.worker.files import trial_files, uploads
from tuner.worker.files.trial_files import StudyFiles, TrialFiles, make_study_files
from tuner.worker.files.trial_upload import TrialUpload
from tuner.worker.trainables.saves import TrialSaves, load_state

KEY = "tiny-12345678"


class Store(ObjectStore):
    """A store in memory that can be away, and notes what is uploaded."""

    def __init__(self) -> None:
        super().__init__(parse_artifacts_url(f"memory://{uuid.uuid4().hex}"))
        self.is_away = False
        self.uploaded: list[str] = []
        self.during: Callable[[], None] = lambda: None
        self.bug: tuple[str, Exception] | None = None
        """A part of a key, and what an upload there raises."""

    def _check(self) -> None:
        if self.is_away:
            raise ArtifactsLost(f"cannot reach {self.url}: away")

    def upload(self, folder: Path, key: str, names: Any = None) -> None:
        self._check()
        self.uploaded.append(key.partition("/")[2] if names is None else f"{key.partition('/')[2]}/{names[0]}")
        self.during()
        if self.bug is not None and self.bug[0] in key:
            raise self.bug[1]
        super().upload(folder, key, names)

    def sizes(self, key: str) -> dict[str, int]:
        self._check()
        return super().sizes(key)

    def names(self, key: str) -> list[str]:
        self._check()
        return super().names(key)

    def records(self) -> list[str]:
        """Return the checkpoints that are complete, by trial and attempt."""
        return [name.removesuffix("/record.json") for name in ObjectStore.sizes(self, KEY) if name.endswith("d.json")]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(uploads, "_POLL_S", 0.02)
    monkeypatch.setattr(uploads, "_LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(uploads, "DOWN_S", 0.2)
    monkeypatch.setattr(trial_files, "FETCH_S", 0.2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = Store()
    yield store
    store.is_away = False
    store.remove("")


def save(root: Path, *epochs: int) -> None:
    """Save states as a training function does."""
    with TrialSaves(root, {}) as saves:
        for epoch in epochs:
            saves.save({"epoch": epoch}, epoch)


def upload_of(store: Store, tmp_path: Path, attempt: int = 1, fetched: tuple[str, ...] = ()) -> TrialUpload:
    return TrialUpload(store, tmp_path / "3" / str(attempt), f"{KEY}/3/{attempt}", fetched)


def test_the_newest_is_uploaded_first_and_old_ones_are_removed(store: Store, tmp_path: Path) -> None:
    upload = upload_of(store, tmp_path)
    upload.sync()
    assert store.uploaded == [], "there is nothing yet"
    save(upload.root, 1, 2)
    upload.sync()
    assert store.uploaded == ["3/1/latest/2", "3/1/latest/1"]
    save(upload.root, 3, 4, 5)
    upload.sync()
    assert store.uploaded[2:] == ["3/1/latest/5", "3/1/latest/4"]
    assert store.records() == ["3/1/latest/4", "3/1/latest/5"]
    upload.sync()
    assert len(store.uploaded) == 4, "nothing is uploaded twice"


def test_a_training_may_save_and_remove_while_its_state_is_uploaded(store: Store, tmp_path: Path) -> None:
    upload = upload_of(store, tmp_path)
    save(upload.root, 1)

    def save_more() -> None:
        store.during = lambda: None
        save(upload.root, 2, 3, 4)  # removes the first

    store.during = save_more
    upload.sync()
    assert store.uploaded == [f"3/1/latest/{number}" for number in (1, 4, 3)]
    assert store.records() == ["3/1/latest/3", "3/1/latest/4"]
    assert sorted(path.name for path in upload.root.parent.iterdir()) == ["1"], "no hard links are left"


def test_numbers_that_are_used_again_are_uploaded_again(store: Store, tmp_path: Path) -> None:
    upload = upload_of(store, tmp_path)
    save(upload.root, 7)
    upload.sync()
    shutil.rmtree(upload.root / "latest")  # the checkpoint does not fit the study's file any more
    save(upload.root, 1)
    upload.sync()
    store.download(f"{KEY}/3/1/latest/1", tmp_path / "copy", store.sizes(f"{KEY}/3/1/latest/1"))
    assert load_state(tmp_path / "copy", None) == {"epoch": 1}


def test_the_checkpoint_of_an_earlier_attempt_stays_until_there_is_a_newer_one(store: Store, tmp_path: Path) -> None:
    first = upload_of(store, tmp_path)
    save(first.root, 1, 2)
    first.sync()
    second = upload_of(store, tmp_path, 2, ("1", "2"))
    shutil.copytree(first.root, second.root)
    second = upload_of(store, tmp_path, 2, ("1", "2"))
    store.uploaded.clear()
    second.sync()
    assert store.uploaded == []
    assert store.records() == ["3/1/latest/1", "3/1/latest/2"]
    save(second.root, 3)
    second.sync()
    assert store.records() == ["3/2/latest/2", "3/2/latest/3"]


def test_own_files_follow_the_folder(store: Store, tmp_path: Path) -> None:
    upload = upload_of(store, tmp_path)
    files = upload.root / "files"
    (files / "inner").mkdir(parents=True)
    (files / "a").write_text("1")
    (files / "inner" / "b").write_text("2")
    (upload.root / "log.txt").write_text("line")
    (upload.root / ".tmp-half").mkdir()
    (upload.root / ".tmp-half" / "c").write_text("3")
    upload.asked += 1
    upload.sync()
    assert set(store.sizes(f"{KEY}/3/1")) == {"files/a", "files/inner/b", "log.txt"}
    store.uploaded.clear()
    (files / "a").write_text("22")
    (files / "inner" / "b").unlink()
    upload.asked += 1
    upload.sync()
    assert store.uploaded == ["3/1/files/a"]
    assert store.sizes(f"{KEY}/3/1") == {"files/a": 2, "log.txt": 4}


def test_a_file_that_cannot_be_read_is_left_out_with_one_warning(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    upload = upload_of(store, tmp_path)
    save(upload.root, 1)
    (upload.root / "files").mkdir()
    for name in ("a", "b", "c"):
        (upload.root / "files" / name).write_text(name)
    real = Path.open

    def opened(self: Path, *args: Any, **options: Any) -> Any:
        if self.name == "b":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **options)

    monkeypatch.setattr(Path, "open", opened)
    for _ in range(2):
        upload.asked += 1
        upload.sync()
    assert upload.answered == 2
    assert store.records() == ["3/1/latest/1"]
    assert set(store.sizes(f"{KEY}/3/1/files")) == {"a", "c"}
    assert capsys.readouterr().err.count(f"{upload.root}/files/b is not uploaded: PermissionError: ") == 1


@pytest.mark.parametrize("links", [True, False])
def test_a_checkpoint_that_is_being_removed_is_not_sent(
    links: bool, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = upload_of(store, tmp_path)
    save(first.root, 1)
    first.sync()
    shutil.copytree(first.root / "latest" / "1", tmp_path / "3" / "2" / "latest" / "1")
    second = upload_of(store, tmp_path, 2)
    (second.root / "latest" / "1" / "arrays.npz").unlink()  # its record is there for a moment longer
    if not links:
        monkeypatch.setattr(os, "link", lambda *_, **__: fail(OSError(1, "no hard links")))  # pyright: ignore
    second.sync()
    assert store.records() == ["3/1/latest/1"], "the last good one stays"
    assert store.uploaded == ["3/1/latest/1"]
    assert capsys.readouterr().err == ""
    second.sync()
    second.sync()
    assert capsys.readouterr().err.count("latest/1 is not uploaded: it is incomplete") == 1
    assert sorted(path.name for path in second.root.parent.iterdir()) == ["1", "2"]
    save(second.root, 2)
    second.sync()
    assert store.records() == ["3/2/latest/2"]


def fail(error: Exception) -> None:
    raise error


def test_a_removal_beside_both_ways_to_copy_is_no_error(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = upload_of(store, tmp_path)
    save(upload.root, 1)

    def copytree(source: Path, *_: Any, **__: Any) -> None:
        (source / "arrays.npz").unlink(missing_ok=True)
        raise shutil.Error([(str(source / "arrays.npz"), "", "No such file or directory")])

    monkeypatch.setattr(shutil, "copytree", copytree)
    upload.sync()
    assert store.uploaded == []


def test_a_full_disk_is_told(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = upload_of(store, tmp_path)
    save(upload.root, 1)
    monkeypatch.setattr(shutil, "copytree", lambda *_, **__: fail(OSError(28, "No space left")))  # pyright: ignore
    with pytest.raises(OSError, match="No space left"):
        upload.sync()


def test_copies_of_killed_processes_are_removed(here: Machine, tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    study, own = here.artifacts.folder, here.attempt(1).root.parent
    mine = upload_of(store=here.artifacts.store, tmp_path=study)._staging.name  # pyright: ignore
    stale = [own / f".upload-1-{done.pid}-abcdef01", study / "4" / f".upload-2-{done.pid}"]
    stale.append(own / f".upload-1-{os.getpid()}-00000000")  # a process of an earlier container
    used = [own / mine, own / f".upload-1-{os.getppid()}-abcdef01", own / ".upload-other"]
    for path in (*stale, *used):
        path.mkdir(parents=True)
        (path / "arrays.npz").write_bytes(b"x")
    here.attempt(2)
    assert [path.exists() for path in stale] == [False] * 3
    assert [path.exists() for path in used] == [True] * 3


# --- The files of a worker's trials


class Machine:
    """A worker's files on a machine with a cache folder of its own."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.stop = Stop()
        self.artifacts = StudyArtifacts(folder / KEY, store)
        self.files: StudyFiles = make_study_files(self.artifacts, self.stop)

    def attempt(self, fence: int) -> TrialFiles:
        return self.files.of_attempt(Lease(11, 3, "worker", fence, 30.0))

    def began(self, fence: int) -> TrialFiles:
        files = self.attempt(fence)
        assert files.fetch(lambda: False)
        return files


@pytest.fixture
def here(store: Store, tmp_path: Path) -> Machine:
    return Machine(store, tmp_path / "here")


@pytest.fixture
def there(store: Store, tmp_path: Path) -> Machine:
    return Machine(store, tmp_path / "there")


def epochs(root: Path) -> list[int]:
    folders = sorted((root / "latest").iterdir(), key=lambda path: int(path.name)) if root.exists() else []
    return [load_state(folder, None)["epoch"] for folder in folders]


def test_another_machine_goes_on_with_checkpoints_and_files(here: Machine, there: Machine) -> None:
    with here.began(1) as first:
        save(first.root, 1, 2, 3)
        (first.root / "files").mkdir()
        (first.root / "files" / "notes").write_text("mine")
        first.flush()
    with there.began(2) as second:
        assert epochs(second.root) == [2, 3]
        assert (second.root / "files" / "notes").read_text() == "mine"
        save(second.root, 4)
        second.flush()
    with here.began(3) as third:
        assert epochs(third.root) == [3, 4], "not what this machine has from before"


def test_the_same_machine_goes_on_with_what_it_has_and_does_not_ask(here: Machine, store: Store) -> None:
    with here.began(1) as first:
        save(first.root, 1)
        first.flush()
        store.is_away = True
        save(first.root, 2)
    with here.began(2) as second:
        assert epochs(second.root) == [1, 2]
        store.is_away = False
        second.flush()
        assert store.records() == ["3/2/latest/1", "3/2/latest/2"], "it uploads what the first could not"


def test_a_store_that_is_away_starts_the_trial_again_after_a_while(
    here: Machine, there: Machine, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with here.began(1) as first:
        save(first.root, 1)
        first.flush()
    store.is_away = True
    with there.began(2) as second:
        assert not second.root.exists()
    told = [line for line in capsys.readouterr().err.splitlines() if "trial 3 " in line]
    assert [line.partition(": trial 3 ")[2].partition(":")[0] for line in told] == [
        "waits for its checkpoint", "starts again",
    ]  # fmt: skip
    assert there.attempt(3).fetch(lambda: True) is False, "a worker that must stop does not wait"


def test_half_an_upload_is_not_used(here: Machine, there: Machine, store: Store) -> None:
    with here.began(1) as first:
        save(first.root, 1, 2)
        first.flush()
    store.remove_files(f"{KEY}/3/1/latest/2", ["record.json"])
    with there.began(2) as second:
        assert epochs(second.root) == [1]
    store.remove_files(f"{KEY}/3/1/latest/1", ["arrays.npz"])
    with there.began(3) as third:
        assert epochs(third.root) == [1], "the machine has fetched it before"
    with Machine(store, there.artifacts.folder.parent / "third").began(4) as fourth:
        assert epochs(fourth.root) == []


def test_a_worker_that_has_lost_its_trial_uploads_nothing_more(
    here: Machine, there: Machine, store: Store, wait_until: Callable[..., Any]
) -> None:
    with here.began(1) as first:
        save(first.root, 1)
        first.flush()
    save(first.root, 2)
    with here.files.of_attempt(Lease(12, 4, "worker", 1, 30.0)) as other:
        assert other.fetch(lambda: False)
        other.flush()  # the thread has been at work since
        assert store.uploaded == ["3/1/latest/1"]
    with there.began(2) as second:
        save(second.root, 9)
        second.flush()
        wait_until(lambda: [name for name in store.records() if "/1/" in name] == [])
        assert store.records() == ["3/2/latest/1", "3/2/latest/2"]


def kept(root: Path) -> Path:
    with TrialSaves(root, {}) as saves:
        saves.save({"epoch": 5}, 5)
        best = saves.write_best()
        assert best is not None
        return best


def test_the_end_of_a_trial_leaves_its_best(here: Machine, store: Store, wait_until: Callable[..., Any]) -> None:
    with here.began(1) as first:
        save(first.root, 1)
        first.flush()
    with here.began(2) as second:
        best = kept(second.root)
        assert second.keep(best, 11) == f"{store.url}/{KEY}/3/2/best"
        assert "3/2/best" in store.records(), "it is there before the end is stored"
        second.finish()
    wait_until(lambda: store.records() == ["3/2/best"])
    assert here.files.take_arrived() == []


def test_the_end_of_a_trial_that_is_not_kept_leaves_nothing(
    here: Machine, store: Store, wait_until: Callable[..., Any]
) -> None:
    with here.began(1) as first:
        save(first.root, 1)
        first.flush()
        first.finish()
    wait_until(lambda: store.records() == [])


def test_a_best_checkpoint_arrives_after_the_end(
    here: Machine, store: Store, wait_until: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with here.began(1) as first:
        best = kept(first.root)
        store.is_away = True
        assert first.keep(best, 11) == str(best)
        first.finish()
    assert here.files.take_arrived() == []
    store.is_away = False
    wait_until(lambda: "3/1/best" in store.records())
    here.files.close()
    (late,) = here.files.take_arrived()
    assert (late.trial_id, late.path, late.url) == (11, str(best), f"{store.url}/{KEY}/3/1/best")
    told = capsys.readouterr().err
    assert told.count("uploads are tried again") == 1
    assert told.count("can be written again") == 1


def test_what_a_worker_could_not_upload_is_left_to_the_next(
    here: Machine, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with here.began(1) as first:
        best = kept(first.root)
        store.is_away = True
        first.keep(best, 11)
        first.finish()
    here.files.close()
    assert f"not uploaded to {store.url}: {best}; the next launch" in capsys.readouterr().err
    store.is_away = False

    later = Machine(store, tmp_path / "here")
    later.files.resume([(11, str(best)), (12, str(best.parents[2] / "4" / "1" / "best"))])
    later.files.close()

    assert [late.url for late in later.files.take_arrived()] == [f"{store.url}/{KEY}/3/1/best"]
    assert load_state(best, None) == {"epoch": 5}


def test_trials_that_are_not_among_the_best_any_more_are_removed(
    here: Machine, store: Store, wait_until: Callable[..., Any]
) -> None:
    for name in ("1/1/best/record.json", "2/1/best/record.json"):
        (here.artifacts.folder / name).parent.mkdir(parents=True)
        (here.artifacts.folder / name).write_text("{}")
        store.upload(here.artifacts.folder / name.partition("/")[0], f"{KEY}/{name.partition('/')[0]}")
    shutil.rmtree(here.artifacts.folder / "2")  # of another machine
    with here.began(1) as first:
        save(first.root, 1)
        first.flush()
        here.files.collect(lambda numbers: [number for number in numbers if number != 3])
        wait_until(lambda: store.records() == ["3/1/latest/1"])
    assert sorted(path.name for path in here.artifacts.folder.iterdir()) == ["3"]


def upload_elsewhere(store: Store, here: Machine, number: int) -> None:
    """Upload the best checkpoint of another machine's trial, also while the store is away for this one."""
    best = kept(here.artifacts.folder.parent / "elsewhere")
    ObjectStore.upload(store, best, f"{KEY}/{number}/1/best")


def test_trials_that_ended_on_other_machines_meanwhile_are_removed(here: Machine, store: Store) -> None:
    with here.began(1) as first:
        upload_elsewhere(store, here, 4)  # after this attempt has begun
        first.keep(kept(first.root), 11)
        first.finish()
        here.files.collect(lambda numbers: [number for number in numbers if number == 4])
        here.files.close()
    assert store.records() == ["3/1/best"]


def test_a_trial_that_is_not_needed_any_more_when_it_ends_is_removed(here: Machine, store: Store) -> None:
    with here.began(1) as first:
        first.keep(kept(first.root), 11)
        first.finish()
        here.files.collect(lambda numbers: numbers)  # another trial has become better since it was uploaded
        here.files.close()
    assert store.records() == []


def test_what_is_not_needed_any_more_is_removed_after_a_late_upload(here: Machine, store: Store) -> None:
    here.files.collect(lambda numbers: [number for number in numbers if number == 4])
    with here.began(1) as first:
        first.flush()
        store.is_away = True
        first.keep(kept(first.root), 11)
        first.finish()
        upload_elsewhere(store, here, 4)
        store.is_away = False
        here.files.close()
    assert store.records() == ["3/1/best"]


def test_a_late_checkpoint_of_a_trial_that_is_not_needed_any_more_never_arrives(
    here: Machine, store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.is_away = True
    with here.began(1) as first:
        first.keep(kept(first.root), 11)
        first.finish()

    def remove(study: Path, removable: Callable[[Collection[int]], Collection[int]]) -> None:
        removable([3])  # and the folder is there for a while

    monkeypatch.setattr(trial_files, "collect", remove)
    here.files.collect(lambda numbers: numbers)
    store.is_away = False
    here.files.close()
    assert (here.files.take_arrived(), store.records()) == ([], [])
    assert "cannot upload" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [StorageLost, StorageSchemaError, StorageDenied])
def test_a_database_that_does_not_answer_holds_up_no_upload(
    error: type[Exception], here: Machine, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def removable(numbers: Collection[int]) -> list[int]:
        if threading.current_thread() is threading.main_thread():
            return []
        asked.extend(numbers)
        raise error("cannot read the database")

    with here.began(1) as first:
        first.keep(kept(first.root), 11)
        first.finish()
        here.files.collect(removable)
        here.files.close()
    assert (store.records(), asked) == (["3/1/best"], [3])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(28, "No space left"), ArtifactsLost("one object")])
def test_an_upload_that_fails_holds_up_no_other(
    error: Exception, here: Machine, store: Store, wait_until: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with here.began(1) as first:
        store.bug = ("/3/1", error)
        best = kept(first.root)
        assert first.keep(best, 11) == str(best)
        first.finish()
    with here.files.of_attempt(Lease(12, 4, "worker", 1, 30.0)) as other:
        assert other.fetch(lambda: False)
        save(other.root, 1)
        other.flush()
        assert store.records() == ["4/1/latest/1"]
        other.finish()
        wait_until(lambda: store.records() == [])
    told = capsys.readouterr().err
    assert told.count("uploads are tried again") == 1
    assert str(error) in told
    assert "is not uploaded to" not in told
    store.bug = None
    here.files.close()
    assert [late.trial_id for late in here.files.take_arrived()] == [11]


def test_a_removal_that_fails_holds_up_no_other(
    here: Machine, store: Store, wait_until: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with here.began(1) as first:
        save(first.root, 1)
        first.flush()
        added: list[Callable[[], object]] = here.files._uploads._chores  # pyright: ignore[reportAttributeAccessIssue]
        added.append(lambda: fail(RuntimeError("a bug")))
        first.finish()
    wait_until(lambda: store.records() == [])
    assert capsys.readouterr().err.count("cannot remove files from memory://") == 1


def test_the_cache_folder_is_below_that_of_the_user(store: Store, tmp_path: Path) -> None:
    assert cached_folder(store.url).is_relative_to(tmp_path / "cache" / "tuner" / "artifacts")
