"""What is submitted to Slurm, and what is asked of it: with commands that note how they are called."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuner.errors import UsageError
from tuner.launch.engines.choose import make_engine
from tuner.launch.engines.engine import EngineError, Job, JobState, Part
from tuner.launch.engines.slurm import Slurm


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(
        key="k",
        engine="slurm",
        study="a study",
        command=("python", "-m", "tuner", "worker", "/home/me/my study.py"),
        folder=tmp_path,
        logs=tmp_path / "logs",
        devices_per_worker=2,
        options={"partition": "gpu", "exclusive": "", "comment": "two words"},
        launched_at_s=1.0,
        parts=(Part("7", 3), Part("9", 2)),
    )


class Commands:
    """Commands of Slurm that note their words and what they read, and print what a test says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder / "bin", folder / "calls"
        self.folder.mkdir()
        for name in ("sbatch", "squeue", "scancel", "scontrol"):
            self.says(name)

    def says(self, name: str, output: str = "", errors: str = "", status: int = 0) -> None:
        path = self.folder / name
        path.write_text(
            "#!/bin/sh\n"
            f'printf "%s\\n" "{name} $*" >> {shlex.quote(str(self.calls))}\n'
            f"if [ {name} = sbatch ]; then cat > {shlex.quote(str(self.folder / 'script'))}; env > "
            f"{shlex.quote(str(self.folder / 'env'))}; fi\n"
            f"printf '%s' {shlex.quote(output)}\nprintf '%s' {shlex.quote(errors)} >&2\nexit {status}\n"
        )
        path.chmod(0o755)

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands(tmp_path)
    monkeypatch.setenv("PATH", f"{made.folder}{os.pathsep}{os.environ['PATH']}")
    return made


def test_a_script_asks_for_what_the_job_says(job: Job, tmp_path: Path) -> None:
    text = Slurm().script(job, 4)
    directives = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert directives == [
        "job-name=tuner-a-study",
        "array=1-4",
        "nodes=1",
        "ntasks=1",
        "gpus-per-node=2",
        f"chdir={tmp_path}",
        f"output={tmp_path}/logs/%A_%a.log",
        "open-mode=append",
        "signal=TERM@60",
        "requeue",
        "partition=gpu",
        "exclusive",
        'comment="two words"',
    ]
    assert "  srun --ntasks=1 python -m tuner worker '/home/me/my study.py'\n" in text
    assert "gpus" not in Slurm().script(dataclasses.replace(job, devices_per_worker=0), 4)


def test_a_worker_on_several_hosts_is_a_step_of_as_many_tasks(job: Job) -> None:
    text = Slurm().script(dataclasses.replace(job, hosts_per_worker=3), 4)

    directives = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert directives[1:6] == ["array=1-4", "nodes=3", "ntasks=3", "ntasks-per-node=1", "gpus-per-node=2"]
    (line,) = [line for line in text.splitlines() if line.startswith("  srun ")]
    assert line == (
        "  srun --nodes=3 --ntasks=3 --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=60 python -m tuner worker "
        "'/home/me/my study.py' --hosts=3 --coordinator=\"$(hostname):$((16384 + RANDOM % 16384))\""
    )


def test_a_job_of_an_earlier_version_has_one_host_for_each_worker(job: Job) -> None:
    stored = dataclasses.replace(job, hosts_per_worker=2).to_json()
    assert Job.from_json(stored).hosts_per_worker == 2
    del stored["hosts_per_worker"]
    assert Job.from_json(stored).hosts_per_worker == 1


SHOWN = {
    "": "",
    "preempted": "StartTime=2026-01-01T10:00:00 EndTime=Unknown PreemptTime=2026-01-01T10:05:00",
    "preempted before": "StartTime=2026-01-01T10:00:00 EndTime=Unknown PreemptTime=2026-01-01T09:00:00",
    "never preempted": "StartTime=2026-01-01T10:00:00 EndTime=Unknown PreemptTime=None",
}


def in_a_job() -> dict[str, str]:
    """Return the environment of a script in Slurm."""
    return {
        **os.environ,
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_RESTART_COUNT": "5",
        "SLURMD_NODENAME": "n1",
    }


@pytest.mark.parametrize(
    ("statuses", "shown", "starts", "is_requeued"),
    [
        ([0], "preempted", 1, False),
        ([2], "preempted", 1, False),
        ([3], "preempted", 1, False),
        ([75], "never preempted", 1, True),
        ([130], "preempted", 1, True),
        ([130], "preempted before", 1, False),
        ([130], "never preempted", 1, False),
        ([130], "at the time limit", 1, True),
        ([130], "before the time limit", 1, False),
        ([1, 137, 0], "never preempted", 3, False),
        ([1, 1, 1, 1], "preempted", 4, False),
        ([143], "preempted", 1, True),
        ([143], "never preempted", 1, False),
    ],
)
def test_the_script_acts_on_the_workers_exit_status(
    job: Job, commands: Commands, tmp_path: Path, statuses: list[int], shown: str, starts: int, is_requeued: bool
) -> None:
    if "time limit" in shown:
        left_s = 100 if shown.startswith("at") else 3600
        end = subprocess.run(["date", "-d", f"{left_s} seconds", "+%FT%T"], capture_output=True, text=True).stdout
        text = f"StartTime=2026-01-01T10:00:00 EndTime={end.strip()} PreemptTime=None"
    else:
        text = SHOWN[shown]
    (tmp_path / "statuses").write_text("\n".join(map(str, statuses)) + "\n")
    (commands.folder / "srun").write_text(
        f'#!/bin/sh\necho "srun $TUNER_WORKER" >> {commands.calls}\ncd {tmp_path}\n'
        "status=$(head -n 1 statuses); sed -i 1d statuses; exit $status\n"
    )
    (commands.folder / "srun").chmod(0o755)
    # As for a job that was cancelled: Slurm refuses to take it back, so the script goes on to its end.
    (commands.folder / "scontrol").write_text(
        f'#!/bin/sh\necho "scontrol $*" >> {commands.calls}\n'
        f'[ "$1" = show ] && echo "JobId=8 {text} Deadline=N/A" && exit\nexit 1\n'
    )
    script = tmp_path / "script.sh"
    script.write_text(Slurm().script(job, 1))

    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, env=in_a_job(), timeout=60)

    assert done.returncode == statuses[-1], done.stderr
    called = commands.called()
    names = [line.partition(" ")[2] for line in called if line.startswith("srun")]
    assert names == [f"n1:7_2.5.{at}" for at in range(1, starts + 1)]
    assert ("scontrol requeue 7_2" in called) == is_requeued


def test_a_script_that_waits_for_its_end_has_no_child_to_leave_behind(
    job: Job, commands: Commands, tmp_path: Path
) -> None:
    for name, text in (
        ("srun", "exit 75"),
        ("scontrol", "exit 0"),
        ("sleep", f'echo "sleep $* in $$" >> {commands.calls}'),
    ):
        (commands.folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands.folder / name).chmod(0o755)
    script = tmp_path / "script.sh"
    script.write_text(Slurm().script(job, 1))
    with subprocess.Popen(["bash", str(script)], env=in_a_job()) as process:
        process.wait(60)
    assert commands.called() == [f"sleep 600 in {process.pid}"]


def test_a_job_is_submitted_with_its_secrets_in_the_environment(job: Job, commands: Commands) -> None:
    commands.says("sbatch", "42\n")
    submitted = Slurm().submit(job, 3, {"TUNER_STORAGE": "postgresql://me:secret@db/d"})

    assert submitted.parts == (Part("7", 3), Part("9", 2), Part("42", 3))
    assert commands.called() == ["sbatch --parsable --export=ALL"]
    assert (commands.folder / "script").read_text() == Slurm().script(job, 3)
    assert "TUNER_STORAGE=postgresql://me:secret@db/d\n" in (commands.folder / "env").read_text()
    assert job.logs.is_dir()


@pytest.mark.parametrize(
    ("workers", "parts", "cancelled"),
    [
        (4, [("7", 3), ("9", 1)], ["9_2"]),
        (2, [("7", 2), ("9", 0)], ["9_1", "9_2", "7_3"]),
        (0, [("7", 0), ("9", 0)], ["9_1", "9_2", "7_1", "7_2", "7_3"]),
        (5, [("7", 3), ("9", 2)], []),
    ],
)
def test_the_last_workers_are_cancelled_and_cannot_come_back(
    job: Job, commands: Commands, workers: int, parts: list[Any], cancelled: list[str]
) -> None:
    scaled = Slurm().scale(job, workers, {})

    assert scaled.parts == tuple(Part(*part) for part in parts)
    called = commands.called()
    ids = " ".join(cancelled)
    expected = [
        *(f"scontrol update JobId={one} Requeue=0" for one in cancelled),
        *([f"scancel --state=PENDING {ids}", f"scancel --signal=TERM {ids}"] if cancelled else []),
        *(f"squeue --noheader --array --jobs={','.join(cancelled)} --format=%T" for _ in cancelled[:1]),
        *([f"scancel {ids}"] if cancelled else []),
    ]
    assert called == expected


def test_more_workers_are_a_new_part(job: Job, commands: Commands) -> None:
    commands.says("sbatch", "50\n")
    assert Slurm().scale(job, 8, {}).parts[-1] == Part("50", 3)


def test_states_are_counted(job: Job, commands: Commands) -> None:
    commands.says("squeue", "PENDING\nRUNNING\nCOMPLETING\nPENDING\nPENDING\n")
    assert Slurm().state(job) == JobState(3, 2)
    commands.says("squeue", errors="slurm_load_jobs error: Invalid job id specified\n", status=1)
    assert Slurm().state(job) == JobState(0, 0)
    assert Slurm().state(job).is_over
    ended = [
        "JobId=8 JobState=COMPLETED ExitCode=0:0 x=1",
        "JobId=9 JobState=FAILED DerivedExitCode=0:0 ExitCode=3:0",
        "JobId=10 JobState=CANCELLED ExitCode=0:15",
        "JobId=11 JobState=CANCELLED ExitCode=0:0",
        "JobId=12 JobState=TIMEOUT ExitCode=0:0",
    ]
    commands.says("scontrol", "\n".join(ended) + "\n")
    assert Slurm().state(job).statuses == (0, 3, 143, 143, 143) * 2, "of both parts"


@pytest.mark.parametrize("call", [Slurm().state, Slurm().cancel])
def test_a_slurm_that_does_not_answer_is_an_error(job: Job, commands: Commands, call: Callable[[Job], Any]) -> None:
    for name in ("squeue", "scontrol"):
        commands.says(name, errors="Unable to contact slurm controller (connect failure)\n", status=1)
    with pytest.raises(EngineError, match=r"`\w+` failed: Unable to contact slurm controller"):
        call(job)


def test_a_command_that_dies_without_a_word_says_nothing_of_the_job(job: Job, commands: Commands) -> None:
    commands.says("squeue", status=137)
    with pytest.raises(EngineError, match="`squeue` failed"):
        Slurm().state(job)


def test_a_machine_without_slurm_is_told(job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="no command 'sbatch': run this on a machine with Slurm, such as a login"):
        Slurm().submit(job, 1, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--partition": "gpu"}, "must be a long option of sbatch such as partition: got '--partition'"),
        ({"Partition": "gpu"}, "must be a long option of sbatch"),
        ({"clusters": "a"}, "the option 'clusters' of sbatch is set by tuner: leave it out"),
        ({"array": "1-9"}, "the option 'array' of sbatch is set by tuner: leave it out"),
        (
            {"comment": "two\nlines"},
            r"the option 'comment' must be one line without quotes, '#' and backslashes: got 'two\\nlines'",
        ),
    ],
)
def test_options_that_would_break_the_script_are_refused(job: Job, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Slurm().check(dataclasses.replace(job, options=options))


@pytest.mark.parametrize("name", ["it's", "a#b", 'a"b', "100%", "a\\b"])
def test_folders_that_sbatch_would_misread_are_refused(job: Job, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="a folder for Slurm must have no quotes"):
        Slurm().check(dataclasses.replace(job, folder=tmp_path / name))


def test_the_environment_does_not_override_the_script(
    job: Job, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SBATCH_PARTITION", "SBATCH_NO_REQUEUE", "SBATCH_SIGNAL", "SBATCH_WAIT", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "x")
    commands.says("sbatch", "42\n")
    Slurm().submit(job, 1, {})
    found = {line.partition("=")[0] for line in (commands.folder / "env").read_text().splitlines()}
    assert {name for name in found if name.startswith("SBATCH_")} == {"SBATCH_ACCOUNT"}, "the user's default"


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UsageError, match="`on` must be slurm, kubernetes or ray: got 'pbs'"):
        make_engine("pbs")


def test_a_job_is_the_same_after_json(job: Job) -> None:
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_logs_are_found_by_worker(job: Job) -> None:
    job.logs.mkdir()
    for name in ("7_1", "7_10", "7_2", "9_1", "8_1"):
        (job.logs / f"{name}.log").touch()
    assert [log.name for log in Slurm().logs(job, [])] == ["7_1", "7_2", "7_10", "9_1"]
    assert [log.name for log in Slurm().logs(job, ["host:7_1.0.1"])] == ["7_1"]
    assert [log.name for log in Slurm().logs(job, ["9_1"])] == ["9_1"]
