"""What a launcher does while its database is silent, without a database."""

import threading
import time
from concurrent.futures import Future
from typing import Any, cast

import pytest

from tuner.launch import launcher
from tuner.launch.mirror_process import MirrorProcess
from tuner.launch.options import MirrorOptions
from tuner.launch.prometheus import LaunchMetrics
from tuner.storage import parse_url


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
    monkeypatch.setattr(launcher, "_FINAL_COUNT_S", 600.0)
    url = parse_url("sqlite:///none.db")
    mirror = MirrorProcess(MirrorOptions(), url)
    run = launcher._Launch([], url, "study.py", [], mirror, LaunchMetrics(["cpu 0"]))
    run.database.close()
    run.database = cast("Any", silent := SilentDatabase())
    run.snapshot.study = "tiny"
    stop = threading.Event()
    counting = threading.Thread(target=run._count_at_end, args=(stop,), daemon=True)
    counting.start()
    counting.join(timeout=2 * launcher._LAST_WAIT_S)
    assert counting.is_alive(), "without a signal it waits"
    stop.set()
    counting.join(timeout=60)
    assert not counting.is_alive()
    assert silent.asked == 1, "the same question is waited for"
