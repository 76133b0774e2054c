"""How growing log files are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuner.errors import StorageLost, TunerError, UsageError
from tuner.launch.engines.log_file import LogFile
from tuner.launch.engines.logs import Log, _nobody_ran, follow_logs, read_logs


def test_whole_lines_of_a_growing_file_are_read_once(tmp_path: Path) -> None:
    path = tmp_path / "7_1.log"
    path.write_bytes(b"one\ntw")
    log = LogFile(path)

    assert log.name == "7_1"
    assert list(log.lines()) == [b"one\n"]
    assert list(log.lines()) == []
    with path.open("ab") as file:
        file.write(b"o\nthree\n")
    assert list(log.lines()) == [b"two\n", b"three\n"]


def test_lines_of_one_trial_are_chosen_and_made_printable(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"tuner: trial 1, epoch 1\nof 1\ntrial 2: starts\nof 2\x1b[31m\ntrial 1: resumes\n")

    assert list(read_logs([Log(LogFile(path), False, 1)])) == ["tuner: trial 1, epoch 1", "of 1", "trial 1: resumes"]
    (_, line) = read_logs([Log(LogFile(path), True, 2)])
    assert line.startswith("a: of 2")
    assert "\x1b" not in line


def test_new_files_are_followed_and_errors_of_a_moment_end_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("one\n")
    errors: list[TunerError] = []

    def find() -> list[Log]:
        if errors:
            raise errors.pop()
        paths = sorted(tmp_path.glob("*.log"))
        return [Log(LogFile(path), len(paths) > 1, None) for path in paths]

    lines = follow_logs(find)

    assert next(lines) == "a: one", "named from the start, because others may come"
    (tmp_path / "b.log").write_text("two\n")
    errors += [StorageLost("away"), UsageError("no log")]
    assert next(lines) == "b: two"
    with (tmp_path / "a.log").open("a") as file:
        file.write("three\n")
    assert next(lines) == "a: three"


@pytest.mark.parametrize(
    ("worker", "ran", "said"),
    [
        (None, [], "no worker has run trial 7 of study 'q'"),
        ("a", [], "no worker has run trial 7 of study 'q'"),
        ("a", ["b"], "worker 'a' did not run trial 7 of study 'q'; worker 'b' did: pass that name as `worker`"),
        (
            "a",
            ["b", "c"],
            "worker 'a' did not run trial 7 of study 'q'; workers 'b', 'c' did: pass one of these names as `worker`",
        ),
    ],
)
def test_the_workers_of_a_trial_are_named(worker: str | None, ran: list[str], said: str) -> None:
    assert _nobody_ran("q", 7, worker, ran) == said


def test_what_is_wrong_from_the_start_ends_it() -> None:
    def find() -> list[Log]:
        raise UsageError("study 'x' has no job on a cluster")

    with pytest.raises(UsageError, match="has no job on a cluster"):
        next(follow_logs(find))
