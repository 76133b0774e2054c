"""What a launch tells Prometheus, held against the study's own records; and its log as JSON."""

from __future__ import annotations

import errno
import os
import signal
import socket
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launch_output import Scrape, address_of, held_trial, json_lines, listening, rows_of

from tuner.trial import Outcome

LOOPBACK = "0100007F"


@pytest.mark.slow
def test_metrics_are_the_studys_own_records(
    tuner_on_sqlite: Any, tiny_function: Path, wait_until: Callable[..., Any]
) -> None:
    tuner, url = tuner_on_sqlite, tuner_on_sqlite.env["TUNER_STORAGE"]
    options = ("--workers", "2", "--trials", "7", "--metrics-port", "0")
    with held_trial(tiny_function, url) as give_back:
        launcher = tuner.start("launch", "tiny.py", *options, TINY_MODE="nan", TINY_PAUSE_S="0.2")
        address = address_of(launcher)
        port = int(address.split(":")[2].split("/")[0])
        assert listening(launcher.pid) == {(LOOPBACK, port)}
        wait_until(lambda: Scrape(address).sum("tuner_trials_total") == 6)
        # From the database, which is read twice a second.
        ended = [("tuner_study_trials", outcome) for outcome in ("complete", "diverged")]
        wait_until(lambda: (scrape := Scrape(address)) and sum(scrape.samples[key] for key in ended) == 6)
        last = Scrape(address)

        rows = rows_of(url, launcher)
        outcomes = Counter(row.outcome for row in rows)
        assert outcomes.keys() == {Outcome.COMPLETE, Outcome.DIVERGED}, "the seed gives both"
        for outcome in Outcome:
            assert last.sum("tuner_trials_total", outcome) == outcomes[outcome]
        everybodys = outcomes + Counter([Outcome.RUNNING])
        assert everybodys == Counter(row.outcome for row in rows_of(url))
        for outcome in Outcome:
            assert last.samples["tuner_study_trials", outcome] == everybodys[outcome]
        best = min(row.values[0] for row in rows_of(url) if row.values)
        assert last.samples["tuner_best_value",] == best
        compile_s, train_s = (sum(getattr(row.record, name) for row in rows) for name in ("compile_s", "train_s"))
        rounding_s = 1e-4 * len(rows)
        assert last.sum("tuner_seconds_total", "compiling") == pytest.approx(compile_s, abs=rounding_s)
        # A trial's record has its database with its training.
        training_s, database_s = (last.sum("tuner_seconds_total", doing) for doing in ("training", "database"))
        assert train_s - training_s + rounding_s > 0
        assert train_s - training_s - rounding_s < database_s
        assert 3 * 0.2 * outcomes[Outcome.COMPLETE] < training_s, "the pauses after reports"
        assert last.sum("tuner_device_busy_seconds_total") == training_s
        assert last.samples["tuner_workers",] == 2
        assert last.sum("tuner_lease_losses_total") == last.sum("tuner_worker_deaths_total") == 0

        give_back()
        output, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, output
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address, timeout=300)


@pytest.mark.slow
def test_nothing_listens_unless_asked(
    tuner_on_sqlite: Any, tiny_function: Path, wait_until: Callable[..., Any]
) -> None:
    launcher = tuner_on_sqlite.start("launch", "tiny.py", "--workers", "1")
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    (worker,) = map(int, wait_until(lambda: children.read_text().split()))

    assert listening(launcher.pid) | listening(worker) == set()

    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=300)


def test_a_port_that_is_taken_is_told_before_any_worker_starts(tuner_on_sqlite: Any, tiny_function: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = tuner_on_sqlite.run("launch", "tiny.py", "--metrics-port", str(port))

    assert done.returncode == 2
    opening, error = done.stderr.splitlines()
    assert "workers on" in opening
    listen, advice = (
        f"cannot serve metrics on 127.0.0.1:{port}",
        "use another --metrics-port or --metrics-host",
    )
    assert error == f"tuner: {listen}: {os.strerror(errno.EADDRINUSE)}; {advice}"
    assert not (tiny_function.parent / "study.db").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--metrics-port", "65536"), "--metrics-port must be 1 to 65535, or 0 for a free one: got 65536"),
        (("--metrics-port", "-1"), "--metrics-port must be 1 to 65535, or 0 for a free one: got -1"),
        (
            ("--metrics-port", "0", "--metrics-host", "a..b"),
            "cannot serve metrics on a..b:0: not a valid host name; use another --metrics-port or --metrics-host",
        ),
        (("--metrics-host", "::1"), "--metrics-host ::1 has no effect without --metrics-port: pass both"),
    ],
)
def test_wrong_addresses_are_refused_in_one_line(
    options: tuple[str, ...], error: str, tuner_on_sqlite: Any, tiny_function: Path
) -> None:
    done = tuner_on_sqlite.run_here("launch", "tiny.py", *options)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, f"tuner: {error}")


# Logs.

NOISY = """

import logging, os, sys, warnings
import optuna

class Noisy(Trainer):
    def on_training_epoch_end(self, state, hparams, epoch, metrics):
        if epoch == 1:
            print("printed")
            print("half a { json", file=sys.stderr)
            os.write(2, b"past Python\\n")
            warnings.warn("a warning")
            logging.getLogger("theirs").error("an error of theirs")
            optuna.logging.get_logger("optuna.theirs").warning("a word of Optuna")
            print("postgresql://me:secret@host/db")
            print('{"time": "t", "level": "info", "event": "log", "address": "postgresql://me:secret@host/db"}')
            print('{"time": "t", "level": "info", "event": "report"}')
            logging.log(35, "of a level between")
            logging.warning("a wrong call %d", "text")
        if epoch == 2:
            EPOCH_2

study = dataclasses.replace(study, trainer=Noisy())
"""


def make_noisy(tiny_study: Path, epoch_2: str) -> None:
    noise = NOISY.replace("EPOCH_2", epoch_2)
    tiny_study.write_text(f"import dataclasses\n{tiny_study.read_text()}{noise}")


def check_noise(lines: list[dict[str, Any]]) -> None:
    """Check that what the study's own code says is there, and whose it is."""
    output = [line for line in lines if line["event"] == "output"]
    assert {"printed", "half a { json", "past Python"} <= {line["message"] for line in output}
    (warned, *_) = [line for line in lines if "UserWarning: a warning" in line.get("message", "")]
    (logged, *_) = [line for line in lines if line.get("message") == "an error of theirs"]
    assert (warned["level"], warned["logger"]) == ("warning", "py.warnings")
    assert (logged["level"], logged["logger"]) == ("error", "theirs")
    for line in (*output, warned, logged):
        assert line["study"] == "tiny"
        assert line["worker"]
    assert isinstance(warned["trial"], int)
    assert "a word of Optuna" in [line["message"] for line in lines if line.get("logger") == "optuna.theirs"]
    assert "postgresql://me:***@host/db" in {line["message"] for line in output}
    assert "secret" not in str(lines)
    assert (
        next(line["address"] for line in lines if line["event"] == "log" and "address" in line)
        == "postgresql://me:***@host/db"
    )
    assert '{"time": "t", "level": "info", "event": "report"}' in {line["message"] for line in output}
    assert ("warning", "of a level between") in {(line["level"], line.get("message")) for line in lines}


@pytest.mark.slow
def test_a_launchs_log_is_json_to_the_last_line(tuner_on_sqlite: Any, tiny_study: Path) -> None:
    make_noisy(tiny_study, "raise RuntimeError('planted bug')")
    done = tuner_on_sqlite.run("launch", "tiny.py", "--workers", "2", "--log-format", "json")

    assert (done.returncode, done.stdout) == (3, "")
    lines = json_lines(done.stderr)
    check_noise(lines)
    launch, *_, last = lines
    assert (launch["event"], launch["storage"]) == ("launch", tuner_on_sqlite.env["TUNER_STORAGE"])
    assert (last["event"], last["level"], last["study"]) == ("error", "error", "tiny")
    assert [line["event"] for line in lines].count("error") == 1
    assert "the same error ended 3 trials in a row" in last["message"]
    assert last["message"].endswith("RuntimeError: planted bug")
    retry = next(line for line in lines if line["event"] == "retry")
    assert (retry["level"], retry["error"]) == ("warning", "RuntimeError: planted bug")
    for line in lines:
        if line["event"] in ("trial", "report", "retry", "end"):
            assert (line["study"], line["place"] in (0, 1)) == ("tiny", True)
            assert line["worker"].endswith(f":{line['place']}.1")
            assert isinstance(line["trial"], int)
    assert [line["outcome"] for line in lines if line["event"] == "end"].count("failed") >= 3


@pytest.mark.slow
def test_a_launchs_log_has_what_the_study_has(tuner_on_sqlite: Any, tiny_study: Path) -> None:
    options = ("--workers", "1", "--trials", "3", "--artifacts", "tiny.py/no-folder")
    done = tuner_on_sqlite.run("launch", "tiny.py", *options, "--log-format", "json")

    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    lines = json_lines(done.stderr)
    refused = [line for line in lines if line["event"] == "checkpoint"]
    assert {(line["level"], line["study"], line["place"]) for line in refused} == {("warning", "tiny", 0)}
    assert {line["trial"] for line in refused} <= {0, 1, 2}
    rows = rows_of(tuner_on_sqlite.env["TUNER_STORAGE"])
    told = {line["trial"]: line["hparams"] for line in lines if line["event"] == "trial"}
    assert told == {row.number: row.hparams for row in rows}
    steps = {(line["trial"], line["epoch"]): line["step"] for line in lines if line["event"] == "report"}
    assert steps == {(row.number, epoch): 3 * epoch for row in rows for epoch in (1, 2, 3)}
    for row, end in zip(rows, [line for line in lines if line["event"] == "end"], strict=True):
        found = [end[name] for name in ("trial", "outcome", "values", "train_s", "compile_s")]
        assert found == [row.number, row.outcome, row.values, row.record.train_s, row.record.compile_s]
    times = [line["time"] for line in lines if line["event"] in ("trial", "report", "end")]
    assert times == sorted(times)
    best = min(rows, key=lambda row: (row.values or [0.0])[0])
    assert lines[-1]["event"] == "best"
    assert (lines[-1]["trial"], lines[-1]["value"]) == (best.number, (best.values or [None])[0])
    progress = [line for line in lines if line["event"] == "progress"][-1]
    assert (progress["counts"]["complete"], progress["trials"]) == (3, 3)
    assert progress["best"] == lines[-1]["value"]


@pytest.mark.slow
def test_a_worker_that_aborts_leaves_json_and_its_last_words(tuner_on_sqlite: Any, tiny_study: Path) -> None:
    make_noisy(tiny_study, "os.write(2, b'F0000 check failed'); os.abort()")
    done = tuner_on_sqlite.run("worker", "tiny.py", "--log-format", "json", TUNER_WORKER="alone")

    assert (done.returncode, done.stdout) == (128 + signal.SIGABRT, "")
    lines = json_lines(done.stderr)
    check_noise(lines)
    assert {line.get("worker") for line in lines} == {"alone"}
    assert "F0000 check failed" in [line.get("message") for line in lines]
    assert (lines[-1]["event"], lines[-1]["level"]) == ("died", "error")
    assert lines[-1]["message"] == "the worker died (killed by SIGABRT)"


@pytest.mark.slow
def test_a_worker_with_a_json_log_ends_as_any_other(tuner_on_sqlite: Any, tiny_function: Path) -> None:
    worker = tuner_on_sqlite.start("worker", "tiny.py", "--log-format", "json", TINY_PAUSE_S="0.5")
    assert worker.stdout is not None
    first = next(line for line in worker.stdout if '"event": "report"' in line)
    worker.send_signal(signal.SIGTERM)
    output, _ = worker.communicate(timeout=300)

    assert worker.returncode == 130, output
    *_, end, done = json_lines(first + output)
    assert (end["event"], end["trial"], end["outcome"]) == ("end", 0, "released")
    assert done["event"] == "done"
    wrong = tuner_on_sqlite.run("worker", "tiny.py", "--log-format", "json", "--set", "width=3")
    (error,) = json_lines(wrong.stderr)
    assert (wrong.returncode, error["event"], error["exit_status"]) == (2, "error", 2)
    assert "width" in error["message"]
