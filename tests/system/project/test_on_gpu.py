"""The benchmark for GPUs runs on CPUs with small sizes; what it says of GPUs is checked with numbers by hand."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tuner.launch.devices import DeviceGroup

FOLDER = Path(__file__).parents[3] / "benchmarks"
NVIDIA_SMI = """#!/bin/sh
case "$1" in *bus_id*) echo "0, 00000000:3B:00.0, 24564" ;; *) echo 0 ;; esac
"""
GPUS = {0: ("0000:3b:00.0", 24564), 1: ("0000:af:00.0", 24564)}
GPU_1 = DeviceGroup("gpu", (1,), (4, 5))
SEEN = {"backend": "gpu", "count": 1, "cores": [4, 5], "addresses": ["0000:af:00.0"]}


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("on_gpu")


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("gpu_timings")


def run(*words: str, **env: str) -> tuple[dict[str, dict[str, Any]], subprocess.CompletedProcess[str]]:
    """Run the script without the strict promotion of the tests; return its lines by question, and the process."""
    usual = {name: value for name, value in os.environ.items() if not name.startswith("JAX_NUMPY_")}
    usual["XLA_FLAGS"] += " --xla_backend_optimization_level=0"  # compiles faster
    found = subprocess.run(
        [sys.executable, str(FOLDER / "on_gpu.py"), "--small", *words],
        env={**usual, **env},
        capture_output=True,
        text=True,
    )
    return {line["question"]: line for line in map(json.loads, found.stdout.splitlines())}, found


SIDES = {
    "many_trials": (2, "one_at_a_time", "together"),
    "precision": (1, "float32", "bfloat16"),
    "loop": (2, "step", "scan"),
}
"""Question -> its rows on a CPU, and the two sides of each."""


@pytest.mark.slow
def test_workers_on_cpus_see_their_cores_and_the_rest_is_skipped(on_gpu: Any) -> None:
    lines, found = run("--only", *(name for name in on_gpu.QUESTIONS if name not in SIDES))
    assert found.returncode == 0, found.stderr
    assert list(lines) == ["devices", "memory", "kernel"]
    check_heads(lines)
    rows = lines["devices"]["rows"]
    assert rows != []
    for row in rows:
        assert row["cores"] == [int(core) for core in row["assigned"].removeprefix("cpu ").split(",")]
    assert "memory on a cpu" in lines["memory"]["skipped"]
    assert "interpreted" in lines["kernel"]["skipped"]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("question", SIDES)
def test_ratios_are_those_of_the_figures_of_both_sides(question: str) -> None:
    lines, found = run("--only", question)
    assert found.returncode == 0, found.stderr
    check_heads(lines)
    count, first, second = SIDES[question]
    assert len(lines[question]["rows"]) == count
    for row in lines[question]["rows"]:
        assert row[f"{second}_s"] > 0
        assert row["ratio"] == pytest.approx(row[f"{first}_s"] / row[f"{second}_s"], rel=1e-3)
        for side in (first, second) if question == "many_trials" else ():
            assert row[f"{side}_trials_per_s"] * row[f"{side}_s"] == pytest.approx(row["lanes"], rel=1e-3)


def check_heads(lines: dict[str, dict[str, Any]]) -> None:
    for line in lines.values():
        assert line["device"] == {"kind": "cpu", "count": 8}
        assert {"question", "date", "jax", "rows"} <= line.keys()


@pytest.mark.long
@pytest.mark.slow
def test_a_question_that_fails_leaves_the_others(tmp_path: Path) -> None:
    """Workers are assigned a GPU that JAX does not have."""
    (tmp_path / "nvidia-smi").write_text(NVIDIA_SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    lines, found = run("--only", "devices", "memory", "kernel", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (found.returncode, found.stderr.splitlines()[-1]) == (1, "failed: devices, memory")
    for question in ("devices", "memory"):
        assert "must see {'backend': 'gpu'" in lines[question]["error"]
        assert "it saw {'backend': 'cpu'" in lines[question]["error"]
    assert lines["devices"]["rows"][0]["assigned"] == "gpu 0"
    assert "skipped" in lines["kernel"]
    assert "error" not in lines["kernel"]


def test_a_worker_that_cannot_start_is_an_error(on_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "__file__", "/no/such/script.py")
    with pytest.raises(RuntimeError, match=r"worker-0 must report its devices: exit status 2, .*no/such/script"):
        on_gpu.start_workers([DeviceGroup("cpu", (0,), (0,))])


def test_a_question_is_not_started_after_the_end(on_gpu: Any) -> None:
    assert on_gpu.ask("loop", True, time.monotonic()) == {"rows": [], "skipped": "out of time"}


def test_a_question_ends_when_its_time_is_used_up(on_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "_QUESTION_S", 0.01)
    assert on_gpu.ask("loop", False, time.monotonic() + 600) == {"rows": [], "error": "killed after 0 s"}


def test_a_worker_must_see_its_devices_and_no_others(on_gpu: Any) -> None:
    on_gpu.check_devices(GPU_1, SEEN, GPUS)
    others = [{"backend": "cpu"}, {"count": 2}, {"cores": [4]}, {"addresses": ["0000:3b:00.0"]}, {"addresses": []}]
    for other in others:
        with pytest.raises(RuntimeError, match="a worker on gpu 1 must see"):
            on_gpu.check_devices(GPU_1, {**SEEN, **other}, GPUS)


def test_a_share_is_compared_with_the_memory_of_the_gpu(on_gpu: Any) -> None:
    """A quarter of nine tenths of 10,000 MiB are 2,250 MiB, of which 30 / 32 are to be filled: 2,109 MiB."""
    full = on_gpu.share_row({"fraction": 0.225, "limit_mib": 2400.0, "held_mib": 2109.4}, 10_000)
    assert full == {"share_mib": 2250, "limit_mib": 2400, "held_mib": 2109, "ratio": 0.9375}
    on_gpu.check_share(GPU_1, full)
    for held in (1900.0, 4218.8):
        with pytest.raises(RuntimeError, match=f"2250 MiB: it filled {round(held)} MiB"):
            on_gpu.check_share(
                GPU_1, on_gpu.share_row({"fraction": 0.225, "limit_mib": held, "held_mib": held}, 10_000)
            )


def test_nearly_all_memory_that_jax_may_use_is_filled(on_gpu: Any) -> None:
    limit, arrays = on_gpu.fill_memory(SimpleNamespace(memory_stats=lambda: {"bytes_limit": 32_000}))
    assert (limit, [array.nbytes for array in arrays]) == (32_000, [1000] * 30)


def test_the_first_call_of_a_side_is_not_timed(timings: Any) -> None:
    one, two = iter([1.0, 4.0, 3.0, 5.0]), iter([0.5, 1.0, 2.0, 3.0])
    assert timings.shortest({"one": one.__next__, "two": two.__next__}, 3) == {"one": 3.0, "two": 1.0}
    assert timings.ratio_row("one", "two", {"one": 3.0, "two": 1.5}, 10) == {"one_s": 0.3, "two_s": 0.15, "ratio": 2.0}


@pytest.mark.slow
def test_trials_that_differ_from_their_lanes_are_refused(timings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    each = timings.run_each
    monkeypatch.setattr(timings, "run_each", lambda program, trials: each(program, trials[::-1]))
    with pytest.raises(RuntimeError, match="losses of 4 trials of regression"):
        list(timings.many_trials(timings.SMALL))


@pytest.mark.slow
def test_kernels_are_compared_with_flax(timings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted here, because only GPUs and TPUs compile them."""
    rows = list(timings.compare_norms(timings.SMALL))
    assert [(row["width"], row["dtype"]) for row in rows] == [
        (width, dtype) for width in (32, 33) for dtype in ("float32", "bfloat16")
    ]
    assert all(row["ratio"] == pytest.approx(row["plain_s"] / row["kernel_s"], rel=1e-3) for row in rows)
    passes = timings.both_passes

    def wrong(norm: Any, x: Any, *more: Any) -> Any:
        return passes(norm, x + 0.01 * x * x if isinstance(norm, timings.RMSNorm) else x, *more)

    monkeypatch.setattr(timings, "both_passes", wrong)
    with pytest.raises(RuntimeError, match="the kernel and Flax, of width 32 in float32, must differ by at most"):
        list(timings.compare_norms(timings.SMALL))
