"""The data of a study's trials: how often `data` is called, what it may read, and how much is kept."""

from __future__ import annotations

import dataclasses
import gc
import pickle
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tuner import Space, Study, choice, int_uniform, log_uniform, uniform
from tuner.errors import MissingHParam, StudyError
from tuner.study.data import StudyData
from tuner.training import ArrayDataset, Layout, Splits, StreamDataset
from tuner.training.data.feed import Feed
from tuner.training.saved.run_record import digests


class Short(Space):
    length: int = choice(4, 8)
    rate: float = uniform(0.0, 1.0)


class Long(Space):
    length: int = choice(8, 16)
    stride: float = uniform(1.0, 2.0, static=True)
    counts: int = int_uniform(1, 5, traced=True)


class HParams(Space):
    learning_rate: float = log_uniform(1e-4, 1e-1)
    width: int = choice(32, 64)
    window: Short | Long | None = choice(Short, Long, None)
    scale: float = 0.5

    @property
    def length(self) -> int:
        return 1 if self.window is None else self.window.length


SHORT = HParams(learning_rate=0.01, width=32, window=Short(length=4, rate=0.1))
LONG = HParams(learning_rate=0.01, width=32, window=Long(length=8, stride=1.5, counts=2))


class Counted:
    """A function for `data` that counts its calls, and returns a new object in each."""

    def __init__(self, read: Callable[[Any], object]) -> None:
        self.read, self.seen = read, []

    def __call__(self, seed: int, hparams: Any) -> Any:
        self.seen.append((seed, self.read(hparams)))
        return object()


def test_data_of_a_seed_are_called_once() -> None:
    seeds: list[int] = []
    data = StudyData(lambda seed: seeds.append(seed) or object(), 7)
    assert data.for_hparams(SHORT) is data.for_hparams(LONG)
    assert seeds == [7]


def test_data_are_shared_by_all_trials_with_the_same_values_of_what_was_read() -> None:
    function = Counted(lambda hparams: hparams.window.length)
    data = StudyData(function, 7)
    first = data.for_hparams(SHORT)
    for other in (
        dataclasses.replace(SHORT, learning_rate=0.05),
        dataclasses.replace(SHORT, width=64),  # static, but not read
        dataclasses.replace(SHORT, window=Short(length=4, rate=0.9)),
    ):
        assert data.for_hparams(other) is first
    longer = data.for_hparams(dataclasses.replace(SHORT, window=Short(length=8, rate=0.1)))
    assert longer is not first
    # The same length of another space is something else: `data` may have looked at the class.
    assert data.for_hparams(LONG) is not longer
    assert data.for_hparams(SHORT) is first
    assert function.seen == [(7, 4), (7, 8), (7, 8)]


def test_a_view_behaves_as_the_hyperparameters_do() -> None:
    def read(hparams: Any) -> object:
        window = hparams.window
        return (
            isinstance(hparams, HParams), isinstance(window, Long), window.stride, hparams.length, hparams.scale,
            getattr(hparams, "depth", 3), dataclasses.replace(window, length=16, counts=1).length
            if isinstance(window, Short) else None,
        )  # fmt: skip

    function = Counted(read)
    StudyData(function, 0).for_hparams(LONG)
    assert function.seen == [(0, (True, True, 1.5, 8, 0.5, 3, None))]
    function = Counted(lambda hparams: (hparams.window, hparams.length))
    data = StudyData(function, 0)
    none = dataclasses.replace(SHORT, window=None)
    assert data.for_hparams(none) is data.for_hparams(none)
    data.for_hparams(SHORT)
    assert function.seen[0] == (0, (None, 1))
    assert len(function.seen) == 2


@pytest.mark.parametrize(
    ("hparams", "read", "name", "advice"),
    [
        (SHORT, lambda hparams: hparams.learning_rate, "learning_rate", "make it static (`static=True`)"),
        (SHORT, lambda hparams: hparams.window.rate, "window.rate", "make it static (`static=True`)"),
        (LONG, lambda hparams: hparams.window.counts, "window.counts", "make it static (no `traced=True`)"),
        (SHORT, lambda hparams: hash(hparams), "learning_rate", "make it static (`static=True`)"),
        (
            LONG,
            lambda hparams: dataclasses.asdict(hparams.window),
            "window.counts",
            "make it static (no `traced=True`)",
        ),
    ],
)
def test_a_traced_hyperparameter_is_refused_by_its_name(
    hparams: HParams, read: Callable[[Any], object], name: str, advice: str
) -> None:
    with pytest.raises(StudyError) as caught:
        StudyData(Counted(read), 0).for_hparams(hparams)
    assert str(caught.value) == (
        f"data read the traced hyperparameter {name!r}: only static hyperparameters may change the data, because "
        f"traced ones are numbers inside the program; {advice}, or use it in the trainer"
    )


def test_a_float_of_a_function_is_traced_and_a_constant_is_not() -> None:
    class Made(Space):
        rate: float
        length: int

    data = StudyData(Counted(lambda hparams: hparams.length), 0)
    assert data.for_hparams(Made(rate=0.1, length=3)) is data.for_hparams(Made(rate=0.2, length=3))
    with pytest.raises(StudyError, match=r"'rate': .*; make it a whole number or a text, or use it in the trainer"):
        StudyData(Counted(lambda hparams: hparams.rate), 0).for_hparams(Made(rate=0.1, length=3))
    # A float with a default is a constant, unless the function of the space sets it.
    StudyData(Counted(lambda hparams: hparams.scale), 0).for_hparams(SHORT)
    with pytest.raises(StudyError, match="'scale'"):
        StudyData(Counted(lambda hparams: hparams.scale), 0).for_hparams(dataclasses.replace(SHORT, scale=0.75))


def test_a_hyperparameter_that_the_space_does_not_have_is_named() -> None:
    message = "data reads a hyperparameter .* Short has no 'lenght', .* did you mean 'length'"  # codespell:ignore
    with pytest.raises(MissingHParam, match=message):
        StudyData(Counted(lambda hparams: hparams.window.lenght), 0).for_hparams(SHORT)  # codespell:ignore


def test_an_error_keeps_its_class_and_notes_its_line() -> None:
    def data(seed: int, hparams: Any) -> Any:
        raise IndexError("no 5\nsecond line")

    line = data.__code__.co_firstlineno + 1
    made = StudyData(data, 0)
    for _ in range(2):  # nothing is kept of a failed call
        with pytest.raises(IndexError) as caught:
            made.for_hparams(SHORT)
        assert caught.value.__notes__ == [f"data(seed, hparams) failed: {__file__}:{line}: IndexError: no 5"]


def of_bytes(size: int) -> ArrayDataset:
    """Return a dataset of this many bytes, with its eight bytes of one row."""
    return ArrayDataset(inputs=np.zeros((1, size - 8), np.int8))


def test_what_was_not_used_for_longest_is_dropped_at_the_limit() -> None:
    class Sized(Space):
        size: int = int_uniform(1, 10_000)

    calls: list[int] = []

    def make(seed: int, hparams: Any) -> Splits:
        calls.append(hparams.size)
        return Splits(of_bytes(hparams.size // 2), of_bytes(hparams.size // 2))

    data = StudyData(make, 0, limit_bytes=1000)

    def ask(*sizes: int) -> list[int]:
        calls.clear()
        for size in sizes:
            data.for_hparams(Sized(size=size))
        return list(calls)

    assert ask(400, 600, 400, 600) == [400, 600]  # exactly the limit
    assert ask(400, 100, 400, 600) == [100, 600]  # 100 drops 600, the oldest, and 600 drops 100
    assert ask(600, 400) == []
    assert ask(5000, 5000, 600) == [5000, 600]  # the newest is kept, even if it is larger
    assert ask(5000) == [5000]


def test_arrays_that_results_share_count_once() -> None:
    class Rows(Space):
        rows: int = int_uniform(1, 9)

    whole = ArrayDataset(inputs=np.zeros((10, 80), np.int8))  # 800 bytes, and 80 of rows
    calls: list[int] = []

    def make(seed: int, hparams: Any) -> Splits:
        calls.append(hparams.rows)
        return Splits(whole, whole.take(range(hparams.rows)))

    data = StudyData(make, 0, limit_bytes=800 + 80 + 8 * (1 + 2 + 3))
    for rows in (1, 2, 3, 1, 2, 3):
        data.for_hparams(Rows(rows=rows))
    assert calls == [1, 2, 3]
    data.for_hparams(Rows(rows=4))  # drops 1 and 2: 8 * (3 + 4) is more than the 48 bytes left for rows
    data.for_hparams(Rows(rows=1))
    assert calls == [1, 2, 3, 4, 1]


def test_at_most_sixteen_results_without_arrays_are_kept() -> None:
    class Number(Space):
        number: int = int_uniform(0, 99)

    function = Counted(lambda hparams: hparams.number)
    data = StudyData(function, 0)
    for number in (*range(17), 1, 0):
        data.for_hparams(Number(number=number))
    assert [number for _, number in function.seen] == [*range(17), 0]


@pytest.mark.slow
def test_dropped_data_are_freed_after_a_training_has_used_them() -> None:
    class Sized(Space):
        size: int = int_uniform(1, 10)

    def make(seed: int, hparams: Any) -> Splits:
        return ArrayDataset(inputs=np.zeros((10, hparams.size), np.float32)).split(0.5, seed)

    data, held = StudyData(make, 0, limit_bytes=1), []
    for size in (1, 2):
        splits = data.for_hparams(Sized(size=size))
        digests(splits)
        feed = Feed(splits.train, Layout(), 2)
        arrays = feed.first().arrays["inputs"]
        held.append((weakref.ref(splits.train), weakref.ref(splits.train._shared.host["inputs"]), weakref.ref(arrays)))
        del splits, feed, arrays
    gc.collect()
    assert [ref() is None for ref in held[0]] == [True] * 3
    assert all(ref() is not None for ref in held[1])


class Windows:
    """A source that reads the hyperparameters when its examples are read."""

    def __init__(self, hparams: Any) -> None:
        self.hparams = hparams

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": np.zeros(self.hparams.window.length)}


def test_data_that_keep_the_hyperparameters_are_never_those_of_other_ones() -> None:
    def make(seed: int, hparams: Any) -> Splits:
        return StreamDataset(Windows(hparams)).split(0.5, seed)

    data = StudyData(make, 0)
    first = data.for_hparams(SHORT)
    assert data.for_hparams(dataclasses.replace(SHORT, learning_rate=0.05)) is first
    # Nothing was read of the first stream yet.
    second = data.for_hparams(dataclasses.replace(SHORT, window=Short(length=8, rate=0.1)))
    assert second.train._shared.source[0]["inputs"].shape == (8,)
    assert first.train._shared.source[0]["inputs"].shape == (4,)


def test_data_that_pass_the_hyperparameters_to_another_process_are_not_shared() -> None:
    def make(seed: int, hparams: Any) -> object:
        there = pickle.loads(pickle.dumps(hparams))
        with pytest.raises(StudyError, match="learning_rate"):
            assert there.learning_rate
        assert there.window.length == hparams.length
        return object()

    data = StudyData(make, 0)
    first = data.for_hparams(SHORT)
    assert data.for_hparams(dataclasses.replace(SHORT, learning_rate=0.05)) is first
    assert data.for_hparams(dataclasses.replace(SHORT, width=64)) is not first


def test_arrays_of_a_stream_count_unless_they_are_mapped(tmp_path: Any) -> None:
    class InMemory:
        def __init__(self) -> None:
            self.images = np.zeros((3, 100), np.int8)
            self.mapped = np.memmap(tmp_path / "images", np.int8, "w+", shape=(3, 1000))

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"inputs": self.images[index]}

    stream = StreamDataset(InMemory())
    assert sum(Splits(stream, stream).array_bytes().values()) == 300 + 3 * 8


def test_a_study_has_the_data_of_a_trial() -> None:
    def make(seed: int, hparams: Any) -> tuple[int, int]:
        return seed, hparams.length

    study = Study(
        name="windows", space=HParams, trainer=SimpleNamespace(train_model=None),
        data=make, objective="loss", direction="minimize",
        epochs=1, trials=1, seed=5,
    )  # fmt: skip
    assert study.data_for(SHORT) == (5, 4)
    assert study.data_for(LONG, seed=6) == (6, 8)
    broken = dataclasses.replace(study, data=lambda seed, hparams: 1 // 0)
    with pytest.raises(StudyError, match=r"data\(seed, hparams\) failed: .*test_data.py:\d+: ZeroDivisionError: "):
        broken.data_for(SHORT)
    by_run = dataclasses.replace(
        study, space=lambda trial: dataclasses.replace(SHORT, width=trial.suggest_int("w", 1, 2))
    )
    assert by_run.data_for(by_run.hparams_of({"w": 2})) == (5, 4)
