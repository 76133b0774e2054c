"""Runs the compiled programs of a training, and holds the arrays that they change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from tuner.training import metrics as metrics_
from tuner.training.data.batches import Order, Source
from tuner.training.data.feed import Dataset, Feed
from tuner.training.definition import TrainerDefinition
from tuner.training.loop.compiling import check_memory, placed
from tuner.training.loop.diagnosis import Profile, check_finite
from tuner.training.loop.evaluation import compile_eval, eval_metrics
from tuner.training.loop.modes import Agree, Choose, Mode, chunk, measure, program_name
from tuner.training.loop.programs import Carry, programs
from tuner.training.mesh import Layout, place
from tuner.training.optim.build import skipped_steps
from tuner.training.pytree import PyTree
from tuner.training.state import TrainState


class First(NamedTuple):
    """What the first state depends on, besides trainer and hyperparameters.

    Attributes:
        source: The source of an arbitrary batch; only its shapes are used.
        seed: The seed of the training.
        total_steps: Steps of the whole training.
        optimizer_rules: See `tuner.study.launch_record.OPTIMIZER_RULES`.
    """

    source: Source
    seed: int
    total_steps: int
    optimizer_rules: int


class Measured(NamedTuple):
    """The metrics of an epoch, as NumPy arrays.

    Attributes:
        validated: Metrics over the validation set.
        trained: Metrics over the steps of the epoch.
        skipped: Steps that `skip_nonfinite` has skipped so far; None without it.
    """

    validated: metrics_.Metrics
    trained: metrics_.Metrics
    skipped: PyTree


class Execution(Protocol):
    """The programs of one training on a device: alone (`Solo`) or together with other trainings (`lanes.Lane`)."""

    @property
    def mode(self) -> Mode | None:
        """Whether epochs run as scans or as steps; None before `begin` or `resume`."""
        ...

    def shapes(self, first: First) -> Carry:
        """Return the shapes and types of the carry."""
        ...

    def begin(self, first: First, validation: Dataset | None = None) -> None:
        """Create the first carry.

        Args:
            first: What it depends on.
            validation: The data of `measured`; None if it will not be called.

        Raises:
            MemoryError: the program of a step does not fit into the memory of the device.
        """
        ...

    def resume(self, carry: Carry, mode: Mode) -> None:
        """Continue with the carry of a checkpoint, and with the mode of the training that saved it."""
        ...

    def set_hparams(self, hparams: PyTree) -> None:
        """Set other hyperparameters, with the same static values; `resume` must follow."""
        ...

    @property
    def carry(self) -> Carry:
        """The carry after the latest step; it becomes invalid with the next step."""
        ...

    @property
    def state(self) -> TrainState:
        """The state after the latest step; it becomes invalid with the next step."""
        ...

    def epoch(self, epoch: int, position: int, *, is_last: bool) -> Generator[int]:
        """Run the steps of an epoch from a position on; yield the position after each program.

        Args:
            epoch: The epoch, from 1.
            position: Steps of the epoch that are done.
            is_last: Whether no epoch follows.
        """
        ...

    def end_epoch(self) -> None:
        """Set the metrics and the position of the carry to those of an epoch without steps."""
        ...

    def trained(self) -> metrics_.Metrics:
        """Return the metrics over the steps of the epoch so far, as NumPy arrays."""
        ...

    def measured(self, validation: Dataset) -> Measured:
        """Return the metrics of the epoch."""
        ...

    def tested(self, dataset: Dataset, state: TrainState) -> metrics_.Metrics:
        """Return the metrics of a state over a dataset, as NumPy arrays."""
        ...

    def kept(self) -> TrainState:
        """Return a copy of the part of the state that predictions need."""
        ...

    def close(self) -> None:
        """Note that the training is over."""
        ...


Execute = Callable[[TrainerDefinition, PyTree, Feed], Execution]
"""(trainer, hparams, feed) -> what runs the programs of a training."""


class Solo:
    """An `Execution` of one training that has its devices for itself.

    Args:
        trainer: The trainer.
        hparams: The hyperparameters.
        feed: The training data.
        layout: The devices.
        choose: Looks up whether the program runs as scan or steps, or measures it.
        agree: Returns the decisions of rank 0 of the processes that train together.
        debug: Run step by step, and check each step for NaN and infinities.
        profile: Steps to trace.
    """

    def __init__(
        self,
        trainer: TrainerDefinition,
        hparams: PyTree,
        feed: Feed,
        *,
        layout: Layout,
        choose: Choose,
        agree: Agree,
        debug: bool = False,
        profile: Profile | None = None,
    ) -> None:
        self._trainer, self._hparams, self._layout, self._feed = trainer, layout.put(hparams), layout, feed
        self._choose, self._agree, self._debug, self._profile = choose, agree, debug, profile
        self._programs = programs(trainer, self._hparams, layout)
        self._mode: Mode | None = None
        self._carry: Carry | None = None
        self._key: jax.Array | None = None
        self._next_order: Order | None = None
        self._steps_programs: list[Future[Any]] = []
        self._eval_programs: list[Future[Any]] = []

    @property
    def mode(self) -> Mode | None:
        return self._mode

    @property
    def carry(self) -> Carry:
        assert self._carry is not None
        return self._carry

    @property
    def state(self) -> TrainState:
        return self.carry.state

    def shapes(self, first: First) -> Carry:
        return self._programs.init.eval_shape(*self._arguments(first), **_fixed(first))

    def begin(self, first: First, validation: Dataset | None = None) -> None:
        self._mode = self._known_mode()
        if self._mode is None:
            name = program_name(self._trainer, self._hparams, self._feed, first.source)
            self._mode = self._choose(name, partial(self._measure, first))
        if self._carry is None:
            self._make_carry(first, self._mode)
        else:  # measured
            self._compile_steps(first, self._mode)
        self._check_memory()
        if self._compiles_first and validation is not None:
            shapes = placed(self.shapes(first).state, self._layout)
            # They compile while the first epoch trains.
            self._eval_programs = compile_eval(
                self._programs, self._layout, self._hparams, validation, shapes, self._mode
            )

    def compile(self, first: First, evaluated: Sequence[Dataset]) -> None:
        """Compile all that a training runs which begins like this, without a step of it.

        Args:
            first: What the first carry depends on.
            evaluated: The datasets for which metrics are computed.

        Raises:
            MemoryError: the program of a step does not fit into the memory of the device.
        """
        self.begin(first)
        assert self._mode is not None
        shapes = placed(self.shapes(first).state, self._layout)
        for dataset in evaluated:
            for program in compile_eval(self._programs, self._layout, self._hparams, dataset, shapes, self._mode):
                program.result()
        self._shuffled(1)
        self._programs.copy(self.carry)
        self.kept()

    def _known_mode(self) -> Mode | None:
        if self._debug or not self._feed.is_resident:
            return "step"
        return None if self._trainer.loop == "auto" else self._trainer.loop

    def _measure(self, first: First) -> Mode:
        self._make_carry(first, "step")
        self._check_memory()
        return measure(self._programs, first.source, self._hparams, self.carry, self._feed.steps, self._agree)

    @property
    def _compiles_first(self) -> bool:
        """Whether programs are compiled before their first call. With several devices, XLA places what they return."""
        return not self._debug and self._layout.size == 1

    def _make_carry(self, first: First, mode: Mode) -> None:
        """Create the first carry, while the program that runs next compiles as well."""
        self._compile_steps(first, mode)
        carry = self._programs.init(*self._arguments(first), **_fixed(first))
        self._carry, self._nothing_seen = carry, (carry.totals, carry.position)

    def _compile_steps(self, first: First, mode: Mode) -> None:
        if self._compiles_first:
            made, steps = self._programs, self._feed.steps
            args = first.source, self._hparams, *placed(self.shapes(first), self._layout)
            counts = {chunk(steps), steps % chunk(steps)} - {0}  # the last chunk of an epoch may be shorter
            self._steps_programs = (
                [made.compiling.start(made.steps, *args, count=count) for count in sorted(counts)]
                if mode == "scan"
                else [made.compiling.start(made.step, *args)]
            )

    def _check_memory(self) -> None:
        for program in self._steps_programs:
            check_memory(program.result(), self._layout)

    def set_hparams(self, hparams: PyTree) -> None:
        self._hparams = self._layout.put(hparams)

    def resume(self, carry: Carry, mode: Mode) -> None:
        is_first, self._carry, self._mode = self._carry is None, carry, mode
        self._key = self._next_order = None
        if not is_first:
            return
        nothing = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), (carry.totals, carry.position))
        self._nothing_seen = self._layout.put(nothing)

    def _arguments(self, first: First) -> tuple[Source, PyTree, jax.Array]:
        return first.source, self._hparams, self._layout.put(np.uint32(first.seed))

    def epoch(self, epoch: int, position: int, *, is_last: bool) -> Generator[int]:
        order = self._shuffled(epoch) if self._next_order is None else self._next_order
        self._next_order = None
        done = (epoch - 1) * self._feed.steps
        with contextlib.closing(self._feed.sources(order, position)) as sources:
            while position < self._feed.steps:
                position += self._advance(next(sources), done + position, self._feed.steps - position)
                if position >= self._feed.steps and not is_last:
                    # Sorted while the device is still training and the host waits for it.
                    self._next_order = self._shuffled(epoch + 1)
                yield position

    def _shuffled(self, epoch: int) -> Order:
        if self._key is None:
            self._key = _copy(self.carry.state.key)  # the state's own key becomes invalid with it
        assert self._key is not None
        order = partial(self._trainer.order, self._hparams)
        return self._feed.shuffled(self._key, (epoch - 1) * self._feed.steps, order)

    def _advance(self, source: Source, done: int, left: int) -> int:
        """Run the next program: a chunk of steps, or a single step; return the number of steps.

        Args:
            source: The source of the batches.
            done: Steps of the whole training that are done.
            left: Steps that are left in the epoch.
        """
        count, before = 1, None
        is_scan = self.mode == "scan" and not self._debug
        if is_scan:
            count = min(chunk(self._feed.steps), left)
        if self._profile is not None:
            self._profile.before(done, count)
        if self._debug:
            before = self._programs.copy(self.carry)
        if is_scan:
            self._carry = self._programs.steps(source, self._hparams, *self.carry, count=count)
        else:
            self._carry = self._programs.step(source, self._hparams, *self.carry)
        if self._profile is not None:
            self._profile.after(done + count, self._carry)
        if before is not None:
            check_finite(self._trainer, self._hparams, source, before, self.carry, done + count)
        return count

    def end_epoch(self) -> None:
        self._carry = Carry(self.carry.state, *self._nothing_seen)

    def trained(self) -> metrics_.Metrics:
        return jax.device_get(self.carry.totals)

    def measured(self, validation: Dataset) -> Measured:
        carry = self.carry
        for program in self._eval_programs:
            program.result()
        validated = self._metrics(validation, carry.state)
        skipped = None if carry.state.opt_state is None else skipped_steps(carry.state.opt_state)
        return Measured(*jax.device_get((validated, carry.totals, skipped)))

    def tested(self, dataset: Dataset, state: TrainState) -> metrics_.Metrics:
        return jax.device_get(self._metrics(dataset, place(state, self._layout.shardings(state))))

    def _metrics(self, dataset: Dataset, state: TrainState) -> metrics_.Metrics:
        return eval_metrics(self._programs, self._layout, self._hparams, dataset, state, self.mode or "step")

    def kept(self) -> TrainState:
        return self._programs.copy(self.carry.state.for_evaluation())

    def close(self) -> None:
        pass


_copy = jax.jit(jnp.copy)


def _fixed(first: First) -> dict[str, int]:
    return {"total_steps": first.total_steps, "optimizer_rules": first.optimizer_rules}
