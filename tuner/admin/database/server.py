"""The processes of Postgres: makes the data folder, starts the server as a child, and stops it."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuner.admin.database.binaries import Binaries
from tuner.admin.database.folder import DatabaseFolder, write_private
from tuner.admin.database.signals import StopAsked, StopSignals
from tuner.errors import TunerError
from tuner.output.log import say

SUPERUSER = "postgres"
_SLOW_START_S = 10.0
_MOST_LOG_BYTES = 16 * 2**20
_SEVERE = re.compile(r"(?:FATAL|PANIC):\s+(.*)")
_LOOPBACK_RULES = """\
local   all all                       scram-sha-256
host    all {who} 127.0.0.0/8  scram-sha-256
host    all {who} ::1/128      scram-sha-256
"""
_TLS_RULES = """\
host    all postgres     all          reject
hostssl all all          all          scram-sha-256
"""


@dataclass(frozen=True)
class Runtime:
    """What the processes of a server need.

    Attributes:
        binaries: The programs.
        folder: The folder of the database.
        lock: The descriptor of its lock, which all processes inherit.
        signals: The signals that stop the command.
    """

    binaries: Binaries
    folder: DatabaseFolder
    lock: int
    signals: StopSignals


def access_rules(has_tls: bool) -> str:
    """Return the content of pg_hba.conf: every connection needs a password, and one from elsewhere also TLS.

    With TLS, only the superuser connects without it, from this machine.
    """
    rules = _LOOPBACK_RULES.format(who="postgres    " if has_tls else "all         ")
    return f"# `tuner database` writes this file at each start.\n{rules}{_TLS_RULES if has_tls else ''}"


def ensure_data(runtime: Runtime) -> None:
    """Make the data folder, unless it exists.

    Raises:
        StopAsked: A signal arrived; the folder does not exist then.
        TunerError: initdb failed, or the folder is damaged.
    """
    folder = runtime.folder
    if folder.data_major() is not None:
        return
    if folder.data.exists():
        raise TunerError(f"the data are damaged: {folder.data} has no file PG_VERSION; restore them from a backup")
    scratch = folder.path / "data.new"
    shutil.rmtree(scratch, ignore_errors=True)  # of a start that was killed
    words = [
        runtime.binaries.program("initdb"),
        *("--pgdata", str(scratch), "--username", SUPERUSER, "--pwfile", str(folder.superuser_password)),
        *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--data-checksums"),
        "--no-instructions",
    ]
    start = _log_size(folder.log)
    process = _spawn(runtime, words)
    while process.poll() is None and not runtime.signals.count:
        runtime.signals.wait(1.0)
    if runtime.signals.count:
        process.terminate()
        process.wait()
        shutil.rmtree(scratch, ignore_errors=True)
        raise StopAsked
    if process.returncode != 0:
        raise TunerError(f"initdb cannot make the data folder {folder.data}: {_reason(folder.log, start, 'error: ')}")
    scratch.rename(folder.data)


def start(runtime: Runtime, settings: Mapping[str, str], has_tls: bool) -> subprocess.Popen[bytes]:
    """Start the server, and return its process once it accepts connections.

    Raises:
        StopAsked: A signal arrived; the server has stopped.
        TunerError: The server ended.
    """
    folder = runtime.folder
    write_private(folder.data / "pg_hba.conf", access_rules(has_tls))
    words = [runtime.binaries.program("postgres"), "-D", str(folder.data)]
    words += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    before = _log_size(folder.log)
    process = _spawn(runtime, words, before_exec=_stop_with_parent())
    slow_s = time.monotonic() + _SLOW_START_S
    while not _is_ready(folder.data, process.pid):
        if process.poll() is not None:
            raise TunerError(f"Postgres does not start: {_reason(folder.log, before)}; its log is {folder.log}")
        if runtime.signals.count:
            stop(runtime, process)
            raise StopAsked
        if time.monotonic() > slow_s:
            say(f"Postgres is still starting, for example because it was not stopped cleanly; its log is {folder.log}")
            slow_s = float("inf")
        runtime.signals.wait(0.05)
    return process


def wait_for_end(runtime: Runtime, process: subprocess.Popen[bytes]) -> None:
    """Wait until a signal asks to stop, then stop the server; or until the server ends.

    Raises:
        TunerError: The server exited unexpectedly.
    """
    before = _log_size(runtime.folder.log)
    while process.poll() is None and not runtime.signals.count:
        runtime.signals.wait(60.0)
    if process.poll() not in (None, 0) and not runtime.signals.count:
        reason = _reason(runtime.folder.log, before)
        raise TunerError(
            f"Postgres exited unexpectedly with status {process.returncode}: {reason}; its log is "
            f"{runtime.folder.log}; run the command again to start it"
        )
    stop(runtime, process)


def stop(runtime: Runtime, process: subprocess.Popen[bytes]) -> None:
    """Stop the server: its connections are closed, and all data are written.

    A further signal stops it immediately, without writing the data; the next start then recovers them from its log.

    Raises:
        TunerError: The server was stopped immediately.
    """
    count = runtime.signals.count
    _send(process, signal.SIGINT)
    while process.poll() is None:
        if runtime.signals.count > count:
            _send(process, signal.SIGQUIT)
            process.wait()
            raise TunerError("Postgres was stopped immediately; no data are lost, but the next start takes longer")
        runtime.signals.wait(1.0)


def _send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(number)


def _spawn(
    runtime: Runtime, words: Sequence[str], before_exec: Callable[[], None] | None = None
) -> subprocess.Popen[bytes]:
    # In a session of its own: Ctrl-C reaches only the command, which then stops the server.
    log = os.open(runtime.folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=_environment(),
            start_new_session=True,
            pass_fds=(runtime.lock,),
            preexec_fn=before_exec,
        )
    except OSError as error:
        raise TunerError(f"cannot run {words[0]}: {error.strerror}") from None
    finally:
        os.close(log)


def _environment() -> dict[str, str]:
    """Return the environment without settings for other servers, with messages in English and times in UTC."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def _stop_with_parent() -> Callable[[], None] | None:
    """Return a function for the new process that has it stopped when this one is killed; None if that is not Linux."""
    if sys.platform != "linux":
        return None
    library, parent = ctypes.CDLL(None), os.getpid()

    def call() -> None:
        library.prctl(1, int(signal.SIGINT), 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return call


def _is_ready(data: Path, process: int) -> bool:
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except (OSError, ValueError):
        return False
    return len(lines) > 7 and lines[0].strip() == str(process) and lines[7].strip() == "ready"


def trim_log(log: Path) -> None:
    """Keep a long log of earlier starts beside the new one, in place of the one before."""
    if _log_size(log) > _MOST_LOG_BYTES:
        log.replace(log.with_name("log.old"))


def _log_size(log: Path) -> int:
    return log.lstat().st_size if log.exists() else 0


def _reason(log: Path, start: int, mark: str = "") -> str:
    """Return why a process ended: the latest severe message in a log after a position, else the last line."""
    with log.open("rb") as file:
        file.seek(start)
        lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    severe = [found[1] for line in lines if (found := _SEVERE.search(line))]
    marked = [line.partition(mark)[2] for line in lines if mark and mark in line]
    return (severe or marked or lines or ["it printed nothing"])[-1].strip()
