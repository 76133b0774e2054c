"""The manifest of a Job whose pods are workers, and the settings in it. Reaches no cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from tuner.errors import UsageError
from tuner.launch.engines.engine import Job, job_name
from tuner.launch.engines.settings import Form, parse_options
from tuner.object_storage import is_url
from tuner.trial.environment import LAUNCHED_VARIABLE, WORKER_VARIABLE

if TYPE_CHECKING:
    from kubernetes.client import V1Job, V1PodSpec, V1Secret

URL_KEY = "url"
"""The key of the Secret that has the storage's URL."""
_USER = 1000
"""The user of the workers; the image of the Dockerfile has it."""
_BACKOFF_LIMIT = 1000
"""Crashes of workers before Kubernetes gives up; it waits longer after each, up to some minutes."""
_KEPT_S = 24 * 3600
"""Seconds for which Kubernetes keeps a Job that has ended, with the logs of its pods."""
_GRACE_S = 30
"""Seconds between SIGTERM and SIGKILL."""
_RETRIED = [75, 130, 137, 143]
"""Exit statuses after which a new pod starts: no database; asked to stop; SIGKILL, also for memory; SIGTERM."""
_FATAL = [2, 3]
"""Exit statuses that end the Job: invalid input, and a study that fails."""
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_RESOURCE = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|[MGTPE]|[KMGTPE]i)?")
_LABEL_KEY = r"(?:[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_SELECTOR = re.compile(rf"{_LABEL_KEY}=(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?)?")
_KEY = re.compile(_LABEL_KEY)
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
_VOLUME = re.compile(r"(?P<claim>[a-z0-9]([-a-z0-9.]*[a-z0-9])?):(?P<path>/[^:]*[^:/])")


@dataclass(frozen=True)
class Volume:
    """A PersistentVolumeClaim, and the folder on which it is mounted."""

    claim: str
    path: PurePosixPath


@dataclass(frozen=True, kw_only=True)
class PodSettings:
    """The settings of `options`.

    Attributes:
        image: The container image; it has the study's file, and tuner for its `python`.
        namespace: The namespace; that of the cluster's configuration if None.
        secret: A Secret whose key `url` has the storage's URL; one is made of this machine's URL if None.
        env_secret: A Secret whose keys become variables of the environment, such as credentials of object storage.
        service_account: The service account of the pods.
        queue: The local queue of Kueue.
        cpu: The requested cores.
        memory: The requested memory, which is also the limit.
        device: The resource of which each worker gets `devices_per_worker`.
        node_selector: Labels that a node must have.
        toleration: Keys of taints that a node may have.
        volume: A volume for artifacts.
    """

    image: str
    namespace: str | None = None
    secret: str | None = None
    env_secret: str | None = None
    service_account: str | None = None
    queue: str | None = None
    cpu: str | None = None
    memory: str | None = None
    device: str = "nvidia.com/gpu"
    node_selector: Mapping[str, str] | None = None
    toleration: tuple[str, ...] = ()
    volume: Volume | None = None


def parse_settings(options: Mapping[str, str]) -> PodSettings:
    """Return the settings of options, by their names with `-`.

    Raises:
        UsageError: an option is missing, unknown or wrong.
    """
    given = parse_options("kubernetes", options, _FORMS)
    if "image" not in given:
        raise UsageError("kubernetes needs the container image of the workers: pass `options` image=REGISTRY/NAME:TAG")
    return PodSettings(**given)


def _selector(value: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in value.split(","))


def _volume(value: str) -> Volume:
    found = _VOLUME.fullmatch(value)
    assert found is not None
    volume = Volume(found["claim"], PurePosixPath(found["path"]))
    if volume.path == PurePosixPath("/tmp"):
        raise UsageError("the option 'volume' must not be mounted on /tmp: each pod has its own")
    return volume


def _several(pattern: re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(f"(?:{pattern.pattern})(?:,(?:{pattern.pattern}))*")


_NAME = Form(_SUBDOMAIN, "the name of an object: lower-case letters, digits, '-' and '.'")
_FORMS: dict[str, Form] = {
    "image": Form(_IMAGE, "an image such as registry.example.org/tuner:1"),
    "namespace": Form(_LABEL, "the name of a namespace: lower-case letters, digits and '-'"),
    "secret": _NAME,
    "env-secret": _NAME,
    "service-account": _NAME,
    "queue": _NAME,
    "cpu": Form(_QUANTITY, "a number of cores such as 4 or 500m"),
    "memory": Form(_QUANTITY, "an amount such as 16Gi"),
    "device": Form(_RESOURCE, "a resource such as nvidia.com/gpu or google.com/tpu"),
    "node-selector": Form(_several(_SELECTOR), "KEY=VALUE, several separated by commas", _selector),
    "toleration": Form(
        _several(_KEY), "the key of a taint, several separated by commas", lambda value: tuple(value.split(","))
    ),
    "volume": Form(_VOLUME, "CLAIM:/FOLDER, a PersistentVolumeClaim and where it is mounted", _volume),
}


def check_artifacts(artifacts: str, settings: PodSettings) -> None:
    """Raise UsageError unless all pods can reach the artifacts: object storage, or the volume."""
    volume = settings.volume
    if is_url(artifacts) or (volume is not None and PurePosixPath(artifacts).is_relative_to(volume.path)):
        return
    where = f"a folder in {volume.path}" if volume else "a folder in a volume, with `options` volume=CLAIM:/FOLDER"
    raise UsageError(
        f"`artifacts` must be where all pods can reach them: s3://BUCKET/PREFIX, or {where}: got {artifacts!r}"
    )


def job_manifest(job: Job, settings: PodSettings, workers: int) -> V1Job:
    """Return the Job of so many workers.

    It is a work queue: without `completions`, a pod that exits with status 0 means that the work is done, and no pod
    is started any more. A worker does so when the budget is used up, or the study was stopped.
    """
    from kubernetes import client

    return client.V1Job(
        api_version="batch/v1",
        kind="Job",
        metadata=client.V1ObjectMeta(
            name=job_name(job),
            namespace=settings.namespace,
            labels={
                "app.kubernetes.io/name": "tuner",
                **({"kueue.x-k8s.io/queue-name": settings.queue} if settings.queue else {}),
            },
            annotations={"tuner/study": job.study},
        ),
        spec=client.V1JobSpec(
            parallelism=workers,
            backoff_limit=_BACKOFF_LIMIT,
            ttl_seconds_after_finished=_KEPT_S,
            pod_replacement_policy="Failed",
            pod_failure_policy=client.V1PodFailurePolicy(
                rules=[
                    client.V1PodFailurePolicyRule(
                        action="Ignore",
                        on_pod_conditions=[
                            client.V1PodFailurePolicyOnPodConditionsPattern(type="DisruptionTarget", status="True")
                        ],
                    ),
                    *(_on_status(action, values) for action, values in (("FailJob", _FATAL), ("Ignore", _RETRIED))),
                ]
            ),
            template=client.V1PodTemplateSpec(
                metadata=client.V1ObjectMeta(labels={"app.kubernetes.io/name": "tuner"}),
                spec=_pod(job, settings),
            ),
        ),
    )


def _on_status(action: str, values: list[int]) -> Any:
    from kubernetes import client

    return client.V1PodFailurePolicyRule(
        action=action,
        on_exit_codes=client.V1PodFailurePolicyOnExitCodesRequirement(
            container_name="worker", operator="In", values=values
        ),
    )


def _pod(job: Job, settings: PodSettings) -> V1PodSpec:
    from kubernetes import client

    volume = settings.volume
    devices = {settings.device: str(job.devices_per_worker)} if job.devices_per_worker else {}
    memory = {"memory": settings.memory} if settings.memory else {}
    requests = memory | ({"cpu": settings.cpu} if settings.cpu else {})
    limits = memory | devices
    claims = [] if volume is None else [("artifacts", volume)]
    container = client.V1Container(
        name="worker",
        image=settings.image,
        command=[word.replace("$", "$$") for word in job.command],  # Kubernetes replaces $(NAME) in it
        env=_environment(job, settings),
        env_from=[client.V1EnvFromSource(secret_ref=client.V1SecretEnvSource(name=settings.env_secret))]
        if settings.env_secret
        else None,
        resources=client.V1ResourceRequirements(requests=requests or None, limits=limits or None),
        security_context=client.V1SecurityContext(
            allow_privilege_escalation=False,
            capabilities=client.V1Capabilities(drop=["ALL"]),
            read_only_root_filesystem=True,
        ),
        volume_mounts=[
            client.V1VolumeMount(name="tmp", mount_path="/tmp"),
            *(client.V1VolumeMount(name=name, mount_path=str(one.path)) for name, one in claims),
        ],
    )
    return client.V1PodSpec(
        restart_policy="Never",
        termination_grace_period_seconds=_GRACE_S,
        automount_service_account_token=False if settings.service_account is None else None,
        service_account_name=settings.service_account,
        # Process 1 ignores signals that it has no handler for yet; with this, the worker is not process 1.
        share_process_namespace=True,
        node_selector=dict(settings.node_selector) if settings.node_selector else None,
        tolerations=[client.V1Toleration(key=key, operator="Exists") for key in settings.toleration] or None,
        security_context=client.V1PodSecurityContext(
            run_as_non_root=True,
            run_as_user=_USER,
            run_as_group=_USER,
            fs_group=_USER,
            # Otherwise every mount makes all folders of a volume writable for the group, also those that are private.
            fs_group_change_policy="OnRootMismatch",
            seccomp_profile=client.V1SeccompProfile(type="RuntimeDefault"),
        ),
        containers=[container],
        volumes=[
            client.V1Volume(name="tmp", empty_dir=client.V1EmptyDirVolumeSource()),
            *(
                client.V1Volume(
                    name=name,
                    persistent_volume_claim=client.V1PersistentVolumeClaimVolumeSource(claim_name=one.claim),
                )
                for name, one in claims
            ),
        ],
    )


def _environment(job: Job, settings: PodSettings) -> list[Any]:
    from kubernetes import client

    secret = client.V1SecretKeySelector(name=settings.secret or job_name(job), key=URL_KEY)
    name = client.V1ObjectFieldSelector(field_path="metadata.name")
    return [
        client.V1EnvVar(name="TUNER_STORAGE", value_from=client.V1EnvVarSource(secret_key_ref=secret)),
        client.V1EnvVar(name=WORKER_VARIABLE, value_from=client.V1EnvVarSource(field_ref=name)),
        client.V1EnvVar(name=LAUNCHED_VARIABLE, value=str(job.launched_at_s)),
        client.V1EnvVar(name="PYTHONUNBUFFERED", value="1"),
        client.V1EnvVar(name="HOME", value="/tmp"),
    ]


def secret_manifest(job: Job, settings: PodSettings, url: str) -> V1Secret:
    """Return the Secret with the storage's URL."""
    from kubernetes import client

    return client.V1Secret(
        api_version="v1",
        kind="Secret",
        metadata=client.V1ObjectMeta(
            name=job_name(job), namespace=settings.namespace, labels={"app.kubernetes.io/name": "tuner"}
        ),
        type="Opaque",
        string_data={URL_KEY: url},
    )


def as_yaml(manifest: V1Job | V1Secret) -> str:
    """Return a manifest as YAML."""
    import yaml
    from kubernetes import client

    api: Any = client.ApiClient(client.Configuration())
    return yaml.safe_dump(api.sanitize_for_serialization(manifest), sort_keys=False)
