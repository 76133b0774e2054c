"""Programs that are compiled before their first call, on other threads, and whether they fit into memory."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuner.training import ArrayDataset, Layout, TrainerModule
from tuner.training.loop import compiling, execution, modes, runtime
from tuner.training.loop.ahead import compile_ahead
from tuner.training.loop.compiling import Compiling, check_memory, host_bytes
from tuner.training.loop.execution import Solo
from tuner.training.loop.modes import Mode
from tuner.training.loop.runtime import CompileClock
from tuner.training.optim.build import OptimizerSpec

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(600, 2)).astype(np.float32)
DATA = ArrayDataset(inputs=INPUTS, targets=INPUTS.sum(1)).split(0.5, seed=0)
GIB = 2**30


class Line(TrainerModule):
    """A linear model; its steps need `width`² numbers for each example."""

    def __init__(self, loop: Any = "scan", width: int = 2) -> None:
        self.loop, self.width = loop, width

    def init_model(self, hparams: Any) -> Any:
        def apply(params: Any, x: jax.Array) -> jax.Array:
            wide = jnp.broadcast_to(x.sum(1)[:, None, None], (x.shape[0], self.width, self.width)) * params[0]
            return jax.lax.stop_gradient(jnp.sort(wide, axis=1))[:, 0, 0] + x @ params

        return lambda key, x: jax.random.normal(key, (2,)), apply

    def batch_size(self, hparams: Any) -> int:
        return 8

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (outputs - batch["targets"]) ** 2, {}

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return OptimizerSpec("sgd", 0.01)


@pytest.fixture
def clock(compiles_anew: None) -> Any:
    made = CompileClock()
    yield made
    jax.monitoring.unregister_event_duration_listener(made._add)
    jax.monitoring.unregister_event_listener(made._found)


def trained(trainer: Line, mode: Mode, layout: Layout) -> list[dict[str, float]]:
    training = trainer.train_model({}, DATA, epochs=2, seed=0, choose=lambda *_: mode, layout=layout)
    return [dict(report.metrics) for report in training]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "mode"),
    [
        ((), "scan"),
        (tuple(jax.devices()[:1]), "step"),
        pytest.param((), "step", marks=pytest.mark.long),
        pytest.param(tuple(jax.devices()[:1]), "scan", marks=pytest.mark.long),
    ],
)
def test_each_program_is_compiled_once(
    clock: CompileClock, mode: Mode, devices: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    jax.clear_caches()
    found = trained(Line("auto"), mode, Layout(devices))
    compiled = clock.count
    monkeypatch.setattr(Solo, "_compiles_first", False)
    jax.clear_caches()
    assert trained(Line("auto"), mode, Layout(devices)) == found
    assert clock.count - compiled == compiled


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["scan", "step"])
def test_a_training_compiles_nothing_that_was_compiled_ahead(clock: CompileClock, mode: Mode) -> None:
    trainer, layout = Line("auto"), Layout(jax.devices()[:1])
    compile_ahead(trainer, {}, DATA, epochs=2, layout=layout)
    compiled = clock.count
    assert len(trained(trainer, mode, layout)) == 2
    assert clock.count == compiled


def test_programs_compile_at_the_same_time_and_the_trainer_runs_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    both, tracing = threading.Barrier(2, timeout=60), set[int]()
    compile_one = compiling._compile

    def together(lowered: Any, future: Any) -> None:
        try:
            both.wait()
        finally:
            compile_one(lowered, future)

    def traced(x: jax.Array) -> jax.Array:
        tracing.add(threading.get_ident())
        return x + 1

    monkeypatch.setattr(compiling, "_compile", together)
    made, shape = Compiling(), jax.ShapeDtypeStruct((3,), np.float32)
    first, second = made.start(jax.jit(traced), shape), made.start(jax.jit(lambda x: traced(x) * 2), shape)
    assert first.result() is not second.result()
    assert not both.broken
    assert tracing == {threading.get_ident()}


def test_a_program_is_compiled_once_for_the_same_shapes() -> None:
    made, program = Compiling(), jax.jit(lambda x: x + 1)
    first = made.start(program, jax.ShapeDtypeStruct((3,), np.float32))
    assert made.start(program, jnp.ones(3)) is first
    assert made.start(program, jnp.ones(4)) is not first
    assert not made.start(program, jnp.ones(4)).exception()


def test_a_program_is_not_taken_for_an_earlier_one_that_was_deleted() -> None:
    made, shape = Compiling(), jax.ShapeDtypeStruct((3,), np.float32)
    several = [made.start(jax.jit(lambda x, at=at: x + at), shape) for at in range(20)]  # their ids may be used again
    assert len(set(map(id, several))) == 20


def test_a_program_that_cannot_be_compiled_raises_its_error_when_it_is_called() -> None:
    class Broken:
        def lower(self, *args: Any) -> Any:
            return self

        def compile(self) -> Any:
            raise RuntimeError("planted")

    assert Compiling().start(Broken(), jnp.ones(3)).result() is None
    check_memory(None, Layout())


def test_a_program_that_cannot_be_traced_raises_its_error_each_time() -> None:
    def broken(x: jax.Array) -> jax.Array:
        raise RuntimeError("planted")

    made, program = Compiling(), jax.jit(broken)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="planted"):
            made.start(program, jnp.ones(3))


@pytest.mark.slow
def test_the_shorter_last_chunk_of_an_epoch_is_compiled_ahead_too(
    clock: CompileClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "_CHUNK", 16)
    trainer, layout = Line("scan"), Layout(jax.devices()[:1])  # 38 steps: 13, 13 and 12
    trained(Line("step"), "step", layout)  # compiles the small programs that all trainings share
    compile_ahead(trainer, {}, DATA, epochs=2, layout=layout)
    compiled = clock.count
    assert len(trained(trainer, "scan", layout)) == 2
    assert clock.count == compiled


# --- Memory


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["scan", "step", "auto"])
def test_a_training_that_cannot_fit_ends_before_its_first_step(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = list[str]()
    monkeypatch.setattr(execution, "measure", lambda *_: steps.append("measured"))
    training = Line(loop, width=2**20).train_model({}, DATA, epochs=1, seed=0, stop=lambda: bool(steps.append("step")))
    with pytest.raises(MemoryError, match=r"^the program of a training step needs [\d,.]+ GiB of memory, and cpu has "):
        next(training)
    assert steps == []


def device_with(limit: int, in_use: int) -> Any:
    stats = {"bytes_limit": limit, "bytes_in_use": in_use}
    return SimpleNamespace(memory_stats=lambda: stats, device_kind="NVIDIA H200")


def program_of(arguments: int, temporary: int, outputs: int, alias: int) -> Any:
    sizes = {
        "argument_size_in_bytes": arguments,
        "temp_size_in_bytes": temporary,
        "output_size_in_bytes": outputs,
        "alias_size_in_bytes": alias,
    }
    return SimpleNamespace(memory_analysis=lambda: SimpleNamespace(**sizes))


def test_what_a_program_needs_is_compared_with_what_is_free() -> None:
    # Of 10 GiB, 4 are in use, among them the arguments. The state is updated in place: 5 + 3 - 2 = 6 GiB are new.
    layout: Any = SimpleNamespace(devices=(device_with(10 * GIB, 4 * GIB),))
    check_memory(program_of(3 * GIB, 5 * GIB, 3 * GIB, 2 * GIB), layout)
    with pytest.raises(MemoryError) as raised:
        check_memory(program_of(3 * GIB, 6 * GIB, 3 * GIB, 2 * GIB), layout)
    assert str(raised.value) == (
        "the program of a training step needs 7.0 GiB of memory, and NVIDIA H200 has 6.0 GiB: use a smaller batch or "
        "model"
    )


def test_a_host_has_what_its_container_may_use(tmp_path: Path) -> None:
    everything = host_bytes(())
    assert 2**28 < everything < 2**50
    limits = [tmp_path / "memory.max", tmp_path / "limit_in_bytes"]
    assert host_bytes(limits) == everything
    limits[0].write_text("max\n")
    limits[1].write_text(f"{everything // 3}\n")
    assert host_bytes(limits) == everything // 3


# --- The clock


def test_seconds_in_which_several_programs_compile_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: now[0])
    clock = CompileClock()

    def compiled(began_s: float, ended_s: float) -> float:
        now[0] = ended_s
        clock._add(runtime._COMPILE_EVENT, ended_s - began_s)
        return clock.total_s

    assert compiled(0.0, 2.0) == 2.0
    assert compiled(3.0, 4.0) == 3.0
    assert compiled(3.5, 5.0) == 4.0  # half of it was counted
    assert compiled(1.0, 6.0) == 6.0  # the second from 2 to 3, and that from 5 to 6
    assert compiled(7.0, 8.0) == 7.0
    assert clock.count == 5
    clock._add(runtime._SAVED_EVENT, 2.5)
    clock._add(runtime._SAVED_EVENT, -0.1)  # reading took longer
    assert clock.saved_s == 2.5
    jax.monitoring.unregister_event_duration_listener(clock._add)
    jax.monitoring.unregister_event_listener(clock._found)
