"""What a process says on stderr, as text and as JSON."""

import datetime
import json
import math
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from tuner.output.log import parse, tell
from tuner.trial import print_event
from tuner.trial.events import EpochEnded, SecondsSpent, TrialLost

pytestmark = pytest.mark.timezone


def lines_of(code: str) -> list[dict[str, Any]]:
    """Run code in a process whose log is JSON; return its stderr."""
    head = "import logging, threading, warnings\nfrom tuner.output.log import set_about, tell, use_json\n"
    done = subprocess.run([sys.executable, "-c", f"{head}use_json()\n{code}"], capture_output=True, text=True)
    assert done.stdout == ""
    return [json.loads(line, parse_constant=pytest.fail) for line in done.stderr.splitlines()]


def test_people_get_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    tell("the storage is away", "storage_away", "warning", trial=3)
    tell(None, "only_for_programs", trial=3)
    print_event(EpochEnded(3, 1, 5, [0.25], seconds={}, time="now"))
    print_event(TrialLost(3, "only for programs", seconds={}))
    print_event(SecondsSpent(seconds={"training": 1.0}))
    assert capsys.readouterr().err == "tuner: the storage is away\ntuner: trial 3, epoch 1: 0.25\n"


def test_programs_get_every_field() -> None:
    before_s = time.time()
    told, quiet, late = lines_of(
        "tell('two\\nlines', 'first', 'warning', trial=3, values=[float('nan'), float('-inf'), 0.5])\n"
        "tell(None, 'quiet')\n"
        "tell('then', 'late', time='2026-01-02T03:04:05.678Z')\n"
    )
    when = datetime.datetime.fromisoformat(told.pop("time"))
    assert math.floor(1000 * before_s) / 1000 <= when.timestamp() <= time.time()
    assert when.utcoffset() == datetime.timedelta(0)
    values = ["nan", "-inf", 0.5]
    assert told == {"level": "warning", "event": "first", "message": "two\nlines", "trial": 3, "values": values}
    assert quiet.keys() == {"time", "level", "event"}
    assert (quiet["level"], late["time"]) == ("info", "2026-01-02T03:04:05.678Z")


def test_everything_that_python_says_is_json() -> None:
    warned, logged, raised, in_thread, crash = lines_of(
        "warnings.warn('old')\n"
        "logging.getLogger('someone').warning('a %s', 'word')\n"
        "try: 1 / 0\nexcept ZeroDivisionError: logging.getLogger('else').exception('went wrong')\n"
        "thread = threading.Thread(target=lambda: {}['gone']); thread.start(); thread.join()\n"
        "raise ValueError('the end')\n"
    )
    assert (warned["event"], warned["logger"], warned["level"]) == ("log", "py.warnings", "warning")
    assert "UserWarning: old" in warned["message"]
    assert (logged["logger"], logged["message"]) == ("someone", "a word")
    assert (raised["level"], raised["message"]) == ("error", "went wrong")
    assert raised["error"].endswith("ZeroDivisionError: division by zero")
    assert (in_thread["event"], in_thread["message"]) == ("crash", "KeyError: 'gone'")
    assert (crash["event"], crash["level"], crash["message"]) == ("crash", "error", "ValueError: the end")
    assert crash["error"].startswith("Traceback (most recent call last):\n")


def test_what_a_log_is_about_is_in_lines_of_all_threads_and_loggers_until_it_is_taken_away() -> None:
    *about, after = lines_of(
        "set_about(study='tiny', trial=3)\n"
        "tell('one', 'a'); logging.getLogger('b').warning('two')\n"
        "thread = threading.Thread(target=lambda: tell('three', 'c', trial=4)); thread.start(); thread.join()\n"
        "set_about(trial=None)\n"
        "tell('four', 'd')\n"
    )
    assert [(line["study"], line["trial"]) for line in about] == [("tiny", 3), ("tiny", 3), ("tiny", 4)]
    assert after["study"] == "tiny"
    assert "trial" not in after


def test_events_are_told_whole_and_running_seconds_not_at_all() -> None:
    trial, lost = lines_of(
        "from tuner.trial.events import *\n"
        "print_event(TrialBegan(1, {'rate': 0.5}, seconds={'database': 0.25}))\n"
        "print_event(SecondsSpent(seconds={'training': 5.0}))\n"
        "print_event(TrialLost(1, 'taken'))\n"
    )
    expected = {"event": "trial", "trial": 1, "hparams": {"rate": 0.5}, "seconds": {"database": 0.25}}
    assert trial | expected | {"message": "trial 1: rate=0.5", "level": "info"} == trial
    assert (lost["level"], lost["message"]) == ("warning", "taken")


@pytest.mark.parametrize(
    ("line", "is_ours"),
    [
        ('{"time": "t", "level": "info", "event": "log"}\n', True),
        ('{"time": "t", "level": "info"}', False),
        ('["time", "level", "event"]', False),
        ("{not json}", False),
        ("time level event", False),
        ("", False),
        ('{"time": "t", "level": "notice", "event": "log"}', False),
        ('{"time": "t", "level": 20, "event": "log"}', False),
        ('{"time": "t", "level": "info", "event": "log", "message": 5}', False),
    ],
)
def test_lines_of_json_logs_are_told_from_others(line: str, is_ours: bool) -> None:
    assert (parse(line) is not None) == is_ours


def test_settings_of_others_do_not_silence_it() -> None:
    (line,) = lines_of(
        "import logging.config\n"
        "logging.config.dictConfig({'version': 1, 'disable_existing_loggers': True, 'root': {'level': 'ERROR'}})\n"
        "tell('still here', 'a')\n"
    )
    assert line["message"] == "still here"


def test_records_of_others_neither_raise_nor_have_levels_of_their_own() -> None:
    lines = lines_of(
        "import logging\n"
        "logging.raiseExceptions = False\n"  # else logging says on stderr what was wrong with the call
        "logging.warning('x %d', 'a')\n"
        "logging.warning('m', extra={'fields': 'abc', 'event': 'theirs'})\n"
        "logging.log(35, 'between')\n"
        "tell('still here', 'a')\n"
    )
    assert [(line["level"], line["event"], line["message"]) for line in lines] == [
        ("warning", "log", "m"), ("warning", "log", "between"), ("info", "a", "still here"),
    ]  # fmt: skip


# How often SIGTERM comes, whether anybody may read what is said, and whether what is said later is an error.
WITHOUT_READER = """
import os, signal, sys
from tuner.output import log
came = []
if "handled" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: came.append(1))
log.note_ending("ending" in sys.argv)
print("before", log.has_reader())
log.tell("one", "one")
log.tell("two", "two")
print("after", log.has_reader(), len(came))
"""


@pytest.mark.parametrize(
    ("words", "signals"),
    [(["handled"], 1), ([], 0), (["handled", "ending"], 0)],
    ids=["which ends a command in good order", "not where SIGTERM would kill it", "not after another signal"],
)
def test_a_reader_that_goes_away_is_as_one_sigterm(words: list[str], signals: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_READER, *words], stdout=subprocess.PIPE, stderr=writing, text=True, timeout=300
    )
    os.close(writing)

    assert done.stdout.splitlines() == ["before True", f"after False {signals}"]
    assert done.returncode == 0
