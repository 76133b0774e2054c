"""Runs a worker without a launcher as a child process, and logs its output as JSON.

XLA writes directly to stderr, and its last lines before an abort must be logged as well.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
from types import FrameType

from tuner.launch.process import Message, WorkerProcess
from tuner.launch.progress import JsonProgress
from tuner.output.log import note_ending, set_about
from tuner.trial.environment import RELAYED_VARIABLE, worker_name
from tuner.trial.events import StudyLoaded


def relay() -> int:
    """Run this process's command as a child, as a worker with a launcher, and log its events and output as JSON.

    Returns:
        Its exit status; if it was killed by a signal, 128 plus the signal's number, as in shells.
    """
    inbox: queue.Queue[Message] = queue.Queue()
    name = worker_name()
    command = [sys.executable, "-m", "tuner", *sys.argv[1:]]
    worker = WorkerProcess(0, name, command, {**os.environ, "PYTHONUNBUFFERED": "1", RELAYED_VARIABLE: "1"}, inbox)

    def pass_on(number: int, frame: FrameType | None) -> None:
        note_ending(True)  # a closed pipe from now on does not count as a second signal
        worker.stop()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    progress, is_over = JsonProgress(), False
    while not is_over:
        is_over = worker.has_ended()  # checked before the last read, so that no message is missed
        _say_all(inbox, progress)
    status = worker.process.returncode
    if status >= 0:
        return status
    progress.note(f"the worker died ({worker.ending})", "died", "error", worker=name, ending=worker.ending)
    return 128 - status


def _say_all(inbox: queue.Queue[Message], progress: JsonProgress) -> None:
    """Wait a moment for messages and log all of them."""
    try:
        message = inbox.get(timeout=0.1)
        while True:
            if isinstance(message.said, StudyLoaded):
                set_about(study=message.said.study)
            progress.say(message.said, worker=message.worker)
            message = inbox.get_nowait()
    except queue.Empty:
        return
