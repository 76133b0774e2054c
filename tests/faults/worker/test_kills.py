"""Workers killed or stopped at exact places, disks that are full or gone, clocks that disagree, trials that fail."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from after_faults import attempts_of, check_study_after_faults, endings_of, results, table
from command_line import Tuner

from tuner.storage.sql.tables import budgets, leases, trial_intermediate_values, trials, workers
from tuner.trial import Outcome

TESTS = Path(__file__).parents[2]
STEPS = {"TINY_LOOP": "step", "TINY_SAVE_S": "0"}
_PLANT = """
from pathlib import Path
import tiny_faults
study = tiny_faults.plant(study, Path(__file__).parent)
"""


class Faulty:
    """A tiny study, a trainer or a function, with the faults of `tiny_faults`, under the real command line."""

    def __init__(self, tuner: Any, file: Path) -> None:
        self.tuner, self.folder, self.url = tuner, file.parent, tuner.env["TUNER_STORAGE"]
        self.artifacts, self.said = self.folder / "tuner-artifacts", ""
        file.write_text(file.read_text() + _PLANT)
        # `ended` aborts a process that hangs, which then prints what its threads were doing.
        tuner.env |= {"PYTHONFAULTHANDLER": "1", **STEPS}

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        return self.tuner.start(*words, **env)

    def worker(self, **env: str) -> subprocess.Popen[str]:
        return self.tuner.start("worker", "tiny.py", **env)

    def launch(self, workers: int = 2, /, **env: str) -> subprocess.Popen[str]:
        return self.tuner.start("launch", "tiny.py", "--workers", str(workers), **env)

    def finish(self, budget: int) -> None:
        """Run what is left of the budget."""
        last = self.worker(TINY_TRIALS=str(budget))
        assert ended(last) == 0, said(last)

    def count(self, column: sqlalchemy.Column[Any]) -> int:
        """Return how many rows a table has; none while it does not exist."""
        try:
            return len(table(self.url, column))
        except Exception:
            return 0

    def reports(self) -> int:
        return self.count(trial_intermediate_values.c.step)

    def faulty(self) -> int | None:
        """Return the worker that has come to the place of its fault."""
        marker = self.folder / "faulty"
        text = marker.read_text() if marker.exists() else ""
        return int(text) if text else None

    def is_held(self) -> bool:
        """Return whether a worker has begun with a trial's training."""
        return self.count(leases.c.trial_id) > 0


@pytest.fixture
def faulty(tuner_on_sqlite: Any, tiny_study: Path) -> Faulty:
    return Faulty(tuner_on_sqlite, tiny_study)


@pytest.fixture
def faulty_on_postgres(tuner_on_postgres: Any, tiny_study: Path) -> Faulty:
    return Faulty(tuner_on_postgres, tiny_study)


@pytest.fixture
def faulty_function(tuner_on_sqlite: Any, tiny_function: Path) -> Faulty:
    return Faulty(tuner_on_sqlite, tiny_function)


@pytest.fixture
def faulty_function_on_postgres(tuner_on_postgres: Any, tiny_function: Path) -> Faulty:
    return Faulty(tuner_on_postgres, tiny_function)


def new_tuner(folder: Path, file: str) -> Tuner:
    (folder / "tiny.py").write_text((TESTS / file).read_text())
    return Tuner(folder, f"sqlite:///{folder / 'study.db'}")


def run_quietly(folder: Path, file: str) -> dict[int, Any]:
    tuner = new_tuner(folder, file)
    done = tuner.run("worker", "tiny.py", TINY_TRIALS="8", TINY_LOOP="step")
    assert done.returncode == 0, done.stderr
    return results(tuner.env["TUNER_STORAGE"])


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What trials come to if nothing goes wrong."""
    return run_quietly(tmp_path_factory.mktemp("quiet"), "tiny_study.py")


@pytest.fixture(scope="module")
def quiet_function(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What trials of the function come to if nothing goes wrong."""
    return run_quietly(tmp_path_factory.mktemp("quiet"), "tiny_function.py")


def ended(process: subprocess.Popen[str], timeout_s: float = 300) -> int:
    """Wait for a process; return its exit status, its output kept as its attribute `said`.

    A process that hangs is ended by SIGABRT, so that its output ends with what its threads were doing.
    """
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        output, _ = process.communicate(timeout=60)
        pytest.fail(f"a process hung:\n{output}")
    process.said = output  # pyright: ignore[reportAttributeAccessIssue]
    return process.returncode


def said(process: Any) -> str:
    return process.said


def check_same(found: dict[int, Any], quiet: dict[int, Any], trials: int) -> None:
    """Check that complete trials came to what they come to if nothing goes wrong, bit for bit."""
    assert len(found) == trials
    assert found == {number: quiet[number] for number in found}


# Killed at exact places.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "workers", "endings", "left_behind"),
    [
        pytest.param("after_claim 2", 2, ["died", "complete"], 0, marks=pytest.mark.long),
        pytest.param("after_report 2", 2, ["died", "complete"], 0, marks=pytest.mark.long),
        ("in_save 2", 1, ["died", "complete"], 0),
        pytest.param("before_tell 2", 2, ["died", "complete"], 0, marks=pytest.mark.long),
        pytest.param("after_tell 2", 2, ["complete"], 1, marks=pytest.mark.long),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else None,
)
def test_a_worker_killed_anywhere_is_replaced_and_nothing_is_lost_or_doubled(
    place: str, workers: int, endings: list[str], left_behind: int, faulty: Faulty, quiet: dict[int, Any]
) -> None:
    trials = 2 * workers + 1
    launcher = faulty.launch(workers, TINY_FAULT=f"SIGKILL {place}", TINY_TRIALS=str(trials))

    assert ended(launcher) == 0, said(launcher)

    assert said(launcher).count("died (killed by SIGKILL)") == 1
    check_study_after_faults(faulty.url, faulty.artifacts, trials, left_behind=left_behind)
    found = sorted(endings_of(faulty.url).values(), key=len)
    assert found == [["complete"]] * (trials - 1) + [endings]
    check_same(results(faulty.url), quiet, trials)


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [pytest.param("after_claim 1", marks=pytest.mark.long), "before_tell 2"],
    ids=lambda place: place.split()[0],
)
def test_without_a_launcher_a_dead_workers_trial_is_free_when_its_lease_ends(
    place: str, faulty_function: Faulty, quiet_function: dict[int, Any]
) -> None:
    faulty = faulty_function
    env = {"TINY_FAULT": f"SIGKILL {place}", "TINY_LEASE_S": "4", "TINY_TRIALS": "5", "TINY_PAUSE_S": "0.05"}
    both = [faulty.worker(**env) for _ in range(2)]

    assert sorted(ended(worker) for worker in both) == [-signal.SIGKILL, 0], [said(worker) for worker in both]

    check_study_after_faults(faulty.url, faulty.artifacts, 5)
    (taken,) = [tries for tries in attempts_of(faulty.url).values() if len(tries) > 1]
    assert [attempt.ending for attempt in taken] == ["died", "complete"]
    assert taken[0].worker != taken[1].worker
    assert taken[0].ended_at_s - taken[0].started_at_s >= 3.9, "its lease was waited for"
    check_same(results(faulty.url), quiet_function, 5)


# Stopped for longer than the lease.


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "meanwhile", "study"),
    [
        ("before_report 5", "taken", "function"),
        pytest.param("before_tell 2", "taken", "trainer", marks=pytest.mark.long),
        pytest.param("before_best 2", "ended", "trainer", marks=pytest.mark.long),
        pytest.param("in_save 4", "ended", "trainer", marks=pytest.mark.long),
    ],
)
def test_a_worker_that_slept_through_its_lease_drops_the_trial_quietly_and_goes_on(
    place: str, meanwhile: str, study: str, request: pytest.FixtureRequest, wait_until: Callable[..., Any]
) -> None:
    names = {"function": ("faulty_function_on_postgres", "quiet_function"), "trainer": ("faulty_on_postgres", "quiet")}
    faulty, quiet = map(request.getfixturevalue, names[study])
    env = {"TINY_LEASE_S": "1.5", "TINY_TRIALS": "8", "TINY_JUDGED": "1"}
    first = faulty.worker(TINY_FAULT=f"SIGSTOP {place}", TUNER_WORKER="sleeper", **env)
    second = faulty.worker(TUNER_WORKER="other", TINY_PAUSE_S="0.3", **env)
    wait_until(lambda: first.poll() is not None or (faulty.faulty() and state_of(first.pid) == "T"))
    (slept,) = [number for number, tries in attempts_of(faulty.url).items() if is_open(tries, "sleeper")]

    endings = ["died", None if meanwhile == "taken" else "complete"]
    wait_until(lambda: endings_of(faulty.url)[slept] == endings)
    went_on_s = max(tries[-1].started_at_s for tries in attempts_of(faulty.url).values())
    first.send_signal(signal.SIGCONT)

    assert ended(first) == 0, said(first)
    assert ended(second) == 0, said(second)
    for worker in (first, second):
        assert "Traceback" not in said(worker)
    errors = [line for line in said(first).splitlines() if "rror" in line]
    # What it was writing, also in the background, has been removed by the worker that ended the trial.
    is_expected = meanwhile == "ended" and "cannot write a checkpoint" in "".join(errors)
    assert len(errors) == is_expected, errors
    assert said(first).count(f"trial {slept}: complete") == 0
    tries = attempts_of(faulty.url)
    assert [(attempt.worker, attempt.ending) for attempt in tries[slept]] == [
        ("sleeper", "preempted"),
        ("other", "complete"),
    ], "it has said that it is alive"
    later = [rows[-1] for rows in tries.values() if rows[-1].started_at_s > went_on_s]
    assert "sleeper" in [attempt.worker for attempt in later], "it goes on with other trials"
    check_study_after_faults(faulty.url, faulty.artifacts, 8, left_behind=1 if place.startswith("in_save") else 0)
    check_same(results(faulty.url), quiet, 8)


def is_open(tries: list[Any], worker: str) -> bool:
    return bool(tries) and tries[-1].worker == worker and tries[-1].ended_at_s is None


# Disks.


@pytest.mark.slow
@pytest.mark.parametrize(
    "noticed",
    [
        "before",
        pytest.param(
            "while writing",
            marks=[
                pytest.mark.long,
                pytest.mark.xfail(reason="TensorStore calls back after Orbax has closed its event loop: a traceback"),
            ],
        ),
    ],
)
def test_a_full_disk_costs_checkpoints_only_and_a_line_for_each_trial(
    noticed: str, faulty: Faulty, small_disk: Path, quiet: dict[int, Any]
) -> None:
    ballast = small_disk / "ballast"
    free_bytes = 0 if noticed == "before" else 2**13  # the beginning of a checkpoint fits
    ballast.write_bytes(bytes(2**20 - free_bytes - 2**12))
    env = {"TINY_TRIALS": "5"} | ({} if noticed == "before" else {"TINY_SPACE": "unknown"})
    worker = faulty.start("worker", "tiny.py", "--artifacts", str(small_disk), **env)

    assert ended(worker) == 0, said(worker)

    assert "Traceback" not in said(worker)
    told = [line for line in said(worker).splitlines() if "checkpoint" in line or "rror" in line]
    heads = [line.partition("Error")[0] for line in told]
    whose = Counter(head.partition("cannot write a checkpoint to ")[2].partition(": ")[0] for head in heads)
    (folder,) = {Path(name).parents[1] for name in whose}
    assert folder.parent == small_disk
    # Of each trial its latest is told once, then its best if it is among the best.
    expected = {str(folder / f"{number}" / "latest") for number in range(5)}
    assert {name for name in whose if name.endswith("latest")} == expected
    assert set(whose.values()) == {1}
    ballast.unlink()
    check_study_after_faults(faulty.url, small_disk, 5, keeps_best=0)
    check_same(results(faulty.url), quiet, 5)


@pytest.fixture(scope="module")
def after_failures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """What a worker leaves with whom the second write of a checkpoint never ended, and trials 1, 2 and 4 failed."""
    folder = tmp_path_factory.mktemp("failures")
    faulty = Faulty(new_tuner(folder, "tiny_study.py"), folder / "tiny.py")
    worker = faulty.worker(TINY_TRIALS="5", TINY_STALLS="2", TINY_FAILS="1:99 2:1 4:2", TINY_RETRIES="2")
    assert ended(worker) == 0, said(worker)
    faulty.said = said(worker)
    yield faulty
    faulty.tuner.end()


@pytest.mark.slow
def test_a_checkpoint_whose_write_never_ends_costs_that_checkpoint_only(
    after_failures: Faulty, quiet: dict[int, Any]
) -> None:
    assert "Traceback" not in after_failures.said
    (told,) = [line for line in after_failures.said.splitlines() if "checkpoint" in line]
    assert "TimeoutError: nothing was written for 0 s" in told
    check_study_after_faults(after_failures.url, after_failures.artifacts, 5, failed=1)
    check_same(results(after_failures.url), quiet, 5)


@pytest.mark.long
@pytest.mark.slow
def test_checkpoints_that_vanish_cost_time_only(
    faulty: Faulty, wait_until: Callable[..., Any], quiet: dict[int, Any]
) -> None:
    env = {"TINY_TRIALS": "5", "TINY_PAUSE_S": "1"}
    launcher = faulty.launch(**env)
    for reports in (2, 4):  # while they train
        wait_until(lambda reports=reports: faulty.reports() >= reports and faulty.artifacts.exists())
        shutil.rmtree(faulty.artifacts, ignore_errors=True)
    wait_until(lambda: faulty.reports() >= 7)
    launcher.send_signal(signal.SIGTERM)
    assert ended(launcher, 30) == 130, said(launcher)
    assert "preempted" in str(endings_of(faulty.url))
    shutil.rmtree(faulty.artifacts, ignore_errors=True)  # and after the trials were given back

    again = faulty.launch(**env)

    assert ended(again) == 0, said(again)
    assert "Traceback" not in said(launcher) + said(again)
    best = min(quiet, key=lambda number: (number > 4, quiet[number][1]))
    assert list(faulty.artifacts.glob(f"*/{best}/best/*")), "what was trained afterwards is there"
    check_study_after_faults(faulty.url, faulty.artifacts, 5, keeps_best=0)
    check_same(results(faulty.url), quiet, 5)


# Clocks.


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("ahead", ["dead", pytest.param("alive", marks=pytest.mark.long)])
def test_workers_whose_clocks_are_an_hour_apart_take_over_dead_ones_trials_only(
    ahead: str, faulty_on_postgres: Faulty, quiet: dict[int, Any], wait_until: Callable[..., Any]
) -> None:
    faulty = faulty_on_postgres
    env = {"TINY_LEASE_S": "4", "TINY_TRIALS": "4", "TINY_PAUSE_S": "2"}  # a trial takes longer than a lease
    shift_s = 1800 if ahead == "dead" else -1800
    dies = faulty.worker(TINY_CLOCK_S=f"{shift_s}", TINY_FAULT="SIGKILL after_report 2", TUNER_WORKER="dies", **env)
    wait_until(lambda: faulty.count(leases.c.trial_id) == 1)  # trial 0 is that of the worker that dies
    lives = faulty.worker(TINY_CLOCK_S=f"{-shift_s}", TUNER_WORKER="lives", **env)

    assert ended(dies) == -signal.SIGKILL, said(dies)
    assert ended(lives) == 0, said(lives)

    check_study_after_faults(faulty.url, faulty.artifacts, 4)
    tries = attempts_of(faulty.url)
    assert [(attempt.worker, attempt.ending) for attempt in tries[0]] == [("dies", "died"), ("lives", "complete")]
    assert [len(rows) for rows in tries.values()] == [2, 1, 1, 1]
    check_same(results(faulty.url), quiet, 4)


@pytest.mark.long
@pytest.mark.slow
def test_a_worker_whose_clock_is_hours_ahead_of_the_disks_can_save(faulty: Faulty) -> None:
    worker = faulty.worker(TINY_CLOCK_S="7200", TINY_TRIALS="1")

    assert ended(worker) == 0, said(worker)

    assert "cannot write" not in said(worker)
    check_study_after_faults(faulty.url, faulty.artifacts, 1)


@pytest.mark.slow
def test_failures_are_counted_from_the_launch_whatever_a_workers_clock_says(faulty_function: Faulty) -> None:
    faulty = faulty_function
    shift_s = {"ahead": 3600.0, "behind": -3600.0}

    def worker(clock: str, launched_at_s: float, **env: str) -> subprocess.Popen[str]:
        launched = str(launched_at_s + shift_s[clock])
        return faulty.worker(TINY_CLOCK_S=str(shift_s[clock]), TUNER_LAUNCHED_AT=launched, TINY_TRIALS="1", **env)

    began_s = time.time()
    failing = worker("behind", began_s, TINY_MODE="bug", TINY_RETRIES="0")
    assert ended(failing) == 3, said(failing)
    # Of the same launch, on a machine whose clock is ahead: it counts them.
    late = worker("ahead", began_s, TINY_MODE="bug", TINY_RETRIES="0")
    assert ended(late) == 3, said(late)
    assert "the same error ended 3 trials in a row" in said(late)
    assert faulty.count(trials.c.trial_id) == 3, "it claimed none"
    # Of a later launch, on a machine whose clock is behind: it does not.
    mended = worker("behind", time.time())
    assert ended(mended) == 0, said(mended)
    check_study_after_faults(faulty.url, faulty.artifacts, 1, failed=3)


# Launches beside each other.


@pytest.mark.long
@pytest.mark.slow
def test_two_launches_of_one_study_share_its_budget(
    faulty: Faulty, quiet: dict[int, Any], wait_until: Callable[..., Any]
) -> None:
    start = faulty.folder / "start"
    start.mkdir()
    env = {"TINY_START_FOLDER": str(start), "TINY_TRIALS": "8", "TINY_PAUSE_S": "0.5"}
    both = [faulty.launch(**env) for _ in range(2)]
    wait_until(lambda: len(list(start.iterdir())) == 4)
    (start / "go").touch()

    assert [ended(launcher) for launcher in both] == [0, 0], [said(launcher) for launcher in both]

    for launcher in both:
        assert "8/8 trials" in said(launcher)
        assert "died" not in said(launcher)
    check_study_after_faults(faulty.url, faulty.artifacts, 8)
    assert set(map(tuple, endings_of(faulty.url).values())) == {("complete",)}
    launches = {rows[0].worker.rpartition(":")[0] for rows in attempts_of(faulty.url).values()}
    assert len(launches) == 2, "both had some of the trials"
    check_same(results(faulty.url), quiet, 8)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("command", ["worker", "launch"])
def test_a_worker_whose_study_has_changed_is_refused_and_disturbs_nobody(
    command: str, faulty: Faulty, wait_until: Callable[..., Any], quiet: dict[int, Any]
) -> None:
    changed = faulty.folder / "changed.py"
    changed.write_text((faulty.folder / "tiny.py").read_text().replace("uniform(0.0, 1.0)", "uniform(0.0, 2.0)"))
    hold = faulty.folder / "hold"
    hold.touch()
    running = faulty.worker(TINY_TRIALS="4", TINY_HOLD_FILE=str(hold), TUNER_WORKER="running")
    wait_until(lambda: faulty.count(leases.c.trial_id) == 1)

    refused = faulty.start(command, "changed.py", "--trials=99", TUNER_WORKER="refused")

    assert ended(refused) == 2
    assert "Traceback" not in said(refused)
    *before, last = said(refused).splitlines()
    assert last.startswith("tuner: study 'tiny' has changed since its first launch")
    assert "noise" in last
    # A launcher says first what it launches; it may have counted the trials.
    assert all("trials" in line or "workers on" in line for line in before)
    assert running.poll() is None, "it was refused while the other ran"
    hold.unlink()
    assert ended(running) == 0, said(running)
    assert "Traceback" not in said(running)
    assert table(faulty.url, budgets.c.trials) == [(4,)]
    assert table(faulty.url, workers.c.worker) == [("running",)]
    check_study_after_faults(faulty.url, faulty.artifacts, 4)
    check_same(results(faulty.url), quiet, 4)


# Trials that fail.


@pytest.mark.slow
def test_a_failed_trial_is_tried_again_under_its_number_and_does_not_use_the_budget(
    after_failures: Faulty, quiet: dict[int, Any]
) -> None:
    tries = attempts_of(after_failures.url)
    assert {number: [attempt.ending for attempt in rows] for number, rows in tries.items()} == {
        0: ["complete"],
        1: ["failed", "failed", "failed"],
        2: ["failed", "complete"],
        3: ["complete"],
        4: ["failed", "failed", "complete"],
        5: ["complete"],
    }
    for number, rows in tries.items():
        for count, attempt in enumerate(rows, 1):
            planted = f"RuntimeError: planted failure {count} of trial {number}\n"
            assert (attempt.error or "").endswith(planted if attempt.ending == Outcome.FAILED else "")
            assert (attempt.error is None) == (attempt.ending == Outcome.COMPLETE)
    check_study_after_faults(after_failures.url, after_failures.artifacts, 5, failed=1)
    check_same(results(after_failures.url), quiet, 5)


# Signals to a worker without a launcher.


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_asked_to_end_saves_and_another_goes_on_from_there(
    sent: signal.Signals, faulty: Faulty, wait_until: Callable[..., Any], quiet: dict[int, Any]
) -> None:
    notes = faulty.folder / "steps"
    env = {"TINY_TRIALS": "2", "TINY_SAVE_S": "60", "TINY_STEPS_FILE": str(notes)}
    first = faulty.worker(TINY_STEP_S="0.4", **env)
    wait_until(lambda: notes.exists() and len(notes.read_text().splitlines()) >= 4)
    first.send_signal(sent)

    assert ended(first, 10) == 130

    assert "Traceback" not in said(first)
    assert said(first).splitlines()[-1] == "tuner: trial 0: released"
    assert table(faulty.url, leases.c.worker, leases.c.expires_at_s) == [(None, 0.0)]
    second = faulty.worker(**env)
    assert ended(second) == 0, said(second)
    assert endings_of(faulty.url) == {0: ["preempted", "complete"], 1: ["complete"]}
    steps: dict[str, list[int]] = {}
    for line in notes.read_text().splitlines():
        pid, trial, step = line.split()
        if trial == "0":
            steps.setdefault(pid, []).append(int(step))
    before, after = steps.values()
    assert after[0] == before[-1] + 1, "no step is trained twice"
    check_study_after_faults(faulty.url, faulty.artifacts, 2)
    check_same(results(faulty.url), quiet, 2)


@pytest.mark.slow
def test_a_second_signal_ends_a_worker_at_once(
    faulty_function: Faulty, wait_until: Callable[..., Any], quiet_function: dict[int, Any]
) -> None:
    faulty = faulty_function
    notes = faulty.folder / "steps"
    env = {"TINY_TRIALS": "1", "TINY_STEPS_FILE": str(notes)}
    worker = faulty.worker(TINY_PAUSE_S="1000", **env)
    wait_until(notes.exists)
    worker.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.5)
    worker.send_signal(signal.SIGINT)

    assert ended(worker) == 130

    assert "Traceback" not in said(worker)
    assert endings_of(faulty.url) == {0: ["preempted"]}, "it gave its trial back nevertheless"
    faulty.finish(1)
    check_study_after_faults(faulty.url, faulty.artifacts, 1)
    check_same(results(faulty.url), quiet_function, 1)


def read_until(process: subprocess.Popen[str], words: str) -> None:
    """Read a process's output up to a line with these words."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return
    raise AssertionError("".join(lines))


@pytest.mark.long
@pytest.mark.slow
def test_a_worker_that_waits_for_another_ends_at_once(faulty: Faulty, wait_until: Callable[..., Any]) -> None:
    env = {"TINY_TRIALS": "1"}
    holds = faulty.worker(TINY_STEP_S="1000", **env)
    wait_until(faulty.is_held)
    idle = faulty.worker(**env)
    read_until(idle, "waiting for a trial of another worker")
    idle.send_signal(signal.SIGTERM)

    assert ended(idle) == 130

    assert "Traceback" not in said(idle)
    assert holds.poll() is None
    assert all(len(rows) == 1 for rows in attempts_of(faulty.url).values())
    holds.kill()
    holds.wait()


@pytest.mark.slow
def test_a_worker_that_waits_for_its_database_ends_soon(
    faulty_function_on_postgres: Faulty, postgres_server: str
) -> None:
    faulty = faulty_function_on_postgres
    env = {"TINY_TRIALS": "2"}
    worker = faulty.worker(TINY_PAUSE_S="0.5", TINY_LEASE_S="2", **env)
    read_until(worker, "trial 0, epoch 1")
    allow_connections(postgres_server, faulty.url, False)
    read_until(worker, "trial 0, epoch 3")
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(1.5)  # it has trained to the end, and waits to say so
    worker.send_signal(signal.SIGTERM)

    status = ended(worker)
    allow_connections(postgres_server, faulty.url, True)

    assert status == 130, said(worker)
    assert "Traceback" not in said(worker)
    faulty.finish(2)
    check_study_after_faults(faulty.url, faulty.artifacts, 2)


@pytest.mark.slow
def test_epochs_of_a_time_without_database_are_told_by_the_worker_that_goes_on(
    faulty_function_on_postgres: Faulty, postgres_server: str
) -> None:
    faulty = faulty_function_on_postgres
    worker = faulty.worker(TINY_TRIALS="1", TINY_PAUSE_S="0.5", TINY_LEASE_S="2")
    read_until(worker, "trial 0, epoch 1")
    allow_connections(postgres_server, faulty.url, False)
    read_until(worker, "trial 0, epoch 3")
    worker.kill()
    assert ended(worker) == -signal.SIGKILL
    allow_connections(postgres_server, faulty.url, True)

    faulty.finish(1)

    check_study_after_faults(faulty.url, faulty.artifacts, 1)


def allow_connections(server: str, url: str, are_allowed: bool) -> None:
    """Let a database of a server be reached, or not; sessions that it has are ended then."""
    name = sqlalchemy.make_url(url).database
    engine = sqlalchemy.create_engine(
        sqlalchemy.make_url(server).set(drivername="postgresql+psycopg2"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {str(are_allowed).lower()}")
        if not are_allowed:
            connection.exec_driver_sql(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
            )
    engine.dispose()
