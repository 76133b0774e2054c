"""Trains several trainings in one program on one device: each has a lane.

The programs are those of a training alone, mapped over lanes with `jax.vmap`. A lane computes what its training
computes alone, up to the order of sums, and nothing of one lane reaches another. A training joins and leaves between
programs; a new one is written into its lane, which compiles nothing.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from tuner.training import metrics as metrics_
from tuner.training.data.batches import Order, Source
from tuner.training.data.feed import Dataset, Feed
from tuner.training.definition import TrainerDefinition, settings_of
from tuner.training.loop.compiling import Compiling, check_memory
from tuner.training.loop.evaluation import eval_metrics
from tuner.training.loop.execution import First, Measured, Solo
from tuner.training.loop.modes import Choose, Mode, alone, chunk, measure, program_name
from tuner.training.loop.programs import Carry, Programs, eval_all, eval_batch, many_steps, one_step, programs
from tuner.training.mesh import Layout
from tuner.training.optim.build import skipped_steps
from tuner.training.pytree import PyTree
from tuner.training.state import TrainState

_OF_LANES = Source(None, 0)  # pyright: ignore[reportArgumentType]
"""The axes of a source for `jax.vmap`: all lanes share the arrays, each has its own order."""


class LanePrograms:
    """The compiled programs of all lanes. Arrays of lanes have the lane as first axis.

    Attributes:
        step, steps, eval_step, eval_all, copy, compiling: as in `Programs`, for all lanes.
        shuffle: (order, hparams, keys, first steps, rows, lanes, batch_size=) -> the order, new for some lanes.
        put: (all, lane, one) -> arrays of all lanes with those of one replaced; `all` becomes invalid.
        take: (all, lane) -> a copy of the arrays of one lane.
        take_for_evaluation: (states, lane) -> a copy of the part of one lane's state that predictions need.
        skipped: optimizer states -> what `skipped_steps` returns for each lane.
        merge: (lanes, new, old) -> `new` for these lanes, `old` for the others.
    """

    def __init__(self, trainer: TrainerDefinition, layout: Layout) -> None:
        def step_one(source: Source, hparams: PyTree, carry: Carry) -> Carry:
            return one_step(trainer, layout, hparams, source, carry)

        def train_step(source: Source, hparams: PyTree, state: PyTree, totals: PyTree, position: PyTree) -> Carry:
            return jax.vmap(step_one, (_OF_LANES, 0, 0))(source, hparams, Carry(state, totals, position))

        def train_steps(
            source: Source, hparams: PyTree, state: PyTree, totals: PyTree, position: PyTree, *, count: int
        ) -> Carry:
            def steps_one(source: Source, hparams: PyTree, carry: Carry) -> Carry:
                return many_steps(trainer, layout, hparams, source, carry, count)

            return jax.vmap(steps_one, (_OF_LANES, 0, 0))(source, hparams, Carry(state, totals, position))

        def eval_step(
            source: Source, hparams: PyTree, state: PyTree, totals: PyTree, position: jax.Array
        ) -> tuple[PyTree, jax.Array]:
            def one(hparams: PyTree, state: TrainState, totals: PyTree) -> PyTree:
                metrics = eval_batch(trainer, layout, hparams, source.at(position), state)
                return metrics if totals is None else metrics_.add(totals, metrics)

            return jax.vmap(one)(hparams, state, totals), position + 1

        def eval_batches(source: Source, hparams: PyTree, state: PyTree) -> PyTree:
            return jax.vmap(lambda hparams, state: eval_all(trainer, layout, hparams, source, state))(hparams, state)

        def shuffle(
            order: Order,
            hparams: PyTree,
            keys: jax.Array,
            first: jax.Array,
            rows: jax.Array,
            lanes: jax.Array,
            *,
            batch_size: int,
        ) -> Order:
            def one(hparams: PyTree, key: jax.Array, first: jax.Array) -> Order:
                return trainer.order(hparams, key, first, rows, batch_size=batch_size)

            return _merged(lanes, jax.vmap(one)(hparams, keys, first), order)

        self.compiling = Compiling()
        self.step = jax.jit(train_step, donate_argnames=("state",))
        self.steps = jax.jit(train_steps, static_argnames=("count",), donate_argnames=("state",))
        self.eval_step = jax.jit(eval_step)
        self.eval_all = jax.jit(eval_batches)
        self.shuffle = jax.jit(shuffle, static_argnames=("batch_size",))
        self.copy = jax.jit(partial(jax.tree.map, jnp.copy))
        self.put = jax.jit(_put, donate_argnums=0)
        self.take = jax.jit(_take)
        self.take_for_evaluation = jax.jit(lambda every, lane: TrainState.for_evaluation(_take(every, lane)))
        self.skipped = jax.jit(jax.vmap(skipped_steps))
        self.merge = jax.jit(_merged)


def _put(every: PyTree, lane: jax.Array, one: PyTree) -> Any:
    def put(all_: jax.Array, new: jax.Array) -> jax.Array:
        if all_.weak_type:  # a Python number: it takes the type of what it is computed with, and must go on to
            is_lane = jnp.arange(all_.shape[0]) == lane
            return jnp.where(is_lane.reshape(-1, *[1] * (all_.ndim - 1)), new, all_)
        return jax.lax.dynamic_update_index_in_dim(all_, new, lane, 0)

    return jax.tree.map(put, every, one)


def _take(every: PyTree, lane: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[lane], every)


def _merged(lanes: jax.Array, new: PyTree, old: PyTree) -> Any:
    def of_lane(is_new: jax.Array, new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(partial(jnp.where, is_new), new, old)

    return jax.vmap(of_lane)(lanes, new, old)


@lru_cache(maxsize=16)
def _lane_programs(trainer: TrainerDefinition, settings: Hashable, structure: Hashable, layout: Layout) -> LanePrograms:
    return LanePrograms(trainer, layout)


def program_key(trainer: TrainerDefinition, hparams: PyTree, feed: Feed) -> Hashable:
    """Return what trainings must have in common to share a program."""
    return settings_of(trainer), jax.tree.structure(hparams), id(feed.dataset), feed.batch_size


# --- What a lane asks for


@dataclass(frozen=True, eq=False)
class Enter:
    """Write a training into its lane, and find out how epochs run."""

    hparams: PyTree
    carry: Carry
    host_hparams: PyTree


@dataclass(frozen=True)
class Shuffle:
    """Make the order of an epoch; at the start of an epoch also empty the metrics of its steps."""

    first_step: int
    is_start: bool


@dataclass(frozen=True)
class Advance:
    """Run steps."""

    count: int


@dataclass(frozen=True, eq=False)
class Measure:
    """Return the metrics of the epoch, with those over the validation set."""

    dataset: Dataset


@dataclass(frozen=True, eq=False)
class Test:
    """Return the metrics of a state over a dataset."""

    dataset: Dataset
    state: TrainState


Task = Enter | Shuffle | Advance | Measure | Test


class Meet(Protocol):
    """Lets a lane wait until its tasks are done, together with those of the other lanes."""

    def __call__(self, lane: int, tasks: Sequence[Task]) -> Any:
        """Return the result of the last task."""
        ...


class Lanes:
    """The lanes of trainings that run the same program: one trainer, one set of static hyperparameters, the same data.

    Args:
        trainer: The trainer.
        hparams: The hyperparameters of one training, for their structure.
        feed: The training data.
        count: The number of lanes.
        choose: Looks up whether the program runs as scan or steps, or measures it.
    """

    def __init__(self, trainer: TrainerDefinition, hparams: PyTree, feed: Feed, count: int, choose: Choose) -> None:
        self.count, self._trainer, self.feed, self._choose = count, trainer, feed, choose
        settings, structure = settings_of(trainer), jax.tree.structure(hparams)
        self.solo: Programs = programs(trainer, hparams, feed.layout)
        self.programs = _lane_programs(trainer, settings, structure, feed.layout)
        self.mode: Mode | None = None
        self._hparams: PyTree = None
        self._carry: Carry | None = None
        self._nothing: tuple[PyTree, PyTree] = (None, None)
        self._order: Order | None = None
        self._occupied: set[int] = set()
        self._fits = False

    # --- Lanes

    def put(self, lane: int, hparams: PyTree, carry: Carry) -> None:
        """Write a training into a lane."""
        one = hparams, carry
        if self._carry is None:
            # Lanes without a training compute the first one as well: numbers of a real training are never unusual.
            hparams, carry = jax.tree.map(partial(_repeat, self.count), one)
            nothing = carry.totals, carry.position
            self._nothing = jax.tree.map(jnp.zeros_like, nothing)
        else:
            hparams, carry = self.programs.put((self._hparams, self._carry), np.int32(lane), one)
        self._hparams, self._carry = hparams, carry
        self._occupied.add(lane)

    def leave(self, lane: int) -> None:
        """Free a lane."""
        self._occupied.discard(lane)

    @property
    def carry(self) -> Carry:
        """The carry of all lanes."""
        assert self._carry is not None
        return self._carry

    def take(self, lane: int) -> Carry:
        """Return a copy of the carry of a lane."""
        return self.programs.take(self.carry, np.int32(lane))

    def take_state(self, lane: int) -> TrainState:
        """Return a copy of the state of a lane."""
        return self.programs.take(self.carry.state, np.int32(lane))

    def take_for_evaluation(self, lane: int) -> TrainState:
        """Return a copy of the part of a lane's state that predictions need."""
        return self.programs.take_for_evaluation(self.carry.state, np.int32(lane))

    # --- Tasks

    def next_tasks(self, heads: Mapping[int, Task]) -> list[int]:
        """Return the lanes whose next tasks are done together, and next.

        Steps come last, and those of fewer lanes first: a training that was resumed in the middle of an epoch so
        catches up with the others.
        """
        kinds = {lane: _kind(task) for lane, task in heads.items()}
        sizes = Counter(kinds.values())
        first = min(sizes, key=lambda kind: (kind[0] is Advance, sizes[kind]))
        return [lane for lane, kind in kinds.items() if kind == first]

    def do(self, tasks: Mapping[int, Task]) -> Mapping[int, Any]:
        """Do tasks of one kind, at most one for each lane; return their results."""
        task = next(iter(tasks.values()))
        match task:
            case Enter():
                for lane, entering in tasks.items():
                    assert isinstance(entering, Enter)
                    self.put(lane, entering.hparams, entering.carry)
                self.find_mode(task.host_hparams)
                return {}
            case Shuffle():
                self._shuffle(tasks)  # pyright: ignore[reportArgumentType]
                return {}
            case Advance():
                self._advance(tasks, task.count)
                return {}
            case Measure():
                return self._measure(tasks, task.dataset)
            case Test():
                return self._test(tasks, task.dataset)  # pyright: ignore[reportArgumentType]

    def _mask(self, lanes: Iterable[int]) -> np.ndarray:
        return np.isin(np.arange(self.count), list(lanes))

    def _shuffle(self, tasks: Mapping[int, Shuffle]) -> None:
        feed, carry = self.feed, self.carry
        first = np.zeros(self.count, np.int32)
        for lane, task in tasks.items():
            first[lane] = task.first_step
        if self._order is None:
            shape = (self.count, feed.steps, feed.batch_size)
            self._order = jnp.zeros(shape, feed.rows.dtype), jnp.zeros(shape, jnp.float32)
        mask, key = self._mask(tasks), carry.state.key
        self._order = self.programs.shuffle(
            self._order, self._hparams, key, first, feed.rows, mask, batch_size=feed.batch_size
        )
        starts = self._mask(lane for lane, task in tasks.items() if task.is_start)
        self._carry = Carry(carry.state, *self.programs.merge(starts, self._nothing, (carry.totals, carry.position)))

    def _advance(self, tasks: Iterable[int], count: int) -> None:
        assert self._order is not None
        lanes, source = set(tasks), self.feed.resident(self._order)
        if not self._fits:
            self.check_memory(source, self.mode or "step")
        waiting = bool(self._occupied - lanes)
        before = self.programs.copy(self.carry) if waiting else None
        if self.mode == "scan":
            self._carry = self.programs.steps(source, self._hparams, *self.carry, count=count)
        else:
            self._carry = self.programs.step(source, self._hparams, *self.carry)
        if waiting:
            self._carry = Carry(*self.programs.merge(self._mask(lanes), self._carry, before))

    def check_memory(self, source: Source, mode: Mode) -> None:
        """Compile the program of the steps, and check that it fits into the memory of the device.

        Raises:
            MemoryError: it does not fit.
        """
        made, args = self.programs, (source, self._hparams, *self.carry)
        is_scan = mode == "scan"
        program = (
            made.compiling.start(made.steps, *args, count=chunk(self.feed.steps))
            if is_scan
            else made.compiling.start(made.step, *args)
        )
        check_memory(program.result(), self.feed.layout)
        self._fits = True

    def _measure(self, tasks: Iterable[int], dataset: Dataset) -> Mapping[int, Measured]:
        state = self.carry.state
        has_counts = bool(jax.tree.leaves(state.opt_state))  # plain SGD has no state at all
        skipped = self.programs.skipped(state.opt_state) if has_counts else None
        found = jax.device_get((self._metrics(dataset, state), self.carry.totals, skipped))
        return {lane: Measured(*_lane(found, lane)) for lane in tasks}

    def _test(self, tasks: Mapping[int, Test], dataset: Dataset) -> Mapping[int, metrics_.Metrics]:
        some = next(iter(tasks.values())).state
        states = [tasks[lane].state if lane in tasks else some for lane in range(self.count)]
        found = jax.device_get(self._metrics(dataset, jax.tree.map(lambda *of: jnp.stack(of), *states)))
        return {lane: _lane(found, lane) for lane in tasks}

    def _metrics(self, dataset: Dataset, state: TrainState) -> metrics_.Metrics:
        made: Any = self.programs
        return eval_metrics(made, self.feed.layout, self._hparams, dataset, state, self.mode or "step")

    def find_mode(self, hparams: PyTree) -> Mode:
        """Return how epochs run: as the trainer says, or as is faster."""
        if self.mode is None and self._trainer.loop != "auto":
            self.mode = self._trainer.loop
        if self.mode is None:
            feed = self.feed
            order = self._order or jax.tree.map(partial(_repeat, self.count), feed.in_order())
            source = feed.resident(order)
            name = f"{self.count} lanes of {program_name(self._trainer, hparams, feed, feed.shapes())}"
            made: Any = self.programs
            self.mode = self._choose(name, lambda: measure(made, source, self._hparams, self.carry, feed.steps))
        return self.mode


def _kind(task: Task) -> tuple[Any, ...]:
    """Return what tasks must have in common to be done together."""
    match task:
        case Enter() | Shuffle():
            return (type(task),)
        case Advance():
            return (Advance, task.count)
        case Measure() | Test():
            return (type(task), id(task.dataset))


def _repeat(count: int, leaf: PyTree) -> jax.Array:
    array = jnp.asarray(leaf)
    return jnp.broadcast_to(array, (count, *array.shape))


def _lane(found: PyTree, lane: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[lane], found)


# --- How many lanes


_COUNTS = (4, 16, 64, 256)
"""The numbers of lanes that are tried, beside one."""
MOST_LANES = max(_COUNTS)
_MOST_ON_CPU = 64
"""On a CPU, the Python of more trials costs more than their program saves."""
_LEAST_GAIN = 1.1**2
"""The least gain in trials per second for which more lanes are used: a tenth for each doubling."""
_TIMED_STEPS, _TIMED_ROUNDS = 20, 3


def best_count(trainer: TrainerDefinition, hparams: PyTree, feed: Feed, first: First, most: int, choose: Choose) -> int:
    """Return the number of lanes that trains most trials per second, by measurement; 1 if lanes gain nothing.

    Measured once for a program and a kind of device, and stored; again if more lanes are allowed than then.

    Args:
        trainer: The trainer.
        hparams: The hyperparameters of a training; they are not changed.
        feed: The training data.
        first: What its first state depends on.
        most: The maximum number of lanes.
        choose: See `Choose`.

    Raises:
        Exception: the training fails alone; so many lanes that fail only limit the number.
    """
    device = feed.layout.devices[0] if feed.layout.devices else jax.local_devices()[0]
    most = min(most, _MOST_ON_CPU) if device.platform == "cpu" else most
    tried = [count for count in _COUNTS if count <= most]

    def measured() -> str:
        solo = Solo(trainer, hparams, feed, layout=feed.layout, choose=choose, agree=alone)
        solo.begin(first)
        assert solo.mode is not None
        placed, made = feed.layout.put(hparams), programs(trainer, hparams, feed.layout)
        source = feed.resident(feed.in_order())
        rate = 1 / _seconds(made, source, placed, made.copy(solo.carry), feed.steps, solo.mode)
        best = 1
        for count in tried:
            try:
                lanes = Lanes(trainer, hparams, feed, count, choose)
                lanes.put(0, placed, made.copy(solo.carry))
                several = feed.resident(jax.tree.map(partial(_repeat, count), feed.in_order()))
                lanes.check_memory(several, solo.mode)
                seconds = _seconds(lanes.programs, several, lanes._hparams, lanes.carry, feed.steps, solo.mode)
            except Exception:  # out of memory, or it cannot be mapped over lanes, while it works alone
                break
            if count / seconds < _LEAST_GAIN * rate:
                break
            best, rate = count, count / seconds
        return str(best)

    counts: Any = choose
    name = program_name(trainer, hparams, feed, feed.shapes())
    return int(counts(f"up to {max(tried, default=1)} lanes for {name}", measured))


def _seconds(
    made: Programs | LanePrograms, source: Source, hparams: PyTree, carry: Carry, steps: int, mode: Mode
) -> float:
    """Return the least seconds of a step; the carry becomes invalid."""
    count = chunk(steps) if mode == "scan" else min(steps, _TIMED_STEPS)
    least_s = math.inf
    for turn in range(_TIMED_ROUNDS + 1):
        began_s = time.perf_counter()
        if mode == "scan":
            carry = made.steps(source, hparams, *carry, count=count)
        else:
            for _ in range(count):
                carry = made.step(source, hparams, *carry)
        jax.block_until_ready(carry)
        carry = carry._replace(position=jnp.zeros_like(carry.position))
        if turn > 0:  # the first one compiles
            least_s = min(least_s, time.perf_counter() - began_s)
    return least_s / count


class Lane:
    """The `Execution` of a training in a lane.

    Args:
        lanes: All lanes.
        lane: The training's.
        hparams: The hyperparameters.
        meet: Waits until tasks are done.
        leave: Called when the training is over.
    """

    def __init__(
        self, lanes: Lanes, lane: int, hparams: PyTree, meet: Meet, leave: Callable[[], None] = lambda: None
    ) -> None:
        self._lanes, self._lane = lanes, lane
        self.set_hparams(hparams)
        self._meet, self._leave = meet, leave
        self._tasks: list[Task] = []
        self._has_ended = False

    @property
    def mode(self) -> Mode | None:
        return self._lanes.mode

    def shapes(self, first: First) -> Carry:
        return self._lanes.solo.init.eval_shape(*self._arguments(first), **_fixed(first))

    def begin(self, first: First, validation: Dataset | None = None) -> None:
        self._enter(self._lanes.solo.init(*self._arguments(first), **_fixed(first)))

    def set_hparams(self, hparams: PyTree) -> None:
        self._host_hparams, self._hparams = hparams, self._lanes.feed.layout.put(hparams)

    def resume(self, carry: Carry, mode: Mode) -> None:
        self._enter(carry)  # all lanes have one mode, whatever the training had before

    def _enter(self, carry: Carry) -> None:
        self._do(Enter(self._hparams, carry, self._host_hparams))

    def _arguments(self, first: First) -> tuple[Source, PyTree, jax.Array]:
        return first.source, self._hparams, self._lanes.feed.layout.put(np.uint32(first.seed))

    @property
    def carry(self) -> Carry:
        self._do()
        carry = self._lanes.take(self._lane)
        if not self._has_ended:
            return carry
        nothing = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), (carry.totals, carry.position))
        return Carry(carry.state, *nothing)

    @property
    def state(self) -> TrainState:
        self._do()
        return self._lanes.take_state(self._lane)

    def _do(self, *tasks: Task) -> Any:
        """Do the tasks that were put off, and these."""
        all_, self._tasks = [*self._tasks, *tasks], []
        return self._meet(self._lane, all_) if all_ else None

    def epoch(self, epoch: int, position: int, *, is_last: bool) -> Generator[int]:
        steps = self._lanes.feed.steps
        self._tasks.append(Shuffle((epoch - 1) * steps, position == 0))
        self._has_ended = False
        count = chunk(steps) if self._lanes.mode == "scan" else 1
        while position < steps:
            advance = Advance(min(count, steps - position))
            position += advance.count
            if position < steps:
                self._do(advance)
            else:
                self._tasks.append(advance)  # done with the next task, which needs its result
            yield position

    def end_epoch(self) -> None:
        self._has_ended = True

    def trained(self) -> metrics_.Metrics:
        return jax.device_get(self.carry.totals)

    def measured(self, validation: Dataset) -> Measured:
        return self._do(Measure(validation))

    def tested(self, dataset: Dataset, state: TrainState) -> metrics_.Metrics:
        return self._do(Test(dataset, self._lanes.feed.layout.put(state)))

    def kept(self) -> TrainState:
        self._do()
        return self._lanes.take_for_evaluation(self._lane)

    def close(self) -> None:
        self._lanes.leave(self._lane)
        self._leave()


def _fixed(first: First) -> dict[str, int]:
    return {"total_steps": first.total_steps, "optimizer_rules": first.optimizer_rules}
