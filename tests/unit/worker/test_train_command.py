"""Commands as trials: metrics in lines of JSON, logs, ends, and no process that outlives its trial."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
from optuna.trial import TrialState
from storage_tools import connection_to, plain_trials

from tuner import Command, Space, Study, uniform
from tuner.errors import LeaseLost, StudyError, StudyStopped
from tuner.study import StudySpec
from tuner.trial import Report, Stop
from tuner.worker import run_worker
from tuner.worker.trainables import train_command
from tuner.worker.trainables.train_command import CommandTrainable, resume
from tuner.worker.trainables.trainable import End, NoCheckpoints, UnstoredRun


class HParams(Space):
    x: float = uniform(0.0, 1.0)


class Commands:
    """Runs studies whose command is a Python program."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"sqlite:///{folder}/study.db"

    def __call__(
        self, program: str, *words: str, stop: Stop | None = None, grace_s: float = 4.0, **settings: Any
    ) -> list[optuna.trial.FrozenTrial]:
        path = self.folder / "program.py"
        path.write_text(program)
        given = {"objective": "loss", "direction": "minimize", "trials": 1, "pruner": "none", "retries": 0}
        command = Command([sys.executable, str(path), *words], grace_s=grace_s)
        study = Study(name="one", space=HParams, train=command, **{**given, **settings})
        run_worker(study, self.url, artifacts=str(self.folder / "artifacts"), stop=stop)
        return self.trials()

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return plain_trials(self.url, "one")

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with connection_to(self.url) as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


def is_running(pid: int) -> bool:
    """Return whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


REPORTS = """
import json, os, sys
print("starting", sys.argv[1:])
for epoch in range(3):
    print(json.dumps({"loss": 3.0 - epoch, "size": 2, "phase": "validation"}))
print(json.dumps({"level": "info"}))
print("careful", file=sys.stderr)
print(json.dumps({"epoch": 9, "step": 90, "loss": 0.5}))
given = {name: os.environ["TUNER_" + name.upper()] for name in ("hparams", "folder", "number", "seed")}
open(os.path.join(given["folder"], "given.json"), "w").write(json.dumps(given))
"""


def test_lines_of_json_are_reports_and_the_rest_is_a_log(commands: Commands) -> None:
    (trial,) = commands(REPORTS, "--x={x}", "{number}")
    assert trial.state == TrialState.COMPLETE
    assert trial.value == 0.5
    assert trial.intermediate_values == {1: 3.0, 2: 2.0, 3: 1.0, 9: 0.5}
    stored = commands.rows("SELECT epoch, step, metrics FROM tuner_reports ORDER BY epoch")
    assert [(epoch, step, json.loads(metrics)) for epoch, step, metrics in stored] == [
        (1, 1, {"loss": 3.0, "size": 2.0}),
        (2, 2, {"loss": 2.0, "size": 2.0}),
        (3, 3, {"loss": 1.0, "size": 2.0}),
        (9, 90, {"loss": 0.5}),
    ]
    (root,) = commands.folder.glob("artifacts/*/0")
    log = (root / "log.txt").read_text().splitlines()
    assert sorted(log) == sorted([f"starting ['--x={trial.params['x']!r}', '0']", '{"level": "info"}', "careful"])
    ((fence, lines),) = commands.rows("SELECT fence, lines FROM tuner_logs")
    assert (fence, lines.splitlines()) == (1, log)
    given = json.loads((root / "files" / "given.json").read_text())
    assert json.loads(given["hparams"]) == trial.params
    assert given["folder"] == str(root / "files")
    assert given["number"] == "0"
    assert 0 <= int(given["seed"]) < 2**31


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("print('before'); raise SystemExit(3)", "the command ended with exit status 3"),
        ("import os, signal; print('before', flush=True); os.kill(os.getpid(), signal.SIGSEGV)", "ended with SIGSEGV"),
        (
            "print('before'); print('{\"los\": 1.0}')",
            "the command reported no loss: print a line of JSON .* printed los",
        ),
    ],
)
@pytest.mark.slow
def test_a_command_that_fails_shows_its_status_and_its_last_lines(commands: Commands, program: str, error: str) -> None:
    with pytest.raises(StudyStopped, match=rf"the same error ended 3 trials in a row[^\n]*\nbefore\n(.*\n)*.*{error}"):
        commands(program)
    assert [one.state for one in commands.trials()] == [TrialState.FAIL] * 3


def test_a_program_that_does_not_exist_fails_the_trial(commands: Commands) -> None:
    study = Study(
        name="one", space=HParams, train=Command("no-such-program {x}"), objective="loss", direction="minimize",
        trials=1, retries=0,
    )  # fmt: skip
    with pytest.raises(StudyStopped, match="cannot run 'no-such-program': No such file or directory"):
        run_worker(study, commands.url, artifacts=str(commands.folder / "artifacts"))


def test_an_objective_that_is_not_a_number_is_refused(commands: Commands) -> None:
    with pytest.raises(StudyError, match=r"the objective 'loss' is missing from the metrics of epoch 1"):
        commands("""print('{"loss": "high"}')""")


OUTLIVES = """
import json, os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
signal.signal(signal.SIGTERM, lambda *_: (open("FOLDER/asked", "w").close(), IGNORES or sys.exit(0)))
open("FOLDER/pids", "w").write(f"{os.getpid()} {child.pid}")
print(json.dumps({"loss": 9.0}), flush=True)
while True:
    time.sleep(0.1)
"""


@pytest.mark.parametrize("ignores", [False, True])
def test_a_pruned_command_ends_with_all_its_processes(commands: Commands, ignores: bool) -> None:
    program = OUTLIVES.replace("FOLDER", str(commands.folder)).replace("IGNORES", str(ignores))
    pruner = optuna.pruners.ThresholdPruner(upper=5.0)
    (trial,) = commands(program, pruner=pruner, grace_s=0.5 if ignores else 60.0)
    assert trial.state == TrialState.PRUNED
    assert (commands.folder / "asked").exists(), "it got SIGTERM first"
    pids = [int(word) for word in (commands.folder / "pids").read_text().split()]
    assert [is_running(pid) for pid in pids] == [False, False]


@pytest.mark.slow
def test_a_stopped_command_is_given_back_and_resumes_from_its_folder(
    commands: Commands, wait_until: Callable[..., Any]
) -> None:
    program = """
import json, os, pathlib, signal, sys, time
path = pathlib.Path(os.environ["TUNER_FOLDER"], "epoch")
done = int(path.read_text()) if path.exists() else 0
def train(epoch):
    print(json.dumps({"epoch": epoch, "loss": float(epoch + 10 * (done > 0))}), flush=True)
    path.write_text(str(epoch))
def stop(*_):
    train(3)
    print("saved when it was asked to stop", flush=True)
    sys.exit(1)
signal.signal(signal.SIGTERM, stop)
for epoch in range(done + 1, 6):
    if epoch == 3:
        time.sleep(600)
    train(epoch)
"""
    stop = Stop()
    worker = threading.Thread(target=commands, args=(program,), kwargs={"stop": stop})
    worker.start()
    try:
        wait_until(lambda: list(commands.folder.glob("artifacts/*/0/files/epoch")))
        (path,) = commands.folder.glob("artifacts/*/0/files/epoch")
        wait_until(lambda: path.read_text() == "2")
    finally:
        stop.requested = True
        worker.join()
    (trial,) = commands.trials()
    assert trial.state == TrialState.RUNNING
    assert trial.intermediate_values == {1: 1.0, 2: 2.0, 3: 3.0}
    (log,) = commands.folder.glob("artifacts/*/0/log.txt")
    assert log.read_text() == "saved when it was asked to stop\n"
    (trial,) = commands(program)
    assert trial.state == TrialState.COMPLETE
    assert trial.intermediate_values == {1: 1.0, 2: 2.0, 3: 3.0, 4: 14.0, 5: 15.0}


REPORTS_WHEN_ASKED = """
import json, signal, sys, time
def stop(*_):
    print(json.dumps({"loss": 2.0}), flush=True)
    open(sys.argv[1], "w").close()
    sys.exit(1)
signal.signal(signal.SIGTERM, stop)
print(json.dumps({"loss": 1.0}), flush=True)
time.sleep(600)
"""


class StoppedRun(UnstoredRun):
    """A run of a command that must stop after its first report."""

    is_resumed = must_end = False
    is_lost = passes_limit = False

    def __init__(self, folder: Path, program: str, grace_s: float) -> None:
        path = folder / "program.py"
        path.write_text(program)
        self.command = Command([sys.executable, str(path), str(folder / "told")], grace_s=grace_s)
        settings: dict[str, Any] = {"objective": "loss", "direction": "minimize", "trials": 1}
        super().__init__(
            StudySpec(name="one", space=HParams, train=self.command, **settings), 0, {"x": 0.5}, 1, folder / "trial"
        )
        self.trial = optuna.trial.FixedTrial({"x": 0.5})
        self.reported: list[float] = []

    def train(self) -> End:
        trainable = CommandTrainable(self.study, self.command)
        return trainable.run(cast("Any", self), NoCheckpoints(self.root))

    def must_stop(self) -> bool:
        self.must_end = self.passes_limit and bool(self.reported)
        return bool(self.reported)

    def report(self, report: Report, *, is_last: bool = False) -> bool:
        self.reported.append(report.metrics["loss"])
        if self.is_lost:
            raise LeaseLost("trial 0 was taken over by another worker")
        return False


def test_a_report_after_the_trial_has_passed_a_limit_does_not_count(tmp_path: Path) -> None:
    run = StoppedRun(tmp_path, REPORTS_WHEN_ASKED, grace_s=300.0)
    run.passes_limit = True
    assert run.train() is End.STOPPED
    assert (tmp_path / "told").exists()
    assert run.reported == [1.0]


def test_a_command_whose_trial_was_taken_over_can_still_clean_up(tmp_path: Path) -> None:
    run = StoppedRun(tmp_path, REPORTS_WHEN_ASKED, grace_s=300.0)
    run.is_lost = True
    with pytest.raises(LeaseLost):
        run.train()
    assert (tmp_path / "told").exists()


def test_a_stopped_command_ends_though_a_process_that_left_it_goes_on_printing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_command, "_SILENCE_S", 0.5)
    prints = "import time\nwhile True: print(1, flush=True); time.sleep(0.01)"
    program = f"""
import subprocess, sys, time
away = subprocess.Popen([sys.executable, "-c", {prints!r}], start_new_session=True)
open(sys.argv[1], "w").write(str(away.pid))
print('{{"loss": 1.0}}', flush=True)
time.sleep(600)
"""
    try:
        assert StoppedRun(tmp_path, program, grace_s=0.5).train() is End.STOPPED
    finally:
        os.kill(int((tmp_path / "told").read_text()), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(("value", "expected"), [("last", 5.0), ("best", 1.0)])
@pytest.mark.parametrize("done", [2, 5], ids=["resumes", "has nothing left to do"])
def test_reports_of_an_earlier_attempt_count_after_a_resume(
    commands: Commands, value: str, expected: float, done: int, wait_until: Callable[..., Any]
) -> None:
    program = """
import json, os, pathlib, sys, time
path = pathlib.Path(os.environ["TUNER_FOLDER"], "epoch")
done = int(path.read_text()) if path.exists() else 0
for epoch in range(done + 1, 6):
    print(json.dumps({"epoch": epoch, "loss": float(epoch)}), flush=True)
    path.write_text(str(epoch))
    if epoch == int(sys.argv[1]) and done == 0:
        time.sleep(600)
"""
    stop = Stop()
    worker = threading.Thread(target=commands, args=(program, str(done)), kwargs={"stop": stop, "value": value})
    worker.start()
    try:
        count = f"SELECT count(*) FROM tuner_reports WHERE epoch = {done}"
        wait_until(lambda: list(commands.folder.glob("artifacts/*/0/files/epoch")) and commands.rows(count) == [(1,)])
    finally:
        stop.requested = True
        worker.join()
    (trial,) = commands(program, str(done), value=value)
    assert trial.state == TrialState.COMPLETE
    assert trial.value == expected
    assert trial.intermediate_values == {epoch: float(epoch) for epoch in range(1, 6)}


@pytest.mark.parametrize(("epoch", "expected"), [(1, ["forget 0"]), (3, ["forget 3", "stored", "keep 2"])])
def test_a_command_that_starts_again_keeps_nothing_of_earlier_attempts(epoch: int, expected: list[str]) -> None:
    """Their time does not count either: `keep` counts it."""
    calls: list[str] = []

    class Recorded:
        def forget_reports(self, first: int = 0) -> None:
            calls.append(f"forget {first}")

        def stored_reports(self) -> list[Report]:
            calls.append("stored")
            return [Report(1, 1, {"loss": 1.0}), Report(2, 2, {"loss": 1.0})]

        def keep(self, earlier: list[Report]) -> None:
            calls.append(f"keep {len(earlier)}")

    resume(cast("Any", Recorded()), epoch)
    assert calls == expected


def test_a_command_dies_with_its_worker(commands: Commands, wait_until: Callable[..., Any]) -> None:
    program = OUTLIVES.replace("FOLDER", str(commands.folder)).replace("IGNORES", "True")
    (commands.folder / "program.py").write_text(program)
    (commands.folder / "study.py").write_text(
        f"""
import sys
from tuner import Command, Space, Study, uniform

class HParams(Space):
    x: float = uniform(0.0, 1.0)

command = Command([sys.executable, {str(commands.folder / "program.py")!r}])
study = Study(name="one", space=HParams, train=command, objective="loss", direction="minimize", trials=1)
"""
    )
    env = {**os.environ, "TUNER_STORAGE": commands.url, "TUNER_ARTIFACTS": str(commands.folder / "artifacts")}
    worker = subprocess.Popen([sys.executable, "-m", "tuner", "worker", "study.py"], cwd=commands.folder, env=env)
    try:
        wait_until(lambda: (commands.folder / "pids").exists() and (commands.folder / "pids").read_text())
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    pids = [int(word) for word in (commands.folder / "pids").read_text().split()]
    wait_until(lambda: not any(map(is_running, pids)))


@pytest.mark.slow
def test_a_trial_ends_with_its_command_though_a_process_that_left_it_keeps_its_output_open(commands: Commands) -> None:
    program = """
import subprocess, sys
away = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(sys.argv[1], "w").write(str(away.pid))
print('{"loss": 0.25}')
"""
    (trial,) = commands(program, str(commands.folder / "pid"))
    pid = int((commands.folder / "pid").read_text())
    try:
        assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.25)
        assert is_running(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_of_a_command_does_not_import_jax(tmp_path: Path) -> None:
    script = """
import sys
from tuner import Command, Space, Study, uniform
from tuner.worker import run_worker
from tuner.worker.trainables.train_command import resume

class HParams(Space):
    x: float = uniform(0.0, 1.0)

command = Command([sys.executable, "-c", "print('{{\\"loss\\": {x}}}')"])
study = Study(name="one", space=HParams, train=command, objective="loss", direction="minimize", trials=2)
run_worker(study, "sqlite:///study.db", artifacts="artifacts")
print("jax" in sys.modules)
"""
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_a_long_log_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuner.output import log_file
    from tuner.worker.trainables import trial_log

    monkeypatch.setattr(log_file, "_MAX_BYTES", 100)
    stored: list[list[str]] = []
    path = tmp_path / "log.txt"
    with trial_log.TrialLog(path, lambda lines: stored.append(list(lines))) as log:
        for number in range(300):
            log.add(f"line {number}")
        log.add("x" * 20_000)
    assert stored == [[*(f"line {number}" for number in range(201, 300)), "x" * 10_000]]
    assert path.with_name("log.1.txt").read_text().splitlines()[-1] == "x" * 10_000
    assert path.with_name("log.1.txt").stat().st_size < 10_000 + 2 * 100
    assert path.exists() is False
