"""Asks Ray through a process of its own, see `ray_driver`.

Ray replaces the handlers of signals, prints, and ends the whole process when it loses its node; and a user's process
may be connected to another cluster.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tuner.errors import how_to_install
from tuner.launch.engines.engine import EngineError
from tuner.notify.receivers import VARIABLE as NOTIFY
from tuner.output.sanitize import one_line

_DRIVER = str(Path(__file__).with_name("ray_driver.py"))
_CONNECT_S, _ANSWER_S = 300.0, 120.0
"""Seconds that a start and an answer of Ray may take, on a busy machine as well."""
_CLOSE_S = 20.0
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0"}
"""A Ray that is started here reports nothing to anyone, unless the user says so."""


class ClusterGone(EngineError):
    """Nothing listens at a cluster's address any more: the cluster has ended, and all of its actors with it."""


def what_is_missing() -> str | None:
    """Return how to install Ray, unless it is installed."""
    return None if importlib.util.find_spec("ray") is not None else f"Ray is not installed: {how_to_install('ray')}"


class Link:
    """A connection to a cluster.

    Args:
        address: `local`, `auto` or HOST:PORT.

    Raises:
        ClusterGone: nothing listens at that address.
        EngineError: it cannot be reached.
    """

    def __init__(self, address: str) -> None:
        missing = what_is_missing()
        if missing is not None:
            raise EngineError(missing)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, "-P", _DRIVER, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**_ENVIRONMENT, **{name: value for name, value in os.environ.items() if name != NOTIFY}},
            start_new_session=True,  # Ctrl-C is for the launch, which asks it to stop the workers
        )
        self._rest = b""
        said = self._answer(_CONNECT_S)
        if "address" not in said:
            self.close()
            raise ClusterGone(one_line(said["gone"])) if "gone" in said else EngineError(one_line(said["error"]))
        self.address: str = said["address"]
        """The cluster's address, HOST:PORT."""

    @property
    def is_open(self) -> bool:
        """Whether its process runs."""
        return self._process.poll() is None

    def ask(self, call: str, **arguments: object) -> Any:
        """Call a function of `ray_driver`; return what it returns.

        Raises:
            EngineError: it fails.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(json.dumps({"call": call, "arguments": arguments}).encode() + b"\n")
            self._process.stdin.flush()
        said = self._answer(_ANSWER_S)
        if "error" in said:
            raise EngineError(one_line(said["error"]))
        return said["result"]

    def _answer(self, most_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        end_s = time.monotonic() + most_s
        while b"\n" not in self._rest:
            if not select.select([self._process.stdout], [], [], max(0.0, end_s - time.monotonic()))[0]:
                self._process.kill()
                self.close()
                raise EngineError(f"Ray did not answer within {most_s:.0f} s")
            read = os.read(self._process.stdout.fileno(), 65536)
            if not read:
                self.close()
                self._errors.seek(0)
                last = self._errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
                raise EngineError(f"the connection to Ray ended: {one_line(''.join(last)) or 'no reason was given'}")
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """End its process, and with it a cluster that it has started."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_links: dict[str, Link] = {}
"""The open links of this process, by address; a cluster that this process has started ends with its link."""


def link_to(address: str) -> Link:
    """Return a link to a cluster, perhaps one that is open already.

    Raises:
        EngineError: as for `Link`.
    """
    found = _links.get(address)
    if found is None or not found.is_open:
        found = Link(address)
        _links.update({address: found, found.address: found})
    return found


def _close_all() -> None:
    for link in {id(link): link for link in _links.values()}.values():
        link.close()


atexit.register(_close_all)
