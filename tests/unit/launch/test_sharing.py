"""Several studies on the workers of one launch: who works for whom, and what happens if one cannot run."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tuner.errors import TunerError, UsageError
from tuner.launch import check_several, in_turn, study_launch
from tuner.launch.devices import DeviceGroup
from tuner.launch.launcher import SeveralFailed
from tuner.launch.mirror_process import MirrorProcess
from tuner.launch.notices import LaunchNotices
from tuner.launch.options import LaunchOptions, MirrorOptions
from tuner.launch.process import Message
from tuner.launch.prometheus import LaunchMetrics
from tuner.launch.sharing import Sharing
from tuner.launch.study_launch import Interrupted, Place, StudyLaunch
from tuner.storage import parse_url
from tuner.trial.events import StudyLoaded, StudyRefused


class Database:
    """Answers at once, and has nothing to tell."""

    def count(self, *_: object, **__: object) -> Future[Any]:
        answer: Future[Any] = Future()
        answer.set_result(None)
        return answer

    release = count

    def wait(self, *_: object) -> bool:
        return True

    def close(self) -> None: ...


class Studies:
    """Fake workers: each look at a worker does one unit of its study's work; it exits when none is left."""

    def __init__(self, **work: int) -> None:
        self.work, self.refused = work, set[str]()
        self.served: list[tuple[str, int]] = []
        """Each start of a worker: its study and its place."""
        self.names: list[str] = []
        self.alive: set[str] = set()

    def worker(self, index: int, name: str, command: list[str], env: Any, inbox: Any) -> Any:
        (study,) = command
        self.served.append((study, index))
        self.names.append(name)
        self.alive.add(name)
        process = SimpleNamespace(returncode=None, pid=0, poll=lambda: process.returncode)

        def has_ended() -> bool:
            if process.returncode is None and study in self.refused:
                inbox.put(Message(index, name, StudyRefused("it cannot be imported", 2)))
                process.returncode = 2
            elif process.returncode is None and self.work[study] > 0:
                self.work[study] -= 1
            elif process.returncode is None:
                process.returncode = 0
            if process.returncode is not None:
                self.alive.discard(name)
            return process.returncode is not None

        def stop() -> None:
            process.returncode = 130
            self.alive.discard(name)

        inbox.put(Message(index, name, StudyLoaded(study, trials=9, objective="loss")))
        return SimpleNamespace(
            index=index, name=name, process=process, has_ended=has_ended, stop=stop, kill=stop, last_lines=[], ending=""
        )

    def launch(self, study: str, places: int) -> StudyLaunch:
        url = parse_url("sqlite:///none.db")
        notices = LaunchNotices.of((), url, places)
        mirror, metrics = MirrorProcess(MirrorOptions(), url), LaunchMetrics(["cpu"] * places)
        launch = StudyLaunch([study], url, study, [], mirror, notices, metrics, is_shared=True)
        launch.database.close()
        launch.database = cast("Any", Database())
        return launch


class Told:
    """What the launch said."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str]] = []

    def update(self, snapshot: object) -> None: ...

    def note(self, message: str, event: str, level: str = "info", **fields: object) -> None:
        self.notes.append((event, message))

    def say(self, said: object, **about: object) -> None: ...


def places(count: int) -> list[Place]:
    return [Place(index, DeviceGroup("cpu", (index,), (index,))) for index in range(count)]


def run(
    monkeypatch: pytest.MonkeyPatch, studies: Studies, count: int, stop: threading.Event | None = None
) -> tuple[dict[str, TunerError], Told]:
    monkeypatch.setattr(study_launch, "WorkerProcess", studies.worker)
    told = Told()
    launches = [studies.launch(study, count) for study in studies.work]
    sharing = Sharing(launches, places(count), cast("Any", told), lambda *_: None)
    return sharing.run(stop or threading.Event()), told


def test_the_workers_of_a_finished_study_go_on_with_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    studies = Studies(short=6, long=60)
    failed, told = run(monkeypatch, studies, 4)
    assert failed == {}
    assert studies.work == {"short": 0, "long": 0}
    assert sorted(studies.served[:4]) == [("long", 1), ("long", 3), ("short", 0), ("short", 2)], "two each"
    assert sorted(studies.served[4:]) == [("long", 0), ("long", 2)], "and none came back to the finished one"
    assert len(set(studies.names)) == 6, "a place that moves has a new worker's name"
    assert [message for event, message in told.notes if event == "study_finished"] == [
        "short: finished",
        "long: finished",
    ]


def test_studies_wait_if_there_are_more_than_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    studies = Studies(a=3, b=3, c=3)
    failed, _ = run(monkeypatch, studies, 1)
    assert failed == {}
    assert studies.served == [("a", 0), ("b", 0), ("c", 0)]


def test_a_study_that_cannot_run_leaves_its_workers_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    studies = Studies(broken=100, sound=20)
    studies.refused.add("broken")
    failed, told = run(monkeypatch, studies, 2)
    assert {study: (type(error), str(error)) for study, error in failed.items()} == {
        "broken": (UsageError, "it cannot be imported")
    }
    assert studies.work["sound"] == 0
    assert studies.served == [("broken", 0), ("sound", 1), ("sound", 0)]
    assert ("study_failed", "broken: it cannot be imported") in told.notes


def test_a_signal_stops_all_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    studies, stop = Studies(a=10**9, b=10**9, waits=10**9), threading.Event()
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(Interrupted, match="stopped with 0 trials finished"):
        run(monkeypatch, studies, 2, stop)
    assert studies.alive == set()
    assert {study for study, _ in studies.served} == {"a", "b"}


# --- One after another


def test_an_error_does_not_keep_the_next_study_from_starting(capsys: pytest.CaptureFixture[str]) -> None:
    began: list[str] = []

    def launch_one(target: str) -> None:
        began.append(target)
        if target == "b.py":
            raise UsageError("it is broken")

    with pytest.raises(SeveralFailed, match=r"1 of 3 studies did not finish: b\.py") as caught:
        in_turn(["a.py", "b.py", "c.py"], launch_one)
    assert began == ["a.py", "b.py", "c.py"]
    assert caught.value.exit_status == UsageError.exit_status
    assert capsys.readouterr().err == "tuner: b.py: it is broken\n"


def test_a_signal_starts_no_further_study() -> None:
    began: list[str] = []

    def launch_one(target: str) -> None:
        began.append(target)
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        in_turn(["a.py", "b.py"], launch_one)
    assert began == ["a.py"]


def test_all_files_are_checked_before_the_first_study_starts(tmp_path: Any) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text("x = 1\n")
    bad.write_text("x = \n")
    with pytest.raises(UsageError, match=r"not valid Python: .*bad\.py:1"):
        check_several([str(good), str(bad)], LaunchOptions())
    with pytest.raises(UsageError, match="study file not found"):
        check_several([str(good), "missing.py"], LaunchOptions())
    with pytest.raises(UsageError, match=r"the same study is given twice, as .*good\.py' and .*good\.py'"):
        check_several([str(good), str(good)], LaunchOptions())
    with pytest.raises(UsageError, match="`name` 'x' names one study: got 2 files"):
        check_several([f"{good}:a", f"{good}:b"], LaunchOptions(name="x"))
