"""Do workers get their devices, and what is fast on a GPU? Six questions in at most eight minutes.

    python benchmarks/on_gpu.py > results.jsonl

Needs NVIDIA GPUs with nvidia-smi, JAX 0.10 to 0.12, and this repository with its dependencies (`pip install -e
'.[cuda]'`). `--small` runs on a CPU what needs no GPU. Each question runs in a process of its own: a crash ends that
question alone, and its memory is free for the next. `gpu_timings.py` has the questions that are timings.

- `devices`: do workers see exactly the devices that they were assigned?
- `memory`: do four workers on one GPU get their shares of its memory, all at the same time?
- `many_trials`: trials one at a time, against 16 and 256 trials in one program.
- `precision`: a Transformer in float32, in JAX's default precision of products, against bfloat16.
- `loop`: an epoch of an MLP and of a CNN as a loop of compiled steps, against one compiled scan.
- `kernel`: Flax's RMSNorm, against the Pallas kernel of `tuner.models`.

Prints a JSON line for each: `question`, `date`, `device`, `jax`, and `rows` with the figures; `skipped` or `error` if
there is a reason, in addition to the rows that were measured before it. The exit status is 1 after an error.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import importlib.metadata
import json
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from tuner.launch.devices import DeviceGroup, assign, choose, environment, find_devices, settle
from tuner.launch.process import Message, WorkerProcess
from tuner.output.log import LogLine

# JAX is imported in functions, because a worker must choose its cores before.

Row = dict[str, Any]

_LIMIT_S, _QUESTION_S = 470.0, 200.0
"""The longest time for all questions, and for one."""
_SMALL_LIMIT_S = 3600.0
"""Both, with small sizes: a busy CPU may take long."""
_SHARERS = 4
_CHUNKS, _FILLED = 32, 30
"""A worker's memory is divided into so many chunks, of which it fills so many."""
_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"


# --- A worker


def worker() -> Iterator[Row]:
    """Yield what a worker sees and holds; hold it until standard input is closed."""
    settle(os.environ)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    import jax

    seen: Row = {"backend": jax.default_backend(), "count": jax.local_device_count()}
    seen["cores"] = sorted(os.sched_getaffinity(0))
    kept = []
    if seen["backend"] == "gpu":
        seen["addresses"] = addresses_of_driver()
        if _FRACTION in os.environ:
            limit, kept = fill_memory(jax.local_devices()[0])
            held = sum(array.nbytes for array in kept)
            seen |= {"fraction": float(os.environ[_FRACTION]), "limit_mib": limit / 2**20, "held_mib": held / 2**20}
    yield seen
    threading.Event().wait()
    del kept


def addresses_of_driver() -> list[str]:
    """Return the PCI addresses of the GPUs that the CUDA driver shows this process."""
    cuda = ctypes.CDLL("libcuda.so.1")
    count, handle, text = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(32)
    failed = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    addresses: list[str] = []
    for ordinal in range(count.value):
        failed = failed or cuda.cuDeviceGet(ctypes.byref(handle), ordinal)
        failed = failed or cuda.cuDeviceGetPCIBusId(text, len(text), handle)
        addresses.append(short_address(text.value.decode()))
    if failed:
        raise RuntimeError(f"the CUDA driver must return its devices: got error {failed}")
    return addresses


def short_address(text: str) -> str:
    """Return a PCI address with four digits for the domain, as the driver prints it; nvidia-smi prints eight."""
    return text.strip().lower()[-len("0000:00:00.0") :]


def fill_memory(device: Any) -> tuple[int, list[Any]]:
    """Fill nearly all memory of a GPU that JAX may use; return this limit in bytes, and the arrays."""
    import jax.numpy as jnp

    limit = device.memory_stats()["bytes_limit"]
    return limit, [jnp.ones(limit // _CHUNKS, jnp.uint8).block_until_ready() for _ in range(_FILLED)]


# --- Starting workers and checking what they saw


def start_workers(groups: Sequence[DeviceGroup]) -> list[Row]:
    """Start workers together as `tuner launch` does, and return what each saw while all others ran.

    Raises:
        RuntimeError: a worker failed.
    """
    inbox: queue.Queue[Message] = queue.Queue()
    command = [sys.executable, __file__, "--part", "worker"]
    workers = [
        WorkerProcess(index, f"worker-{index}", command, environment(group, os.environ), inbox)
        for index, group in enumerate(groups)
    ]
    seen: dict[int, Row] = {}
    try:
        while len(seen) < len(workers):
            ended = [one for one in workers if one.index not in seen and one.has_ended()]
            if ended and inbox.empty():  # a worker that has ended has put all it printed there
                said = (ended[0].last_lines or ["nothing"])[-1]
                raise RuntimeError(f"{ended[0].name} must report its devices: {ended[0].ending}, it printed {said}")
            with contextlib.suppress(queue.Empty):
                message = inbox.get(timeout=0.2)
                row = as_row(message.said.message) if isinstance(message.said, LogLine) else None
                if row is not None:
                    seen[message.index] = row
    finally:
        for one in workers:
            one.kill()
            assert one.process.stdin is not None
            one.process.stdin.close()
    for index, row in seen.items():
        if "error" in row:
            raise RuntimeError(f"worker-{index} failed: {row['error']}")
    return [seen[index] for index in range(len(workers))]


def gpus_of_nvidia() -> dict[int, tuple[str, int]]:
    """Return the PCI address and the memory in MiB of each GPU, by its number, from nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=index,pci.bus_id,memory.total", "--format=csv,noheader,nounits"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    rows = [line.split(",") for line in listed.splitlines() if line.strip()]
    return {int(index): (short_address(address), int(total)) for index, address, total in rows}


def check_devices(group: DeviceGroup, seen: Row, gpus: Mapping[int, tuple[str, int]]) -> None:
    """Check that a worker saw exactly the devices of its group.

    Raises:
        RuntimeError: it saw others, fewer or more.
    """
    wanted: Row = {"backend": group.kind, "cores": sorted(set(group.cores))}
    if group.kind != "cpu":
        wanted["count"] = len(group.ids)
    if group.kind == "gpu":
        wanted["addresses"] = [gpus[number][0] for number in group.ids]
    found = {name: seen.get(name) for name in wanted}
    if found != wanted:
        raise RuntimeError(f"a worker on {group} must see {wanted}: it saw {found}")


def share_row(seen: Row, total_mib: int) -> Row:
    """Return a worker's share of a GPU's memory, what JAX may use, and what it filled, with its ratio to the share."""
    share = seen["fraction"] * total_mib
    sizes = {"share_mib": share, "limit_mib": seen["limit_mib"], "held_mib": seen["held_mib"]}
    return {**{name: round(size) for name, size in sizes.items()}, "ratio": round(seen["held_mib"] / share, 4)}


def check_share(group: DeviceGroup, row: Row) -> None:
    """Check that a worker filled its share, to 5 %.

    Raises:
        RuntimeError: it got less or more.
    """
    if abs(row["ratio"] - _FILLED / _CHUNKS) > 0.05:
        filled = f"{_FILLED} of {_CHUNKS} parts of its share, {row['share_mib']} MiB"
        raise RuntimeError(f"a worker on {group} must fill {filled}: it filled {row['held_mib']} MiB")


# --- Questions


def devices() -> Iterator[Row]:
    """Compare what workers see with what they were assigned."""
    found = find_devices()
    groups = assign(found, None, None)
    gpus = gpus_of_nvidia() if found.kind == "gpu" else {}
    for group, seen in zip(groups, start_workers(groups), strict=True):
        yield {"assigned": str(group), **seen}
        check_devices(group, seen, gpus)


def memory() -> Iterator[Row]:
    """Let four workers on one GPU fill their shares of its memory at the same time."""
    found = find_devices()
    if found.kind != "gpu":
        yield {"skipped": f"there are no shares of memory on a {found.kind}"}
        return
    gpus = gpus_of_nvidia()
    groups = assign(choose(found, str(found.ids[0])), _SHARERS, None)
    for group, seen in zip(groups, start_workers(groups), strict=True):
        check_devices(group, seen, gpus)
        row = share_row(seen, gpus[group.ids[0]][1])
        yield {"assigned": str(group), **row}
        check_share(group, row)


def timing(name: str, is_small: bool) -> Iterator[Row]:
    """Answer a question of `gpu_timings.py`."""
    from gpu_timings import FULL, SMALL, TIMINGS

    return TIMINGS[name](SMALL if is_small else FULL)


def kind_of_device() -> Iterator[Row]:
    """Yield the kind and the number of JAX's devices."""
    import jax

    yield {"kind": jax.devices()[0].device_kind, "count": jax.device_count()}


# --- One process after the other

_TIMINGS = ("many_trials", "precision", "loop", "kernel")
QUESTIONS = ("devices", "memory", *_TIMINGS)
_PARTS = {"worker": worker, "device": kind_of_device, "devices": devices, "memory": memory}


def run_part(name: str, is_small: bool) -> int:
    """Print the rows of a part in this process; return the exit status."""
    part = partial(timing, name, is_small) if name in _TIMINGS else _PARTS[name]
    try:
        for row in part():
            print(json.dumps(row), flush=True)
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        return 1
    return 0


def as_row(line: str) -> Row | None:
    """Return the row that a process printed; None if the line is not a row."""
    with contextlib.suppress(ValueError):
        row = json.loads(line)
        return row if isinstance(row, dict) else None


def ask(name: str, is_small: bool, end_s: float) -> Row:
    """Run a part in a process of its own and return its answer.

    Args:
        name: The part.
        is_small: Whether sizes are small.
        end_s: When to kill the process, on the monotonic clock.
    """
    left_s = min(_SMALL_LIMIT_S if is_small else _QUESTION_S, end_s - time.monotonic())
    if left_s <= 0:
        return {"rows": [], "skipped": "out of time"}
    command = [sys.executable, __file__, "--part", name, *(["--small"] if is_small else [])]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(left_s, process.kill)
        timer.start()
        assert process.stdout is not None
        printed = [row for row in map(as_row, process.stdout) if row is not None]
        status, is_late = process.wait(), timer.finished.is_set()
        timer.cancel()
    reasons = {key: row[key] for row in printed for key in ("error", "skipped") if key in row}
    if status and not reasons:
        reasons["error"] = f"killed after {left_s:.0f} s" if is_late else f"exit status {status}"
    return {"rows": [row for row in printed if not reasons.keys() & row.keys()], **reasons}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="use small sizes, for a CPU")
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=QUESTIONS, metavar="QUESTION")
    parser.add_argument("--part", choices=[*_PARTS, *_TIMINGS], help=argparse.SUPPRESS)  # the script starts itself
    args = parser.parse_args()
    if args.part:
        sys.exit(run_part(args.part, args.small))
    end_s = time.monotonic() + (_SMALL_LIMIT_S if args.small else _LIMIT_S)
    device = next(iter(ask("device", args.small, end_s)["rows"]), None)
    about = {"date": datetime.date.today().isoformat(), "device": device, "jax": importlib.metadata.version("jax")}
    failed: list[str] = []
    for name in args.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        answer = ask(name, args.small, end_s)
        print(json.dumps({"question": name, **about, **answer}), flush=True)
        failed += [name] if "error" in answer else []
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
