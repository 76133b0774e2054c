"""Memory and utilisation of GPUs, sampled from a fake NVML."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from worker_log import Log, logged

import tuner
from tuner import Space, Study, Trial, uniform
from tuner.cli.printing import print_fields
from tuner.dashboard import trial_page
from tuner.results.export import flat_rows
from tuner.results.rows import show_row
from tuner.storage import connected
from tuner.trial.events import GpusUnwatched
from tuner.worker import gpu_use
from tuner.worker.gpu_use import GpusUnclear, GpuUse, GpuWatch, Pace, Sample, find_handles
from tuner.worker.runtime import JaxRuntime, PlainRuntime

FAKE = Path(__file__).parents[2] / "data" / "nvml" / "pynvml.py"
GB = 10**9
QUICK = Pace(0.01, 0.01)


def gpu(at: int, used_gb: int = 0, percent: int = 0, **more: Any) -> dict[str, Any]:
    return {"uuid": f"GPU-{at}{at}{at}-abc", "total": 100 * GB, "used": used_gb * GB, "gpu": percent, **more}


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A fake of NVML with four GPUs, of which the first two are busy."""
    spec = importlib.util.spec_from_file_location("pynvml", FAKE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.GPUS[:] = [gpu(0, 90, 100), gpu(1, 80, 100), gpu(2, 10, 20), gpu(3, 30, 60)]
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def use_of(watch: GpuWatch, wait_until: Callable[..., Any], samples: int = 3) -> dict[str, Any]:
    """Return what a trial gets that trains until there are some samples."""
    use = GpuUse()
    with watch.watching(use):
        wait_until(lambda: len(use._bytes) >= samples or len(use._percents) >= samples)
    return use.columns()


def test_the_fake_has_the_functions_of_the_real_package(nvml: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pynvml")
    real = pytest.importorskip("pynvml")
    for name, function in vars(nvml).items():
        if name.startswith("nvml"):
            assert list(inspect.signature(getattr(real, name)).parameters) == list(
                inspect.signature(function).parameters
            ), name
        elif name.startswith("NVMLError"):
            assert issubclass(getattr(real, name), real.NVMLError)
    assert {"total", "free", "used"} <= {name for name, *_ in real.c_nvmlMemory_t._fields_}
    assert [name for name, *_ in real.c_nvmlUtilization_t._fields_] == ["gpu", "memory"]
    with pytest.raises(real.NVMLError):  # not initialised, or without a driver
        real.nvmlDeviceGetHandleByIndex(10_000)


def test_samples_become_the_peak_of_the_fullest_gpu_and_means() -> None:
    use = GpuUse()
    assert use.columns() == {}
    use.add(Sample((10, 30), (100, 200), (50, 100)))
    use.add(Sample((80, 20), (100, 200), (0, 100)))
    use.add(Sample((), (), (11, 12)))
    # By hand: 80 of 100 is the fullest; (20 + 50) / 2; (75 + 50 + 11.5) / 3.
    assert use.columns() == {
        "gpu_peak_bytes": 80, "gpu_mean_bytes": 35, "gpu_total_bytes": 100, "gpu_percent": 45.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("visible", "numbers"),
    [
        (None, [0, 1, 2, 3]),
        ("2,3", [2, 3]),
        (" 3 , 0 ", [3, 0]),
        ("", []),
        ("-1", []),
        ("1,-1,2", [1]),
        ("1,9,2", [1]),
        ("GPU-222-abc", [2]),
        ("GPU-3,GPU-111", [3, 1]),
        ("GPU-", []),
        ("GPU-999", []),
        ("NoDevFiles", []),
    ],
)
def test_the_gpus_are_those_that_cuda_shows_to_the_process(
    nvml: ModuleType, visible: str | None, numbers: list[int]
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert find_handles(nvml, environment) == [nvml.GPUS[at] for at in numbers]


def test_a_slice_of_a_gpu_has_memory_of_its_own_and_no_utilisation(
    nvml: ModuleType, wait_until: Callable[..., Any]
) -> None:
    nvml.MIG["MIG-7"] = gpu(7, 5, error_of_rates="NVMLError_NotSupported")
    said: list[str] = []
    watch = GpuWatch({"CUDA_VISIBLE_DEVICES": "MIG-7"}, is_wanted=True, tell=said.append, pace=QUICK)
    found = use_of(watch, wait_until)
    assert found == {"gpu_peak_bytes": 5 * GB, "gpu_mean_bytes": 5 * GB, "gpu_total_bytes": 100 * GB}
    assert said == []


def test_gpus_of_several_kinds_need_a_known_order(nvml: ModuleType) -> None:
    nvml.GPUS[0]["name"] = "NVIDIA T4"
    with pytest.raises(GpusUnclear, match="set CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        find_handles(nvml, {"CUDA_VISIBLE_DEVICES": "1"})
    in_order = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert find_handles(nvml, in_order) == [nvml.GPUS[1]]
    assert find_handles(nvml, {"CUDA_VISIBLE_DEVICES": "GPU-1"}) == [nvml.GPUS[1]]


def test_trials_at_the_same_time_get_the_same_samples_and_the_thread_ends_with_the_last(
    nvml: ModuleType, wait_until: Callable[..., Any]
) -> None:
    watch = GpuWatch({"CUDA_VISIBLE_DEVICES": "2,3"}, is_wanted=True, pace=QUICK)
    outer = GpuUse()
    with watch.watching(outer):
        assert use_of(watch, wait_until)["gpu_peak_bytes"] == 30 * GB
        nvml.GPUS[2]["used"] = 99 * GB
        wait_until(lambda: outer.columns()["gpu_peak_bytes"] == 99 * GB)
    wait_until(lambda: all(thread.name != "gpu-use" for thread in threading.enumerate()))
    nvml.GPUS[2]["used"] = 1 * GB
    assert use_of(watch, wait_until)["gpu_peak_bytes"] == 30 * GB, "the next trial begins anew"
    assert nvml.CALLS == ["nvmlInit"], "once for the worker"


def test_a_short_trial_loads_nothing(nvml: ModuleType) -> None:
    use = GpuUse()
    with GpuWatch({}, is_wanted=True, pace=Pace(60.0, 60.0)).watching(use):
        pass
    assert (use.columns(), nvml.CALLS) == ({}, [])


def end_of(watch: GpuWatch, wait_until: Callable[..., Any]) -> dict[str, Any]:
    """Return what a trial gets, during which sampling ends."""
    use = GpuUse()
    with watch.watching(use):
        wait_until(lambda: watch._is_off)
    with watch.watching(use):  # the next trial
        pass
    return use.columns()


def test_without_the_library_nothing_is_said(monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., Any]) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    said: list[str] = []
    assert end_of(GpuWatch({}, is_wanted=True, tell=said.append, pace=QUICK), wait_until) == {}
    assert said == []


def test_a_worker_without_gpus_never_asks(nvml: ModuleType, wait_until: Callable[..., Any]) -> None:
    watch = GpuWatch({}, is_wanted=False, pace=QUICK)
    assert end_of(watch, wait_until) == {}
    assert nvml.CALLS == []


@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (lambda nvml: nvml.BROKEN.append(nvml.NVMLError_LibraryNotFound), "NVML Shared Library Not Found"),
        (lambda nvml: nvml.GPUS.clear(), "this process sees no NVIDIA GPU"),
        (lambda nvml: nvml.GPUS[1].update(error="NVMLError_GpuIsLost"), "GPU is lost"),
        (lambda nvml: delattr(nvml, "nvmlDeviceGetCount"), "module 'pynvml' has no attribute 'nvmlDeviceGetCount'"),
    ],
)
def test_one_error_of_nvml_ends_it_with_one_line(
    nvml: ModuleType, wait_until: Callable[..., Any], break_it: Callable[[ModuleType], Any], why: str
) -> None:
    break_it(nvml)
    said: list[str] = []
    assert end_of(GpuWatch({}, is_wanted=True, tell=said.append, pace=QUICK), wait_until) == {}
    assert said == [f"memory and utilisation of the GPUs are not recorded any more: {why}"]


def test_what_was_sampled_before_a_gpu_vanished_stays(nvml: ModuleType, wait_until: Callable[..., Any]) -> None:
    said: list[str] = []
    watch, use = GpuWatch({"CUDA_VISIBLE_DEVICES": "3"}, is_wanted=True, tell=said.append, pace=QUICK), GpuUse()
    with watch.watching(use):
        wait_until(lambda: use.columns())
        nvml.GPUS[3]["error"] = "NVMLError_GpuIsLost"
        wait_until(lambda: said)
    assert (use.columns()["gpu_peak_bytes"], use.columns()["gpu_percent"], len(said)) == (30 * GB, 60.0, 1)


def test_a_library_that_hangs_does_not_hold_up_a_trial(nvml: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        goes_on.wait(60.0)
        raise nvml.NVMLError

    monkeypatch.setattr(nvml, "nvmlInit", hang)
    watch = GpuWatch({}, is_wanted=True, pace=QUICK)
    for _ in range(2):  # trials in turn
        use = GpuUse()
        with watch.watching(use):
            assert hangs.wait(60.0)
        assert use.columns() == {}
    goes_on.set()


@pytest.mark.parametrize(
    ("devices", "visible", "is_wanted"),
    [("gpu 0,1", "0,1", True), ("cpu 0", "0", False), ("", "2", True), ("", "", False), ("", None, False)],
)
def test_a_function_without_jax_trains_on_the_gpus_that_its_worker_was_given(
    monkeypatch: pytest.MonkeyPatch, devices: str, visible: str | None, is_wanted: bool
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert PlainRuntime(devices).trains_on_gpus() is is_wanted


# --- Trials of a worker


class HParams(Space):
    x: float = uniform(0.0, 1.0)


@pytest.fixture
def on_gpus(nvml: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Workers that have GPUs 2 and 3."""
    monkeypatch.setattr(JaxRuntime, "trains_on_gpus", lambda self: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setattr(gpu_use, "Pace", lambda: QUICK)
    return nvml


def study_of(train: Callable[..., Any]) -> Study:
    given: dict[str, Any] = {"space": HParams, "objective": "loss", "direction": "minimize", "pruner": "none"}
    return Study(name="one", train=train, trials=2, **given)


def test_trials_have_the_figures_of_their_gpus(
    on_gpus: ModuleType,
    tmp_path: Path,
    wait_until: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def count(handle: Any, version: Any = None) -> Any:
        asked.append(1)
        return on_gpus.c_nvmlMemory_t(100 * GB, 0, handle["used"])

    monkeypatch.setattr(on_gpus, "nvmlDeviceGetMemoryInfo", count)

    def train(hparams: HParams, trial: Trial) -> float:
        if trial.number == 0:
            wait_until(lambda: len(asked) >= 6)  # three samples of two GPUs
        return hparams.x

    url = f"sqlite:///{tmp_path}/study.db"
    logged(study_of(train), url, tmp_path / "artifacts")

    with connected(url) as engine:
        first, rows = show_row(engine, "one", 0), flat_rows(engine, "one")
    assert first["gpu"] == {
        "peak_bytes": 30 * GB, "mean_bytes": 20 * GB, "total_bytes": 100 * GB, "percent": 40.0,
    }  # fmt: skip
    assert [rows[0][f"gpu_{name}"] for name in ("peak_bytes", "mean_bytes", "total_bytes", "percent")] == [
        *(30 * GB, 20 * GB, 100 * GB, 40.0),
    ]
    print_fields(first)
    shown = capsys.readouterr().out.splitlines()
    assert "gpu memory           at most 30.0 of 100.0 GB in use, on average 20.0 GB" in shown
    assert "gpu utilisation      40 %" in shown
    assert trial_page._facts(first)["gpu utilisation"] == "40 %"
    assert next(iter(tuner.open_study("one", url).trials()["gpu_percent"])) == 40.0


def test_a_trial_is_not_disturbed_by_nvml_that_fails(
    on_gpus: ModuleType, tmp_path: Path, wait_until: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    on_gpus.BROKEN.append(on_gpus.NVMLError_LibraryNotFound)
    log = Log()

    def train(hparams: HParams, trial: Trial) -> float:
        wait_until(lambda: log.of(GpusUnwatched))
        return hparams.x

    url = f"sqlite:///{tmp_path}/study.db"
    logged(study_of(train), url, tmp_path / "artifacts", log)

    with connected(url) as engine:
        rows, shown = flat_rows(engine, "one"), show_row(engine, "one", 0)
    assert [row["outcome"] for row in rows] == ["complete"] * 2
    assert not any(name.startswith("gpu") for row in rows for name in row)
    assert shown["gpu"] is None
    assert [(event.level or "info", event.message) for event in log.of(GpusUnwatched)] == [
        ("info", "memory and utilisation of the GPUs are not recorded any more: NVML Shared Library Not Found")
    ]
    print_fields(shown)
    assert "gpu" not in capsys.readouterr().out
