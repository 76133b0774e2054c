"""Memory and utilisation of a worker's NVIDIA GPUs, sampled while trials train (the extra `gpu`).

NVML counts what happens on a device, whoever causes it: other workers and the other trials of a cohort are included.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.output.sanitize import one_line

EXTRA = "gpu"
MODULE = "pynvml"


@dataclass(frozen=True)
class Sample:
    """What NVML says of a worker's GPUs at one moment.

    Attributes:
        used_bytes: The memory in use of each; empty if the GPUs do not tell.
        total_bytes: Their memory.
        percents: The share of the last moments in which each ran a kernel, 0 to 100; empty if the GPUs do not tell.
    """

    used_bytes: tuple[int, ...] = ()
    total_bytes: tuple[int, ...] = ()
    percents: tuple[int, ...] = ()


class GpuUse:
    """What was sampled while one trial trained."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._peak = (0, 0)  # the used bytes of the fullest GPU, and all that it has
        self._bytes: list[float] = []
        self._percents: list[float] = []

    def add(self, sample: Sample) -> None:
        """Count a sample."""
        with self._lock:
            if sample.used_bytes:
                self._peak = max(self._peak, *zip(sample.used_bytes, sample.total_bytes, strict=True))
                self._bytes.append(_mean(sample.used_bytes))
            if sample.percents:
                self._percents.append(_mean(sample.percents))

    def columns(self) -> dict[str, Any]:
        """Return the columns of the trial's record; none if nothing was sampled."""
        with self._lock:
            found: dict[str, Any] = {}
            if self._bytes:
                peak, total = self._peak
                found = {"gpu_peak_bytes": peak, "gpu_mean_bytes": round(_mean(self._bytes)), "gpu_total_bytes": total}
            if self._percents:
                found["gpu_percent"] = round(_mean(self._percents), 2)
            return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class Pace:
    """When to sample: `first_s` after a trial began while no other ran, then every `every_s`, in seconds."""

    first_s: float = 1.0
    every_s: float = 5.0


class GpuWatch:
    """Samples the GPUs of a worker on a thread of its own, while trials train.

    The library is loaded on the thread, when the first sample is due. The first error ends it for this worker; without
    the library nothing is sampled.

    Args:
        environment: The environment of the worker, which says what GPUs it sees.
        is_wanted: Whether the worker trains on NVIDIA GPUs.
        tell: Called once, on the thread, with the reason why nothing more is sampled.
        pace: When to sample.

    Concurrency: any number of threads may watch trials at the same time; none of them waits for NVML.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        is_wanted: bool,
        tell: Callable[[str], None] = lambda _: None,
        pace: Pace | None = None,
    ) -> None:
        self.tell = tell
        self._environment, self._is_off, self._pace = environment, not is_wanted, pace or Pace()
        self._changed = threading.Condition()
        self._uses: list[GpuUse] = []
        self._due_s = 0.0
        self._thread: threading.Thread | None = None
        self._read: Callable[[], Sample] | None = None

    @contextlib.contextmanager
    def watching(self, use: GpuUse) -> Generator[None]:
        """Count samples for a trial while the body runs."""
        if self._is_off:
            yield
            return
        with self._changed:
            if not self._uses:
                self._due_s = time.monotonic() + self._pace.first_s
            self._uses.append(use)
            if self._thread is None:
                self._thread = threading.Thread(target=self._sample, name="gpu-use", daemon=True)
                self._thread.start()
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._uses.remove(use)
                self._changed.notify()

    def _sample(self) -> None:
        """Sample while trials train."""
        while self._wait():
            try:
                if self._read is None:
                    self._read = open_nvml(self._environment)
                sample = self._read()
            except ModuleNotFoundError as error:  # without the extra
                self._end(None if error.name == MODULE else error)
                return
            except Exception as error:  # whatever the library raises must not reach the training
                self._end(error)
                return
            with self._changed:
                for use in self._uses:
                    use.add(sample)
                self._due_s = time.monotonic() + self._pace.every_s

    def _wait(self) -> bool:
        """Wait until a sample is due; False once no trial trains."""
        with self._changed:
            while self._uses:
                left_s = self._due_s - time.monotonic()
                if left_s <= 0.0:
                    return True
                self._changed.wait(left_s)
            self._thread = None
            return False

    def _end(self, error: Exception | None) -> None:
        self._is_off = True
        if error is not None:
            why = one_line(str(error)) or type(error).__name__
            with contextlib.suppress(Exception):
                self.tell(f"memory and utilisation of the GPUs are not recorded any more: {why}")


class GpusUnclear(Exception):
    """It is not known which GPUs the worker has."""


def open_nvml(environment: Mapping[str, str]) -> Callable[[], Sample]:
    """Load NVML, and return a function that samples the GPUs that a process with this environment sees.

    Raises:
        ModuleNotFoundError: the extra is not installed.
        GpusUnclear: the environment does not say which GPUs those are.
        Exception: NVML fails.
    """
    nvml: Any = importlib.import_module(MODULE)
    nvml.nvmlInit()
    handles = find_handles(nvml, environment)
    if not handles:
        raise GpusUnclear("this process sees no NVIDIA GPU")

    def ask(question: Callable[[Any], Any]) -> list[Any]:
        """Ask all GPUs; nothing if they do not tell, as those divided by MIG do not tell their utilisation."""
        try:
            return [question(handle) for handle in handles]
        except nvml.NVMLError_NotSupported:
            return []

    def read() -> Sample:
        memory, rates = ask(nvml.nvmlDeviceGetMemoryInfo), ask(nvml.nvmlDeviceGetUtilizationRates)
        used, total = tuple(one.used for one in memory), tuple(one.total for one in memory)
        return Sample(used, total, tuple(one.gpu for one in rates))

    return read


def find_handles(nvml: Any, environment: Mapping[str, str]) -> list[Any]:
    """Return NVML's handles of the GPUs that CUDA shows to a process with this environment.

    `CUDA_VISIBLE_DEVICES` has numbers, UUIDs (`GPU-...`, which may be shortened) or those of MIG devices (`MIG-...`),
    and ends at the first entry that is none of a device, as
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#cuda-environment-variables describes.
    """
    handles = [nvml.nvmlDeviceGetHandleByIndex(at) for at in range(nvml.nvmlDeviceGetCount())]
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return handles
    words = [word.strip() for word in visible.split(",")]
    if any(word.isdigit() for word in words):
        _check_order(nvml, handles, environment)
    found: list[Any] = []
    for word in words:
        handle = _find_handle(nvml, handles, word)
        if handle is None:
            break
        found.append(handle)
    return found


def _find_handle(nvml: Any, handles: Sequence[Any], word: str) -> Any | None:
    if word.isdigit():
        return handles[int(word)] if int(word) < len(handles) else None
    if word.startswith("MIG-"):
        return nvml.nvmlDeviceGetHandleByUUID(word)
    matching = [handle for handle in handles if word.startswith("GPU-") and _uuid(nvml, handle).startswith(word)]
    return matching[0] if len(matching) == 1 else None


def _uuid(nvml: Any, handle: Any) -> str:
    found = nvml.nvmlDeviceGetUUID(handle)
    return found.decode() if isinstance(found, bytes) else found


def _check_order(nvml: Any, handles: Sequence[Any], environment: Mapping[str, str]) -> None:
    """Raise GpusUnclear if CUDA may number the GPUs differently: it begins with the fastest unless told otherwise."""
    if environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return
    if len({nvml.nvmlDeviceGetName(handle) for handle in handles}) > 1:
        raise GpusUnclear("this machine has GPUs of several kinds; set CUDA_DEVICE_ORDER=PCI_BUS_ID to number them")
