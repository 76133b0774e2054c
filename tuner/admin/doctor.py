"""Checks this machine's setup: Python, packages, devices, the storage, disk, tracking."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypedDict

from tuner.errors import DISTRIBUTION, TunerError, UsageError, how_to_install
from tuner.launch.devices import find_devices, nvidia_driver
from tuner.storage import AnyURL, StorageURL, connected, hide_password, parse_url
from tuner.storage.artifacts import Artifacts

Status = Literal["ok", "warn", "fail"]


class Check(TypedDict):
    """A row of `tuner doctor`."""

    check: str
    """`python`, `packages`, `devices`, `gpu_use` (with NVIDIA GPUs), `storage`, `tables`, `connections`, `clock`,
    `disk`, `artifacts`, `tracking`."""
    status: Status
    """`ok`, `warn` or `fail`."""
    found: str
    """What the check found."""
    advice: str | None
    """What to do; null if nothing needs to be done."""


_PACKAGES = ("jax", "flax", "optax", "optuna", "orbax-checkpoint", "sqlalchemy")
# Extra -> the oldest NVIDIA driver that it works with, by https://docs.jax.dev/en/latest/installation.html.
_OLDEST_DRIVERS = {"cuda13": 580, "cuda12": 525}
_NEEDED_DRIVERS = "CUDA 13 (extra cuda) needs the NVIDIA driver 580 or newer, CUDA 12 (extra cuda12) 525 or newer"
_SLOW_S = 0.05
_SKEW_S = 1.0
_FEW_BYTES = 5e9
_TIMEOUT_S = 120.0
_TRACKING_TIMEOUT_S = 5.0
_JAX = "import jax; print(jax.default_backend(), len(jax.local_devices()), jax.devices()[0].device_kind, sep='|')"


def examine(url: AnyURL, artifacts: Artifacts) -> list[Check]:
    """Return a row for each check: `check`, `status` (ok, warn or fail), `found`, `advice`.

    Args:
        url: The storage's URL; nothing is created.
        artifacts: Where checkpoints are written. Object storage is tried with an empty object, which is removed again.
    """
    return [
        _python(),
        _packages(),
        _devices(),
        *_gpu_use(),
        *_storage(parse_url(url)),
        _disk(artifacts.folder),
        *_artifacts(artifacts),
        _tracking(os.environ),
    ]


def _row(check: str, status: Status, found: str, advice: str | None = None) -> Check:
    return {"check": check, "status": status, "found": found, "advice": advice}


def _python() -> Check:
    return _row("python", "ok", f"{platform.python_version()}, {sys.executable}")


def _packages() -> Check:
    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return _row("packages", "fail", f"without {', '.join(missing)}", f"pip install {' '.join(missing)}")
    if (other := _other_tuner()) is not None:
        advice = (
            "both install a package `tuner` into the same folder: `pip uninstall tuner tuner-jax`, "
            "then `pip install -e .` in the clone of tuner"
        )
        return _row("packages", "fail", f"tuner {other} next to {DISTRIBUTION}", advice)
    return _row("packages", "ok", ", ".join(found))


def _other_tuner() -> str | None:
    """Return the version of an installed distribution `tuner`: another project, or this one under its old name."""
    # A clone may still have a folder `tuner.egg-info` of an earlier build, without a record of installed files.
    installed = (found for found in importlib.metadata.distributions(name="tuner") if found.read_text("RECORD"))
    return next((found.version for found in installed), None)


def _devices() -> Check:
    """Compare the devices of this machine with those of JAX, in a separate process, because JAX occupies them."""
    try:
        machine = find_devices()
        done = subprocess.run([sys.executable, "-c", _JAX], capture_output=True, text=True, timeout=_TIMEOUT_S)
    except TunerError as error:
        return _row("devices", "fail", str(error), "fix the variable")
    except subprocess.TimeoutExpired:
        found = f"JAX did not find its devices within {_TIMEOUT_S:.0f} s"
        return _row("devices", "fail", found, "another process may hold them; see nvidia-smi")
    if done.returncode != 0:
        return _row("devices", "fail", done.stderr.strip().rpartition("\n")[2], "JAX does not start: see its error")
    backend, count, kind = done.stdout.strip().rpartition("\n")[2].split("|")
    driver = nvidia_driver() if machine.kind == "gpu" else None
    found = f"{machine.kind} {','.join(map(str, machine.ids))}; JAX sees {count} of kind {kind}"
    found += f"; NVIDIA driver {driver}" if driver else ""
    if machine.kind != "cpu" and backend == "cpu":
        advice = _cuda_advice(driver) if machine.kind == "gpu" else how_to_install("tpu")
        return _row("devices", "warn", found, f"JAX does not use the {machine.kind}: {advice}")
    return _row("devices", "ok", found)


def _gpu_use() -> list[Check]:
    """Say whether memory and utilisation of NVIDIA GPUs are recorded."""
    try:
        if find_devices().kind != "gpu":
            return []
    except TunerError:
        return []
    try:
        version = importlib.metadata.version("nvidia-ml-py")
    except importlib.metadata.PackageNotFoundError:
        found = "memory and utilisation of the GPUs are not recorded"
        return [_row("gpu_use", "ok", found, f"to record them, {how_to_install('gpu')}")]
    return [_row("gpu_use", "ok", f"memory and utilisation are recorded with nvidia-ml-py {version}")]


def _cuda_advice(driver: str | None) -> str:
    """Return what to install for JAX to use the NVIDIA GPUs with this driver."""
    if driver is None:
        return f"{how_to_install('cuda')}; {_NEEDED_DRIVERS}"
    release = int(driver.partition(".")[0])
    fitting = [extra for extra, oldest in _OLDEST_DRIVERS.items() if release >= oldest]
    if not fitting:
        return f"update the NVIDIA driver: {_NEEDED_DRIVERS}"
    if fitting[0] == "cuda13":
        return how_to_install("cuda")
    return f"{how_to_install(fitting[0])}, or update the NVIDIA driver: {_NEEDED_DRIVERS}"


def _storage(url: StorageURL) -> list[Check]:
    from tuner.storage.read.health import read_health

    shown = str(url)
    try:
        if url.is_new_file():
            return [_row("storage", "ok", f"{shown}: does not exist yet; the first launch creates it")]
        with connected(url) as engine:
            health = read_health(engine)
    except TunerError as error:
        return [_row("storage", "fail", str(error), "see the message")]
    trip = f"{1000 * health.round_trip_s:.1f} ms a statement"
    is_slow = health.round_trip_s > _SLOW_S
    advice = (
        "a report takes one statement, a trial about thirty: move the workers closer to the database"
        if is_slow
        else None
    )
    rows = [_row("storage", "warn" if is_slow else "ok", f"{shown}: {health.server}, {trip}", advice)]
    rows.append(_row("tables", "ok" if health.tables_fit else "fail", health.tables))
    if health.unknown_zones:
        from tuner.storage.sql.zones import ADVICE

        rows.append(
            _row("times", "warn", f"the times of {health.unknown_zones} trials have an unknown time zone", ADVICE)
        )
    if health.connections is not None:
        used, most = health.connections
        is_full = used > 0.8 * most
        advice = "a worker takes two, a launcher one: raise max_connections, or use PgBouncer"
        rows.append(_row("connections", "warn" if is_full else "ok", f"{used} of {most}", advice if is_full else None))
        is_off = abs(health.ahead_s) > _SKEW_S
        advice = "leases use the database's clock, so this is harmless; only times in logs differ"
        found = f"the database's clock is {health.ahead_s:+.2f} s ahead"
        rows.append(_row("clock", "warn" if is_off else "ok", found, advice if is_off else None))
    return rows


def _disk(artifacts: Path) -> Check:
    place = next(path for path in (artifacts, *artifacts.parents) if path.exists())
    if not place.is_dir():
        return _row("disk", "fail", f"{place} is not a folder", "set $TUNER_ARTIFACTS to another folder")
    if not os.access(place, os.W_OK):
        return _row("disk", "fail", f"{place} is not writable", "set $TUNER_ARTIFACTS to another folder")
    usage = shutil.disk_usage(place)
    found = f"{usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.1f} for checkpoints in {artifacts}"
    if usage.free < _FEW_BYTES:
        return _row("disk", "warn", found, "`tuner gc STUDY` removes the checkpoints of all but the best trials")
    return _row("disk", "ok", found)


def _artifacts(artifacts: Artifacts) -> list[Check]:
    """Check that object storage can be written; no row for a folder, which `disk` checks."""
    if artifacts.store is None:
        return []
    try:
        artifacts.check()
    except UsageError as error:
        return [_row("artifacts", "fail", str(error), "see the message")]
    except TunerError as error:
        return [_row("artifacts", "fail", str(error), "check the network, and the address of the object storage")]
    return [_row("artifacts", "ok", f"{artifacts} can be written")]


def _tracking(env: Mapping[str, str]) -> Check:
    from tuner.tracking.mlflow import address

    uri = env.get("MLFLOW_TRACKING_URI")
    if not uri:
        return _row("tracking", "ok", "off: MLFLOW_TRACKING_URI is not set")
    if not uri.startswith(("http://", "https://")):
        return _row("tracking", "ok", hide_password(uri))
    try:
        address(uri)  # raises an error for an address that would show part of its password
    except UsageError as error:
        return _row("tracking", "fail", str(error), "correct $MLFLOW_TRACKING_URI")
    shown = hide_password(uri)
    try:
        with urllib.request.urlopen(_health_page(uri), timeout=_TRACKING_TIMEOUT_S):
            return _row("tracking", "ok", f"{shown} answers")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        found = f"{shown} does not answer: {hide_password(str(reason))}"
        return _row("tracking", "warn", found, "trials still run; missing data is sent later")


def _health_page(uri: str) -> str:
    """Return the health page of an MLflow server, which needs no login."""
    parts = urllib.parse.urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], path=f"{parts.path.rstrip('/')}/health").geturl()
