"""Calls Ray for `ray_link`, in a process of its own: `python -P ray_driver.py ADDRESS`.

ADDRESS is `local`, which starts a Ray that ends with this process, `auto` or HOST:PORT. Requests and replies are lines
of JSON on standard input and output; at the end of its input the process ends. It needs nothing but Ray, and Ray copies
the class of the actors from this process to the nodes, so a node's Ray needs no tuner.

Each worker has a detached actor with a placement group of one bundle, whose devices are all of one node. The actor runs
the worker as a child, so that Ray has chosen the devices before JAX starts. Ray starts actors of lost nodes again; the
actor itself decides by the exit status whether its worker is started again. How workers ended, and which are to stop,
is in Ray's table of keys and values, because it survives the actors.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMESPACE = "tuner"
"""The namespace of the actors."""
STOP_S = 40.0
"""Seconds that workers may take to give back their trials."""
_POLL_S = 0.25
_CONNECT_S, _TRIES = 5.0, 3
_MOST_CRASHES, _CALM_S = 4, 600.0
"""Crashes in a row before a worker is given up, and seconds of work after which the count begins again."""


@dataclass
class Restarts:
    """Decides by its exit status whether a worker is started again.

    Attributes:
        crashes: How often it has crashed in a row.
    """

    crashes: int = 0

    def pause_s(self, status: int, ran_s: float) -> float | None:
        """Return the seconds after which a worker that has ended is started again; None if it is not.

        Args:
            status: Its exit status; 128 plus the number of a signal.
            ran_s: How long it ran, in seconds.
        """
        if status in (0, 2, 3):  # the work is done, or invalid, or the study fails
            return None
        if status == 75:  # the database could not be reached
            return 60.0
        if status in (130, 143):  # asked to stop, but not by tuner: perhaps its node is going down
            return 10.0
        self.crashes = 1 if ran_s >= _CALM_S else self.crashes + 1
        return 1.0 if self.crashes < _MOST_CRASHES else None


class Worker:
    """An actor: runs a worker as its child, which dies with it, until the work is done.

    Ray calls `__init__` again after it has lost the actor's process or node.
    """

    def __init__(
        self, name: str, command: Sequence[str], folder: str, logs: str, environment: Mapping[str, str]
    ) -> None:
        self._name, self._command, self._folder, self._logs = name, command, folder, logs
        self._environment = environment
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        """Ask the worker to give back its trial; then the actor ends."""
        with self._lock:
            self._stopped.set()
            if self._process is not None:
                self._process.terminate()

    def _run(self) -> None:
        # A process inherits what the thread that starts it blocks: Ray blocks SIGINT.
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        status, note = 2, None
        try:
            status = self._run_workers()
        except OSError as error:
            file = f": {error.filename!r}" if error.filename else ""
            note = f"cannot start a worker on {socket.gethostname()}: {error.strerror}{file}"
        except Exception:  # of Ray, whose head may have gone: it starts an actor whose process has ended again
            os._exit(1)
        while True:  # try again if Ray does not answer
            with contextlib.suppress(Exception):
                _end_actor(self._name, status, note)
            time.sleep(5)

    def _run_workers(self) -> int:
        """Run one worker after another until the work is done; return the last exit status."""
        restarts, start = Restarts(), 0
        Path(self._logs).mkdir(parents=True, exist_ok=True)
        with Path(self._logs, f"{self._name}.log").open("ab", buffering=0) as log:
            while not self._is_stopped():
                start += 1
                began_s = time.monotonic()
                status = self._run_worker(log.fileno(), start)
                pause_s = None if self._stopped.is_set() else restarts.pause_s(status, time.monotonic() - began_s)
                crash = f", crash {restarts.crashes} of {_MOST_CRASHES} in a row" if restarts.crashes else ""
                again = "" if pause_s is None else f"; starts again in {pause_s:.0f} s"
                if status:
                    with contextlib.suppress(OSError):  # the disk may be full
                        log.write(f"worker ended with status {status}{crash}{again}\n".encode())
                if pause_s is None:
                    return status
                self._stopped.wait(pause_s)
        return 130

    def _run_worker(self, log: int, start: int) -> int:
        """Run a worker to its end; return its exit status."""
        process = _ray().get_runtime_context().get_worker_id()[:6]
        worker = f"{socket.gethostname()}:{self._name}.{process}.{start}"
        with self._lock:
            if self._stopped.is_set():
                return 130
            self._process = subprocess.Popen(
                self._command,
                # At its end the supervisor kills the worker. If Ray kills the supervisor, the worker dies too.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={**os.environ, **self._environment, "TUNER_WORKER": worker},
            )
        with self._process as process:
            status = process.wait()
        return status if status >= 0 else 128 - status

    def _is_stopped(self) -> bool:
        return self._stopped.is_set() or _read(f"stop:{self._name}") is not None


def _end_actor(name: str, status: int, note: str | None) -> None:
    """Record how a worker ended, and end the actor of this process with its placement group."""
    ray = _ray()
    _write(f"end:{name}", json.dumps({"status": status, "note": note}))
    group = ray.util.get_current_placement_group()
    if group is not None:
        ray.util.remove_placement_group(group)
    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def submit(
    names: Sequence[str],
    bundle: Mapping[str, float],
    command: Sequence[str],
    folder: str,
    logs: str,
    environment: Mapping[str, str],
) -> None:
    """Make actors, one for each worker.

    Args:
        names: The names of the actors.
        bundle: What each takes of a node, by Ray's names.
        command: The command line of a worker.
        folder: The folder in which workers run.
        logs: The folder for their logs.
        environment: Variables of their environment. As an argument of an actor it is in no list of Ray.
    """
    ray = _ray()
    strategies = importlib.import_module("ray.util.scheduling_strategies")
    own = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    amounts = {option: bundle[name] for name, option in own.items() if name in bundle}
    others = {name: amount for name, amount in bundle.items() if name not in own}
    try:
        for name in names:
            group = ray.util.placement_group([dict(bundle)], strategy="STRICT_PACK", name=name, lifetime="detached")
            strategy = strategies.PlacementGroupSchedulingStrategy(group, 0)
            options = {**amounts, "resources": others, "scheduling_strategy": strategy}
            actor = ray.remote(Worker).options(
                name=name, namespace=NAMESPACE, lifetime="detached", max_restarts=-1, **options
            )
            actor.remote(name, command, folder, logs, environment)
    except BaseException:
        _remove(names)
        raise


def state(names: Sequence[str]) -> dict[str, Any]:
    """Return how many actors wait and run, and how the workers of the others ended."""
    states = [_state(name) for name in names]
    ended = [_read(f"end:{name}") for name, found in zip(names, states, strict=True) if found == "ended"]
    return {
        "pending": states.count("pending"),
        "running": states.count("running"),
        "ended": [json.loads(text) for text in ended if text is not None],
    }


def stop(names: Sequence[str]) -> None:
    """Let workers give back their trials, and remove their actors."""
    for name in names:
        _write(f"stop:{name}", "1")  # also for an actor that Ray starts again just now
    for name in names:
        with contextlib.suppress(ValueError):
            if _state(name) == "running":
                _ray().get_actor(name, NAMESPACE).stop.remote()
    end_s = time.monotonic() + STOP_S
    while any(_state(name) == "running" for name in names) and time.monotonic() < end_s:
        time.sleep(_POLL_S)
    _remove(names)
    for name in names:
        for key in (f"stop:{name}", f"end:{name}"):
            importlib.import_module("ray.experimental.internal_kv")._internal_kv_del(key, namespace=NAMESPACE)


def _state(name: str) -> str:
    """Return whether an actor is `running`, `pending` (also: to be started again elsewhere), or has `ended`."""
    ray = _ray()
    try:
        ray.get_actor(name, NAMESPACE)
        group = ray.util.get_placement_group(name)
    except ValueError:  # there is none
        return "ended"
    return {"CREATED": "running", "REMOVED": "ended"}.get(ray.util.placement_group_table(group)["state"], "pending")


def _remove(names: Sequence[str]) -> None:
    """Remove actors and placement groups, as far as they are there."""
    ray = _ray()
    for name in names:
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(name, NAMESPACE), no_restart=True)
        with contextlib.suppress(ValueError):
            ray.util.remove_placement_group(ray.util.get_placement_group(name))


def _ray() -> Any:
    # Ray's own types are incomplete. Also, an actor has a copy of this function, and no module.
    return importlib.import_module("ray")


def _read(key: str) -> str | None:
    value = importlib.import_module("ray.experimental.internal_kv")._internal_kv_get(key, namespace=NAMESPACE)
    return None if value is None else value.decode()


def _write(key: str, value: str) -> None:
    importlib.import_module("ray.experimental.internal_kv")._internal_kv_put(key, value, namespace=NAMESPACE)


def connect(address: str) -> dict[str, str]:
    """Connect to a cluster, or start one; return its address, or what is wrong."""
    if ":" in address:
        host, _, port = address.rpartition(":")
        for left in reversed(range(_TRIES)):
            try:
                socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
                break
            except ConnectionRefusedError:
                if not left:
                    return {"gone": f"no Ray runs at {address}"}
                time.sleep(1)
            except OSError as error:
                return {"error": f"cannot reach Ray at {address}: {error.strerror or error}"}
    if address == "local" or address.startswith("127."):
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # a Ray without a network: it listens on loopback only
    ray = _ray()
    own = {"include_dashboard": False} if address == "local" else {}
    for left in reversed(range(_TRIES if own else 1)):
        try:
            found = ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR", **own)
            return {"address": found.address_info["gcs_address"]}
        except Exception as error:
            ray.shutdown()
            if not left:  # a node gives up if one of its processes is not ready after 15 seconds
                if address == "auto" and isinstance(error, ConnectionError):
                    hint = "run `ray start` here, or pass `options` address=HOST:PORT"
                    return {"error": f"no Ray runs on this machine: {hint}"}
                what = "start Ray" if own else f"connect to Ray at {address!r}"
                return {"error": f"cannot {what}: {error}"}
    raise AssertionError


def main() -> None:
    """Answer requests until there are no more."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints

    def reply(value: object) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    connected = connect(sys.argv[1])
    reply(connected)
    if "address" not in connected:
        return
    calls = {"submit": submit, "state": state, "stop": stop}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply({"result": calls[request["call"]](**request["arguments"])})
        except Exception as error:
            reply({"error": f"Ray cannot {request['call']} the job: {error}"})
    _ray().shutdown()


if __name__ == "__main__":
    main()
