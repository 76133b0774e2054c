"""Slurm: an array job, each element of which runs one worker.

Slurm sends its signals (preemption, time limit) to the step that `srun` starts, not to the batch script. A script that
ends by itself counts as completed and is not started again, so it asks for that with `scontrol requeue`: after a
preemption, at the time limit, and if the database could not be reached. Of an element that is cancelled, `Requeue=0` is
set first; Slurm then refuses to start it again.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

from tuner.errors import UsageError
from tuner.launch.engines.engine import EngineError, Job, JobState, Part
from tuner.launch.engines.log_file import LogFile
from tuner.notify.receivers import VARIABLE as NOTIFY
from tuner.output.sanitize import one_line

SIGNAL_S = 60
"""Seconds before the time limit at which workers are asked to stop; Slurm may do so up to a minute earlier."""
_COMMAND_S = 60.0
"""Seconds that a command of Slurm may take."""
_STOP_S = 30.0
"""Seconds that workers may take to give back their trials before the job is cancelled."""
_GONE = re.compile(r"Invalid job id|already completing or completed|has already finished|not running")
"""What Slurm says of a job that it does not know any more, or that has nothing to signal."""
_SET = "array chdir error export gpus-per-node job-name nodes ntasks ntasks-per-node open-mode output requeue signal"
_OURS = frozenset(f"{_SET} clusters export-file no-requeue parsable quiet test-only wait wrap".split(" "))
"""Options of sbatch that the script sets itself, or that would change what sbatch does."""
_VARIABLES = frozenset(f"SBATCH_{name.upper().replace('-', '_')}" for name in _OURS) | {"SBATCH_ARRAY_INX"}
"""Variables of sbatch's environment that override a script's options."""

_SPECIAL = frozenset("'\"\\\\#")
"""Characters that sbatch does not read literally."""

SCRIPT = """\
#!/bin/bash
{directives}

# One worker of study {study}. TUNER_STORAGE must be in the environment in which this is submitted.
element="${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
if [ -n "$SLURM_CPUS_PER_TASK" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

start=0 crashes=0
while :; do
  start=$((start + 1)) began=$SECONDS
  export TUNER_WORKER="$SLURMD_NODENAME:$element.${{SLURM_RESTART_COUNT:-0}}.$start"
  {srun} {command}
  status=$?
  case $status in 0|2|3|75|130|143) break ;; esac
  crashes=$((SECONDS - began >= 600 ? 1 : crashes + 1))
  echo "worker ended with status $status, crash $crashes of 4 in a row"
  if [ $crashes -ge 4 ]; then break; fi
done

field() {{
  SLURM_TIME_FORMAT=standard scontrol show job --oneliner "$element" | sed -n "s/.* $1=\\([0-9][^ ]*\\) .*/\\1/p"
}}

is_preempted() {{ [[ -n $(field PreemptTime) && ! $(field PreemptTime) < $(field StartTime) ]]; }}

is_out_of_time() {{
  local end=$(field EndTime)
  [[ -n $end && $(($(date -d "$end" +%s) - $(date +%s))) -le {margin_s} ]]
}}

# 130, or 143 while it was starting: asked to stop. 75: the database could not be reached.
if [[ $status = 75 ]] || {{ [[ $status = 130 || $status = 143 ]] && {{ is_preempted || is_out_of_time; }}; }}; then
  echo "worker ended with status $status; back to the queue"
  # Slurm ends this script. It could overlook a process that the script starts at that moment, hence `exec`. A cancelled
  # job is not taken back.
  scontrol requeue "$element" && exec sleep 600
fi
exit $status
"""


_SRUN = "srun --ntasks=1"
_SRUN_GROUP = "srun --nodes={hosts} --ntasks={hosts} --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=60"
"""Ranks end by themselves when one has ended, and rank 0 gives back its trial before; `--wait` ends what is left."""
_GROUP = ' --hosts={hosts} --coordinator="$(hostname):$((16384 + RANDOM % 16384))"'
"""This script runs on the first node, as rank 0 does. A new start uses another port than the one before."""


class Slurm:
    """Runs workers as elements of array jobs."""

    shares_folders = True

    def check(self, job: Job) -> None:
        """See `Engine.check`."""
        for name, value in job.options.items():
            if not re.fullmatch(r"[a-z][a-z-]*", name):
                raise UsageError(f"an option for slurm must be a long option of sbatch such as partition: got {name!r}")
            if name in _OURS:
                raise UsageError(f"the option {name!r} of sbatch is set by tuner: leave it out")
            if one_line(value) != value or value != value.strip() or set(value) & _SPECIAL:
                raise UsageError(
                    f"the option {name!r} must be one line without quotes, '#' and backslashes: got {value!r}"
                )
        for path in (job.logs, job.folder):
            if one_line(str(path)) != str(path) or set(str(path)) & {"%", *_SPECIAL}:
                raise UsageError(f"a folder for Slurm must have no quotes, '#', '%' and backslashes: got {str(path)!r}")

    def script(self, job: Job, workers: int) -> str:
        """See `Engine.script`."""
        options = {
            "job-name": f"tuner-{re.sub(r'[^A-Za-z0-9_.-]', '-', job.study)}",
            "array": f"1-{workers}",
            "nodes": str(job.hosts_per_worker),
            "ntasks": str(job.hosts_per_worker),
            **({"ntasks-per-node": "1"} if job.hosts_per_worker > 1 else {}),
            **({"gpus-per-node": str(job.devices_per_worker)} if job.devices_per_worker else {}),
            "chdir": str(job.folder),
            "output": f"{job.logs}/%A_%a.log",
            "open-mode": "append",
            "signal": f"TERM@{SIGNAL_S}",
            "requeue": "",
            **job.options,
        }
        group = _GROUP.format(hosts=job.hosts_per_worker) if job.hosts_per_worker > 1 else ""
        lines = [f"#SBATCH --{name}" + (f"={_quoted(value)}" if value else "") for name, value in options.items()]
        return SCRIPT.format(
            directives="\n".join(lines),
            study=one_line(job.study),
            srun=(_SRUN if job.hosts_per_worker == 1 else _SRUN_GROUP.format(hosts=job.hosts_per_worker)),
            command=shlex.join(job.command) + group,
            margin_s=2 * SIGNAL_S + 15,
        )

    def submit(self, job: Job, workers: int, environment: Mapping[str, str]) -> Job:
        """See `Engine.submit`."""
        try:
            job.logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(f"cannot make the folder for logs {job.logs}: {error.strerror}") from None
        inherited = {
            name: value for name, value in os.environ.items() if name not in _VARIABLES | _overriding(job) | {NOTIFY}
        }
        words = ["sbatch", "--parsable", "--export=ALL"]
        said = _run(words, input=self.script(job, workers), environment={**inherited, **environment})
        number = said.strip()
        if not number.isdecimal():
            raise EngineError(f"sbatch did not return a job's number: {one_line(said)}")
        return dataclasses.replace(job, parts=(*job.parts, Part(number, workers)))

    def scale(self, job: Job, workers: int, environment: Mapping[str, str]) -> Job:
        """See `Engine.scale`."""
        if workers > job.workers:
            return self.submit(job, workers - job.workers, environment)
        surplus, parts = job.workers - workers, list(job.parts)
        cancelled: list[str] = []
        for at, part in reversed(list(enumerate(parts))):
            taken = min(surplus, part.workers)
            if taken:
                cancelled += [f"{part.id}_{number}" for number in range(part.workers - taken + 1, part.workers + 1)]
                parts[at] = Part(part.id, part.workers - taken)
                surplus -= taken
        if cancelled:
            _cancel(cancelled)
        return dataclasses.replace(job, parts=tuple(parts))

    def state(self, job: Job) -> JobState:
        """See `Engine.state`."""
        ids = [part.id for part in job.parts]
        found = _state(ids)
        return dataclasses.replace(found, statuses=_statuses(ids)) if found.is_over else found

    def cancel(self, job: Job) -> None:
        """See `Engine.cancel`."""
        _cancel([part.id for part in job.parts])

    def passes_url(self, job: Job) -> bool:
        """See `Engine.passes_url`."""
        return True

    def ends_with_launch(self, job: Job) -> bool:
        """See `Engine.ends_with_launch`."""
        return False

    def logs(self, job: Job, workers: Sequence[str]) -> list[LogFile]:
        """See `Engine.logs`."""
        wanted = {_element(worker) for worker in workers}
        ids = {part.id for part in job.parts}
        found = [
            path
            for path in job.logs.glob("*_*.log")
            if path.stem.partition("_")[0] in ids and (not wanted or path.stem in wanted)
        ]
        return [LogFile(path) for path in sorted(found, key=lambda path: [int(part) for part in path.stem.split("_")])]

    def log_place(self, job: Job) -> str:
        """See `Engine.log_place`."""
        return str(job.logs)


def _overriding(job: Job) -> set[str]:
    """Return the variables that would override the job's options."""
    return {f"SBATCH_{name.upper().replace('-', '_')}" for name in job.options}


def _element(worker: str) -> str:
    """Return the array element of a worker's name, which is `HOST:JOB_ELEMENT.RESTART.START`."""
    return worker.rpartition(":")[2].partition(".")[0]


def _quoted(value: str) -> str:
    """Quote a value for an #SBATCH line, if it has spaces."""
    return f'"{value}"' if " " in value else value


def _cancel(ids: Sequence[str]) -> None:
    """Ask the workers of jobs or elements to give back their trials, wait for them, then cancel what is left."""
    for one in ids:
        _run(["scontrol", "update", f"JobId={one}", "Requeue=0"], may_be_gone=True)
    _run(["scancel", "--state=PENDING", *ids], may_be_gone=True)
    _run(["scancel", "--signal=TERM", *ids], may_be_gone=True)
    end_s = time.monotonic() + _STOP_S
    while _state(ids).running and time.monotonic() < end_s:
        time.sleep(0.5)
    _run(["scancel", *ids], may_be_gone=True)


def _state(ids: Sequence[str]) -> JobState:
    words = ["squeue", "--noheader", "--array", f"--jobs={','.join(ids)}", "--format=%T"]
    states = _run(words, may_be_gone=True).split()
    pending = states.count("PENDING")
    return JobState(pending, len(states) - pending)


def _statuses(ids: Sequence[str]) -> tuple[int, ...]:
    """Return the exit statuses of elements that ended within the last minutes; later Slurm forgets them."""
    said = [_run(["scontrol", "show", "job", "--oneliner", one], may_be_gone=True) for one in ids]
    return tuple(_status(line) for text in said for line in text.splitlines() if "JobState=" in line)


def _status(line: str) -> int:
    """Return the exit status of an element, from its line of `scontrol show job`."""
    code = re.search(r"(?<!Derived)ExitCode=(\d+):(\d+)", line)
    status, number = (int(code[1]), int(code[2])) if code else (0, 0)
    if status or number:
        return status or 128 + number
    return 0 if "JobState=COMPLETED" in line else 128 + signal.SIGTERM  # cancelled before it began, or out of time


def _run(
    words: Sequence[str],
    *,
    input: str | None = None,
    environment: Mapping[str, str] | None = None,
    may_be_gone: bool = False,
) -> str:
    """Run a command of Slurm; return its output.

    Args:
        words: The command.
        input: What it reads.
        environment: Its environment; that of this process if None.
        may_be_gone: Whether it is no error if jobs have ended, and Slurm does not know them any more.
    """
    try:
        done = subprocess.run(
            words,
            input=input or "",
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_S,
        )
    except FileNotFoundError:
        raise EngineError(f"no command {words[0]!r}: run this on a machine with Slurm, such as a login node") from None
    except OSError as error:
        raise EngineError(f"cannot run {words[0]!r}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise EngineError(f"`{words[0]}` did not answer within {_COMMAND_S:.0f} s") from None
    errors = done.stderr.strip().splitlines()
    is_failed = done.returncode != 0 and not (may_be_gone and errors and all(_GONE.search(line) for line in errors))
    if is_failed:
        raise EngineError(f"`{words[0]}` failed: {one_line(done.stderr.strip() or done.stdout.strip())}")
    return done.stdout
