"""Memory and disk that programs take: freed once many are no longer used, and never before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuner import Space, Study, int_uniform
from tuner.training import ArrayDataset, Layout, OptimizerSpec, TrainerModule
from tuner.training.loop import programs, runtime
from tuner.training.loop.runtime import CompileClock, trim_cache, use_persistent_cache
from tuner.trial import Event
from tuner.trial.events import TrialEnded
from tuner.worker import run_worker


class Wide(Space):
    width: int = int_uniform(1, 1000)


class Line(TrainerModule):
    """A linear model whose static width changes the shape of its weights."""

    loop = "step"

    def init_model(self, hparams: Any) -> Any:
        return lambda key, x: jnp.zeros((2, hparams.width)), lambda params, x: jnp.sum(x @ params, axis=-1)

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (outputs - batch["targets"]) ** 2, {}

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return OptimizerSpec("sgd", 0.01)


def data(seed: int) -> Any:
    inputs = np.random.default_rng(seed).normal(size=(10, 2))
    return ArrayDataset(inputs=inputs, targets=inputs.sum(1)).split(0.5, seed)


@pytest.fixture
def clock(compiles_anew: None) -> Iterator[CompileClock]:
    made = CompileClock()
    yield made
    jax.monitoring.unregister_event_duration_listener(made._add)
    jax.monitoring.unregister_event_listener(made._found)


@pytest.fixture
def cache_settings() -> Iterator[None]:
    """JAX's own settings of the persistent cache, put back afterwards."""
    names = ("compilation_cache_dir", "compilation_cache_max_size", "persistent_cache_min_compile_time_secs")
    names = tuple(f"jax_{name}" for name in (*names, "persistent_cache_min_entry_size_bytes"))
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_compilation_cache_max_size", -1)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def make_programs(trainer: Line, first: int, count: int) -> None:
    for width in range(first, first + count):
        programs.programs(trainer, {"width": width, "names": {str(width): 1}}, Layout())


def test_programs_that_are_kept_are_not_compiled_again_before_many_others_were_dropped(clock: CompileClock) -> None:
    trainer, mine = Line(), jax.jit(lambda x: x + 1)
    programs._programs.cache_clear()

    def compiled() -> int:
        before = clock.count
        mine(np.float32(1))
        runtime.tidy()
        return clock.count - before

    assert compiled() == 1
    make_programs(trainer, 0, 16 + 31)  # 16 are kept
    assert [compiled(), compiled()] == [0, 0]
    make_programs(trainer, 47, 1)
    assert [compiled(), compiled(), compiled()] == [0, 1, 0]  # freed after the first, and only once


def test_a_worker_frees_what_its_trials_no_longer_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_programs", lru_cache(maxsize=1)(programs._programs.__wrapped__))
    monkeypatch.setattr(programs, "_DROPPED", 2)
    study = Study(
        name="widths", space=Wide, trainer=Line(), data=data, objective="loss", direction="minimize", epochs=1,
        trials=5, sampler="random", pruner="none", keep_best=0,
    )  # fmt: skip
    dropped: list[int] = []

    def say(event: Event) -> None:
        if isinstance(event, TrialEnded):
            info = programs._programs.cache_info()
            dropped.append(info.misses - info.currsize)

    run_worker(study, f"sqlite:///{tmp_path}/a.db", artifacts=str(tmp_path / "artifacts"), say=say)
    # The check before the first trial is of another width: each trial drops one set, and 2 are freed.
    assert dropped == [1, 2, 0, 1, 2]


def write(folder: Path, name: str, size: int, used_at_s: float) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (used_at_s, used_at_s))
    return path


def test_a_full_cache_loses_what_was_not_used_for_longest(tmp_path: Path) -> None:
    files = [write(tmp_path, name, 100, at) for name, at in (("b", 3), ("a", 1), ("inner/c", 2), ("d", 4), ("e", 5))]
    os.utime(tmp_path / "a", (6, 1))  # read since, though the oldest
    trim_cache(tmp_path, 500)
    assert all(path.exists() for path in files)
    trim_cache(tmp_path, 499)  # down to 449 bytes
    assert [path.name for path in files if not path.exists()] == ["c"]
    trim_cache(tmp_path, 250)
    assert [path.name for path in files if path.exists()] == ["a", "e"]
    trim_cache(tmp_path / "missing", 1)


def test_the_cache_on_disk_is_trimmed_at_the_start_and_then_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_settings: None
) -> None:
    seconds = iter([0.0, 59.0, 60.0])
    monkeypatch.setattr(runtime, "_cache", None)
    monkeypatch.setattr(runtime.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(runtime, "_CACHE_BYTES", 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "tuner" / "xla"
    old, new = write(folder, "old", 600, 1), write(folder, "new", 600, 2)
    use_persistent_cache()
    assert jax.config.jax_compilation_cache_dir == str(folder)  # pyright: ignore[reportAttributeAccessIssue]
    assert (old.exists(), new.exists()) == (False, True)
    newer = write(folder, "newer", 600, 3)
    runtime.tidy()
    assert new.exists()
    runtime.tidy()
    assert (new.exists(), newer.exists()) == (False, True)


def test_the_limit_is_the_one_that_jax_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_settings: None
) -> None:
    monkeypatch.setattr(runtime, "_cache", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    old = write(tmp_path / "tuner" / "xla", "old", 600, 1)
    new = write(tmp_path / "tuner" / "xla", "new", 600, 2)
    jax.config.update("jax_compilation_cache_max_size", 1000)
    use_persistent_cache()
    assert (old.exists(), new.exists()) == (False, True)
    assert jax.config.jax_compilation_cache_max_size == -1  # pyright: ignore[reportAttributeAccessIssue]


def test_a_folder_that_the_user_names_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_settings: None
) -> None:
    monkeypatch.setattr(runtime, "_cache", None)
    monkeypatch.setattr(runtime, "_CACHE_BYTES", 10)
    kept = write(tmp_path, "kept", 600, 1)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    use_persistent_cache()
    runtime.tidy()
    assert kept.exists()
