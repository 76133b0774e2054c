"""Which devices are found, how they are dealt out to workers, and what a worker's process then sees."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tuner.launch.devices
from tuner.errors import DeviceError
from tuner.launch.devices import (
    DeviceGroup,
    Devices,
    Kind,
    _tpu_chips,
    assign,
    choose,
    environment,
    find_devices,
    settle,
)

CORES = tuple(sorted(os.sched_getaffinity(0)))


def gpus(count: int, cores: int = 8) -> Devices:
    return Devices("gpu", tuple(range(count)), tuple(range(cores)))


def tpus(count: int, cores: int = 8) -> Devices:
    return Devices("tpu", tuple(range(count)), tuple(range(cores)))


def cpus(count: int) -> Devices:
    return Devices("cpu", tuple(range(count)), tuple(range(count)))


def ids(groups: list[DeviceGroup]) -> list[tuple[int, ...]]:
    return [group.ids for group in groups]


# Dealing out


@given(
    kind=st.sampled_from(["gpu", "cpu"]),
    count=st.integers(1, 16),
    cores=st.integers(1, 32),
    workers=st.none() | st.integers(1, 40),
    per_worker=st.none() | st.integers(1, 8),
)
@settings(deadline=None, max_examples=500)
@pytest.mark.slow
def test_devices_are_dealt_out_fairly(
    kind: Kind, count: int, cores: int, workers: int | None, per_worker: int | None
) -> None:
    # Real ids have gaps, so an id must not be taken for a position.
    devices = tuple(3 * at + 5 for at in range(count))
    found = Devices(kind, devices, devices if kind == "cpu" else tuple(range(100, 100 + cores)))
    if per_worker is not None and per_worker * (workers or 1) > count:
        with pytest.raises(
            DeviceError, match=rf"`devices_per_worker` {per_worker} with {workers or 1} workers? needs more"
        ):
            assign(found, workers, per_worker)
        return
    groups = assign(found, workers, per_worker)
    wanted = workers or (count // per_worker if per_worker else min(count, 4) if kind == "cpu" else count)
    assert len(groups) == wanted
    assert {len(group.ids) for group in groups} == {per_worker or max(1, count // wanted)}
    holders = [sum(group.ids == other.ids for other in groups) for group in groups]
    assert [group.sharers for group in groups] == holders
    for group in groups:
        assert group.kind == kind
        assert set(group.ids) <= set(found.ids)
        assert group.cores
        assert set(group.cores) <= set(found.cores)
        assert kind == "gpu" or group.cores == group.ids
        assert len(set(group.ids)) == len(group.ids)
    held = [item for group in groups for item in group.ids]
    if wanted <= count:
        assert len(set(held)) == len(held)  # nobody shares
    else:
        assert set(held) == set(found.ids)  # everybody shares, as evenly as can be
        assert max(holders) - min(holders) <= 1
    if wanted <= len(found.cores):
        used = [core for group in groups for core in group.cores]
        assert len(set(used)) == len(used)


@pytest.mark.parametrize(
    ("devices", "workers", "per_worker", "groups"),
    [
        (gpus(4), None, 2, [(0, 1), (2, 3)]),
        (gpus(4), None, None, [(0,), (1,), (2,), (3,)]),
        (gpus(4), 2, None, [(0, 1), (2, 3)]),
        (gpus(4), 1, None, [(0, 1, 2, 3)]),
        (gpus(4), 2, 1, [(0,), (1,)]),
        (gpus(4), 3, None, [(0,), (1,), (2,)]),
        (gpus(5), 2, None, [(0, 1), (2, 3)]),
        (gpus(5), None, 2, [(0, 1), (2, 3)]),
        (gpus(2), 3, None, [(0,), (1,), (0,)]),
        (gpus(2), 4, None, [(0,), (1,), (0,), (1,)]),
        (gpus(1), 2, None, [(0,), (0,)]),
        (cpus(2), None, None, [(0,), (1,)]),
        (cpus(8), None, None, [(0, 1), (2, 3), (4, 5), (6, 7)]),
        (cpus(8), 8, None, [(at,) for at in range(8)]),
        (cpus(8), None, 3, [(0, 1, 2), (3, 4, 5)]),
        (cpus(1), 2, None, [(0,), (0,)]),
        (tpus(4), None, None, [(0,), (1,), (2,), (3,)]),
        (tpus(8), 2, None, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (tpus(8), 1, None, [tuple(range(8))]),
    ],
)
def test_who_gets_which(
    devices: Devices, workers: int | None, per_worker: int | None, groups: list[tuple[int, ...]]
) -> None:
    assert ids(assign(devices, workers, per_worker)) == groups


@pytest.mark.parametrize(
    ("count", "cores", "workers", "dealt"),
    [
        (2, 8, None, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (2, 7, None, [(0, 1, 2), (3, 4, 5)]),
        (2, 1, None, [(0,), (0,)]),
        (1, 3, 2, [(0,), (1,)]),
        (1, 2, 3, [(0,), (1,), (0,)]),
    ],
)
def test_cores_beside_gpus_are_dealt_out_too(
    count: int, cores: int, workers: int | None, dealt: list[tuple[int, ...]]
) -> None:
    assert [group.cores for group in assign(gpus(count, cores), workers, None)] == dealt


@pytest.mark.parametrize(
    ("devices", "workers", "per_worker", "message"),
    [
        (gpus(2), 0, None, "`workers` must be at least 1: got 0"),
        (gpus(2), None, -1, "`devices_per_worker` must be at least 1: got -1"),
        (
            gpus(2),
            None,
            3,
            "`devices_per_worker` 3 with 1 worker needs more devices than this machine has: 2 \\(gpu 0, 1\\)",
        ),
        (gpus(4), 3, 2, "`devices_per_worker` 2 with 3 workers needs more devices than this machine has: 4"),
        (tpus(4), 5, None, "needs 1, 2, 4 or 8 TPU chips of its own: got 5 workers on 4 chips"),
        (tpus(4), 1, 3, "needs 1, 2, 4 or 8 TPU chips of its own: got 1 workers on 4 chips"),
    ],
)
def test_what_cannot_be_dealt_out_is_refused(
    devices: Devices, workers: int | None, per_worker: int | None, message: str
) -> None:
    with pytest.raises(DeviceError, match=message):
        assign(devices, workers, per_worker)


def test_a_group_as_text() -> None:
    assert str(DeviceGroup("gpu", (0, 1), (4,))) == "gpu 0,1"
    assert str(DeviceGroup("gpu", (3,), (4,), sharers=2)) == "gpu 3 (1/2)"


# Choosing


@pytest.mark.parametrize("wanted", ["3,1", " 3 , 1 "])
def test_chosen_devices_keep_the_order_given(wanted: str) -> None:
    assert choose(gpus(4, 8), wanted) == Devices("gpu", (3, 1), tuple(range(8)))
    assert choose(cpus(4), wanted) == Devices("cpu", (3, 1), (3, 1))


def test_auto_means_all() -> None:
    assert choose(gpus(3), "auto") == gpus(3)


@pytest.mark.parametrize("wanted", ["", "all", "0,", "gpu0", "0 1", "-1", "1.0"])
def test_devices_must_be_a_list_of_ids(wanted: str) -> None:
    with pytest.raises(DeviceError, match=f"`devices` must be auto or ids such as 0,1,2: got '{wanted}'"):
        choose(gpus(2), wanted)


def test_a_device_named_twice_or_missing_is_refused() -> None:
    with pytest.raises(DeviceError, match="must name each device once: got '0,1,0'; use `workers` to share"):
        choose(gpus(2), "0,1,0")
    with pytest.raises(DeviceError, match="no device 2 on this machine: it has gpu 0, 1"):
        choose(gpus(2), "1,2,9")
    with pytest.raises(DeviceError, match="no device 1 on this machine: it has cpu 0, 2"):
        choose(Devices("cpu", (0, 2), (0, 2)), "0,1")


# Environments


def test_a_gpu_worker_sees_its_gpus_only() -> None:
    group = DeviceGroup("gpu", (2, 3), (4, 5, 6))
    env = environment(group, {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "HOME": "/x", "TUNER_CPUS": "0"})
    assert env == {
        "HOME": "/x",
        "CUDA_VISIBLE_DEVICES": "2,3",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "TUNER_CPUS": "4,5,6",
        "TUNER_DEVICES": "gpu 2,3",
        "OMP_NUM_THREADS": "3",
        "OPENBLAS_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
    }


@pytest.mark.parametrize(("sharers", "fraction"), [(1, None), (2, "0.450"), (3, "0.300"), (8, "0.113")])
def test_gpus_that_are_shared_share_their_memory(sharers: int, fraction: str | None) -> None:
    group = DeviceGroup("gpu", (0,), (0,), sharers)
    assert environment(group, {}).get("XLA_PYTHON_CLIENT_MEM_FRACTION") == fraction
    own = {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".2"}
    assert environment(group, own)["XLA_PYTHON_CLIENT_MEM_FRACTION"] == ".2"
    # The newer name of the same variable: with both, JAX does not start.
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in environment(group, {"XLA_CLIENT_MEM_FRACTION": ".2"})


@pytest.mark.parametrize(("workers", "bounds"), [(8, "1,1,1"), (4, "1,2,1"), (2, "2,2,1"), (1, "2,4,1")])
def test_a_tpu_worker_sees_its_chips_only(workers: int, bounds: str) -> None:
    envs = [environment(group, {}) for group in assign(tpus(8), workers, None)]
    assert {env["TPU_CHIPS_PER_PROCESS_BOUNDS"] for env in envs} == {bounds}
    assert {env["TPU_PROCESS_BOUNDS"] for env in envs} == {"1,1,1"}
    assert ",".join(env["TPU_VISIBLE_CHIPS"] for env in envs) == "0,1,2,3,4,5,6,7"
    assert len({env["TPU_MESH_CONTROLLER_PORT"] for env in envs}) == workers
    for env in envs:
        assert env["TPU_MESH_CONTROLLER_ADDRESS"] == f"localhost:{env['TPU_MESH_CONTROLLER_PORT']}"
        assert not {"CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS"} & set(env)


def test_a_cpu_worker_has_as_many_threads_as_cores() -> None:
    env = environment(DeviceGroup("cpu", (0, 2), (0, 2)), {"MKL_NUM_THREADS": "7"})
    assert (env["OMP_NUM_THREADS"], env["OPENBLAS_NUM_THREADS"], env["MKL_NUM_THREADS"]) == ("2", "2", "7")
    assert (env["TUNER_CPUS"], env["TUNER_DEVICES"], env["JAX_PLATFORMS"]) == ("0,2", "cpu 0,2", "cpu")
    assert environment(DeviceGroup("cpu", (0,), (0,)), {"JAX_PLATFORMS": "cpu,cuda"})["JAX_PLATFORMS"] == "cpu,cuda"


def test_the_launchers_environment_is_left_alone() -> None:
    base = {"TUNER_CPUS": "9"}
    environment(DeviceGroup("gpu", (0,), (0,), 2), base)
    assert base == {"TUNER_CPUS": "9"}


# Finding


def fake_nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = folder / "nvidia-smi"
    command.write_text(script)
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


THREE_GPUS = """#!/bin/sh
[ "$*" = "--query-gpu=index --format=csv,noheader" ] || exit 3
echo 0; echo 1; echo 2
"""
NO_GPU = Devices("cpu", CORES, CORES)


@pytest.fixture(autouse=True)
def _bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("TPU_VISIBLE_CHIPS", raising=False)
    monkeypatch.setattr(tuner.launch.devices, "_tpu_chips", lambda: ())


def test_without_accelerators_the_cores_of_this_process_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_devices() == NO_GPU
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {7, 2, 5})
    assert find_devices() == Devices("cpu", (2, 5, 7), (2, 5, 7))


@pytest.mark.parametrize(
    ("visible", "found"),
    [(None, (0, 1, 2)), ("1", (1,)), ("2, 0", (0, 2)), ("0,7", (0,)), ("", None), ("-1", None), ("NoDevFiles", None)],
)
def test_gpus_are_those_that_the_surroundings_leave(
    visible: str | None, found: tuple[int, ...] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvidia_smi(tmp_path, THREE_GPUS, monkeypatch)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_devices() == (NO_GPU if found is None else Devices("gpu", found, CORES))


@pytest.mark.parametrize(
    "script",
    [
        "#!/bin/sh\necho 0\nexit 9\n",  # the driver is gone
        "#!/bin/sh\necho No devices were found\n",
        "#!/bin/sh\n",
        "#!/no/such/interpreter\n",
    ],
)
def test_a_failing_nvidia_smi_means_no_gpu(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, script, monkeypatch)
    assert find_devices() == NO_GPU


def test_a_hanging_nvidia_smi_means_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], *, timeout: float, **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    fake_nvidia_smi(tmp_path, THREE_GPUS, monkeypatch)
    monkeypatch.setattr(subprocess, "run", hang)
    assert find_devices() == NO_GPU


def test_tpu_chips_are_found_where_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("accel0", "accel1", "accel2", "accel3", "accelerometer", "accel", "xaccel5"):
        (tmp_path / name).touch()
    assert _tpu_chips(tmp_path) == (0, 1, 2, 3)
    monkeypatch.setattr(tuner.launch.devices, "_tpu_chips", lambda: _tpu_chips(tmp_path))
    assert find_devices() == Devices("tpu", (0, 1, 2, 3), CORES)
    monkeypatch.setenv("TPU_VISIBLE_CHIPS", "1,2")
    assert find_devices() == Devices("tpu", (1, 2), CORES)
    fake_nvidia_smi(tmp_path, THREE_GPUS, monkeypatch)
    assert find_devices().kind == "gpu"


def test_tpu_chips_of_newer_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vfio").mkdir()
    for name in ("0", "1", "devices"):
        (tmp_path / "vfio" / name).touch()
    monkeypatch.setattr(tuner.launch.devices, "_has_google_pci_device", lambda: True)
    assert _tpu_chips(tmp_path) == ()
    (tmp_path / "vfio" / "vfio").touch()
    assert _tpu_chips(tmp_path) == (0, 1)
    monkeypatch.setattr(tuner.launch.devices, "_has_google_pci_device", lambda: False)
    assert _tpu_chips(tmp_path) == ()  # somebody else's card


@pytest.mark.parametrize("visible", ["GPU-8932f937-d72c", "0, GPU-8932f937-d72c", "MIG-8932f937-d72c"])
def test_gpus_named_by_uuid_are_not_overlooked(visible: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_devices() == NO_GPU
    fake_nvidia_smi(tmp_path, THREE_GPUS, monkeypatch)
    with pytest.raises(DeviceError, match=f"CUDA_VISIBLE_DEVICES must contain the numbers .*: got '{visible}'"):
        find_devices()


# In the worker


def run_worker(group: DeviceGroup, code: str, base: dict[str, str]) -> str:
    """Return what `code` prints in a process of its own that settles first, as a worker does."""
    code = f"import os; from tuner.launch.devices import settle; settle(os.environ); {code}"
    env = environment(group, base)
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("core", [CORES[0], CORES[-1]])
def test_a_worker_runs_on_exactly_its_cores(core: int) -> None:
    printed = run_worker(DeviceGroup("gpu", (0,), (core,)), "print(*sorted(os.sched_getaffinity(0)))", {})
    assert printed.split() == [str(core)]


@pytest.mark.slow
def test_a_cpu_worker_computes_on_the_cpu() -> None:
    base = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    code = "import jax; print(jax.devices()[0].platform, jax.default_backend())"
    assert run_worker(assign(NO_GPU, 1, None)[0], code, base) == "cpu cpu\n"


@pytest.mark.parametrize(
    ("named", "kept"), [("2,3", {2, 3}), ("3,99", {3}), ("99", None), ("", None), (None, None), ("x,1", {1})]
)
def test_cores_that_are_gone_are_left_out(
    named: str | None, kept: set[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: bound.append(cores))
    settle({} if named is None else {"TUNER_CPUS": named})
    assert bound == ([] if kept is None else [kept])
