"""Runs a command as a trial: its metrics are lines of JSON, and everything else that it prints goes to a log."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal, cast

from tuner.errors import LeaseLost, is_int, is_number
from tuner.storage.artifacts import LOG
from tuner.study import StudySpec
from tuner.study.command import Command
from tuner.trial import Report
from tuner.trial.failures import CommandFailed
from tuner.worker.trainables.trainable import AsksOptuna, End, NoCheckpoints, Run, is_last_epoch
from tuner.worker.trainables.trial_log import TrialLog

_SUPERVISOR = str(Path(__file__).parents[1] / "supervisor.py")
_POLL_S = 0.2
_SILENCE_S = 5.0
"""Seconds without output after which a command that has exited has no more, though its output is still open."""
_SHOWN_LINES = 20
"""Last lines of output in the error of a failed trial."""
Stream = Literal["out", "err"]


class CommandTrainable(AsksOptuna):
    """A study's command.

    Args:
        study: The study.
        command: The command.
    """

    def __init__(self, study: StudySpec, command: Command) -> None:
        self._objectives, self._epochs, self._command = study.objectives, study.epochs, command

    def saved(self, run: Run) -> NoCheckpoints:
        return NoCheckpoints(run.root)

    def run(self, run: Run, saved: NoCheckpoints) -> End:
        run.folder.mkdir(parents=True, exist_ok=True)
        own = {"folder": str(run.folder), "number": run.number, "seed": run.seed}
        words = self._command.words({**own, **run.trial.params})
        env = {
            "PYTHONUNBUFFERED": "1",
            **os.environ,
            "TUNER_HPARAMS": json.dumps(run.trial.params),
            **{f"TUNER_{name.upper()}": str(value) for name, value in own.items()},
        }
        with (
            TrialLog(run.root / LOG, run.write_log) as log,
            contextlib.closing(_Process(words, env, self._command.grace_s)) as process,
        ):
            try:
                return self._watch(run, log, process)
            except LeaseLost:
                process.stop()
                raise

    def _watch(self, run: Run, log: TrialLog, process: _Process) -> End:
        """Read the command's output to its end, also what it prints after SIGTERM."""
        seen: set[str] = set()
        is_first = True
        epoch = 0
        end: End | None = None
        while (said := process.read(_POLL_S)) is not _ENDED:
            if end is None and run.must_stop():
                end = End.STOPPED
                process.ask_to_stop()
            log.write_if_due()
            if said is None:
                continue
            run.note_progress()
            stream, line = said
            metrics = _as_json(line) if stream == "out" else None
            if metrics is None or not set(metrics) & set(self._objectives):
                log.add(line)
                seen |= set(metrics or ())
                continue
            if end is End.PRUNED or run.must_end:  # a report or a limit has ended the trial
                continue
            report = _report(metrics, epoch)
            if is_first and run.is_resumed:
                resume(run, report.epoch)
            is_first, epoch = False, report.epoch
            if run.report(report, is_last=is_last_epoch(report, self._epochs)):
                end = End.PRUNED
                process.ask_to_stop()
        if end is not None:
            return end
        status = process.wait()
        if status != 0:
            raise CommandFailed(f"the command ended with {_ending(status)}", log.last(_SHOWN_LINES))
        if is_first and run.is_resumed and (earlier := run.stored_reports()):
            run.keep(earlier)  # it had nothing left to do
        elif is_first:
            names = ", ".join(self._objectives)
            found = f"; it printed {', '.join(sorted(seen))}" if seen else ""
            raise CommandFailed(
                f"the command reported no {names}: print a line of JSON such as "
                f"{json.dumps({name: 0.5 for name in self._objectives})}{found}",
                log.last(_SHOWN_LINES),
            )
        return End.FINISHED


def resume(run: Run, epoch: int) -> None:
    """Keep the reports of earlier attempts up to the epoch from which the command goes on; from 1 it starts again."""
    if epoch <= 1:
        run.forget_reports()
        return
    run.forget_reports(epoch)
    run.keep(run.stored_reports())


_ENDED: Any = object()


class _Process:
    """A running command: its supervisor, and its output.

    Args:
        words: What to run.
        env: Its environment.
        grace_s: Seconds between SIGTERM and SIGKILL.
    """

    def __init__(self, words: list[str], env: Mapping[str, str], grace_s: float) -> None:
        self._grace_s = grace_s
        self._said: queue.Queue[tuple[Stream, str] | None] = queue.Queue(1000)
        self._supervisor = subprocess.Popen(
            [sys.executable, "-I", "-S", _SUPERVISOR, str(grace_s), *words],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._open = 2
        self._silent_s = 0.0  # since the command's end
        self._end_s = math.inf  # when its output is over at the latest
        streams: tuple[tuple[Stream, IO[str] | None], ...] = (
            ("out", self._supervisor.stdout),
            ("err", self._supervisor.stderr),
        )
        self._is_closed = threading.Event()
        self._readers = [threading.Thread(target=self._read, args=stream, daemon=True) for stream in streams]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Stream, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                self._put((stream, line.rstrip("\r\n")))
        self._put(None)

    def _put(self, said: tuple[Stream, str] | None) -> None:
        while not self._is_closed.is_set():
            with contextlib.suppress(queue.Full):
                self._said.put(said, timeout=0.1)
                return

    def read(self, seconds: float) -> tuple[Stream, str] | None:
        """Return the next line; None if there was none for some seconds, and `_ENDED` after the last.

        A process that left the command's group may keep its output open: after the command's end, seconds without a
        line end it too. Once the command was asked to stop, there is a limit for its last output.
        """
        if time.monotonic() >= self._end_s:
            return _ENDED
        had_ended = self._supervisor.poll() is not None
        try:
            said = self._said.get(timeout=seconds)
        except queue.Empty:
            self._silent_s += seconds if had_ended else 0.0
            return _ENDED if self._silent_s >= _SILENCE_S else None
        self._silent_s = 0.0
        if said is not None:
            return said
        self._open -= 1
        return self.read(seconds) if self._open else _ENDED

    def wait(self) -> int:
        """Return the exit status, negative for a signal."""
        return self._supervisor.wait()

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the command and its processes, and SIGKILL later if they have not ended."""
        self._end_s = min(self._end_s, time.monotonic() + self._grace_s + _SILENCE_S)
        self._supervisor.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Ask the command to stop, discard what it still prints, and return when it has ended."""
        self._is_closed.set()
        self.ask_to_stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._supervisor.wait(self._grace_s + _SILENCE_S)

    def close(self) -> None:
        """Kill what is still running."""
        self._is_closed.set()
        assert self._supervisor.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._supervisor.stdin.close()  # the supervisor then kills the command
        self._supervisor.wait()
        for reader in self._readers:
            reader.join(1.0)  # a process that left the group may keep the output open


def _as_json(line: str) -> dict[str, Any] | None:
    """Return the object in a line of JSON; None if the line is none."""
    if not line.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


def _report(said: Mapping[str, Any], epoch: int) -> Report:
    """Return the report in a line of JSON; values that are not numbers are skipped."""
    number, step = said.get("epoch"), said.get("step")
    epoch = number if is_int(number) and number >= 0 else epoch + 1
    metrics = {name: float(value) for name, value in said.items() if name not in ("epoch", "step") and is_number(value)}
    return Report(epoch, step if is_int(step) and step >= 0 else epoch, metrics)


def _ending(status: int) -> str:
    return f"exit status {status}" if status >= 0 else signal.Signals(-status).name
