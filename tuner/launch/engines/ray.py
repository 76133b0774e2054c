"""Ray: an actor for each worker, which runs it as a child process. See `ray_driver` for what the actors do."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tuner.errors import UsageError
from tuner.launch.engines.engine import EngineError, Job, JobState, Part, job_name
from tuner.launch.engines.log_file import LogFile
from tuner.launch.engines.ray_link import ClusterGone, link_to, what_is_missing
from tuner.launch.engines.settings import Form, parse, parse_options
from tuner.output.log import tell
from tuner.output.sanitize import one_line

_GRACE_S = 30
"""Seconds between SIGTERM and SIGKILL."""
_SUPERVISOR = str(Path(__file__).parents[2] / "worker" / "supervisor.py")
_UNITS = {unit: 1024**power for power, unit in enumerate(("", "Ki", "Mi", "Gi", "Ti"))}
_NAME = r"[A-Za-z][A-Za-z0-9_.:-]*"
_AMOUNT = r"(?:\d+\.?\d*|\.\d+)"
_Number = TypeVar("_Number", int, float)
_TAKEN = frozenset({"CPU", "GPU", "memory", "object_store_memory"})


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """The settings of `options`.

    Attributes:
        address: `auto` or HOST:PORT of a cluster; `local` starts one that ends with the launch; see `address_of`.
        cpus: The cores of each worker.
        memory: The memory of each worker in bytes, of which Ray only keeps account; None requests none.
        device: The resource of which each worker gets `devices_per_worker`.
        resources: More resources of each worker.
    """

    address: str = "local"
    cpus: float = 1.0
    memory: int | None = None
    device: str = "GPU"
    resources: Mapping[str, float] = field(default_factory=dict[str, float])

    def bundle(self, devices: int) -> dict[str, float]:
        """Return what a worker with so many devices takes of a node, by Ray's names."""
        return {
            "CPU": self.cpus,
            **({self.device: devices} if devices else {}),
            **({"memory": self.memory} if self.memory else {}),
            **self.resources,
        }


def parse_settings(options: Mapping[str, str]) -> RaySettings:
    """Return the settings of options.

    Raises:
        UsageError: an option is unknown or wrong.
    """
    settings = RaySettings(**parse_options("ray", options, _FORMS))
    if settings.device in settings.resources:
        raise UsageError(f"the option 'resources' must not have {settings.device}: use `devices_per_worker`")
    return settings


def address_of(options: Mapping[str, str]) -> str:
    """Return the address of the cluster: the option, else `$RAY_ADDRESS`, else `local`.

    Raises:
        UsageError: `$RAY_ADDRESS` is not an address of a cluster.
    """
    variable = os.environ.get("RAY_ADDRESS")
    if "address" in options or not variable:
        return options.get("address", "local")
    try:
        return parse("RAY_ADDRESS", variable, _FORMS["address"])
    except UsageError as error:
        raise UsageError(f"{error}; pass `options` address=auto, or address=local for a Ray of its own") from None


def _cores(value: str) -> float:
    return _positive("cpus", float(value), value)


def _bytes(value: str) -> int:
    number = value.rstrip("KMGTi")
    return _positive("memory", int(float(number) * _UNITS[value[len(number) :]]), value)


def _positive(name: str, number: _Number, value: str) -> _Number:
    if number == 0:
        raise UsageError(f"the option {name!r} must be more than 0: got {value!r}")
    return number


def _resources(value: str) -> dict[str, float]:
    found = {name: float(amount) for name, amount in (pair.rsplit("=", 1) for pair in value.split(","))}
    taken = sorted(_TAKEN & set(found))
    if taken:
        raise UsageError(
            f"the option 'resources' must not have {taken[0]}: use the options cpus and memory, and "
            "`devices_per_worker`"
        )
    return found


_FORMS: dict[str, Form] = {
    "address": Form(
        re.compile(r"auto|local|[A-Za-z0-9_.-]+:\d{1,5}|\[[0-9A-Fa-f:.]+\]:\d{1,5}"),
        "auto, local, or HOST:PORT of a cluster that this machine has joined with `ray start`",
    ),
    "cpus": Form(re.compile(_AMOUNT), "a number of cores such as 4", _cores),
    "memory": Form(re.compile(rf"{_AMOUNT}(?:[KMGT]i)?"), "an amount such as 16Gi", _bytes),
    "device": Form(re.compile(_NAME), "a resource such as GPU or TPU"),
    "resources": Form(
        re.compile(rf"{_NAME}={_AMOUNT}(?:,{_NAME}={_AMOUNT})*"), "NAME=AMOUNT, several separated by commas", _resources
    ),
}


class Ray:
    """Runs workers as children of actors."""

    shares_folders = True

    def check(self, job: Job) -> None:
        """See `Engine.check`."""
        missing = what_is_missing()
        if missing is not None:
            raise UsageError(missing)
        if job.hosts_per_worker > 1:
            raise UsageError(f"`hosts_per_worker` works with `on` slurm only: got {job.hosts_per_worker} with ray")
        parse_settings(job.options)
        address_of(job.options)

    def script(self, job: Job, workers: int) -> str:
        """See `Engine.script`."""
        shown = {"address": address_of(job.options), **_request(job, job_name(job), workers)}
        return json.dumps(shown, indent=2) + "\n"

    def submit(self, job: Job, workers: int, environment: Mapping[str, str]) -> Job:
        """See `Engine.submit`."""
        try:
            job.logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(f"cannot make the folder for logs {job.logs}: {error.strerror}") from None
        address = _place(job.parts[-1])[0] if job.parts else address_of(job.options)
        link, name = link_to(address), job_name(job)
        request = _request(job, name, workers)
        # A worker that was given no GPU must not take all of its node's.
        hidden = {} if "GPU" in request["bundle"] else {"CUDA_VISIBLE_DEVICES": ""}
        link.ask("submit", **request, environment={**hidden, **environment})
        return dataclasses.replace(job, parts=(*job.parts, Part(f"{link.address}/{name}", workers)))

    def scale(self, job: Job, workers: int, environment: Mapping[str, str]) -> Job:
        """See `Engine.scale`."""
        if workers > job.workers:
            return self.submit(job, workers - job.workers, environment)
        surplus, parts = job.workers - workers, list(job.parts)
        for at, part in reversed(list(enumerate(parts))):
            taken = min(surplus, part.workers)
            if taken:
                address, _ = _place(part)
                link_to(address).ask("stop", names=_names(part)[part.workers - taken :])
                parts[at] = Part(part.id, part.workers - taken)
                surplus -= taken
        return dataclasses.replace(job, parts=tuple(parts))

    def state(self, job: Job) -> JobState:
        """See `Engine.state`."""
        found = [_state(part) for part in job.parts if part.workers]
        ended = [one for state in found for one in state["ended"]]
        state = JobState(sum(one["pending"] for one in found), sum(one["running"] for one in found))
        if not state.is_over:
            return state
        for note in {one["note"] for one in ended if one["note"] is not None}:
            tell(one_line(note), "worker", "warning")
        return dataclasses.replace(state, statuses=tuple(one["status"] for one in ended))

    def cancel(self, job: Job) -> None:
        """See `Engine.cancel`."""
        for part in job.parts:
            if part.workers:
                try:
                    link_to(_place(part)[0]).ask("stop", names=_names(part))
                except ClusterGone:  # and its workers with it
                    continue

    def passes_url(self, job: Job) -> bool:
        """See `Engine.passes_url`."""
        return True

    def ends_with_launch(self, job: Job) -> bool:
        """See `Engine.ends_with_launch`."""
        return address_of(job.options) == "local"

    def logs(self, job: Job, workers: Sequence[str]) -> list[LogFile]:
        """See `Engine.logs`."""
        wanted = {_actor(worker) for worker in workers}
        names = {_place(part)[1] for part in job.parts}
        found = [
            (path, name, int(number))
            for path in job.logs.glob("*.log")
            for name, _, number in [path.stem.rpartition("-")]
            if name in names and number.isdecimal() and (not wanted or path.stem in wanted)
        ]
        return [LogFile(path) for path, _, _ in sorted(found, key=lambda one: one[1:])]

    def log_place(self, job: Job) -> str:
        """See `Engine.log_place`."""
        return str(job.logs)


def _request(job: Job, name: str, workers: int) -> dict[str, Any]:
    """Return the request to Ray, except for the environment."""
    command = [sys.executable, "-I", "-S", _SUPERVISOR, str(_GRACE_S), *job.command]
    return {
        "names": _names(Part(name, workers)),
        "bundle": parse_settings(job.options).bundle(job.devices_per_worker),
        "command": command,
        "folder": str(job.folder),
        "logs": str(job.logs),
    }


def _place(part: Part) -> tuple[str, str]:
    """Return the address of a part's cluster, and the beginning of its actors' names."""
    address, _, name = part.id.rpartition("/")
    return address, name


def _names(part: Part) -> list[str]:
    """Return the names of a part's actors."""
    return [f"{part.id.rpartition('/')[2]}-{number}" for number in range(1, part.workers + 1)]


def _state(part: Part) -> dict[str, Any]:
    try:
        return link_to(_place(part)[0]).ask("state", names=_names(part))
    except ClusterGone:
        return {"pending": 0, "running": 0, "ended": []}


def _actor(worker: str) -> str:
    """Return the actor of a worker's name, which is `HOST:ACTOR.PROCESS.START`."""
    return worker.rpartition(":")[2].partition(".")[0]
