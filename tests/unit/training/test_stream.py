"""Datasets read ahead by Grain: the batches that `gather` gives, errors that name the example, nothing left over."""

import ast
import contextlib
import gc
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuner.errors import StudyError
from tuner.training import ArrayDataset
from tuner.training.data.arrays import batch_order, gather
from tuner.training.data.batches import epoch_order
from tuner.training.data.stream import StreamDataset

LENGTH = 23
RNG = np.random.default_rng(0)
ARRAYS: dict[str, np.ndarray] = {
    "inputs": RNG.normal(size=(LENGTH, 3, 2)),
    "labels": RNG.integers(0, 5, LENGTH),
    "pixels": RNG.integers(0, 255, (LENGTH, 4), np.uint8),
    "weight": RNG.uniform(0, 3, LENGTH),
}


class Rows:
    """The arrays one example at a time; `change` spoils an example, `log` is told who reads what."""

    def __init__(
        self,
        arrays: dict[str, np.ndarray] = ARRAYS,
        change: Callable[[int, dict[str, Any]], Any] | None = None,
        log: pathlib.Path | None = None,
    ) -> None:
        self.arrays, self.change, self.log = arrays, change, log

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> Any:
        assert type(index) is int
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{os.getpid()} {index}\n")
        example = {name: array[index] for name, array in self.arrays.items()}
        return example if self.change is None else self.change(index, example)


def order(length: int = LENGTH, size: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """An epoch's batches as the training loop orders them, fetched."""
    key, step = jax.random.key(5), jnp.int32(12)
    return jax.device_get(epoch_order(key, step, jnp.arange(length), batch_size=size))


def same(got: Iterator[dict[str, np.ndarray]], data: ArrayDataset, at: tuple[np.ndarray, np.ndarray]) -> int:
    """Compare batches bit by bit with what `gather` takes from the device; return their number."""
    steps = 0
    for batch, indices, weights in zip(got, *at, strict=True):
        want = gather(data.arrays, jnp.asarray(indices), jnp.asarray(weights))
        assert sorted(batch) == sorted(want)
        for name, array in batch.items():
            assert type(array) is np.ndarray
            assert (array.dtype, array.shape) == (want[name].dtype, want[name].shape)
            assert array.tobytes() == np.asarray(want[name]).tobytes()
        steps += 1
    return steps


def ids(batches: Iterator[dict[str, np.ndarray]]) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


def numbered(length: int = 40, **options: Any) -> StreamDataset:
    return StreamDataset(Rows({"id": np.arange(length)}), **options)


# Batches


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "start"), [(0, 0), (0, 3), (2, 3), pytest.param(2, 0, marks=pytest.mark.long)])
def test_batches_are_those_of_the_same_arrays_on_the_device(workers: int, start: int) -> None:
    indices, weights = order()
    got = StreamDataset(Rows(), workers=workers).batches(indices, weights, start)
    assert same(got, ArrayDataset(**ARRAYS), (indices[start:], weights[start:])) == 6 - start


@pytest.mark.slow
def test_without_weights_of_its_own_a_source_gives_those_of_the_order() -> None:
    arrays = {"inputs": ARRAYS["inputs"]}
    indices, weights = order(size=5)
    assert (
        same(
            StreamDataset(Rows(arrays)).batches(indices, weights),
            ArrayDataset(**arrays),
            (indices, weights),
        )
        == 5
    )
    assert weights[-1].tolist() == [1, 1, 1, 0, 0]


@pytest.mark.slow
def test_batches_of_views_are_those_of_the_views_on_the_device() -> None:
    stream, arrays = StreamDataset(Rows()), ArrayDataset(**ARRAYS)
    for one, other in (
        (stream.take([7, 3, 3, 20]).take([2, 0]), arrays.take([7, 3, 3, 20]).take([2, 0])),
        (stream.split(0.3, 4, test=0.2).test, arrays.split(0.3, 4, test=0.2).test),
        (stream.folds(4, 1)[2].train, arrays.folds(4, 1)[2].train),
        (
            stream.split(0.3, 4, stratify=ARRAYS["labels"]).validation,
            arrays.split(0.3, 4, stratify="labels").validation,
        ),
    ):
        assert one is not None
        assert other is not None
        at = jax.device_get(batch_order(jnp.arange(len(one)), 4))
        assert same(one.batches(*at), other, at) == -(-len(other) // 4)


@pytest.mark.slow
def test_batches_are_the_same_in_a_new_process() -> None:
    code = (
        "import jax, jax.numpy as jnp, numpy as np\n"
        "from tuner.training.data.batches import epoch_order\n"
        "from tuner.training.data.stream import StreamDataset\n"
        "class Source:\n"
        "    def __len__(self): return 40\n"
        "    def __getitem__(self, index): return {'id': index}\n"
        "at = jax.device_get(epoch_order(jax.random.key(5), jnp.int32(12), jnp.arange(30), batch_size=4))\n"
        "batches = StreamDataset(Source()).split(0.25, 3).train.batches(*at, start=2)\n"
        "print([batch['id'].tolist() for batch in batches])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = ids(numbered().split(0.25, 3).train.batches(*order(30), start=2))
    assert ast.literal_eval(done.stdout) == here
    assert here == ids(numbered().split(0.25, 3).train.batches(*order(30)))[2:]


@pytest.mark.parametrize("prefetch", [1, 3, 50])
def test_the_order_does_not_depend_on_how_far_is_read_ahead(prefetch: int) -> None:
    indices = np.random.default_rng(1).permutation(40).reshape(20, 2)
    assert ids(numbered(prefetch=prefetch).batches(indices, np.ones((20, 2)))) == indices.tolist()


def test_nothing_is_left_to_read_after_the_last_step() -> None:
    indices = np.zeros((2, 4), int)
    assert list(numbered(workers=2).batches(indices, np.ones((2, 4)), start=2)) == []
    assert len(list(numbered(workers=0).batches(indices, np.ones((2, 4)), start=1))) == 1


def test_nothing_is_read_before_the_first_batch_and_little_ahead(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log"
    source = Rows({"id": np.arange(40)}, log=log)
    data = StreamDataset(source, prefetch=2)
    data.folds(4, 0)[1].train.take([1, 2])
    batches = data.batches(np.arange(40).reshape(20, 2), np.ones((20, 2)))
    assert not log.exists()
    next(batches)
    batches.close()
    read = {int(line.split()[1]) for line in log.read_text().splitlines()}
    assert {0, 1} <= read <= set(range(6))  # the batch given and the two after it


@pytest.mark.parametrize("prefetch", [1, 3])
def test_as_many_batches_are_read_at_a_time_as_asked_for(prefetch: int) -> None:
    meeting = threading.Barrier(prefetch)

    def meet(index: int, example: dict[str, Any]) -> dict[str, Any]:
        if index:
            meeting.wait(timeout=300)  # breaks unless so many read at once
        return example

    data = StreamDataset(Rows({"id": np.arange(13)}, meet), prefetch=prefetch)
    assert len(list(data.batches(np.arange(1, 13).reshape(12, 1), np.ones((12, 1))))) == 12


@pytest.mark.slow
def test_worker_processes_read_and_this_one_does_not(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log"
    data = StreamDataset(Rows({"id": np.arange(12)}, log=log), workers=2)
    at = np.arange(12).reshape(6, 2), np.ones((6, 2))
    assert ids(data.batches(*at)) == at[0].tolist()
    lines = [line.split() for line in log.read_text().splitlines()]
    assert str(os.getpid()) not in {pid for pid, _ in lines}
    assert len({pid for pid, _ in lines}) == 2
    assert len({pid for pid, index in lines if index in ("0", "1", "4", "5", "8", "9")} & {lines[0][0]}) == 1


@pytest.mark.slow
def test_batches_of_worker_processes_come_without_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    # In containers /dev/shm is small. Grain takes a batch that lies there through this class.
    monkeypatch.delattr("multiprocessing.shared_memory.SharedMemory")
    images = np.arange(2 << 20).reshape(2, -1)
    at = np.array([[1, 0]]), np.ones((1, 2))
    batches = StreamDataset(Rows({"images": images}), workers=1).batches(*at)
    assert [batch["images"].tobytes() for batch in batches] == [images[::-1].astype("int32").tobytes()]


@pytest.mark.slow
def test_more_workers_than_steps_are_not_started() -> None:
    batches = numbered(workers=3).batches(np.arange(4).reshape(1, 4), np.ones((1, 4)))
    assert next(batches)["id"].tolist() == [0, 1, 2, 3]
    assert len(multiprocessing.active_children()) == 1
    batches.close()


# Errors


@pytest.mark.parametrize(
    ("source", "options", "found"),
    [
        (iter([]), {}, "a source needs __len__ and __getitem__: got list_iterator"),
        ({1, 2}, {}, "a source needs __len__ and __getitem__: got set"),
        ([], {}, "a source needs at least 1 example: got 0 in list"),
        ([{}], {"workers": -1}, "workers must be at least 0 and prefetch at least 1: got workers=-1, prefetch=4"),
        ([{}], {"prefetch": 0}, "workers must be at least 0 and prefetch at least 1: got workers=0, prefetch=0"),
    ],
)
def test_a_source_that_cannot_be_one_is_refused(source: Any, options: dict[str, int], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        StreamDataset(source, **options)


@pytest.mark.parametrize(
    ("shapes", "start", "found"),
    [
        (((4,), (4,)), 0, r"the same shape \[steps, batch\]: \(4,\), \(4,\)"),
        (((2, 4), (2, 3)), 0, r"the same shape \[steps, batch\]: \(2, 4\), \(2, 3\)"),
        (((2, 4), (2, 4)), 3, "start must be from 0 to 2, the number of steps: got 3"),
        (((2, 4), (2, 4)), -1, "start must be from 0 to 2, the number of steps: got -1"),
    ],
)
def test_orders_that_cannot_be_one_are_refused(shapes: Any, start: int, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        numbered().batches(np.zeros(shapes[0], int), np.ones(shapes[1]), start)


def fail(index: int, example: dict[str, Any]) -> Any:
    class Unpicklable(Exception):
        lock = threading.Lock()

    if index == 17:
        raise Unpicklable("disk on fire")
    return example


def stop(index: int, example: dict[str, Any]) -> Any:
    if index == 17:
        raise StopIteration
    return example


def spoil(**changes: Any) -> Callable[[int, dict[str, Any]], Any]:
    return lambda index, example: {**example, **changes} if index == 17 else example


WRONG = [
    (fail, RuntimeError, r"the source failed to read example 17: Unpicklable: disk on fire"),
    (stop, RuntimeError, r"the source failed to read example 17: StopIteration: "),
    (lambda index, example: [1], ValueError, r"must be a dict of arrays: got list \(example 3\)"),
    (lambda index, example: {}, ValueError, r"must be a dict of arrays: got dict \(example 3\)"),
    (spoil(y=1), ValueError, r"same keys: example 17 has \['x', 'y'\], example 3 has \['x'\]"),
    (
        spoil(x=np.zeros(3)),
        ValueError,
        r"'x' has \(3,\) float64 in example 17, but \(2,\) float64 in example 3",
    ),
    (
        spoil(x=np.zeros(2, int)),
        ValueError,
        r"'x' has \(2,\) int64 in example 17, but \(2,\) float64 in example 3",
    ),
]


@pytest.mark.parametrize(("change", "kind", "found"), WRONG)
def test_an_error_names_the_example(change: Any, kind: type[Exception], found: str) -> None:
    data = StreamDataset(Rows({"x": np.zeros((20, 2))}, change)).take(range(3, 20))
    at = np.arange(17).reshape(17, 1), np.ones((17, 1))
    batches = data.batches(*at)
    with pytest.raises(kind, match=found):
        list(batches)


@pytest.mark.slow
@pytest.mark.parametrize(("change", "kind", "found"), [WRONG[0], pytest.param(*WRONG[5], marks=pytest.mark.long)])
def test_an_error_in_a_worker_process_names_the_example(change: Any, kind: type[Exception], found: str) -> None:
    data = StreamDataset(Rows({"x": np.zeros((20, 2))}, change), workers=1).take(range(3, 20))
    batches, given = data.batches(np.arange(17).reshape(17, 1), np.ones((17, 1))), []
    with pytest.raises(kind, match=found):
        given.extend(batches)  # pyright: ignore[reportArgumentType]
    assert multiprocessing.active_children() == []


def test_a_source_that_cannot_be_sent_to_a_process_is_refused() -> None:
    data = StreamDataset(Rows(change=threading.Lock()), workers=1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        StudyError, match=r"Rows to worker .*: TypeError: cannot pickle '_thread\.lock' object; open its"
    ):
        next(data.batches(*order()))


@pytest.mark.slow
def test_a_source_of_a_study_file_can_be_sent_to_a_process(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "faraway.py"
    path.write_text(
        "SCALE = 10\nclass Far:\n def __len__(self): return 4\n def __getitem__(self, i): return {'id': i * SCALE}\n"
    )
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("tuner_study_faraway", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    batches = StreamDataset(module.Far(), workers=1).batches(np.array([[3, 1]]), np.ones((1, 2)))
    assert ids(batches) == [[30, 10]]
    del sys.modules[spec.name]


def test_without_grain_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = numbered()  # needs no Grain yet
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(
        StudyError, match=r"needs Grain, which is not installed: run `pip install -e '\.\[stream\]'` in the clone"
    ):
        next(data.batches(np.zeros((1, 2), int), np.ones((1, 2))))


def test_a_stream_is_not_read_to_split_it() -> None:
    with pytest.raises(ValueError, match="by an array's name: got 'labels'; pass an array of the classes"):
        StreamDataset(Rows()).folds(3, 0, stratify="labels")


# What is left over


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("grain")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "end"),
    [
        (0, "close"),
        (0, "drop"),
        (0, "finish"),
        (1, "finish"),
        (2, "drop"),
        pytest.param(2, "close", marks=pytest.mark.long),
    ],
)
def test_no_thread_process_or_shared_memory_is_left(workers: int, end: str, wait_until: Callable[..., Any]) -> None:
    shared = set(os.listdir("/dev/shm"))
    batches = numbered(workers=workers).batches(np.arange(40).reshape(20, 2), np.ones((20, 2)))
    next(batches)
    assert len(multiprocessing.active_children()) == workers
    assert readers()
    if end == "close":
        batches.close()
    elif end == "finish":
        assert len(list(batches)) == 19
    else:
        del batches
        gc.collect()
    wait_until(lambda: not readers() and not multiprocessing.active_children())
    wait_until(lambda: not {name for name in set(os.listdir("/dev/shm")) - shared if name.startswith("psm_")})


HALF_READ = """
import multiprocessing, os, sys, time
import numpy as np
from tuner.training.data.stream import StreamDataset

class Source:
    def __len__(self): return 400
    def __getitem__(self, index):
        time.sleep({sleep_s} if index > 50 else 0)
        return {{"id": np.full(1000, index)}}

if __name__ == "__main__":
    batches = StreamDataset(Source(), workers=2).batches(np.arange(400).reshape(40, 10), np.ones((40, 10)))
    next(batches)
    print([process.pid for process in multiprocessing.active_children()], flush=True)
    {end}
"""


def half_read(tmp_path: pathlib.Path, sleep_s: float, end: str) -> tuple[subprocess.CompletedProcess[str], list[int]]:
    path = tmp_path / "half_read.py"
    path.write_text(HALF_READ.format(sleep_s=sleep_s, end=end))
    command = [sys.executable, "-W", "error", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)  # it starts three processes
    return done, ast.literal_eval(done.stdout.splitlines()[0])


def gone(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


@pytest.mark.slow
def test_a_program_may_end_in_mid_epoch(tmp_path: pathlib.Path) -> None:
    done, pids = half_read(tmp_path, 0, "pass")
    assert done.returncode == 0
    assert done.stderr == ""
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


@pytest.mark.slow
def test_worker_processes_end_with_a_parent_that_is_killed(
    tmp_path: pathlib.Path, wait_until: Callable[..., Any]
) -> None:
    done, pids = half_read(tmp_path, 1000, "os.kill(os.getpid(), 9)")
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: all(gone(pid) for pid in pids))


@pytest.mark.slow
def test_worker_processes_leave_an_interrupt_to_their_parent() -> None:
    batches = numbered(workers=1).batches(np.arange(40).reshape(20, 2), np.ones((20, 2)))
    first = next(batches)["id"].tolist()  # so it has started
    (process,) = multiprocessing.active_children()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    assert [first, *ids(batches)] == np.arange(40).reshape(20, 2).tolist()
