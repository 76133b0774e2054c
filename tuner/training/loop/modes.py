"""Chooses by measurement whether an epoch runs as one compiled loop (scan) or as a loop of compiled steps (step).

On CPUs a scan is several times faster for small dense models and several times slower for convolutions; the two differ
in the last bits, so the choice is made once for a program and kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal
from weakref import WeakKeyDictionary

import jax

from tuner.training.data.batches import Source
from tuner.training.data.feed import Feed
from tuner.training.definition import TrainerDefinition, settings_of
from tuner.training.loop.programs import Carry, Programs

Mode = Literal["scan", "step"]
Choose = Callable[[str, Callable[[], Mode]], Mode]
"""(program, measure) -> mode: looks up what a program runs as, or calls `measure()` and remembers the answer."""

_CHUNK = 256
"""Steps in one program at most: between programs a trial can be stopped and saved."""
_SLOW_STEP_S = 0.02
"""Of a step this long, starting it is a hundredth at most: there is nothing to win by a scan."""
_TIMED_STEPS, _TIMED_ROUNDS, _TIMED_S = 20, 20, 0.3

_chosen: WeakKeyDictionary[TrainerDefinition, dict[str, Mode]] = WeakKeyDictionary()


def remembered(trainer: TrainerDefinition) -> Choose:
    """Return a `Choose` that remembers the modes of a trainer's programs in this process."""

    def choose(program: str, measure: Callable[[], Mode]) -> Mode:
        known = _chosen.setdefault(trainer, {})
        if program not in known:
            known[program] = measure()
        return known[program]

    return choose


def chunk(steps: int) -> int:
    """Return how many steps of an epoch a scan takes at a time: equal parts, so that at most two programs differ."""
    return -(-steps // -(-steps // _CHUNK))


def program_name(trainer: TrainerDefinition, hparams: Any, feed: Feed, source: Source) -> str:
    """Return what identifies a training program across processes: trainer, static values, shapes, kind of device."""
    shapes = ", ".join(f"{name} {leaf.dtype}{list(leaf.shape[1:])}" for name, leaf in sorted(source.arrays.items()))
    device = (feed.layout.devices or tuple(jax.devices()))[0]
    return (
        f"{type(trainer).__qualname__} {dict(settings_of(trainer))} {jax.tree.structure(hparams)} ({shapes}) "
        f"{feed.steps} x {feed.batch_size} on {feed.layout.size} {device.device_kind}"
    )


def measure(programs: Programs, source: Source, hparams: Any, carry: Carry, steps: int) -> Mode:
    """Return the faster of scan and step for these programs here; `carry` is only copied.

    A program whose steps are long is not compiled a second time to find out.
    """
    few, many = min(steps, _TIMED_STEPS), chunk(steps)

    def step_s() -> float:
        return _seconds(programs, carry, one_by_one) / few

    def one_by_one(carry: Carry) -> Carry:
        for _ in range(few):
            carry = programs.step(source, hparams, *carry)
        return carry

    def scan_s() -> float:
        return _seconds(programs, carry, lambda carry: programs.steps(source, hparams, *carry, count=many)) / many

    step_s()  # compiles
    if step_s() > _SLOW_STEP_S:
        return "step"
    scan_s()
    # By turns and the least of each: other processes disturb one side for as long as the other.
    began, times = time.perf_counter(), []
    while len(times) < 3 or (time.perf_counter() - began < _TIMED_S and len(times) < _TIMED_ROUNDS):
        times.append((step_s(), scan_s()))
    least_step, least_scan = (min(side) for side in zip(*times, strict=True))
    return "scan" if least_scan < least_step else "step"


def _seconds(programs: Programs, carry: Carry, run: Callable[[Carry], Carry]) -> float:
    """Return how long a function of a copy of the carry takes."""
    copied = jax.block_until_ready(programs.copy(carry))
    began = time.perf_counter()
    jax.block_until_ready(run(copied))
    return time.perf_counter() - began
