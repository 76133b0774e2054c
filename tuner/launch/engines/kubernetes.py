"""Kubernetes: a Job whose pods each run one worker.

The Job is a work queue, see `pods.job_manifest`. Kubernetes starts a new pod for one that was evicted, preempted or
asked to stop; it deletes the pods that are too many, and a worker that gets SIGTERM gives back its trial.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tuner.errors import UsageError
from tuner.launch.engines.cluster import Address, Cluster, exit_statuses, pod_name, what_is_missing
from tuner.launch.engines.engine import Job, JobState, Part, WorkerLog, job_name
from tuner.launch.engines.pod_log import PodLog
from tuner.launch.engines.pods import (
    as_yaml,
    check_artifacts,
    job_manifest,
    parse_settings,
    secret_manifest,
)

if TYPE_CHECKING:
    from kubernetes.client import V1Job

_FLAG = "--artifacts="
_END_S = 10.0
"""Seconds that workers may take to end by themselves if one has ended because the work is done."""
_STOP_S = 40.0
"""Seconds that pods may take to end after SIGTERM; Kubernetes gives them 30."""
_ASK_S = 0.5


class Kubernetes:
    """Runs workers as pods of Jobs."""

    shares_folders = False

    def check(self, job: Job) -> None:
        """See `Engine.check`."""
        missing = what_is_missing()
        if missing is not None:
            raise UsageError(missing)
        if job.hosts_per_worker > 1:
            raise UsageError(
                f"`hosts_per_worker` works with `on` slurm only: got {job.hosts_per_worker} with kubernetes; apply a "
                "manifest such as the one in docs/guide/several-hosts.md"
            )
        settings = parse_settings(job.options)
        (artifacts,) = [word.removeprefix(_FLAG) for word in job.command if word.startswith(_FLAG)]
        check_artifacts(artifacts, settings)

    def script(self, job: Job, workers: int) -> str:
        """See `Engine.script`."""
        settings = parse_settings(job.options)
        text = as_yaml(job_manifest(job, settings, workers))
        if settings.secret is not None:
            return text
        return f"# A launch also makes the Secret {job_name(job)}; its key `url` has the storage's URL.\n{text}"

    def submit(self, job: Job, workers: int, environment: Mapping[str, str]) -> Job:
        """See `Engine.submit`."""
        cluster, settings = Cluster(), parse_settings(job.options)
        address = Address(settings.namespace or cluster.namespace, job_name(job))
        with contextlib.ExitStack() as undo:
            if settings.secret is None:
                secret = secret_manifest(job, settings, environment["TUNER_STORAGE"])
                cluster.create_secret(address.namespace, secret)
                undo.callback(cluster.delete_secret, address)
            created = cluster.create_job(address.namespace, job_manifest(job, settings, workers))
            undo.callback(cluster.delete_job, address)
            if settings.secret is None:
                cluster.give_secret(address, created)
            undo.pop_all()
        return dataclasses.replace(job, parts=(*job.parts, Part(str(address), workers)))

    def scale(self, job: Job, workers: int, environment: Mapping[str, str]) -> Job:
        """See `Engine.scale`."""
        cluster, address = Cluster(), Address.parse(job.parts[-1].id)
        if workers and (workers < job.workers or _takes_pods(cluster.job(address))):
            cluster.resize(address, workers)
            return dataclasses.replace(job, parts=(*job.parts[:-1], Part(str(address), workers)))
        _cancel(cluster, address)
        return self.submit(job.closed(), workers, environment) if workers else job.closed()

    def state(self, job: Job) -> JobState:
        """See `Engine.state`."""
        cluster = Cluster()
        addresses = [Address.parse(part.id) for part in job.parts]
        states = [_state(cluster.job(address)) for address in addresses]
        found = JobState(sum(state.pending for state in states), sum(state.running for state in states))
        if not found.is_over:
            return found
        statuses = [
            status
            for state, address in zip(states, addresses, strict=True)
            for status in state.statuses or exit_statuses(cluster.pods(address))
        ]
        return dataclasses.replace(found, statuses=tuple(statuses))

    def cancel(self, job: Job) -> None:
        """See `Engine.cancel`."""
        cluster = Cluster()
        for part in job.parts:
            _cancel(cluster, Address.parse(part.id))

    def passes_url(self, job: Job) -> bool:
        """See `Engine.passes_url`."""
        return "secret" not in job.options

    def ends_with_launch(self, job: Job) -> bool:
        """See `Engine.ends_with_launch`."""
        return False

    def logs(self, job: Job, workers: Sequence[str]) -> list[WorkerLog]:
        """See `Engine.logs`."""
        cluster = Cluster()
        found: list[WorkerLog] = []
        for part in job.parts:
            address = Address.parse(part.id)
            names = [pod_name(pod) for pod in cluster.pods(address)]
            found += [PodLog(cluster, address.namespace, name) for name in names if name in (workers or names)]
        return found

    def log_place(self, job: Job) -> str:
        """See `Engine.log_place`."""
        return f"the pods of {job.name}"


def _ended(job: V1Job | None) -> str | None:
    """Return `Complete` or `Failed` if a Job has ended so, or `gone` if there is none."""
    if job is None:
        return "gone"
    conditions = (job.status and job.status.conditions) or ()
    return next((one.type for one in conditions if one.type in ("Complete", "Failed") and one.status == "True"), None)


def _has_success(job: V1Job | None) -> bool:
    """Return whether a pod has ended with exit status 0, after which no more are started."""
    return bool(job and job.status and job.status.succeeded)


def _takes_pods(job: V1Job | None) -> bool:
    """Return whether new pods would be started for a Job."""
    return _ended(job) is None and not _has_success(job)


def _state(job: V1Job | None) -> JobState:
    """Return a Job's state; the exit statuses only of one that a worker has ended because the work is done."""
    if job is None or job.status is None or _ended(job) is not None:
        is_complete = job is not None and _ended(job) == "Complete"
        return JobState(0, 0, (0,) if is_complete else ())
    active, ready = job.status.active or 0, job.status.ready or 0
    wanted = active if _has_success(job) else max(active, (job.spec and job.spec.parallelism) or 0)
    running = min(active, ready) + (job.status.terminating or 0)
    found = JobState(max(0, wanted - min(active, ready)), running)
    return dataclasses.replace(found, statuses=(0,)) if found.is_over and _has_success(job) else found


def _cancel(cluster: Cluster, address: Address) -> None:
    """End a Job's pods with SIGTERM and wait for them; delete the Job, unless it ends by itself.

    A Job that has ended stays for a day, with the logs of its pods.
    """
    if _has_success(cluster.job(address)):
        _wait(cluster, address, _END_S)
    if _ended(cluster.job(address)) is None:
        cluster.resize(address, 0)
        _wait(cluster, address, _STOP_S)
    if _ended(cluster.job(address)) is None:
        cluster.delete_job(address)


def _wait(cluster: Cluster, address: Address, most_s: float) -> None:
    """Wait until a Job has ended; if none of its workers has ended the work, until it has no pods left."""
    end_s = time.monotonic() + most_s
    while time.monotonic() < end_s:
        job = cluster.job(address)
        if _ended(job) is not None or (_state(job).is_over and not _has_success(job)):
            return
        time.sleep(_ASK_S)
