"""What a launcher does with workers that end and a database that is silent, without workers and without a database."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tuner.errors import UsageError
from tuner.launch import launcher, study_launch
from tuner.launch.database import Counts
from tuner.launch.devices import DeviceGroup
from tuner.launch.mirror_process import MirrorProcess
from tuner.launch.notices import LaunchNotices
from tuner.launch.options import MirrorOptions
from tuner.launch.process import Message
from tuner.launch.prometheus import LaunchMetrics
from tuner.storage import parse_url
from tuner.study.source import code_digest
from tuner.trial import Event
from tuner.trial.events import EpochEnded, StudyLoaded, StudyRefused


class SilentDatabase:
    """Never answers."""

    def __init__(self) -> None:
        self.asked = 0

    def count(self, study: str) -> Future[Any]:
        self.asked += 1
        return Future()

    def wait(self, future: Future[Any], seconds: float) -> bool:
        time.sleep(min(seconds, 0.01))
        return future.done()


def test_a_signal_ends_the_last_count_of_a_silent_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_launch, "_FINAL_COUNT_S", 600.0)
    url = parse_url("sqlite:///none.db")
    mirror = MirrorProcess(MirrorOptions(), url)
    run = study_launch.StudyLaunch(
        [], url, "study.py", [], mirror, LaunchNotices.of((), url, 1), LaunchMetrics(["cpu 0"])
    )
    run.database.close()
    run.database = cast("Any", silent := SilentDatabase())
    run.snapshot.study = "tiny"
    stop = threading.Event()
    counting = threading.Thread(target=run._count_at_end, args=(stop,), daemon=True)
    counting.start()
    counting.join(timeout=2 * study_launch._LAST_WAIT_S)
    assert counting.is_alive(), "without a signal it waits"
    stop.set()
    counting.join(timeout=300)
    assert not counting.is_alive()
    assert silent.asked == 1, "the same question is waited for"


class SlowDatabase(SilentDatabase):
    """Counts, and says that it took so long."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def count(self, study: str) -> Future[Any]:
        answer = super().count(study)
        answer.set_result(Counts({}, None, None, self.seconds))
        return answer


@pytest.mark.parametrize(("seconds", "pause_s"), [(0.001, 0.5), (0.5, 10.0)])
def test_a_launch_keeps_the_database_busy_with_counting_for_a_twentieth_of_the_time(
    seconds: float, pause_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(study_launch, "time", SimpleNamespace(monotonic=lambda: now_s, time=time.time))
    url = parse_url("sqlite:///none.db")
    mirror, notices = MirrorProcess(MirrorOptions(), url), LaunchNotices.of((), url, 1)
    run = study_launch.StudyLaunch([], url, "study.py", [], mirror, notices, LaunchMetrics(["cpu 0"]))
    run.database.close()
    run.database = cast("Any", database := SlowDatabase(seconds))
    run.snapshot.study = "tiny"
    run._count(run.count_pause_s)
    now_s += pause_s - 0.1
    run._count(run.count_pause_s)
    assert database.asked == 1
    now_s += 0.2
    run._count(run.count_pause_s)
    assert database.asked == 2


def test_another_number_of_trials_than_was_asked_for_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    url = parse_url("sqlite:///none.db")
    mirror, notices = MirrorProcess(MirrorOptions(), url), LaunchNotices.of((), url, 1)
    run = study_launch.StudyLaunch([], url, "study.py", [], mirror, notices, LaunchMetrics(["cpu 0"]))
    run.database.close()
    run.snapshot.study, run.snapshot.trials = "tiny", 4
    notes = Notes()

    def told_after(trials: int | None) -> list[str]:
        database = SlowDatabase(0.0)
        answer: Future[Any] = Future()
        answer.set_result(Counts({}, None, None, 0.0, trials=trials))
        monkeypatch.setattr(database, "count", lambda _: answer)
        run.database = cast("Any", database)
        notes.told.clear()
        run._count()
        run._tell_of_trials(cast("Any", notes))
        return [message.partition(",")[0] for event, message in notes.told if event == "trials"]

    assert told_after(4) == []
    assert told_after(7) == ["the study's number of trials is now 7"]
    assert told_after(7) == []
    assert told_after(None) == []
    assert run.snapshot.trials == 7


class Database:
    """Answers at once, and has nothing to tell."""

    def release(self, *_: object, **__: object) -> Future[Any]:
        return self.count("")

    def count(self, study: str) -> Future[Any]:
        answer: Future[Any] = Future()
        answer.set_result(None)
        return answer

    def wait(self, future: Future[Any], seconds: float) -> bool:
        return True


class Worker:
    """Says what the test has it say, and ends when the test ends it."""

    def __init__(self, index: int, name: str, command: Any, env: Any, inbox: "queue.Queue[Message]") -> None:
        self.index, self.name, self.inbox = index, name, inbox
        self.process = SimpleNamespace(returncode=None, poll=lambda: self.process.returncode)
        self.last_lines: list[str] = []
        self.ending = "killed by SIGKILL"

    def has_ended(self) -> bool:
        return self.process.returncode is not None

    def says(self, event: Event) -> None:
        self.inbox.put(Message(self.index, self.name, event))

    def begins(self) -> None:
        self.says(StudyLoaded("tiny", trials=6, objective="loss"))

    def refuses(self, why: str) -> None:
        """Say that the study cannot run as it is written, and end."""
        self.says(StudyRefused(why, exit_status=2))
        self.process.returncode = 2


class Notes:
    """Notes what a launcher says."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def note(self, message: str, event: str, level: str = "info", **fields: object) -> None:
        self.told.append((event, message))

    def say(self, said: object, **about: object) -> None: ...


class Launch:
    """A launch with two workers of a file, which looks at them when it is told to."""

    def __init__(self, file: Path) -> None:
        self.places = [study_launch.Place(index, DeviceGroup("cpu", (index,), (index,))) for index in (0, 1)]
        url = parse_url("sqlite:///none.db")
        nothing, metrics = MirrorProcess(MirrorOptions(), url), LaunchMetrics(["cpu 0", "cpu 1"])
        code, notices = code_digest(file), LaunchNotices.of((), url, 1)
        self.run = study_launch.StudyLaunch([], url, str(file), self.places, nothing, notices, metrics, code=code)
        self.run.database.close()
        self.run.database = cast("Any", Database())
        self.notes = Notes()
        for place in self.places:
            self.run._start(place)
            self.worker(place.index).begins()
        self.look()

    def worker(self, index: int) -> Worker:
        return cast("Any", self.places[index].worker)

    def look(self) -> None:
        self.run._read_messages(cast("Any", self.notes))
        self.run._watch(cast("Any", self.notes))

    def lose(self, index: int) -> list[str]:
        """Have a worker die; return what is said of the study's file then."""
        self.notes.told.clear()
        self.worker(index).process.returncode = -9
        self.look()
        assert self.notes.told[0] == ("died", f"worker {index} died (killed by SIGKILL)")
        return [message for event, message in self.notes.told if event == "study_changed"]


@pytest.fixture
def new_launch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Launch]:
    monkeypatch.setattr(study_launch, "WorkerProcess", Worker)
    return Launch


def test_a_worker_that_restarts_after_the_studys_file_has_changed_says_so_once(
    new_launch: Callable[[Path], Launch], tmp_path: Path
) -> None:
    file = tmp_path / "study.py"
    file.write_text("x = 1\n")
    launch = new_launch(file)

    file.write_text("x = 1  # a remark\n")
    assert launch.lose(0) == [], "its code is the same"
    file.write_text("x = 2\n")
    assert launch.lose(0) == [
        "the study's file has changed: worker 0 restarts with the new version; "
        "workers that are already running keep the old one"
    ]
    assert launch.lose(1) == [], "that was told"
    file.write_text("x = 3\n")
    assert len(launch.lose(1)) == 1
    assert [place.starts for place in launch.places] == [3, 3]


def test_a_worker_that_cannot_run_the_changed_file_is_given_up_and_the_others_continue(
    new_launch: Callable[[Path], Launch], tmp_path: Path
) -> None:
    file = tmp_path / "study.py"
    file.write_text("x = 1\n")
    launch = new_launch(file)
    file.write_text("def broken(:\n")
    assert len(launch.lose(0)) == 1
    launch.worker(0).refuses("the study file is not valid Python: study.py:1: invalid syntax")

    launch.look()

    assert launch.notes.told[-1] == (
        "not_restarted",
        "worker 0 cannot run the study's file as it is now; the other workers continue: "
        "the study file is not valid Python: study.py:1: invalid syntax",
    )
    assert launch.run.error is None
    assert [place.is_done for place in launch.places] == [True, False]
    launch.lose(1)
    launch.worker(1).refuses("study.py:1")
    launch.look()
    assert isinstance(launch.run.error, UsageError), "nobody is at work any more"
    assert str(launch.run.error) == "study.py:1"


def test_a_worker_that_has_not_begun_does_not_count_as_one_at_work(
    new_launch: Callable[[Path], Launch], tmp_path: Path
) -> None:
    file = tmp_path / "study.py"
    file.write_text("x = 1\n")
    launch = new_launch(file)
    launch.lose(1)  # and has started again
    launch.lose(0)
    launch.worker(0).refuses("study.py:1")

    launch.look()

    assert str(launch.run.error) == "study.py:1"


def test_a_worker_is_restarted_as_long_as_its_trial_gets_further(
    new_launch: Callable[[Path], Launch], tmp_path: Path
) -> None:
    file = tmp_path / "study.py"
    file.write_text("x = 1\n")
    launch = new_launch(file)

    def die_after(epoch: int) -> bool:
        """Have worker 0 report an epoch of trial 7 and die; return whether it was given up."""
        launch.worker(0).says(EpochEnded(7, epoch, 10 * epoch, [0.5]))
        launch.worker(0).process.returncode = -9
        launch.look()
        return launch.places[0].is_done

    assert [die_after(epoch) for epoch in range(6)] == [False] * 6
    assert [die_after(epoch) for epoch in (5, 4, 6)] == [False] * 3, "one more than the deaths that fail the trial"
    assert [die_after(epoch) for epoch in (6, 1, 6)] == [False, False, True], "the fourth in a row"


@pytest.mark.parametrize("has_reader", [True, False])
def test_a_launch_whose_reader_has_gone_before_it_starts_stops_at_once(
    monkeypatch: pytest.MonkeyPatch, has_reader: bool
) -> None:
    monkeypatch.setattr(launcher, "has_reader", lambda: has_reader)
    with launcher._signals() as stop:
        assert stop.is_set() is not has_reader
