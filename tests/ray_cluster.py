"""A real Ray of several nodes on this machine, for tests.

`python ray_cluster.py FOLDER` runs it in a process of its own, which starts a node for each line `add` that it reads,
answers with a line of JSON, and ends all nodes at the end of its input.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slurm_cluster import free_ports

CPUS, GPUS = 2, 2
"""Of each node; the GPUs are only declared."""
_AGENTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")

_PATIENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "280",
    "RAY_worker_register_timeout_seconds": "280",
    "RAY_prestart_worker_first_driver": "0",  # each command would start a process for each CPU
}
"""Settings of Ray for a busy machine."""


def reason_to_skip() -> str | None:
    """Return why no Ray can be started here; None if it can."""
    return None if importlib.util.find_spec("ray") is not None else "pip install ray"


class RayCluster:
    """A Ray of three nodes with two CPUs and two pretended GPUs each.

    Args:
        folder: An empty folder with a short path, for its files.
        env: The environment of its nodes, which the workers inherit.
    """

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.raylets: set[int] = set()
        """The main process of each node that is not the first."""
        self._log = (folder / "out").open("wb")
        (folder / "ray").mkdir()  # where Ray writes the cluster's address, and expects a folder
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**env, **_PATIENT, "RAY_TMPDIR": str(folder)},
            text=True,
            start_new_session=True,
        )
        self.address: str = self._answer()["address"]
        self.add_node()
        self.add_node()

    def add_node(self) -> None:
        """Start one more node."""
        assert self._process.stdin is not None
        self._process.stdin.write("add\n")
        self._process.stdin.flush()
        self.raylets.add(self._answer()["raylet"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, Path(self._log.name).read_text()[-3000:]
        return json.loads(line)

    def kill(self, raylet: int) -> None:
        """Kill a node's main process without warning; its loss ends the node's other processes."""
        self.raylets.remove(raylet)
        os.kill(raylet, signal.SIGKILL)

    def end(self) -> None:
        """End all nodes."""
        try:
            self._process.communicate(timeout=120)  # which closes its input
        finally:
            self._process.kill()
            self._process.wait()
            self._log.close()


@contextlib.contextmanager
def running(env: Mapping[str, str]) -> Iterator[RayCluster]:
    """Run a Ray while the body runs."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # a short path: Ray makes sockets in it
    try:
        cluster = RayCluster(folder, env)
        try:
            yield cluster
        finally:
            cluster.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _have_patience() -> None:
    """Let nodes start on a busy machine: one gives up if its helpers have not written their ports after 15 seconds.

    The ports of the others are given; this one must be in a file, which its helper replaces.
    """
    import inspect

    import ray._private.services as services

    raylet: Any = importlib.import_module("ray._raylet")

    start = services.start_raylet

    def start_raylet(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(start).bind(*args, **kwargs).arguments
        port = given["dashboard_agent_listen_port"]
        raylet.persist_port(given["session_dir"], given["node_id"], raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME, port)
        return start(*args, **kwargs)

    services.start_raylet = start_raylet


def main(folder: str) -> None:
    """Run nodes until standard input ends."""
    from ray.cluster_utils import Cluster

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _have_patience()
    cluster: Any = Cluster()

    def add() -> Any:
        ports = dict(zip(_AGENTS, free_ports(len(_AGENTS)), strict=True))
        more = {"include_dashboard": False, "temp_dir": folder} if cluster.head_node is None else {}
        return cluster.add_node(
            num_cpus=CPUS,
            num_gpus=GPUS,
            object_store_memory=80 * 2**20,
            node_ip_address="127.0.0.1",
            **ports,
            **more,
        )

    def reply(value: Any) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    add()
    reply({"address": cluster.address})
    while True:
        if select.select([sys.stdin], [], [], 0.2)[0]:
            if not sys.stdin.readline():
                break
            reply({"raylet": add().all_processes["raylet"][0].process.pid})
        for node in cluster.worker_nodes:
            for started in node.all_processes.get("raylet", []):
                started.process.poll()  # one that was killed is a zombie until then, and its children take it for alive
    cluster.shutdown()
    time.sleep(0.1)


if __name__ == "__main__":
    main(sys.argv[1])
