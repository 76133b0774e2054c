"""The trial that a training function gets as its second argument: `def train(hparams, trial)`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tuner.errors import StudyError, TrialPruned, is_int
from tuner.trial.report import Report


class TrialRun(Protocol):
    """A running trial, as the worker offers it to a `Trial`."""

    @property
    def number(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def epochs(self) -> int | None: ...
    @property
    def devices(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    @property
    def objectives(self) -> tuple[str, ...]: ...
    @property
    def user_attrs(self) -> Mapping[str, Any]: ...
    @property
    def must_end(self) -> bool:
        """Whether the trial must end: it is pruned, has diverged, or has timed out."""
        ...

    def key(self) -> Any: ...
    def report(self, report: Report, *, is_last: bool = False) -> bool:
        """Store a report; return whether the trial must end. The last one of a training is not pruned."""
        ...

    def keep_saved(self) -> None:
        """Store the reports that were saved with the state, because none follows."""
        ...

    def must_stop(self) -> bool:
        """Return whether the training must end: the worker must give back the trial, or it has passed a limit."""
        ...

    def note_progress(self) -> None:
        """Note that the training makes progress."""
        ...

    def set_user_attr(self, name: str, value: object) -> None: ...
    def set_constraint(self, name: str, value: float) -> None:
        """Store a constraint of the trial, in place of an earlier one of this name."""
        ...


class Saves(Protocol):
    """The saved states of a trial."""

    @property
    def epoch(self) -> int:
        """The epoch of the state to resume from; 0 if there is none."""
        ...

    def save(self, state: object, epoch: int) -> None: ...
    def restore(self, like: object) -> Any: ...


class Trial:
    """A running trial: it takes the metrics, and saves and restores the state of the training.

    Attributes:
        epoch: The last reported epoch of this run; 0 before the first, and the epoch of the saved state after
            `restore`.
    """

    def __init__(self, run: TrialRun, saves: Saves) -> None:
        self._run, self._saves = run, saves
        self.epoch = 0
        self._last: Report | None = None
        self._has_saved = self._was_asked = self._was_told = False
        self._ending: Exception | None = None

    @property
    def number(self) -> int:
        """The trial's number in its study, from 0."""
        return self._run.number

    @property
    def seed(self) -> int:
        """The trial's seed, in [0, 2^31). It depends only on the study's seed and the trial's number.

        A trial that continues another one has the seed of that one.
        """
        return self._run.seed

    def key(self) -> Any:
        """Return a JAX key (Key[Array, ""]) from the trial's seed."""
        return self._run.key()

    @property
    def epochs(self) -> int | None:
        """The epochs to train for: `Study.epochs`, or more in a trial that continues another; None if it is not set."""
        return self._run.epochs

    @property
    def devices(self) -> str:
        """The worker's devices as `tuner launch` shows them, such as `gpu 0,1`; empty if it was given none.

        Frameworks see only these devices: JAX's `jax.devices()` or PyTorch's `cuda:0` are the right ones.
        """
        return self._run.devices

    @property
    def folder(self) -> Path:
        """The trial's own folder for files. It is kept as long as the trial is among the best of its study."""
        self._run.folder.mkdir(parents=True, exist_ok=True)
        return self._run.folder

    @property
    def user_attrs(self) -> Mapping[str, Any]:
        """The trial's attributes, by name."""
        return self._run.user_attrs

    def set_user_attr(self, name: str, value: object) -> None:
        """Store an attribute of the trial, which Optuna and its dashboard show.

        Raises:
            TypeError: JSON does not support the value.
        """
        self._run.set_user_attr(name, value)

    def set_constraint(self, name: str, value: float) -> None:
        """Store a constraint, which the trial satisfies if the value is 0 or less; otherwise it is never the best.

        `Study(constraints=...)` does the same for reported metrics. As in Optuna, except that a later call for the same
        name replaces the value.

        Args:
            name: The name, a text that the study's constraints do not have.
            value: The number: how far the trial is from satisfying the constraint.

        Raises:
            StudyError: the name or the value is wrong; the value must not be NaN.
        """
        if not isinstance(name, str) or not name:
            raise StudyError(f"the name of a constraint must be a text: got {name!r}")
        number = numbers({name: value}, self.epoch)[name]
        if math.isnan(number):
            raise StudyError(f"the constraint {name!r} must not be NaN: use inf if it is violated")
        self._run.set_constraint(name, number)

    # --- Reports

    def report(self, metrics: Mapping[str, Any], *, epoch: int | None = None, step: int | None = None) -> None:
        """Report the metrics of an epoch.

        Args:
            metrics: Numbers by name, among them the study's objectives. Arrays with one element count as numbers.
            epoch: The number of the epoch, from 1; by default the last one plus one. A second report for an epoch
                replaces the first.
            step: Optimizer updates so far; by default the epoch.

        Raises:
            TrialPruned: the trial must end; let the error pass.
            StudyError: a metric is not a number, or an objective is missing.
        """
        if self._ending is not None:
            raise self._ending
        epoch = self.epoch + 1 if epoch is None else epoch
        try:
            must_end = self._run.report(self._checked(metrics, epoch, epoch if step is None else step))
        except StudyError as error:
            self._ending = error
            raise
        self.epoch = epoch
        if must_end:
            self._end("the trial must end")
        if self._run.must_stop():
            # A function that saves after its reports can save once more.
            if self._was_asked or not self._has_saved:
                self._end("the worker must stop")
            self._was_asked = True

    def _checked(self, metrics: Mapping[str, Any], epoch: int, step: int) -> Report:
        for name, number in (("epoch", epoch), ("step", step)):
            if not is_int(number) or number < 0:
                raise StudyError(f"{name} must be an integer of at least 0: got {number!r}")
        self._last = Report(epoch, step, numbers(metrics, epoch))
        return self._last

    def _end(self, why: str) -> None:
        self._ending = TrialPruned(why)
        raise self._ending

    @property
    def is_told_to_end(self) -> bool:
        """Whether a report or `should_stop` has asked the training to end."""
        return self._was_told or isinstance(self._ending, TrialPruned)

    def should_stop(self) -> bool:
        """Return whether the training should save its state and return. What it returns is then not a result."""
        self._run.note_progress()
        self._was_told = self._was_told or self._ending is not None or self._run.must_stop()
        return self._was_told

    def finish(self, returned: object) -> None:
        """Take what a training function has returned: a number or metrics, as part of the last report.

        Raises:
            StudyError: it is neither, or nothing was ever reported.
        """
        if self._ending is not None:
            raise self._ending
        if self._was_told:
            self._end("the training must stop")
        if returned is None:
            if self._last is None and self.epoch > 0:  # it resumed after its last epoch
                self._run.keep_saved()
            elif self._last is None:
                raise StudyError(
                    "train reported nothing: yield metrics, call trial.report(metrics), or return a number"
                )
            return
        last = self._last
        epoch = self.epoch + 1 if last is None else last.epoch
        if not isinstance(returned, Mapping):
            returned = {self._only_objective(): returned}
        metrics = {**({} if last is None else last.metrics), **numbers(returned, epoch)}
        if self._run.report(Report(epoch, epoch if last is None else last.step, metrics), is_last=True):
            self._end("the trial must end")

    def _only_objective(self) -> str:
        name, *others = self._run.objectives
        if others:
            names = ", ".join(self._run.objectives)
            raise StudyError(f"train must return a mapping with the objectives {names}: got one value")
        return name

    # --- States

    def save(self, state: object, *, epoch: int | None = None) -> None:
        """Save the state of the training, from which another worker can resume the trial.

        Call it after the epoch's report. The newest two states are kept.

        Args:
            state: A dict, list or tuple of arrays, numbers and texts; any pytree of arrays and numbers, if it has JAX
                arrays; or the path (a `pathlib.Path`) of a file or a folder, which is copied.
            epoch: The epoch after which the training resumes; by default the last one that was reported.

        Raises:
            TrialPruned: the worker must stop; the state is saved. Let the error pass.
            CheckpointError: a leaf is not an array, a number or a text.
        """
        self._run.note_progress()
        self._saves.save(state, self.epoch if epoch is None else epoch)
        self._run.note_progress()
        self._has_saved = True
        if self._was_asked:
            self._end("the worker must stop")

    def restore(self, like: Any = None) -> Any:
        """Return the newest saved state, and continue to count epochs from there; None if there is none.

        Args:
            like: A state of the same structure, shapes and dtypes, against which the saved one is checked. JAX arrays
                get its types and devices; without it, each list, tuple and class of a state with JAX arrays comes back
                as a dict of NumPy arrays with keys such as `"0"`.

        Returns:
            The pytree, or the path of the copied file or folder, which must not be changed.

        Raises:
            CheckpointError: the state cannot be read, or differs from `like` in structure, a shape or a dtype.
        """
        state = self._saves.restore(like)
        if state is not None:
            self.epoch = self._saves.epoch
        return state


def numbers(metrics: object, epoch: int) -> dict[str, float]:
    """Return metrics as Python floats.

    Raises:
        StudyError: this is not a mapping from names to numbers.
    """
    if not isinstance(metrics, Mapping):
        raise StudyError(f"metrics must be a mapping from names to numbers: got {metrics!r} (epoch {epoch})")
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if not isinstance(name, str) or not name:
            raise StudyError(f"the name of a metric must be a text: got {name!r} (epoch {epoch})")
        try:
            # PyTorch raises a RuntimeError for a tensor of several numbers.
            if isinstance(value, str | bytes) or math.prod(getattr(value, "shape", ())) != 1:
                raise TypeError
            # `float` of a PyTorch loss warns of its gradient; `item` does not.
            found[name] = float(value.item() if hasattr(value, "item") else value)
        except (TypeError, ValueError):
            raise StudyError(f"the metric {name!r} must be a number: got {value!r} (epoch {epoch})") from None
    return found
