"""What a trial printed, read from its file or from the database."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tuner import Space, Study, uniform
from tuner.results.trial_log import TrialLogText, follow_log, new_lines, read_log
from tuner.storage import connected, parse_url
from tuner.storage.artifacts import artifacts_of
from tuner.storage.worker import leases
from tuner.worker import run_worker


class HParams(Space):
    x: float = uniform(0.0, 1.0)


@pytest.fixture
def stored(tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A study with a trial whose last lines the database has."""
    end = leases.end

    def end_with_log(engine: Any, ending: leases.Ending, **more: Any) -> None:
        end(engine, replace(ending, log=["c", "d postgresql://me:hidden@host/db"]), **more)

    monkeypatch.setattr(leases, "end", end_with_log)
    study = Study(
        name="s", space=HParams, train=lambda hparams, trial: 1.0, objective="loss", direction="minimize", trials=1
    )
    run_worker(study, sqlite_url, artifacts=str(tmp_path / "artifacts"))
    with connected(parse_url(sqlite_url)) as engine:
        yield engine


def read(engine: Any, tmp_path: Path) -> TrialLogText:
    return read_log(engine, "s", 0, artifacts_of(tmp_path / "artifacts"))


def test_without_a_file_the_last_lines_of_the_database_are_read(stored: Any, tmp_path: Path) -> None:
    found = read(stored, tmp_path)
    assert found == TrialLogText(["c", "d postgresql://me:***@host/db"], None, has_ended=True)


def test_a_file_is_read_with_what_was_rotated_if_it_has_what_the_database_has(stored: Any, tmp_path: Path) -> None:
    folder = next((tmp_path / "artifacts").glob("s-*"), None) or _study_folder(stored, tmp_path)
    (folder / "0").mkdir(parents=True, exist_ok=True)
    (folder / "0" / "log.txt").write_text("of an earlier attempt, on another machine\n")
    assert read(stored, tmp_path).file is None
    (folder / "0" / "log.1.txt").write_text("a\nb\x1b[2J\n")
    (folder / "0" / "log.txt").write_text("c\nd postgresql://me:***@host/db\ne\n")
    found = read(stored, tmp_path)
    assert found.lines == ["a", "b\\x1b[2J", "c", "d postgresql://me:***@host/db", "e"]
    assert found.file == folder / "0" / "log.txt"


def _study_folder(engine: Any, tmp_path: Path) -> Path:
    from tuner.storage.read.queries import find_study, read_identity

    identity = read_identity(engine, find_study(engine, "s").study_id)
    return artifacts_of(tmp_path / "artifacts").of_study("s", identity or "").folder


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        ([], ["a"], ["a"]),
        (["a", "b"], ["a", "b", "c"], ["c"]),
        (["a", "b"], ["b", "c"], ["c"]),
        (["a", "a", "b"], ["a", "b", "a"], ["a"]),
        (["a"], ["x", "y"], ["x", "y"]),
        (["a"], [], []),
        (["a", "b"], ["a", "b"], []),
    ],
)
def test_new_lines_follow_those_that_were_there(before: list[str], now: list[str], new: list[str]) -> None:
    assert new_lines(before, now) == new


def test_a_log_is_followed_until_the_trial_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    states = iter(
        [TrialLogText(["a"], None, False), TrialLogText([], None, False), TrialLogText(["a", "b"], None, True)]
    )
    assert list(follow_log(lambda: next(states))) == ["a", "b"]
