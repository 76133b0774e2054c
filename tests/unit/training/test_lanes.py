"""Trainings in lanes of one program: each gives the reports that it gives alone, whatever the other lanes do."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuner import Space, log_uniform, uniform
from tuner.training import ArrayDataset, Checkpoints, OptimizerSpec, TrainerModule
from tuner.training.data.feed import Feed
from tuner.training.hparams import register
from tuner.training.loop import lanes as lanes_
from tuner.training.loop.execution import First
from tuner.training.loop.lanes import Advance, Lane, Lanes, Measure, Shuffle, best_count
from tuner.training.loop.modes import remembered
from tuner.training.loop.runtime import CompileClock
from tuner.training.mesh import Layout
from tuner.trial import Report
from tuner.worker.cohorts.meeting import Meeting, Participant

TOLERANCE = 5e-6
"""As in `test_vmap.py`: sums are taken in another order."""
EPOCHS, LANES = 3, 3
RNG = np.random.default_rng(0)
SPLITS = ArrayDataset(
    inputs=RNG.normal(size=(50, 4)).astype(np.float32), targets=RNG.normal(size=50).astype(np.float32)
).split(0.2, seed=0, test=0.2)


class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1e-1)
    ema: float = uniform(0.5, 0.99)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1)(nn.relu(nn.Dense(5)(x)))[:, 0]


class Line(TrainerModule):
    def __init__(self, loop: Any = "scan") -> None:
        self.loop = loop

    def init_model(self, hparams: Any) -> Any:
        return Model()

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return OptimizerSpec("sgd", hparams.learning_rate, skip_nonfinite=True)

    def ema_decay(self, hparams: Any) -> Any:
        return hparams.ema

    def batch_size(self, hparams: Any) -> int:
        return 8

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (outputs - batch["targets"]) ** 2, {}


register(HParams(learning_rate=0.1, ema=0.9))


def hparams_of(number: int) -> HParams:
    return HParams(learning_rate=0.005 * (number + 1), ema=0.5 + 0.05 * number)


def alone(trainer: TrainerModule, number: int, **options: Any) -> list[Report]:
    return list(train(trainer, number, **options))


def train(trainer: TrainerModule, number: int, *, epochs: int = EPOCHS, **options: Any) -> Any:
    return trainer.train_model(hparams_of(number), SPLITS, epochs=epochs, seed=number, **options)


class Together:
    """Runs trainings in lanes: a small version of what a worker does."""

    def __init__(self, count: int = LANES, trainer: TrainerModule | None = None) -> None:
        self.trainer, self.meeting = trainer or Line(), Meeting()
        self.lanes = Lanes(self.trainer, hparams_of(0), feed(self.trainer), count, remembered(self.trainer))
        self.free = list(range(count))
        self.results: dict[Any, Any] = {}
        self.done: list[tuple[type, tuple[int, ...]]] = []

    def start(self, name: Any, work: Callable[[Callable[..., Lane]], Any]) -> None:
        lane = self.free.pop(0)

        def run(participant: Participant) -> None:
            def execute(trainer: Any, hparams: Any, feed: Any) -> Lane:
                def meet(lane: int, tasks: Sequence[Any]) -> Any:
                    return participant.ask((lane, tasks))

                return Lane(self.lanes, lane, hparams, meet, lambda: self.free.append(lane))

            self.results[name] = work(execute)

        self.meeting.start(str(name), run)

    def step(self) -> None:
        """Let all trainings run until they wait, and do what is next."""
        for ended in self.meeting.take_turns():
            if ended.error is not None:
                raise ended.error
        if self.meeting.participants:
            self._serve()

    def _serve(self) -> None:
        tasks = {one.request[0]: (one, deque(one.request[1])) for one in self.meeting.participants}
        while True:
            chosen = self.lanes.next_tasks({lane: left[0] for lane, (_, left) in tasks.items()})
            results = self.lanes.do({lane: tasks[lane][1][0] for lane in chosen})
            self.done.append((type(tasks[chosen[0]][1][0]), tuple(chosen)))
            for lane in chosen:
                tasks[lane][1].popleft()
            finished = [lane for lane in chosen if not tasks[lane][1]]
            for lane in finished:
                tasks[lane][0].answer(results.get(lane))
            if finished:
                for participant, left in tasks.values():
                    if left:
                        participant.request = (participant.request[0], list(left))
                return

    def run(self) -> None:
        while self.meeting.participants:
            self.step()


def feed(trainer: TrainerModule) -> Feed:
    return Feed(SPLITS.train, Layout(), trainer.batch_size(hparams_of(0)))


def assert_alike(found: Sequence[Report], expected: Sequence[Report]) -> None:
    assert [(one.epoch, one.step, one.metrics.keys()) for one in found] == [
        (one.epoch, one.step, one.metrics.keys()) for one in expected
    ]
    for one, other in zip(found, expected, strict=True):
        for name, value in one.metrics.items():
            assert value == pytest.approx(other.metrics[name], rel=TOLERANCE, abs=TOLERANCE), name


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["scan", pytest.param("step", marks=pytest.mark.long)])
def test_each_lane_reports_what_its_training_reports_alone(loop: str) -> None:
    trainer = Line(loop)
    together = Together(trainer=trainer)
    for number in range(LANES):
        together.start(number, lambda execute, number=number: alone(trainer, number, execute=execute))
    together.run()
    for number in range(LANES):
        assert_alike(together.results[number], alone(trainer, number))
    # They are trained at once, and differ.
    assert (Advance, (0, 1, 2)) in together.done
    assert together.results[0][-1].metrics["test_loss"] != together.results[1][-1].metrics["test_loss"]


@pytest.fixture
def clock() -> Iterator[CompileClock]:
    made = CompileClock()
    yield made
    jax.monitoring.unregister_event_duration_listener(made._add)
    jax.monitoring.unregister_event_listener(made._found)


@pytest.mark.slow
def test_a_freed_lane_takes_the_next_training_without_compiling(clock: CompileClock) -> None:
    trainer = Line()
    together = Together(2, trainer)
    ends = [1, 3, 2, 3, 1, 2, 3]  # the epoch after which each training is ended, as if it were pruned

    def ended_early(number: int, **options: Any) -> list[Report]:
        with contextlib.closing(train(trainer, number, **options)) as reports:
            return list(itertools.islice(reports, ends[number]))

    left, compiled = list(range(len(ends))), 0
    while left or together.meeting.participants:
        while together.free and left:
            number = left.pop(0)
            together.start(number, lambda execute, number=number: ended_early(number, execute=execute))
        together.step()
        if not compiled and len(together.results) == 3:  # each kind of program has run
            compiled = clock.count + clock.fetched
    assert compiled > 0
    assert clock.count + clock.fetched == compiled
    for number, epochs in enumerate(ends):
        assert_alike(together.results[number], alone(trainer, number)[:epochs])


def test_a_lane_of_nan_leaves_the_others_bit_for_bit() -> None:
    class Sick(Line):
        def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
            return (outputs - batch["targets"]) ** 2 / hparams.ema, {}

    def run(ema: float) -> dict[Any, Any]:
        trainer = Sick()
        together = Together(2, trainer)
        for number in range(2):
            hparams = HParams(learning_rate=0.01, ema=ema if number == 0 else 0.9)
            together.start(
                number,
                lambda execute, hparams=hparams: list(
                    trainer.train_model(hparams, SPLITS, epochs=EPOCHS, seed=0, execute=execute)
                ),
            )
        together.run()
        return together.results

    healthy, sick = run(0.8), run(0.0)
    assert sick[1] == healthy[1]
    assert all(np.isfinite(one.metrics["loss"]) for one in sick[1])
    assert not np.isfinite(sick[0][-1].metrics["train_loss"])
    assert sick[0][-1].metrics["train_skipped_steps"] == EPOCHS * feed(Sick()).steps


@pytest.mark.slow
def test_a_training_moves_between_lanes_and_alone(tmp_path: Path) -> None:
    """Stopped in the middle of an epoch each time: in a lane, then alone, then in another lane beside others."""
    trainer = Line("step")
    expected = alone(trainer, 1)
    folder = tmp_path / "moved"

    def part(stop_after: int, **options: Any) -> list[Report]:
        calls = 0

        def stop() -> bool:
            nonlocal calls
            calls += 1
            return calls > stop_after

        with Checkpoints(folder) as saved:
            return alone(trainer, 1, checkpoints=saved, stop=stop, **options)

    first = Together(2, trainer)
    first.start("moved", lambda execute: part(1, execute=execute))
    first.run()
    assert first.results["moved"] == []  # two steps of the first epoch
    assert len(part(2)) <= 1
    third = Together(2, trainer)
    third.start("other", lambda execute: alone(trainer, 0, execute=execute))
    third.start("moved", lambda execute: part(10**6, execute=execute))
    third.run()
    with Checkpoints(folder) as saved:
        assert saved.latest_record() is not None
    assert_alike(third.results["moved"][-1:], expected[-1:])
    assert_alike(third.results["other"], alone(trainer, 0))
    assert (Advance, (0, 1)) in third.done


@pytest.mark.slow
def test_a_resumed_lane_is_bit_for_bit_the_lane_that_was_not_stopped(tmp_path: Path) -> None:
    trainer = Line("step")

    def run(stop_after: int) -> list[Report]:
        calls = 0

        def stop() -> bool:
            nonlocal calls
            calls += 1
            return calls > stop_after

        together = Together(2, trainer)
        together.start("other", lambda execute: alone(trainer, 0, execute=execute))

        def work(execute: Any) -> list[Report]:
            with Checkpoints(tmp_path / "one") as saved:
                return alone(trainer, 1, checkpoints=saved, stop=stop, execute=execute)

        together.start("one", work)
        together.run()
        return together.results["one"]

    stopped, resumed = run(6), run(10**6)
    whole = Together(2, trainer)
    whole.start("other", lambda execute: alone(trainer, 0, execute=execute))
    whole.start("one", lambda execute: alone(trainer, 1, execute=execute))
    whole.run()
    assert len(stopped) < EPOCHS
    assert resumed[-1] == whole.results["one"][-1]


@pytest.mark.slow
def test_steps_of_some_lanes_leave_the_others_bit_for_bit() -> None:
    trainer = Line("step")
    lanes = Lanes(trainer, hparams_of(0), feed(trainer), 3, remembered(trainer))
    for lane in range(3):
        start = First(lanes.feed.first(), lane, EPOCHS * lanes.feed.steps, 1)
        Lane(lanes, lane, hparams_of(lane), lambda lane, tasks: lanes.do({lane: tasks[0]})).begin(start)
    lanes.do(dict.fromkeys(range(3), Shuffle(0, True)))
    before = [jax.device_get(lanes.take(lane).state.params) for lane in range(3)]
    lanes.do({1: Advance(1)})
    after = [jax.device_get(lanes.take(lane).state.params) for lane in range(3)]
    are_equal = [jax.tree.all(jax.tree.map(np.array_equal, *pair)) for pair in zip(before, after, strict=True)]
    assert are_equal == [True, False, True]
    assert [int(lanes.take(lane).position) for lane in range(3)] == [0, 1, 0]


@pytest.mark.slow
def test_hyperparameters_keep_the_type_of_python_numbers() -> None:
    """In bfloat16, a float32 would make everything float32 that it is multiplied with."""
    seen = []

    class Half(Line):
        def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
            seen.append((hparams.learning_rate * jnp.bfloat16(1)).dtype)
            return super().init_optimizer(hparams, total_steps)

    trainer = Half()
    together = Together(2, trainer)
    for number in range(2):
        together.start(number, lambda execute, number=number: alone(trainer, number, execute=execute))
    together.run()
    assert set(seen) == {jnp.dtype("bfloat16")}


TIMED = Line()


def test_what_is_done_next() -> None:
    lanes = Together().lanes
    dataset = SPLITS.validation
    measure, shuffle = Measure(dataset), Shuffle(0, True)
    # Steps come last, and fewer lanes first.
    assert lanes.next_tasks({0: Advance(5), 1: measure, 2: Advance(5)}) == [1]
    assert lanes.next_tasks({0: Advance(5), 1: shuffle, 2: Shuffle(5, False)}) == [1, 2]
    assert lanes.next_tasks({0: Advance(5), 1: Advance(3), 2: Advance(5)}) == [1]
    assert lanes.next_tasks({0: Measure(SPLITS.train), 1: measure, 2: Measure(dataset)}) == [0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seconds", "most", "expected"),
    [
        ({1: 1.0, 4: 1.0, 16: 1.0}, 16, 16),  # lanes cost nothing
        ({1: 1.0, 4: 1.0, 16: 4.0}, 64, 4),  # 16 are as fast per trial as 4
        ({1: 1.0, 4: 1.0, 16: 3.4}, 64, 4),  # 1.18 times the trials per second: less than 1.1 for each doubling
        ({1: 1.0, 4: 1.0, 16: 3.2, 64: 12.8}, 64, 16),  # 1.25 times, then no more
        ({1: 1.0, 4: 4.0}, 64, 1),  # as convolutions on a CPU
        ({1: 1.0, 4: 1.0, 16: None}, 64, 4),  # out of memory
        ({1: 1.0, 4: 1.0, 16: 1.0, 64: 1.0, 256: 1.0}, 256, 64),  # no more on a CPU
    ],
)
def test_more_lanes_are_used_while_they_gain(
    seconds: dict[int, float | None], most: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = TIMED

    def timed(made: Any, source: Any, hparams: Any, carry: Any, *_: Any) -> float:
        count = 1 if carry.position.ndim == 0 else len(carry.position)
        found = seconds[count]
        if found is None:
            raise MemoryError
        return found

    monkeypatch.setattr(lanes_, "_seconds", timed)
    stored: dict[str, str] = {}

    def choose(name: str, measured: Any) -> Any:
        return stored[name] if name in stored else stored.setdefault(name, measured())

    start = First(feed(trainer).first(), 0, 10, 1)
    arguments: Any = (trainer, hparams_of(0), feed(trainer), start, most, choose)
    assert best_count(*arguments) == expected
    seconds.clear()
    assert best_count(*arguments) == expected  # from what was stored
    (name,) = [name for name in stored if name.startswith("up to")]
    assert stored[name] == str(expected)


def test_an_error_of_the_training_alone_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> float:
        raise RuntimeError("planted")

    monkeypatch.setattr(lanes_, "_seconds", fail)
    trainer = Line()
    start = First(feed(trainer).first(), 0, 10, 1)
    with pytest.raises(RuntimeError, match="planted"):
        best_count(trainer, hparams_of(0), feed(trainer), start, 4, remembered(trainer))


def test_arrays_with_the_type_of_python_numbers_are_written_into_a_lane_too() -> None:
    every, one = (jax.jit(lambda value, shape=shape: jnp.full(shape, value))(0.0) for shape in ((3, 2), (2,)))
    assert every.weak_type
    put = lanes_._put(every, np.int32(1), one + 5.0)  # pyright: ignore[reportArgumentType]
    assert put.tolist() == [[0.0, 0.0], [5.0, 5.0], [0.0, 0.0]]
