"""The log on stderr: lines of text, or one JSON object per line. docs/observability.md lists the fields."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TextIO

from tuner.output.numbers import plain_json
from tuner.output.sanitize import hide_password, hide_passwords, printable

_REQUIRED = {"time", "level", "event"}
_LEVELS = ("info", "warning", "error")

_about: dict[str, object] = {}


_has_reader = True
_is_ending = False


def note_ending(is_ending: bool) -> None:
    """Note whether a signal has arrived; after that, a closed pipe does not end the process again."""
    global _is_ending
    _is_ending = is_ending


def has_reader() -> bool:
    """Return whether stderr may still be read; False if a pipe's reader, such as `head`, has exited."""
    return _has_reader


def _lose_reader() -> None:
    """Stop writing, and end like on SIGTERM, because no one reads the output of this command any more."""
    global _has_reader
    _has_reader = False
    drop(sys.stderr)
    if callable(signal.getsignal(signal.SIGTERM)) and not _is_ending:
        os.kill(os.getpid(), signal.SIGTERM)


def drop(stream: TextIO) -> None:
    """Discard all further output to a stream whose reader has exited."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _Lines(logging.Handler):
    """Writes to the current stderr, because tests and live tables replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if text:
                print(text, file=sys.stderr, flush=True)
        except BrokenPipeError:
            _lose_reader()
        except Exception:  # like logging's own handlers: a library's wrong call must not fail a trial
            self.handleError(record)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        return f"tuner: {clean(message)}" if message else ""


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in _about.items() if value is not None}
        fields |= getattr(record, "tuner_fields", {})
        line = {
            "time": fields.pop("time", None) or _iso(record.created),
            "level": _LEVELS[(record.levelno >= logging.WARNING) + (record.levelno >= logging.ERROR)],
            "event": getattr(record, "tuner_event", "log"),
            **fields,
        }
        if not hasattr(record, "tuner_event"):
            line["logger"] = record.name
        message = record.getMessage().strip()
        if message:
            line["message"] = message
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(
            hide_passwords(plain_json(line)), allow_nan=False, default=lambda value: hide_password(str(value))
        )


# A separate logger, not `logging.getLogger("tuner")`, so that settings cannot silence or duplicate its lines.
_log = logging.Logger("tuner", logging.INFO)
_handler = _Lines()
_handler.setFormatter(_Text())
_log.addHandler(_handler)


def tell(message: str | None, event: str, level: str = "info", **fields: object) -> None:
    """Print a message on stderr.

    Args:
        message: The text for people; a text log has only this.
        event: The event, in one word.
        level: `info`, `warning` or `error`.
        fields: Other fields of a JSON log; `time` replaces the current time.
    """
    extra = {"tuner_event": event, "tuner_fields": fields}
    _log.log(logging.getLevelNamesMapping()[level.upper()], message or "", extra=extra)


def say(text: str) -> None:
    """Print a line on stderr for the user who typed a command, also if the log is JSON."""
    print(f"tuner: {clean(text)}", file=sys.stderr, flush=True)


def clean(text: str) -> str:
    """Return a message without passwords and without control characters."""
    return printable(hide_password(text))


def clean_traces() -> None:
    """Print tracebacks of uncaught errors without passwords."""

    def print_trace(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        print(clean("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr, flush=True)

    if not is_json():
        sys.excepthook = print_trace
        threading.excepthook = _of_thread(print_trace)


def set_about(**fields: object) -> None:
    """Add these fields to every line of a JSON log from now on; None removes a field.

    They apply to all threads: a worker has one trial at a time, and threads that renew its lease and write its
    checkpoints.
    """
    _about.update(fields)


def use_json() -> None:
    """Log as JSON from now on, including warnings, uncaught errors and logs of libraries."""
    if is_json():
        return
    _handler.setFormatter(_Json())
    logging.getLogger().addHandler(_handler)
    logging.captureWarnings(True)
    sys.excepthook = _tell_crash
    threading.excepthook = _of_thread(_tell_crash)


def _of_thread(hook: Callable[..., None]) -> Callable[[threading.ExceptHookArgs], None]:
    """Return a hook for threads that, like Python's own, ignores threads ended by `sys.exit`."""

    def call(crash: threading.ExceptHookArgs) -> None:
        if crash.exc_type is not SystemExit:
            hook(crash.exc_type, crash.exc_value, crash.exc_traceback)

    return call


def is_json() -> bool:
    """Return whether this process's log is JSON."""
    return isinstance(_handler.formatter, _Json)


def _tell_crash(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    said = {"tuner_event": "crash", "tuner_fields": {}}
    exc_info = (kind, error, trace) if error is not None else None
    _log.error(f"{kind.__name__}: {error}".strip(": "), exc_info=exc_info, extra=said)


@dataclass(frozen=True)
class LogLine:
    """A line that a process printed.

    Attributes:
        event: The name of the event; `output` for a line that is not from a JSON log.
        fields: The other fields of the line; an `output` has only `message`.
    """

    event: str
    fields: Mapping[str, object]

    @property
    def message(self) -> str:
        """The text for people; may be empty."""
        return str(self.fields.get("message", ""))


def parse(line: str) -> LogLine | None:
    """Parse a line of a JSON log; return None if the line is other output."""
    if not line.startswith("{"):
        return None
    try:
        found: Any = json.loads(line)
    except ValueError:
        return None
    if not (isinstance(found, dict) and found.keys() >= _REQUIRED):
        return None
    are_texts = all(isinstance(found.get(name, ""), str) for name in ("time", "event", "message", "error"))
    if not are_texts or found["level"] not in _LEVELS:
        return None
    return LogLine(found.pop("event"), found)


def now() -> str:
    """Return the time for a line of a JSON log: UTC, with milliseconds."""
    return _iso(time.time())


def _iso(at_s: float) -> str:
    whole, milliseconds = divmod(math.floor(at_s * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d}Z"
