"""Finds accelerators, divides them among workers, and makes the environment that gives a worker its share.

JAX is not imported: it takes hold of every device it sees at its first use, so the choice must be made before.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tuner.errors import DeviceError
from tuner.trial.environment import CPUS_VARIABLE, DEVICES_VARIABLE

Kind = Literal["gpu", "tpu", "cpu"]

_SHARED_MEMORY = 0.9
"""The share of a GPU's memory for all its workers; the rest is for the driver and the contexts."""
_MAX_CPU_WORKERS = 4
"""The maximum number of workers on CPUs without `workers`; each has JAX and a copy of the data in memory."""
_TPU_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
"""Number of chips of a process -> the shape that libtpu needs."""
_TPU_FIRST_PORT = 8476


@dataclass(frozen=True)
class Devices:
    """The devices of one kind on this machine; for GPUs and TPUs, also the CPU cores."""

    kind: Kind
    ids: tuple[int, ...]
    cores: tuple[int, ...]


@dataclass(frozen=True)
class DeviceGroup:
    """The devices of a worker.

    Attributes:
        kind: The kind of device.
        ids: The devices; for CPUs, cores.
        cores: The CPU cores that the worker's threads run on.
        sharers: The number of workers on these devices; 1 if they are not shared.
    """

    kind: Kind
    ids: tuple[int, ...]
    cores: tuple[int, ...]
    sharers: int = 1

    def __str__(self) -> str:
        share = f" (1/{self.sharers})" if self.sharers > 1 else ""
        return f"{self.kind} {','.join(str(item) for item in self.ids)}{share}"


def find_devices() -> Devices:
    """Return this machine's NVIDIA GPUs, else its TPU chips, else the CPU cores that this process may use."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    gpus = _visible(_nvidia_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if gpus:
        return Devices("gpu", gpus, cores)
    chips = _visible(_tpu_chips(), os.environ.get("TPU_VISIBLE_CHIPS"))
    if chips:
        return Devices("tpu", chips, cores)
    return Devices("cpu", cores, cores)


def _visible(ids: tuple[int, ...], limit: str | None) -> tuple[int, ...]:
    """Return the devices that the environment, for example of a scheduler, allows."""
    if limit is None:
        return ids
    words = [word.strip() for word in limit.split(",") if word.strip()]
    if ids and any(word.startswith(("GPU-", "MIG-")) for word in words):
        raise DeviceError(f"CUDA_VISIBLE_DEVICES must contain the numbers that nvidia-smi shows: got {limit!r}")
    return tuple(item for item in ids if str(item) in words)


def _nvidia_gpus() -> tuple[int, ...]:
    return tuple(int(line) for line in _ask_nvidia("index") if line.isdigit())


def nvidia_driver() -> str | None:
    """Return the version of the NVIDIA driver, such as `580.65.06`; None where nvidia-smi does not tell."""
    return next((line for line in _ask_nvidia("driver_version") if re.fullmatch(r"\d+(\.\d+)+", line)), None)


def _ask_nvidia(field: str) -> list[str]:
    """Return what nvidia-smi says of each GPU; nothing where it is missing or fails."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        listed = subprocess.run(
            [command, f"--query-gpu={field}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listed.stdout.split() if listed.returncode == 0 else []


def _tpu_chips(root: Path = Path("/dev")) -> tuple[int, ...]:
    """Return the TPU chips: `/dev/accelN`, or numbered `/dev/vfio/N` on newer hosts."""
    found = [path for path in root.glob("accel*") if re.fullmatch(r"accel\d+", path.name)]
    if not found and (root / "vfio" / "vfio").exists() and _has_google_pci_device():
        found = [path for path in (root / "vfio").glob("*") if path.name.isdigit()]
    return tuple(range(len(found)))


def _has_google_pci_device() -> bool:
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(vendor.read_text().strip() == "0x1ae0" for vendor in vendors)


def choose(found: Devices, wanted: str) -> Devices:
    """Return the requested devices.

    Args:
        found: The machine's devices.
        wanted: `auto` for all, or ids as in `0,1,2`.

    Raises:
        DeviceError: this is not a list of ids, an id is given twice, or a device does not exist.
    """
    if wanted == "auto":
        return found
    words = [word.strip() for word in wanted.split(",")]
    if not all(word.isdigit() for word in words):
        raise DeviceError(f"`devices` must be auto or ids such as 0,1,2: got {wanted!r}")
    ids = tuple(int(word) for word in words)
    if len(set(ids)) != len(ids):
        raise DeviceError(f"`devices` must name each device once: got {wanted!r}; use `workers` to share devices")
    missing = [item for item in ids if item not in found.ids]
    if missing:
        here = ", ".join(str(item) for item in found.ids)
        raise DeviceError(f"no device {missing[0]} on this machine: it has {found.kind} {here}")
    return Devices(found.kind, ids, ids if found.kind == "cpu" else found.cores)


def assign(devices: Devices, workers: int | None, per_worker: int | None) -> list[DeviceGroup]:
    """Divide devices among workers.

    With only `workers`, the devices are divided evenly, or shared if there are more workers than devices. With only
    `per_worker`, there are as many workers as complete groups. CPU cores are not shared if there are enough.

    Raises:
        DeviceError: a number is below 1, there are not enough devices, or TPU chips cannot be divided like this.
    """
    for name, number in (("workers", workers), ("devices_per_worker", per_worker)):
        if number is not None and number < 1:
            raise DeviceError(f"`{name}` must be at least 1: got {number}")
    count = len(devices.ids)
    if per_worker is not None and per_worker * (workers or 1) > count:
        given = f"{workers or 1} worker{'s' if workers and workers > 1 else ''}"
        raise DeviceError(
            f"`devices_per_worker` {per_worker} with {given} needs more devices than this machine has: "
            f"{count} ({devices.kind} {', '.join(str(item) for item in devices.ids)})"
        )
    if workers is None:
        workers = (
            count // per_worker if per_worker else count if devices.kind != "cpu" else min(count, _MAX_CPU_WORKERS)
        )
    size = per_worker or max(1, count // workers)
    cores = _deal(devices.cores, workers)
    starts = [index * size % (count - count % size) for index in range(workers)]
    groups: list[DeviceGroup] = []
    for index in range(workers):
        start = starts[index]
        sharers = starts.count(start)
        ids = devices.ids[start : start + size]
        if devices.kind == "tpu" and (sharers > 1 or size not in _TPU_BOUNDS):
            raise DeviceError(
                f"each worker needs 1, 2, 4 or 8 TPU chips of its own: got {workers} workers on {count} chips; "
                "use `workers` or `devices_per_worker`"
            )
        groups.append(DeviceGroup(devices.kind, ids, ids if devices.kind == "cpu" else cores[index], sharers))
    return groups


def _deal(cores: Sequence[int], workers: int) -> list[tuple[int, ...]]:
    """Return disjoint ranges of cores, one per worker; if there are not enough, single cores in turn."""
    size = max(1, len(cores) // workers)
    return [tuple(cores[(index * size + at) % len(cores)] for at in range(size)) for index in range(workers)]


def environment(group: DeviceGroup, base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker with the devices of `group`.

    Args:
        group: The worker's devices.
        base: The launcher's environment; variables set there take precedence, except those that select devices.
    """
    ids = ",".join(str(item) for item in group.ids)
    threads = str(len(group.cores))
    env = {
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        **base,
        CPUS_VARIABLE: ",".join(str(core) for core in group.cores),
        DEVICES_VARIABLE: str(group),
    }
    if group.kind == "gpu":
        env["CUDA_VISIBLE_DEVICES"] = ids
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order of nvidia-smi; CUDA's default is fastest first
        # The user's share has precedence. JAX accepts only one of the two names.
        if group.sharers > 1 and "XLA_CLIENT_MEM_FRACTION" not in env:
            env.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{_SHARED_MEMORY / group.sharers:.3f}")
    elif group.kind == "tpu":
        port = str(_TPU_FIRST_PORT + group.ids[0])
        env["TPU_VISIBLE_CHIPS"] = ids
        env["TPU_CHIPS_PER_PROCESS_BOUNDS"] = _TPU_BOUNDS[len(group.ids)]
        env["TPU_PROCESS_BOUNDS"] = "1,1,1"
        env["TPU_MESH_CONTROLLER_ADDRESS"] = f"localhost:{port}"
        env["TPU_MESH_CONTROLLER_PORT"] = port
    else:
        env["JAX_PLATFORMS"] = base.get("JAX_PLATFORMS", "cpu")
    return env


def settle(env: Mapping[str, str]) -> None:
    """Bind this process to the cores in its environment; XLA sets the size of its thread pools from them.

    Call it before JAX is imported. Cores that no longer exist (a container with another limit) are skipped.
    """
    cores = {int(word) for word in env.get(CPUS_VARIABLE, "").split(",") if word.isdigit()}
    cores &= os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, cores)
