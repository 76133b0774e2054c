"""A server on loopback that answers like the Kubernetes API, as far as an engine asks it.

Requests are noted, and manifests are checked against the schemas of Kubernetes. Jobs have the status that a test gives
them; with a folder, their pods are processes there, kept running as the controller of Jobs does it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate

JOBS, SECRETS, PODS = (
    "/apis/batch/v1/namespaces/lab/jobs",
    "/api/v1/namespaces/lab/secrets",
    "/api/v1/namespaces/lab/pods",
)


@dataclass
class Pod:
    """A pod as a process."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    is_deleted: bool = False


@dataclass
class KubernetesAPI:
    """The server and its objects, by their paths."""

    folder: Path | None = None
    env: dict[str, str] = field(default_factory=dict[str, str])
    objects: dict[str, Any] = field(default_factory=dict[str, Any])
    asked: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    refused: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict[tuple[str, str], tuple[int, str]])
    logs: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    pods: list[Pod] = field(default_factory=list[Pod])
    started: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def changes(self) -> list[tuple[str, str]]:
        """Return the requests that change something: the method, and the path below the namespace."""
        return [(method, path.partition("/namespaces/lab/")[2]) for method, path in self.asked if method != "GET"]

    def answer(self, method: str, target: str, body: Any) -> tuple[int, Any]:
        """Answer a request; return the status and JSON, or text."""
        split = urlsplit(target)
        path, query = split.path, parse_qs(split.query)
        with self.lock:
            self.asked.append((method, path))
            if (method, path) in self.refused:
                status, message = self.refused[method, path]
                return status, {"kind": "Status", "message": message, "code": status}
            if path == PODS:
                return 200, {"kind": "PodList", "apiVersion": "v1", "items": self._list(query["labelSelector"][0])}
            if path.endswith("/log"):
                return self._log(path.split("/")[-2], query)
            if method == "POST":
                kubernetes_validate.validate(body, "1.31", strict=True)
                body["metadata"].update(uid=f"uid-{body['metadata']['name']}", namespace="lab")
                self.objects[f"{path}/{body['metadata']['name']}"] = body
                self.reconcile()
                return 201, body
            found = self.objects.get(path)
            if found is None:
                return 404, {"kind": "Status", "message": f"{path} not found", "code": 404}
            if method == "PATCH":
                for key, value in body.items():
                    found[key].update(value)
                if self.folder is None and body.get("spec", {}).get("parallelism") == 0:
                    found["status"] = {**found.get("status", {}), "active": 0, "ready": 0}
            if method == "DELETE":
                del self.objects[path]
            self.reconcile()
            return 200, found

    def _list(self, selector: str) -> list[Any]:
        name = selector.removeprefix("batch.kubernetes.io/job-name=")
        if self.folder is None:
            return [pod for pod in self.objects.get("pods", []) if pod["metadata"]["labels"]["job"] == name]
        return [
            {"metadata": {"name": pod.name, "creationTimestamp": "2026-01-01T00:00:00Z"}, "status": _ended(pod)}
            for pod in self.pods
            if pod.name.startswith(name) and not pod.is_deleted
        ]

    def _log(self, name: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        assert query["timestamps"] == ["True"] or query["timestamps"] == ["true"]
        if name in self.logs:
            return 200, "".join(self.logs[name])
        found = [pod for pod in self.pods if pod.name == name and not pod.is_deleted]
        if not found:
            return 404, {"message": f"pods {name} not found"}
        lines = found[0].log.read_text().splitlines(keepends=True)
        return 200, "".join(f"2026-01-01T00:00:00.{at:09}Z {line}" for at, line in enumerate(lines))

    def reconcile(self) -> None:
        """Start and end processes as the controller of Jobs does, and set the status of Jobs."""
        if self.folder is None:
            return
        jobs = {path.rpartition("/")[2]: job for path, job in self.objects.items() if path.startswith(JOBS)}
        for pod in self.pods:
            if not pod.is_deleted and pod.name.rpartition("-")[0] not in jobs:
                self._delete(pod)
        for name, job in jobs.items():
            self._reconcile(name, job)

    def _reconcile(self, name: str, job: Any) -> None:
        pods = [pod for pod in self.pods if pod.name.rpartition("-")[0] == name]
        codes = [pod.process.poll() for pod in pods if not pod.is_deleted]
        active = [pod for pod in pods if pod.process.poll() is None and not pod.is_deleted]
        succeeded, is_fatal = codes.count(0), any(code in (2, 3) for code in codes)
        for pod in active[job["spec"]["parallelism"] :]:
            self._delete(pod)
        if not succeeded and not is_fatal:
            for _ in range(job["spec"]["parallelism"] - len(active)):
                self._start(name, job)
        pods = [pod for pod in self.pods if pod.name.rpartition("-")[0] == name]
        running = [pod for pod in pods if pod.process.poll() is None]
        alive = [pod for pod in running if not pod.is_deleted]
        kind = "Failed" if is_fatal else "Complete" if succeeded and not running else None
        job["status"] = {
            "active": len(alive),
            "ready": len(alive),
            "terminating": len(running) - len(alive),
            "succeeded": succeeded,
            "conditions": [{"type": kind, "status": "True"}] if kind else [],
        }

    def _start(self, name: str, job: Any) -> None:
        assert self.folder is not None
        self.started += 1
        (container,) = job["spec"]["template"]["spec"]["containers"]
        pod = f"{name}-{self.started:05}"
        env = {**os.environ, **self.env}
        for variable in container["env"]:
            source = variable.get("valueFrom", {})
            if "secretKeyRef" in source:
                reference = source["secretKeyRef"]
                env[variable["name"]] = self.objects[f"{SECRETS}/{reference['name']}"]["stringData"][reference["key"]]
            elif "fieldRef" in source:
                assert source["fieldRef"]["fieldPath"] == "metadata.name"
                env[variable["name"]] = pod
            elif variable["name"] != "HOME":
                env[variable["name"]] = variable["value"]
        command = [word.replace("$$", "$") for word in container["command"]]
        assert command[0] == "python"
        log = self.folder / f"{pod}.log"
        with log.open("wb") as file:
            words = [sys.executable, *command[1:]]
            process = subprocess.Popen(words, cwd=self.folder, env=env, stdout=file, stderr=file)
        self.pods.append(Pod(pod, process, log))

    def _delete(self, pod: Pod) -> None:
        pod.is_deleted = True
        if pod.process.poll() is None:
            pod.process.send_signal(signal.SIGTERM)

    def evict(self, pod: Pod) -> None:
        """Evict a pod, as a drain of its node does."""
        with self.lock:
            self._delete(pod)

    def end(self) -> None:
        """End all processes."""
        for pod in self.pods:
            if pod.process.poll() is None:
                pod.process.kill()
            pod.process.wait()


def _ended(pod: Pod) -> dict[str, Any]:
    code = pod.process.poll()
    state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
    return {
        "containerStatuses": [
            {"name": "worker", "image": "i", "imageID": "i", "ready": True, "restartCount": 0, "state": state}
        ]
    }


@contextlib.contextmanager
def serving(api: KubernetesAPI, kubeconfig: Path) -> Iterator[KubernetesAPI]:
    """Serve an API, and write a kubeconfig for it."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            status, found = api.answer(self.command, self.path, body)
            text = found if isinstance(found, str) else json.dumps(found)
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(found, str) else "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_PATCH = do_DELETE = handle_one

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    is_over = threading.Event()

    def control() -> None:
        while not is_over.is_set():
            with api.lock:
                api.reconcile()
            time.sleep(0.1)

    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)), threading.Thread(target=control)]
    for thread in threads:
        thread.start()
    write_kubeconfig(kubeconfig, f"http://127.0.0.1:{server.server_port}")
    try:
        yield api
    finally:
        is_over.set()
        server.shutdown()
        for thread in threads:
            thread.join()
        server.server_close()
        api.end()


def write_kubeconfig(path: Path, server: str) -> None:
    """Write a kubeconfig whose context has the namespace `lab`."""
    configuration = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "lab"}}],
        "clusters": [{"name": "here", "cluster": {"server": server}}],
        "users": [{"name": "me", "user": {}}],
    }
    path.write_text(json.dumps(configuration))
