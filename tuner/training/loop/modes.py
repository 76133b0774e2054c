"""Chooses by measurement whether an epoch runs as one compiled loop (scan) or as a loop of compiled steps (step).

On CPUs a scan is several times faster for small dense models and several times slower for convolutions; the two differ
in the last bits, so the choice is made once for a program and kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol, TypeVar
from weakref import WeakKeyDictionary

import jax

from tuner.training.data.batches import Source
from tuner.training.data.feed import Feed
from tuner.training.definition import TrainerDefinition, settings_of
from tuner.training.loop.programs import Carry, Programs
from tuner.training.pytree import PyTree

T = TypeVar("T")
Mode = Literal["scan", "step"]
Choose = Callable[[str, Callable[[], Mode]], Mode]
"""(program, measure) -> mode: looks up the mode of a program, or calls `measure()` and stores the result."""


class Agree(Protocol):
    """Lets the processes that train together go the same way."""

    def __call__(self, what: str, decide: Callable[[], T]) -> T:
        """Return a decision of rank 0 as plain JSON, where `decide` is called.

        Args:
            what: What is decided; the same in each process.
            decide: Decides.
        """
        ...


def alone(what: str, decide: Callable[[], T]) -> T:
    """Decide in a process that trains alone; an `Agree`."""
    return decide()


_CHUNK = 256
"""The maximum number of steps in one program. A trial can be stopped and saved between programs."""
_SLOW_STEP_S = 0.02
"""Seconds of a step from which its start takes at most 1 % of the time, so that a scan saves nothing."""
_TIMED_STEPS, _TIMED_ROUNDS, _TIMED_S = 20, 20, 0.3

_chosen: WeakKeyDictionary[TrainerDefinition, dict[str, Mode]] = WeakKeyDictionary()


def remembered(trainer: TrainerDefinition) -> Choose:
    """Return a `Choose` that stores the modes of a trainer's programs in this process."""

    def choose(program: str, measure: Callable[[], Mode]) -> Mode:
        known = _chosen.setdefault(trainer, {})
        if program not in known:
            known[program] = measure()
        return known[program]

    return choose


def chunk(steps: int) -> int:
    """Return the number of steps per scan: equal parts of an epoch, so that at most two programs are compiled."""
    return -(-steps // -(-steps // _CHUNK))


def program_name(trainer: TrainerDefinition, hparams: PyTree, feed: Feed, source: Source) -> str:
    """Return an identifier of a training program: trainer, static values, shapes, kind of device."""
    shapes = ", ".join(f"{name} {leaf.dtype}{list(leaf.shape[1:])}" for name, leaf in sorted(source.arrays.items()))
    device = (feed.layout.devices or tuple(jax.devices()))[0]
    return (
        f"{type(trainer).__qualname__} {dict(settings_of(trainer))} {jax.tree.structure(hparams)} ({shapes}) "
        f"{feed.steps} x {feed.batch_size} on {feed.layout.size} {device.device_kind}"
    )


def measure(
    programs: Programs, source: Source, hparams: PyTree, carry: Carry, steps: int, agree: Agree = alone
) -> Mode:
    """Measure whether scan or step is faster for these programs on this machine; `carry` is only copied.

    If steps are long, the scan is not compiled for the measurement. Processes that train together use the times of
    rank 0.
    """
    few, many = min(steps, _TIMED_STEPS), chunk(steps)

    def step_s() -> float:
        return agreed(_seconds(programs, carry, one_by_one) / few)

    def one_by_one(carry: Carry) -> Carry:
        for _ in range(few):
            carry = programs.step(source, hparams, *carry)
        return carry

    def scan_s() -> float:
        run = partial(programs.steps, source, hparams, count=many)
        return agreed(_seconds(programs, carry, lambda carry: run(*carry)) / many)

    def agreed(seconds: float) -> float:
        return agree("seconds", lambda: seconds)

    step_s()  # compiles
    if step_s() > _SLOW_STEP_S:
        return "step"
    scan_s()
    # Alternate the two and use the minimum of each, so that other processes affect both in the same way.
    began, times = time.perf_counter(), []
    while len(times) < 3 or (agreed(time.perf_counter() - began) < _TIMED_S and len(times) < _TIMED_ROUNDS):
        times.append((step_s(), scan_s()))
    least_step, least_scan = (min(side) for side in zip(*times, strict=True))
    return "scan" if least_scan < least_step else "step"


def _seconds(programs: Programs, carry: Carry, run: Callable[[Carry], Carry]) -> float:
    """Return the seconds that a function takes with a copy of the carry."""
    copied = jax.block_until_ready(programs.copy(carry))
    began = time.perf_counter()
    jax.block_until_ready(run(copied))
    return time.perf_counter() - began
