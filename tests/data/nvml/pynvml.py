"""The part of nvidia-ml-py that tuner uses, for GPUs that do not exist; a test compares it with the real package.

`$FAKE_NVML` has a JSON object for each GPU: `used` and `total` in bytes, `gpu` in percent, `uuid`, `name`, and `error`,
the name of an error that its questions raise.
"""

import dataclasses
import json
import os
from typing import Any


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


class NVMLError_GpuIsLost(NVMLError):
    def __str__(self) -> str:
        return "GPU is lost"


class NVMLError_LibraryNotFound(NVMLError):
    def __str__(self) -> str:
        return "NVML Shared Library Not Found"


class NVMLError_NotFound(NVMLError):
    pass


@dataclasses.dataclass
class c_nvmlMemory_t:
    total: int
    free: int
    used: int


@dataclasses.dataclass
class c_nvmlUtilization_t:
    gpu: int
    memory: int


GPUS: list[dict[str, Any]] = json.loads(os.environ.get("FAKE_NVML", "[]"))
MIG: dict[str, dict[str, Any]] = {}
BROKEN: list[type[NVMLError]] = []
CALLS: list[str] = []


def nvmlInit() -> None:
    CALLS.append("nvmlInit")
    for error in BROKEN:
        raise error


def nvmlDeviceGetCount() -> int:
    return len(GPUS)


def nvmlDeviceGetHandleByIndex(index: int) -> Any:
    return GPUS[index]


def nvmlDeviceGetHandleByUUID(uuid: str) -> Any:
    if uuid not in MIG:
        raise NVMLError_NotFound
    return MIG[uuid]


def nvmlDeviceGetUUID(handle: Any) -> str:
    return handle["uuid"]


def nvmlDeviceGetName(handle: Any) -> str:
    return handle.get("name", "NVIDIA H200")


def nvmlDeviceGetMemoryInfo(handle: Any, version: Any = None) -> c_nvmlMemory_t:
    _fail(handle, "error")
    return c_nvmlMemory_t(handle["total"], handle["total"] - handle["used"], handle["used"])


def nvmlDeviceGetUtilizationRates(handle: Any) -> c_nvmlUtilization_t:
    _fail(handle, "error")
    _fail(handle, "error_of_rates")
    return c_nvmlUtilization_t(handle["gpu"], 0)


def _fail(handle: Any, key: str) -> None:
    if handle.get(key):
        raise globals()[handle[key]]
