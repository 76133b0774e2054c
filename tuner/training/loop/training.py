"""The training loop: runs the compiled programs, reports, keeps the best state, resumes.

It does not wait for the device during an epoch; it fetches the metrics once, at the end of the epoch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from tuner.errors import StudyError, TrialPruned, nearest
from tuner.study.space import from_params
from tuner.training import metrics as metrics_
from tuner.training.data.arrays import Splits
from tuner.training.data.batches import batch_shapes
from tuner.training.data.feed import Feed
from tuner.training.definition import TrainerDefinition
from tuner.training.loop.checks import (
    asked_batch_size,
    check_arguments,
    check_average,
    check_data,
    check_examples,
    check_hparams,
    check_kinds,
    check_optimizer,
    check_settings,
    has_hooks,
    overrides,
    parts,
)
from tuner.training.loop.diagnosis import Profile, unjitted, with_progress
from tuner.training.loop.execution import Execute, First, Solo
from tuner.training.loop.modes import Agree, Choose, Mode, alone, remembered
from tuner.training.loop.programs import Carry
from tuner.training.mesh import Layout, local
from tuner.training.model.tracing import explained
from tuner.training.pytree import PyTree
from tuner.training.saved.checkpoints import Checkpoints, is_new_model_better
from tuner.training.saved.pictures import Pictures
from tuner.training.saved.plain import from_plain, to_plain
from tuner.training.saved.run_record import (
    RunLog,
    describe_hparams,
    digests,
    find_optimizer_rules,
    identity,
    record,
)
from tuner.training.state import TrainState
from tuner.trial import Report

_SMALL_BYTES = 2**24


@dataclass(frozen=True)
class Best:
    """The validation whose state is kept.

    Attributes:
        epoch: The epoch of the validation.
        metrics: The metrics of its report.
        state: The part of that epoch's state that predictions need; on the host unless it is small.
        hparams: The hyperparameters of that epoch as JSON, if the training has changed them; else None.
    """

    epoch: int
    metrics: Mapping[str, float]
    state: TrainState
    hparams: Any = None


class Training(Generator[Report, None, TrainState]):
    """A training: iterate over it to get a report after each validated epoch.

    Each epoch runs the training steps, `on_training_epoch_end`, the validation and `on_validation_epoch_end`, yields
    the report, and then saves a checkpoint if one is due. `on_training_start` runs before the first step. A training
    that is resumed at the start of an epoch yields the last report before it again.

    Args:
        trainer: The trainer.
        hparams: The hyperparameters.
        splits: The data. If there is a test set, the last report has its metrics for the best state, with
            the prefix `test_`.
        epochs: Passes over the training data; > 0.
        seed: In [0, 2^31).
        objective: The metric that decides which state is the best; by default `loss`, if the trainer reports it.
        direction: `"minimize"` or `"maximize"`.
        keep: The epoch whose state is kept, tested and written as the best checkpoint: `"best"` or `"last"`.
        checkpoints: The checkpoints to resume from and to save to, including the best state.
        about: Information to save with the arrays: study, trial number.
        log: A folder for the file `run.json`, which describes the training and has every report (see `load_run`), and
            for pictures from `save_picture`; without it, pictures are saved in the folder of the checkpoints.
        layout: The devices; one by default.
        optimizer_rules: The `OPTIMIZER_RULES` of a training that was started with another version; by default those of
            its checkpoints or its log, and the newest for a new training.
        choose: For `loop = "auto"`: looks up whether a program runs as scan or steps, or calls the given function and
            stores the result. By default it is stored in this process.
        stop: Called after each program; if it returns True, the state is saved and the iteration ends.
        agree: For processes that train together on a layout of all their devices: returns the decisions of rank 0.
        execute: Makes what runs the programs, from trainer, hyperparameters and `feed`; by default they run on the
            devices of `layout` alone. With it, `choose`, `debug` and `profile` are ignored.
        costs: Metrics that each report has besides, such as the number of parameters.
        debug: Run without compiling, and check for NaN and infinities after each step. A step that `skip_nonfinite`
            skips counts, a step whose float16 gradient overflows does not.
        profile: Steps to trace with JAX's profiler.
        progress: Show a progress bar on stderr.

    Attributes:
        feed: The training data cut into batches.
        batch: Shapes and types of a batch; available after the first step.
        reports: All reports so far, including those from before the training was resumed.
        best: The validation whose state is kept, or None: the best so far; with `keep="last"` that of the last epoch.

    Raises:
        StudyError: the trainer, hyperparameters, data or options are invalid.
        CheckpointError: the checkpoints are from another training.
        TrialPruned: a hook raised it; the epoch's report is yielded first.
        NonFinite: with `debug`, at the first NaN or infinity.
    """

    @explained()
    def __init__(
        self,
        trainer: TrainerDefinition,
        hparams: PyTree,
        splits: Splits,
        *,
        epochs: int,
        seed: int,
        objective: str | None = None,
        direction: Literal["minimize", "maximize"] = "minimize",
        keep: Literal["best", "last"] = "best",
        checkpoints: Checkpoints | None = None,
        about: Mapping[str, object] | None = None,
        log: str | Path | None = None,
        layout: Layout | None = None,
        optimizer_rules: int | None = None,
        choose: Choose | None = None,
        stop: Callable[[], bool] = lambda: False,
        agree: Agree = alone,
        execute: Execute | None = None,
        costs: Mapping[str, float] | None = None,
        debug: bool = False,
        profile: Profile | None = None,
        progress: bool = False,
    ) -> None:
        check_settings(trainer)
        check_data(splits)
        check_hparams(hparams)
        check_examples(trainer, hparams, parts(splits))
        check_arguments(epochs, seed, direction, keep)
        check_kinds(stop, (Checkpoints, checkpoints), (Layout, layout), (Profile, profile))
        self.trainer, self.splits, self.epochs, self.seed = trainer, splits, epochs, seed
        self.objective, self.direction, self._must_report = objective or "loss", direction, objective is not None
        self._keep, self.checkpoints, self.about = keep, checkpoints, dict(about or {})
        self.layout, self._stop = layout or Layout(), stop
        self._agree, self._debug, self._profile = agree, debug, profile
        self.optimizer_rules = find_optimizer_rules(optimizer_rules, checkpoints, log)
        self.feed = Feed(splits.train, self.layout, asked_batch_size(trainer, hparams))
        check_optimizer(trainer, hparams, epochs * self.feed.steps)
        check_average(trainer, hparams)
        self.host_hparams = self.first_hparams = hparams
        solo = partial(Solo, layout=self.layout, choose=choose or remembered(trainer), agree=agree)
        self._execution = (execute or partial(solo, debug=debug, profile=profile))(trainer, hparams, self.feed)
        self._costs = dict(costs or {})
        self.reports: list[Report] = []
        self.best: Best | None = None
        # Read and hashed only if it will be compared.
        self.data = {} if checkpoints is None and log is None else digests(splits)
        self._log = None if log is None else RunLog(log, self)
        self._pictures = Pictures(checkpoints.folder if log is None and checkpoints is not None else log)
        # The current or next epoch, and the number of its steps that are done.
        self._epoch, self._position = 1, 0
        self._has_begun = self._is_stopping = self._must_save = False
        self._thread = threading.get_ident()
        self._generator = with_progress(self._run(), epochs) if progress else self._run()

    def send(self, value: None) -> Report:
        """Train until the next report, like `next`."""
        self._thread = threading.get_ident()
        with explained(), unjitted() if self._debug else contextlib.nullcontext():
            return self._generator.send(value)

    def throw(self, *error: Any) -> Report:
        """End the training with an error; use `close` to end it cleanly."""
        self._thread = threading.get_ident()
        return self._generator.throw(*error)

    @property
    def state(self) -> TrainState:
        """The state after the latest step; it becomes invalid when the iteration continues."""
        if not self._has_begun:
            raise StudyError("a Training has no state before its first report: iterate over it first")
        return self._execution.state

    @property
    def mode(self) -> Mode | None:
        """Whether epochs run as scans or as steps; None before the first epoch."""
        return self._execution.mode

    @property
    def step(self) -> int:
        """Optimizer updates so far, as the loop counts them."""
        return (self._epoch - 1) * self.feed.steps + self._position

    # Between two epochs.

    def saved_state(self) -> dict[str, Any]:
        """Return a copy of the state after the latest epoch on the host, for `continue_with` of another training."""
        return jax.tree.map(np.array, jax.device_get(to_plain(local(self.state))))

    def continue_with(
        self, hparams: PyTree, *, state: Mapping[str, Any] | None = None, seed: int | None = None
    ) -> None:
        """Continue after the latest report with other hyperparameters, and with the state of another training.

        Random numbers and the order of the data stay this training's own. A checkpoint is written next.

        Args:
            hparams: The hyperparameters; only traced ones may differ.
            state: What `saved_state` of another training returned after the same epoch; None keeps the own state.
            seed: Continue with the random numbers of a training with this seed instead; None for no change.

        Raises:
            StudyError: a static hyperparameter differs.
            CheckpointError: the state does not fit the model.
        """
        if jax.tree.structure(hparams) != jax.tree.structure(self.host_hparams):
            raise StudyError(
                f"only traced hyperparameters can change during a training: got {hparams!r} after {self.host_hparams!r}"
            )
        carry = self._execution.carry
        new = carry.state
        if state is not None:
            like = self._execution.shapes(self._first).state
            new = from_plain(state, like, self.layout.shardings(like) if self.layout.devices else None)
        key = carry.state.key if seed is None else self.layout.put(jax.random.key(seed))
        assert self.mode is not None
        self._execution.set_hparams(hparams)
        self._execution.resume(carry._replace(state=dataclasses.replace(new, key=key)), self.mode)
        self.host_hparams, self._must_save = hparams, True

    def _run(self) -> Generator[Report, None, TrainState]:
        with contextlib.ExitStack() as stack:
            if self._profile is not None:
                stack.enter_context(contextlib.closing(self._profile))
            stack.callback(self._leave)
            self._begin()
            if self._log is not None:
                self._log.write(self)
            if overrides(self.trainer, "on_training_start"):
                with self._pictures.taken():
                    self.trainer.on_training_start(local(self.state), self.host_hparams)
            if self.reports and self._position == 0:
                yield self.reports[-1]
            while self._epoch <= self.epochs and not self._is_stopping:
                yield from self._one_epoch()
            if not self._is_stopping:
                self._check_objective(self.reports)
        return self.state

    def _leave(self) -> None:
        """Finish writing checkpoints when the iteration ends, for whatever reason.

        Python closes an abandoned iteration in the thread that happens to collect garbage. If that is a thread of the
        writer, the writer would wait for it and it for the writer.
        """
        self._execution.close()
        if self.checkpoints is not None and self._thread == threading.get_ident():
            self.checkpoints.wait()
            if self.checkpoints.writes_best and not self._is_stopping:
                self.checkpoints.write_best()

    def _begin(self) -> None:
        """Restore the newest checkpoint, or create the first state."""
        source = self.feed.first()
        self.batch = batch_shapes(source)
        self._first = first = First(source, self.seed, self.epochs * self.feed.steps, self.optimizer_rules)
        has_checkpoint = self.checkpoints is not None and self.checkpoints.has_latest()
        if not has_checkpoint or not self._restore(self._execution.shapes(first)):
            self._execution.begin(first, self.splits.validation)
            self._has_begun = True

    def _one_epoch(self) -> Iterator[Report]:
        """Train the rest of an epoch, validate, report."""
        self._train_epoch()
        if self._is_stopping:
            return
        epoch, is_last = self._epoch, self._epoch == self.epochs
        found, pruned = {}, None
        if overrides(self.trainer, "on_training_epoch_end"):
            found = metrics_.as_floats(self._execution.trained(), "train_")
            pruned = self._call_hook("on_training_epoch_end", found)
        is_validated = is_last or epoch % self.trainer.validate_every == 0 or pruned is not None
        if is_validated:
            found = {**self._validate(found), **self._costs}
            if overrides(self.trainer, "on_validation_epoch_end"):
                pruned = self._call_hook("on_validation_epoch_end", found) or pruned
            if self._is_kept(found, is_last):
                self._keep_state(found)
            if is_last and self.splits.test is not None and self.best is not None:
                tested = metrics_.as_floats(self._execution.tested(self.splits.test, self.best.state), "test_")
                found.update(self._agree("the test's metrics", lambda: tested))
            self.reports.append(Report(epoch, epoch * self.feed.steps, found))
            if not has_hooks(self.trainer):  # a hook may report it later
                self._check_objective(self.reports[-1:])
        self._epoch, self._position = epoch + 1, 0
        self._execution.end_epoch()
        if is_last and self.checkpoints is not None and self.checkpoints.keeps_last:
            self.checkpoints.offer_last(self.step, *self._content("last"))
        if is_validated:
            if self._log is not None:
                self._log.write(self)
            yield self.reports[-1]
        if pruned is not None:
            raise pruned
        if not is_last:
            self._save_if_due()

    def _call_hook(self, hook: str, found: dict[str, float]) -> TrialPruned | None:
        """Call a hook and add its metrics; return its `TrialPruned`, if it raised one."""
        try:
            with self._pictures.taken():
                state = local(self.state)
                added = getattr(self.trainer, hook)(state, self.host_hparams, self._epoch, dict(found)) or {}
            added, why = _numbers(hook, added, found), None
        except TrialPruned as pruned:
            added, why = {}, pruned
        added, is_pruned = self._agree(hook, lambda: (added, why is not None))
        found.update(added)
        return (why or TrialPruned()) if is_pruned else None

    def _train_epoch(self) -> None:
        """Train the rest of an epoch, or until asked to stop."""
        is_last = self._epoch == self.epochs
        with contextlib.closing(self._execution.epoch(self._epoch, self._position, is_last=is_last)) as positions:
            for position in positions:
                self._position = position
                if position >= self.feed.steps:
                    return
                self._save_if_due()
                if self._is_stopping:
                    return

    # Validation.

    def _validate(self, found: Mapping[str, float]) -> dict[str, float]:
        """Return all metrics of the epoch; the one place where training waits for the device."""
        measured = self._execution.measured(self.splits.validation)
        values = metrics_.as_floats(measured.validated)
        values |= _numbers("on_training_epoch_end", found or metrics_.as_floats(measured.trained, "train_"), values)
        if measured.skipped is not None:
            values["train_skipped_steps"] = float(np.sum(measured.skipped))
        return self._agree("the epoch's metrics", lambda: values)

    def _check_objective(self, reports: Sequence[Report]) -> None:
        """Raise StudyError if the requested objective is in none of these reports."""
        if not self._must_report or any(self.objective in report.metrics for report in reports):
            return
        known = list(reports[-1].metrics)
        raise StudyError(
            f"the trainer does not report the objective {self.objective!r}: it reports "
            f"{', '.join(known)}{nearest(self.objective, known)}"
        )

    def _is_kept(self, found: Mapping[str, float], is_last: bool) -> bool:
        """Return whether to keep the state of this epoch."""
        if self._keep == "last":
            return is_last
        best = None if self.best is None else self.best.metrics.get(self.objective)
        return is_new_model_better(found.get(self.objective), best, self.direction)

    def _keep_state(self, found: Mapping[str, float]) -> None:
        state = self._execution.kept()
        # Small states stay on the device, because fetching takes longer; large ones are fetched to free its memory.
        is_small = self.layout.size == 1 and sum(leaf.nbytes for leaf in jax.tree.leaves(state)) < _SMALL_BYTES
        hparams = None if self.host_hparams is self.first_hparams else describe_hparams(self.host_hparams)
        self.best = Best(self._epoch, dict(found), state if is_small else _to_host(state), hparams)
        self._offer_best()

    # Checkpoints.

    def _offer_best(self) -> None:
        if self.checkpoints is not None and self.best is not None:
            hparams = {} if self.best.hparams is None else {"hparams": self.best.hparams}
            said = {**self._whereabouts(), **hparams, "kind": "best"}
            self.checkpoints.offer_best(self.best.epoch * self.feed.steps, self.best.state, said)

    def _whereabouts(self) -> dict[str, Any]:
        changed = {} if self.host_hparams is self.first_hparams else {"changed": describe_hparams(self.host_hparams)}
        return {**record(self), **changed, "epoch": self._epoch, "position": self._position}

    def _save_if_due(self) -> None:
        """Save a checkpoint to resume from, if it is due or the training is asked to stop."""
        self._is_stopping = self._stop()
        if self.checkpoints is not None and (self._is_stopping or self._must_save or self.checkpoints.is_due()):
            self._must_save = False
            self.checkpoints.save(self.step, *self._content("latest"))

    def _content(self, kind: str) -> tuple[PyTree, dict[str, Any]]:
        """Return the arrays and the record of a checkpoint to resume from."""
        best = self.state.for_evaluation() if self.best is None else self.best.state
        return {"carry": self._execution.carry._asdict(), "best": best}, {**self._whereabouts(), "kind": kind}

    def _restore(self, shapes: Carry) -> bool:
        """Resume from the newest good checkpoint; return False if there is none."""
        assert self.checkpoints is not None
        best = jax.eval_shape(TrainState.for_evaluation, shapes.state)
        like = {"carry": shapes._asdict(), "best": best}
        # An explicit single device would need other programs than those of a new training.
        shardings = self.layout.shardings(like) if self.layout.devices else None
        restored = self.checkpoints.restore(like, shardings=shardings, identity=identity(self))
        if restored is None:
            return False
        _, tree, saved = restored
        if "changed" in saved:
            self.host_hparams = from_params(type(self.first_hparams), saved["changed"])
            self._execution.set_hparams(self.host_hparams)
        self._execution.resume(Carry(**tree["carry"]), saved["mode"])
        self._has_begun = True
        self._epoch, self._position = saved["epoch"], saved["position"]
        self.reports = [Report(**report) for report in saved["reports"]]
        if saved["best"] is not None:
            self.best = Best(**saved["best"], state=_to_host(tree["best"]))
            self._offer_best()
        return True


def _numbers(hook: str, added: object, found: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that a hook adds, as Python floats."""
    if not isinstance(added, Mapping):
        raise StudyError(f"{hook} must return a mapping of names to numbers, or None: got {added!r}")
    if taken := sorted(added.keys() & found.keys()):
        raise StudyError(
            f"{hook} must not return {taken[0]!r}: tuner reports a metric of that name itself; rename yours"
        )
    try:
        return {str(name): float(value) for name, value in added.items()}
    except (TypeError, ValueError) as error:
        raise StudyError(f"{hook} must return a mapping of names to numbers: got {added!r} ({error})") from None


def _to_host(tree: PyTree) -> Any:
    """Return a pytree with its arrays fetched to the host, except keys, which NumPy does not support."""
    leaves, structure = jax.tree.flatten(local(tree))
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    fetched = iter(jax.device_get([leaf for leaf, key in zip(leaves, is_key, strict=True) if not key]))
    return structure.unflatten([leaf if key else next(fetched) for leaf, key in zip(leaves, is_key, strict=True)])
