"""Calls of the Kubernetes API, with its errors in one line."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.errors import how_to_install
from tuner.launch.engines.engine import EngineError
from tuner.output.sanitize import one_line

if TYPE_CHECKING:
    from kubernetes.client import Configuration, V1Job, V1Pod, V1Secret

_REQUEST_S = 30.0
"""Seconds that an answer of the API may take."""
_IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_GONE = 404


def what_is_missing() -> str | None:
    """Return how to install the client of Kubernetes, unless it is installed."""
    if importlib.util.find_spec("kubernetes") is not None:
        return None
    return f"the client of Kubernetes is not installed: {how_to_install('kubernetes')}"


@dataclass(frozen=True)
class Address:
    """A Job's namespace and name."""

    namespace: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address of `NAMESPACE/NAME`."""
        namespace, _, name = text.partition("/")
        return cls(namespace, name)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Cluster:
    """The cluster of the current context of the kubeconfig, or the one in which this process runs."""

    def __init__(self) -> None:
        missing = what_is_missing()
        if missing is not None:
            raise EngineError(missing)
        from kubernetes import client

        configuration = client.Configuration()
        self.namespace = _load(configuration)
        """The namespace of the configuration."""
        self._host = configuration.host
        api = client.ApiClient(configuration)
        self._batch, self._core = client.BatchV1Api(api), client.CoreV1Api(api)

    def create_job(self, namespace: str, job: V1Job) -> V1Job:
        """Create a Job; return it as the cluster has it."""
        with self._errors("create a Job"):
            return self._batch.create_namespaced_job(namespace, job, _request_timeout=_REQUEST_S)

    def create_secret(self, namespace: str, secret: V1Secret) -> None:
        """Create a Secret."""
        with self._errors("create a Secret"):
            self._core.create_namespaced_secret(namespace, secret, _request_timeout=_REQUEST_S)

    def give_secret(self, address: Address, job: V1Job) -> None:
        """Make a Job the owner of the Secret of its name, so that Kubernetes deletes both together."""
        assert job.metadata is not None
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job.metadata.name, "uid": job.metadata.uid}
        with self._errors("change a Secret"):
            self._core.patch_namespaced_secret(
                address.name,
                address.namespace,
                {"metadata": {"ownerReferences": [owner]}},
                _request_timeout=_REQUEST_S,
            )

    def delete_secret(self, address: Address) -> None:
        """Delete a Secret, if it is there."""
        with self._errors("delete a Secret", may_be_gone=True):
            self._core.delete_namespaced_secret(address.name, address.namespace, _request_timeout=_REQUEST_S)

    def job(self, address: Address) -> V1Job | None:
        """Return a Job; None if there is none."""
        with self._errors("read a Job", may_be_gone=True):
            return self._batch.read_namespaced_job(address.name, address.namespace, _request_timeout=_REQUEST_S)
        return None

    def resize(self, address: Address, workers: int) -> None:
        """Set the number of a Job's pods; Kubernetes deletes those that are too many."""
        with self._errors("change a Job", may_be_gone=True):
            self._batch.patch_namespaced_job(
                address.name, address.namespace, {"spec": {"parallelism": workers}}, _request_timeout=_REQUEST_S
            )

    def delete_job(self, address: Address) -> None:
        """Delete a Job and its pods, if it is there."""
        with self._errors("delete a Job", may_be_gone=True):
            self._batch.delete_namespaced_job(
                address.name, address.namespace, propagation_policy="Background", _request_timeout=_REQUEST_S
            )

    def pods(self, address: Address) -> list[V1Pod]:
        """Return the pods of a Job, oldest first."""
        with self._errors("list pods"):
            found = self._core.list_namespaced_pod(
                address.namespace,
                label_selector=f"batch.kubernetes.io/job-name={address.name}",
                _request_timeout=_REQUEST_S,
            )
        return sorted(found.items, key=lambda pod: (_created(pod), pod_name(pod)))

    def log(self, namespace: str, pod: str, since_s: int | None) -> list[bytes]:
        """Return the whole lines of a pod's log, each after its time; none if the pod has not started or is gone.

        Args:
            namespace: The pod's namespace.
            pod: The pod's name.
            since_s: Only lines of the last seconds; None for all.
        """
        from kubernetes.client import ApiException

        with self._errors("read a log", may_be_gone=True):
            try:
                answer = self._core.read_namespaced_pod_log(
                    pod,
                    namespace,
                    timestamps=True,
                    since_seconds=since_s,
                    _preload_content=False,
                    _request_timeout=_REQUEST_S,
                )
            except ApiException as error:
                if _status(error) == 400:  # the container waits for its image
                    return []
                raise
            # Not by `splitlines`: a progress bar has carriage returns within its line.
            return [line + b"\n" for line in _data(answer).split(b"\n")[:-1]]
        return []

    @contextlib.contextmanager
    def _errors(self, what: str, *, may_be_gone: bool = False) -> Generator[None]:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            if may_be_gone and _status(error) == _GONE:
                return
            said = _message(error) or f"{_status(error)} without a reason"
            raise EngineError(f"Kubernetes does not {what}: {one_line(said)}") from None
        except (HTTPError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise EngineError(f"cannot reach the Kubernetes API at {self._host}: {one_line(str(reason))}") from None


def _load(configuration: Configuration) -> str:
    """Fill a configuration from the kubeconfig, or from the pod of this process; return its namespace.

    Raises:
        EngineError: there is neither.
    """
    from kubernetes import config as untyped

    config: Any = untyped
    path = os.environ.get("KUBECONFIG") or None
    try:
        config.load_kube_config(config_file=path, client_configuration=configuration)
        _, active = config.list_kube_config_contexts(config_file=path)
        return active["context"].get("namespace") or "default"
    except (config.ConfigException, OSError) as error:
        try:
            config.load_incluster_config(client_configuration=configuration)
            return _IN_CLUSTER.read_text().strip()
        except (config.ConfigException, OSError):
            raise EngineError(
                f"no cluster is configured: set KUBECONFIG, or write ~/.kube/config ({one_line(str(error))})"
            ) from None


def _status(error: object) -> int | None:
    return getattr(error, "status", None)


def _message(error: object) -> str | None:
    """Return what the API says of a call that failed; perhaps a proxy has answered, not the API."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(getattr(error, "body", ""))["message"])
    return getattr(error, "reason", None)


def _data(answer: Any) -> bytes:
    return answer.data


def pod_name(pod: V1Pod) -> str:
    """Return a pod's name."""
    return (pod.metadata and pod.metadata.name) or ""


def _created(pod: V1Pod) -> str:
    return str(pod.metadata and pod.metadata.creation_timestamp)


def exit_statuses(pods: list[V1Pod]) -> Iterator[int]:
    """Yield the exit statuses of the containers of pods that have ended."""
    for pod in pods:
        for container in (pod.status and pod.status.container_statuses) or ():
            ended = container.state and container.state.terminated
            if ended:
                yield ended.exit_code
