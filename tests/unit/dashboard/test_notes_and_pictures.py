"""Notes that Optuna's pages share with ours, and pictures that a trainer has saved beside a checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bottle
import optuna
import pytest
from optuna_dashboard import get_note, save_note
from storage_tools import opened

from tuner.dashboard import notes
from tuner.dashboard.notes import Note, read_note
from tuner.dashboard.pictures import find_pictures, send_picture
from tuner.errors import UsageError
from tuner.storage.read.queries import find_study, read_trial
from tuner.storage.worker import leases
from tuner.storage.worker.claims import Claimant, claim
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import register
from tuner.trial import Outcome

pytestmark = pytest.mark.with_tables


@pytest.fixture
def storage(sqlite_url: str) -> Iterator[Any]:
    with opened(sqlite_url) as storage:
        yield storage


def test_a_note_is_the_one_that_optuna_shows(storage: Any) -> None:
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    assert read_note(storage, study._study_id) == Note("", 0)
    notes.save_note(storage, study._study_id, None, Note("one " * 1000, 0))
    notes.save_note(storage, study._study_id, trial._trial_id, Note("of the trial", 0))
    assert (get_note(study), get_note(trial)) == ("one " * 1000, "of the trial")
    save_note(study, "two")
    assert read_note(storage, study._study_id) == Note("two", 2)
    with pytest.raises(UsageError, match="the note was changed meanwhile"):
        notes.save_note(storage, study._study_id, None, Note("three", 1))
    notes.save_note(storage, study._study_id, None, Note("", 2))
    assert get_note(study) == ""


@pytest.mark.parametrize("of_trial", [False, True])
def test_of_editors_who_save_at_once_one_is_told_saved_and_the_note_is_theirs(storage_url: str, of_trial: bool) -> None:
    with opened(storage_url) as storage:
        study = optuna.create_study(storage=storage)
        trial_id = study.ask()._trial_id if of_trial else None
        notes.save_note(storage, study._study_id, trial_id, Note("z" * 9000, 0))
        texts = [letter * (5000 + 1000 * at) for at, letter in enumerate("abcd")]
        start = threading.Barrier(len(texts))

        def is_saved(text: str, version: int) -> bool:
            start.wait()
            try:
                notes.save_note(storage, study._study_id, trial_id, Note(text, version))
            except UsageError:
                return False
            return True

        with ThreadPoolExecutor(len(texts)) as pool:
            for version in range(1, 9):
                told = list(pool.map(is_saved, texts, [version] * len(texts)))
                saved = [text for text, is_theirs in zip(texts, told, strict=True) if is_theirs]
                assert len(saved) == 1
                assert read_note(storage, study._study_id, trial_id) == Note(saved[0], version + 1)


@pytest.mark.parametrize(("text", "message"), [("x" * 20_001, "at most 20000 characters: got 20001"), ("a\0", "NUL")])
def test_a_note_that_cannot_be_stored_is_refused(storage: Any, text: str, message: str) -> None:
    study = optuna.create_study(storage=storage)
    with pytest.raises(UsageError, match=message):
        notes.save_note(storage, study._study_id, None, Note(text, 0))
    assert get_note(study) == ""


def test_pictures_are_those_of_the_trial(storage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_ARTIFACTS", str(tmp_path / "elsewhere"))
    study_id = register(storage, storage.engine, "ours", ["minimize"], {}).study_id
    lease = claim(storage.engine, Claimant(study_id, "one", trials=2, lease_s=300.0))
    assert isinstance(lease, Lease)
    checkpoint = tmp_path / "7" / "best"
    leases.tell(storage.engine, lease, Outcome.COMPLETE, [1.0], {"checkpoint": str(checkpoint)})
    study = find_study(storage.engine, "ours")
    trial = read_trial(storage.engine, study, 0)
    assert find_pictures(storage.engine, study, trial) == []
    for name in ("pictures/b.png", "pictures/a.png", "pictures/notes.txt", "2/pictures/c.png", "secret.png"):
        (tmp_path / "7" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "7" / name).write_bytes(b"a picture")
    (tmp_path / "7" / "pictures" / "folder.png").mkdir()
    assert [path.name for path in find_pictures(storage.engine, study, trial)] == ["a.png", "b.png", "c.png"]
    bottle.request.bind({"REQUEST_METHOD": "GET", "wsgi.input": None})
    sent: Any = send_picture(storage.engine, study, trial, "c.png")
    assert (sent.status_code, sent.get_header("Content-Type")) == (200, "image/png")
    sent.body.close()
    for name in ("notes.txt", "../secret.png", "secret.png", "folder.png", "/etc/passwd"):
        with pytest.raises(bottle.HTTPError) as refused:
            send_picture(storage.engine, study, trial, name)
        assert refused.value.status_code == 404
