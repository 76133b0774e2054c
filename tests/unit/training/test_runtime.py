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
from jax.experimental.compilation_cache import compilation_cache

from tuner import Space, Study, int_uniform
from tuner.training import ArrayDataset, Layout, OptimizerSpec, TrainerModule
from tuner.training.loop import programs, runtime
from tuner.training.loop.program_cache import kind_of_machine
from tuner.training.loop.runtime import CompileClock, use_persistent_cache
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
def cache_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """JAX's settings of the persistent cache as a user has them, in a new home; put back afterwards."""
    names = (
        *("enable_compilation_cache", "compilation_cache_dir", "compilation_cache_max_size"),
        *("persistent_cache_min_compile_time_secs", "persistent_cache_min_entry_size_bytes"),
        "persistent_cache_enable_xla_caches",
    )
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(runtime, "_state", runtime._State(is_provided=runtime._state.is_provided))
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    if runtime._state.cache is not None:
        runtime._state.cache.close()
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def private_folder(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path


def make_programs(trainer: Line, first: int, count: int) -> None:
    for width in range(first, first + count):
        programs.programs(trainer, {"width": width, "names": {str(width): 1}}, Layout())


@pytest.mark.slow
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


@pytest.mark.slow
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


def of_this_machine(root: Path) -> Path:
    """Return the folder of the programs that JAX uses."""
    return root / kind_of_machine()


def folder_in_use() -> str:
    return jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_the_cache_on_disk_is_trimmed_at_the_start_and_then_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_settings: None
) -> None:
    seconds = iter([0.0, 59.0, 60.0])
    monkeypatch.setattr(runtime.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(runtime, "_CACHE_BYTES", 1000)
    folder = private_folder(tmp_path / f"compiled-{os.geteuid()}") / "another-kind"
    old, new = write(folder, "old", 600, 1), write(folder, "new", 600, 2)
    use_persistent_cache(tmp_path)
    assert folder_in_use() == str(of_this_machine(folder.parent))
    assert (old.exists(), new.exists()) == (False, True)
    newer = write(folder, "newer", 600, 3)
    runtime.tidy()
    assert new.exists()
    runtime.tidy()
    assert (new.exists(), newer.exists()) == (False, True)


def test_the_limit_is_the_one_that_jax_is_told(tmp_path: Path, cache_settings: None) -> None:
    folder = private_folder(tmp_path / f"compiled-{os.geteuid()}")
    old, new = write(folder, "old", 600, 1), write(folder, "new", 600, 2)
    jax.config.update("jax_compilation_cache_max_size", 1000)
    use_persistent_cache(tmp_path)
    assert (old.exists(), new.exists()) == (False, True)


def test_programs_are_kept_with_the_artifacts_else_in_the_users_cache(tmp_path: Path, cache_settings: None) -> None:
    own = of_this_machine(tmp_path / "cache" / "tuner" / "compiled")
    use_persistent_cache()
    assert folder_in_use() == str(own)
    for name in ("one", "two"):  # two runs in one process
        use_persistent_cache(tmp_path / name)
        assert folder_in_use() == str(of_this_machine(tmp_path / name / f"compiled-{os.geteuid()}"))
        width = 3 + len(list(tmp_path.iterdir()))
        jax.jit(lambda x: x * 3.25)(np.zeros(width)).block_until_ready()
        assert any(Path(folder_in_use()).iterdir())


def test_a_folder_that_others_may_write_to_is_told_in_one_line_and_not_used(
    tmp_path: Path, cache_settings: None, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = tmp_path / f"compiled-{os.geteuid()}"
    shared.mkdir()
    shared.chmod(0o777)
    own = tmp_path / "cache" / "tuner" / "compiled"
    use_persistent_cache(tmp_path)
    assert folder_in_use() == str(of_this_machine(own))
    assert capsys.readouterr().err == (
        f"tuner: cannot share compiled programs in {shared}: others may write to it (mode 0777); "
        f"this worker uses {own}\n"
    )
    assert list(shared.iterdir()) == []


def test_without_any_folder_programs_are_compiled(
    tmp_path: Path, cache_settings: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("not a folder")
    use_persistent_cache()
    assert folder_in_use() is None
    assert "this worker compiles its own" in capsys.readouterr().err


@pytest.mark.parametrize("setting", [("jax_enable_compilation_cache", False), ("jax_compilation_cache_max_size", 0)])
def test_a_user_can_switch_the_cache_off(tmp_path: Path, cache_settings: None, setting: tuple[str, Any]) -> None:
    jax.config.update(*setting)
    use_persistent_cache(tmp_path)
    assert folder_in_use() is None
    assert list(tmp_path.iterdir()) == []


def test_without_jaxs_private_name_its_own_cache_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_settings: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtime, "provide_cache", lambda find: False)
    monkeypatch.setattr(runtime._state, "is_provided", None)
    use_persistent_cache(tmp_path)
    assert "does not accept tuner's compile cache" in capsys.readouterr().err
    monkeypatch.setattr(runtime._state, "cache", None)  # what JAX would be given, if it asked
    jax.jit(lambda x: x * 4.75)(np.zeros(5)).block_until_ready()
    assert [path.name[-6:] for path in Path(folder_in_use()).iterdir()] == ["-cache"]


def test_a_folder_that_the_user_names_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_settings: None
) -> None:
    monkeypatch.setattr(runtime, "_CACHE_BYTES", 10)
    kept = write(tmp_path, "kept", 600, 1)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    use_persistent_cache(tmp_path / "artifacts")
    runtime.tidy()
    assert kept.exists()
    assert folder_in_use() == str(tmp_path)
    assert not (tmp_path / "artifacts").exists()
