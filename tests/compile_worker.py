"""Forks workers that compile programs with the cache of an artifacts folder, each in a process of its own.

It reads lines `FOLDER HOW` from its standard input, forks a process for each, and prints `PID NAME ...` lines of all of
them. A process prints `ready` once it has JAX's devices, waits for the file FOLDER/go, compiles two programs, and
prints `done` with what JAX's own events say, as JSON. With HOW = `hang` it prints `compiling` instead of the end of its
first compilation, forks a child that outlives it, and sleeps.
"""

import json
import os
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tuner.training.loop.program_cache import ProgramCache
from tuner.training.loop.runtime import CompileClock, use_persistent_cache


def large(x: Any) -> Any:
    """A program that takes longer to compile than processes take to begin."""
    for step in range(12):
        x = jnp.sort(jnp.sin(x + step) @ jnp.cos(x).T, axis=step % 2)
    return x.sum()


def small(x: Any) -> Any:
    return (x + 1).sum()


def say(name: str, text: str = "") -> None:
    os.write(1, f"{os.getpid()} {name} {text}\n".encode())  # in one piece


def hang(self: ProgramCache, key: str) -> None:
    found = _get(self, key)
    assert found is None
    if os.fork():
        say("compiling")
    time.sleep(600)


_get = ProgramCache.get


def work(folder: Path, how: str) -> None:
    warnings.simplefilter("error")
    if how == "hang":
        ProgramCache.get = hang
    events: Counter[str] = Counter()
    jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))
    use_persistent_cache(folder)
    clock = CompileClock()
    x = np.asarray([[1.0, 2.0], [3.0, 4.0]], np.float32)
    say("ready")
    while not (folder / "go").exists():
        time.sleep(0.01)
    values = [float(jax.jit(large)(x)), float(jax.jit(small)(x))]
    counts = {name: events[f"/jax/compilation_cache/cache_{name}"] for name in ("hits", "misses")}
    told = {"values": values, **counts, "compiled": clock.count, "fetched": clock.fetched, "seconds": clock.total_s}
    say("done", json.dumps(told))


for line in sys.stdin:
    where, how = line.split()
    if os.fork() == 0:
        work(Path(where), how)
        os._exit(0)
