"""One worker's run of one trial, from the claim to its end or until it is given back."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.errors import CheckpointError, LeaseLost, StorageLost, StudyError, TrialPruned, TunerError, is_interrupted
from tuner.output.sanitize import hide_password
from tuner.search import TrialPruner
from tuner.storage.artifacts import FILES, LAST, LOG, has_more_than_log
from tuner.storage.read.extensions import unneeded
from tuner.storage.read.front import is_worth_keeping
from tuner.storage.read.lineage import read_metrics
from tuner.storage.read.population import loaded_copies
from tuner.storage.read.queries import BASELINE_KEY
from tuner.storage.read.ranking import constraint_key, is_feasible
from tuner.storage.sql.retry import PROMPT, hurried
from tuner.storage.worker import claims, leases, rungs
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.renewal import Watch
from tuner.storage.worker.reporter import Reporter
from tuner.storage.worker.studies import agree
from tuner.study import trial_seed
from tuner.study.constraints import check_metrics
from tuner.study.population import COPIES_KEY, Copy
from tuner.trial import Outcome, Report, all_finite
from tuner.trial import optuna_private as private
from tuner.trial.events import (
    EpochEnded,
    HparamsUnused,
    MetricUnusable,
    TrialBegan,
    TrialCopied,
    TrialEnded,
    TrialOverdue,
    TrialReleased,
    TrialRestarted,
    TrialRetried,
)
from tuner.trial.extension import LAST_KEY, Extension
from tuner.trial.failures import describe, last_line, storable
from tuner.trial.seed_values import SEEDS_KEY, SeedValues
from tuner.worker.context import WorkerContext
from tuner.worker.extension import bring_last, extension_of
from tuner.worker.gpu_use import GpuUse
from tuner.worker.reports import GATHER_S, Reports
from tuner.worker.runtime import Compiled
from tuner.worker.tell_sampler import (
    briefly,
    optuna_study,
    tell_of_end_elsewhere,
    tell_sampler,
    was_ended_by_hand,
)
from tuner.worker.trainable import End, Saved, TrialData, check_objectives, ranking_epoch, ranking_values
from tuner.worker.watchdog import Limits, Overrun, Watchdog

if TYPE_CHECKING:
    import optuna
    from sqlalchemy import Engine

    from tuner.worker.population import Others


_WITHOUT_VALUES = (Outcome.DIVERGED, Outcome.OUT_OF_MEMORY, Outcome.TIMED_OUT, Outcome.FAILED)


class _Stopped(Exception):
    """Raised to give back the trial before its end."""


@dataclass(frozen=True)
class Ended:
    """How a trial ended, and the error that its sampler raised afterwards, if any."""

    outcome: Outcome
    sampler_error: BaseException | None


class Attempt(TrialData):
    """A worker's run of a trial; implements `tuner.worker.trainable.Run`.

    Args:
        context: The context of the worker's trials.
        lease: The worker's claim on the trial.
    """

    resumes_later = True

    def __init__(self, context: WorkerContext, lease: Lease) -> None:
        self.context, self.lease, self.study = context, lease, context.study
        self.objectives = context.study.objectives
        self.number, self.is_resumed = lease.number, lease.fence > 1
        self.seed = trial_seed(context.study.seed, lease.number, "training")
        self.extension: Extension | None = None  # how it continues another trial
        self.cannot_extend: CheckpointError | None = None
        self.is_last_kept = False
        self.devices, self.files = context.place.devices, context.files.of_attempt(lease)
        self.root = self.files.root
        self.folder = self.root / FILES
        self.reporter = Reporter(
            context.prompt_engine, lease, self.objectives[0] if len(self.objectives) == 1 else None
        )
        self.reports: Reports | None = None
        self.watch = Watch()
        self.curve: dict[int, float] = {}  # the epochs that were reported to Optuna
        self.metrics: dict[int, Mapping[str, float]] = {}  # of these epochs, if the study has constraints
        self.latest_epoch = 0
        self.violations: Mapping[str, float] = {}  # of the study's constraints, at the end
        self.followed, self.constraints = context.study.followed, context.study.all_constraints
        self.values: list[float] | None = None
        self.seed_values: SeedValues | None = None
        self.decision: Outcome | None = None  # made by a report
        self.pruner: TrialPruner | None = None
        self.is_flush_queued = False
        self.unstored_log: Sequence[str] | None = None
        self.optuna_trial: optuna.Trial | None = None
        self.sampler: optuna.samplers.BaseSampler | None = None
        self.hparams: Any = None
        self.watchdog = Watchdog(Limits.of(context.study), self._warn_of_stall, self._end_aside)
        self.clock, self.gpu_use = context.runtime.clock, GpuUse()
        self.began_s, self.compiled_before = time.perf_counter(), Compiled.read(self.clock)

    def run(self) -> Ended | None:
        """Run the trial to its end, or give it back.

        Returns:
            How it ended; None if it was given back or is retried.

        Raises:
            LeaseLost: another worker has the trial.
            TunerError: the study's file is wrong, or the database cannot be reached.
        """
        context = self.context
        with context.renewals.watching(self.lease) as self.watch, self.files:
            if not self.files.fetch(self._must_give_back):
                self._give_back()
                return None
            self._extend()
            self.watchdog.restart()  # the time to fetch the files is not that of the trial
            with context.trainable.saved(self) as saved, self._held():
                return self._run(saved)

    def _extend(self) -> None:
        """If the trial continues another one, bring the state of that one to its folder."""
        if self.lease.is_new:
            return
        self.extension = extension_of(self.context.storage.get_trial(self.lease.trial_id).system_attrs)
        if self.extension is None:
            return
        self.seed, self.is_resumed = trial_seed(self.study.seed, self.extension.first, "training"), True
        try:
            bring_last(self.extension, self.root)
        except CheckpointError as error:
            self.cannot_extend = error

    @property
    def epochs(self) -> int | None:
        """The epochs to train for; None if they are not known."""
        return self.study.epochs if self.extension is None else self.extension.epochs

    @property
    def seeded_as(self) -> int:
        """The number of the trial whose seeds the training has."""
        return self.number if self.extension is None else self.extension.first

    @property
    def keeps_last(self) -> bool:
        """Whether the last state may be kept, so that another trial can continue it."""
        return self.study.keep_last > 0

    def _run(self, saved: Saved) -> Ended | None:
        context, lease = self.context, self.lease
        try:
            with context.time_use.doing("training"):
                self._hold()
                with self._logged(), context.place.gpus.watching(self.gpu_use):
                    outcome, record = self._train(saved)
                if self.reports is not None:
                    self.reports.settle()
            values = None if outcome in _WITHOUT_VALUES else self.values
            if outcome is Outcome.FAILED and self._is_tried_again(saved, record):
                return None
            self.violations = self._check_constraints(outcome)
            error = self._after_trial(outcome, values)
            if outcome is Outcome.COMPLETE and self._is_baseline():
                agree(context.engine, context.study_id, BASELINE_KEY, {"number": lease.number})
            self._end(saved, outcome, values, record)
            return Ended(outcome, error)
        except _Stopped:
            saved.close()  # the checkpoint must be written before another worker looks for it
            self.files.flush()
            self._give_back()
            return None
        except LeaseLost:
            if self.watchdog.has_ended_trial:
                return None
            if self.optuna_trial is not None and was_ended_by_hand(context, lease):
                tell_of_end_elsewhere(context, lease, self.sampler)
            raise
        except BaseException:
            # Not an error of this trial: the study's file is wrong, the database is down, or Ctrl-C.
            with contextlib.suppress(TunerError):
                if not context.must_end():
                    self._finish_reports(context.final_writes.engine())
            with contextlib.suppress(TunerError):
                leases.release(context.final_writes.engine(), lease)
            raise

    def _logged(self) -> contextlib.AbstractContextManager[None]:
        """Write what the trial prints to its log."""
        output = self.context.output
        if output is None:
            return contextlib.nullcontext()
        return output.of_trial(self.root / LOG, self.write_log, partial(setattr, self, "unstored_log"))

    @contextlib.contextmanager
    def _held(self) -> Generator[None]:
        try:
            yield
        finally:
            self.context.storage.drop(self.lease.trial_id)

    def _hold(self) -> None:
        context = self.context
        context.storage.hold(self.lease, context.study_id)
        if self.study.baseline is not None and self.lease.number == 0:
            # Optuna's way to set a trial's hyperparameters: it then suggests no others.
            context.storage.set_trial_system_attr(self.lease.trial_id, "fixed_params", self.study.baseline_params)

    def _ask(self) -> optuna.Trial:
        """Return the Optuna trial of the claimed trial, with the sampler for its number."""
        study = optuna_study(self.context)
        private.forget_stop(study)  # a trial that is retried asks its sampler again
        study.sampler = self.sampler = self.context.samplers.make(self.lease)
        return self.context.trainable.make_trial(study, self.lease.trial_id, self)

    def _train(self, saved: Saved) -> tuple[Outcome, dict[str, str]]:
        """Return how the trial ended, and the attributes of its error if it failed."""
        import optuna

        context, lease = self.context, self.lease
        try:
            trial = self.trial = self.optuna_trial = self._ask()
            self.hparams = self.study.sample(trial)
            context.storage.flush(lease.trial_id)
            context.say(TrialBegan(lease.number, trial.params))
            context.claimant.preference.note(trial.params)
            if self.cannot_extend is not None:
                raise self.cannot_extend
            self._warn_of_unused(trial)
            self.pruner = TrialPruner(context.pruning_study, trial, self.followed)
            self.reports = Reports(
                context.background,
                self.reporter,
                self._is_hopeless,
                context.must_end,
                self.pruner.must_judge,
                context.gatherer,
                self._flush_queued,
            )
            with self.watchdog.watching():
                end = context.trainable.run(self, saved)
            self._check_lease()
            if self.decision is None and end is End.STOPPED:
                raise _Stopped  # the trial is resumed by another worker
            if end is End.FINISHED and self.decision is None and (missed := self._missed_epochs()):
                return Outcome.FAILED, {"error": missed, "error_kind": "NotExtended"}
            return self._decided(Outcome.COMPLETE if end is End.FINISHED else Outcome.PRUNED)
        except TrialPruned:
            return self._decided(Outcome.PRUNED)
        except CheckpointError as error:
            return Outcome.FAILED, describe(error)
        except (TunerError, _Stopped, optuna.exceptions.StorageInternalError):
            raise
        except Exception as error:
            if is_interrupted(error):
                raise
            if context.runtime.is_out_of_memory(error):
                return Outcome.OUT_OF_MEMORY, {"error": storable(str(error))}
            return Outcome.FAILED, describe(error)

    def _missed_epochs(self) -> str | None:
        """Return what is wrong if the trial continues another one, but has trained no further."""
        if self.extension is None or self.latest_epoch > self.extension.after:
            return None
        return (
            f"the training ended after epoch {self.latest_epoch}, although trial {self.number} continues trial "
            f"{self.extension.of} to epoch {self.extension.epochs}: a function must restore the state of its trial, "
            "and train until `trial.epochs`"
        )

    def _decided(self, otherwise: Outcome) -> tuple[Outcome, dict[str, str]]:
        """Return the outcome, as a report or a limit decided it, and the attributes of its error."""
        outcome = self.decision or otherwise
        return outcome, self._timeout() if outcome is Outcome.TIMED_OUT else {}

    def _timeout(self) -> dict[str, str]:
        return {"error": f"the trial {self.watchdog.describe(Overrun.TIME)}"}

    def _warn_of_unused(self, trial: optuna.Trial) -> None:
        """Warn if a trial was queued with hyperparameters that it does not have."""
        if self.study.space is None:  # not known before the end
            return
        given = self.context.storage.get_trial(self.lease.trial_id).system_attrs.get("fixed_params", {})
        unused = [f"{name}={value}" for name, value in given.items() if name not in trial.params]
        if unused:
            message = f"trial {trial.number} was queued with {', '.join(unused)}, which it does not use"
            self.context.say(HparamsUnused(trial.number, message))

    def _is_baseline(self) -> bool:
        if self.study.baseline is None:
            return False
        return self.context.storage.get_trial(self.lease.trial_id).params == self.study.baseline_params

    def _is_hopeless(self, report: Report) -> bool:
        """Ask the pruner; if the database goes down, do not wait, and do not prune."""
        assert self.pruner is not None
        try:
            with hurried(dataclasses.replace(PROMPT, is_over=self.context.must_end)):
                return self.pruner.should_prune(
                    report.epoch, *self.followed.of(report.metrics), is_feasible=self._is_feasible(report)
                )
        except StorageLost:
            return False

    def _is_feasible(self, report: Report) -> bool | None:
        """Return whether the trial satisfies its constraints at an epoch, as far as it has some; None without any."""
        own = self.context.storage.get_trial(self.lease.trial_id).constraints
        checked = check_metrics(self.constraints, report.epoch, report.metrics, is_complete=False)
        found = {**own, **checked.violations}
        return is_feasible(found) if found else None

    # --- For the trainable

    def must_stop(self) -> bool:
        """Return whether the training must end: the trial must be given back, or has passed a limit."""
        watchdog = self.watchdog
        self.context.say_seconds()
        if self._must_give_back():
            return True
        if watchdog.is_over_time():
            self.decision = self.decision or Outcome.TIMED_OUT
        if self.decision is not Outcome.TIMED_OUT and not watchdog.is_stalled:
            return False
        watchdog.note_noticed()
        return True

    def _must_give_back(self) -> bool:
        watch, stop = self.watch, self.context.stop
        if not (stop.requested or watch.is_lost.is_set() or watch.must_stop.is_set()):
            return False
        stop.is_noticed = stop.requested
        return True

    @property
    def must_end(self) -> bool:
        """Whether a report or a limit has ended the trial."""
        return self.decision is not None

    def note_progress(self) -> None:
        """Note that the training makes progress."""
        self.watchdog.note_progress()

    def restart(self, why: str) -> None:
        """Delete the trial's reports, because its checkpoint does not fit the study's file any more."""
        if self.extension is not None:
            raise CheckpointError(f"cannot continue trial {self.extension.of}: {why}; its study's file has changed")
        leases.forget_reports(self.context.engine, self.lease)
        if self.copies():
            self.set_copies([])
        self.context.say(TrialRestarted(self.lease.number, why))

    def forget_reports(self, first: int = 0) -> None:
        """Delete the trial's reports from an epoch on; without an epoch also its decisions in rungs."""
        context = self.context
        leases.forget_reports(context.engine, self.lease, first)
        if first > 0:
            self._count_earlier_attempts()
        else:
            rungs.leave_rungs(context.engine, self.lease, context.study_id)
            context.storage.forget_pruning(self.lease.trial_id)

    def stored_reports(self) -> list[Report]:
        """Return the reports of earlier attempts, by epoch."""
        stored = read_metrics(self.context.engine, self.lease.trial_id)
        return [Report(epoch, step, metrics) for epoch, (step, metrics) in stored.items()]

    def keep(self, earlier: Iterable[Report]) -> None:
        """Store the reports from before a restart with the next one."""
        assert self.reports is not None
        self._count_earlier_attempts()
        several = list(earlier)
        self.reports.keep(several)
        for report in several:
            self._note(report)

    def _count_earlier_attempts(self) -> None:
        """Count the time of the earlier attempts, because the training resumes from them."""
        if self.study.trial_minutes is not None:
            self.watchdog.earlier_s = leases.earlier_s(self.context.engine, self.lease)

    def report(self, report: Report, *, is_last: bool = False) -> bool:
        """Store a report; return whether the trial must end, because it is pruned, has diverged or has timed out.

        Raises:
            StudyError: the metrics do not include an objective, or the metric that the pruner follows.
        """
        check_objectives(report, self.objectives)
        check_objectives(report, self.followed.names, "pruner's metric")
        values = report.values(self.objectives)
        # After the last report, pruning would save nothing. A trial that continues another has no equals.
        may_prune = not is_last and all_finite(values) and self.extension is None and self._is_judged()
        is_hopeless = self.store(report, may_prune=may_prune)
        if not all_finite(values):
            self.decision = Outcome.DIVERGED
        elif is_hopeless and not self._is_baseline():
            self.decision = Outcome.PRUNED
        elif not is_last and self.watchdog.is_over_time():
            self.decision = Outcome.TIMED_OUT
        if self.decision is None:
            return False
        self.watchdog.note_noticed()
        return True

    def store(self, report: Report, *, may_prune: bool = True) -> bool:
        """Store a report; return whether the pruner would end the trial."""
        assert self.reports is not None
        self.note_progress()
        self._check_lease()
        values = self._note(report)
        is_hopeless = self.reports.store(report, may_prune=may_prune)
        self.context.say(EpochEnded(self.lease.number, report.epoch, report.step, values))
        return is_hopeless

    def _is_judged(self) -> bool:
        """Return whether the pruner may judge trials; with several objectives, only if it can compare them."""
        from optuna.pruners import NopPruner

        return len(self.objectives) == 1 or not isinstance(self.context.pruning_study.pruner, NopPruner)

    def _note(self, report: Report) -> list[float]:
        """Note an epoch's value for Optuna, and as the trial's value if it counts; return its values."""
        values = report.values(self.objectives)
        self.curve[report.epoch] = values[0]
        self.latest_epoch = report.epoch
        if self.constraints:
            self.metrics[report.epoch] = report.metrics
        self.values = ranking_values(self.curve, values, self.study)
        return values

    def set_constraint(self, name: str, value: float) -> None:
        """Store a constraint of the trial.

        Raises:
            StudyError: the study has a constraint of this name.
        """
        if any(constraint.metric == name for constraint in self.constraints):
            raise StudyError(f"the constraint {name!r} is one of the study's: use another name")
        self.context.storage.set_trial_system_attr(self.lease.trial_id, constraint_key(name), value)

    def _check_constraints(self, outcome: Outcome) -> Mapping[str, float]:
        """Return Optuna's numbers for the study's constraints, and say which metrics are missing or NaN."""
        if not self.constraints or outcome is Outcome.FAILED:
            return {}
        epoch = ranking_epoch(self.curve, self.latest_epoch, self.study)
        is_complete = outcome is Outcome.COMPLETE
        checked = check_metrics(self.constraints, epoch, self.metrics.get(epoch, {}), is_complete=is_complete)
        if is_complete and checked.problems:
            message = f"trial {self.number} counts as infeasible: {'; '.join(checked.problems)}"
            self.context.say(MetricUnusable(self.number, message))
        return checked.violations

    def set_values(self, values: Sequence[float]) -> None:
        """Set the values of the objectives."""
        self.values = list(values)
        if any(math.isnan(value) for value in values):
            self.decision = Outcome.DIVERGED

    def set_seeds(self, values: SeedValues) -> None:
        """Set the values of the trial's seeds so far; the values of the trial are their means."""
        self.seed_values, self.values = values, values.means

    def flush_later(self) -> None:
        """Store suggested hyperparameters soon, on the thread that stores reports."""
        if not self.is_flush_queued:
            self.is_flush_queued = True
            self._submit_soon(self._flush_queued)

    def _submit_soon(self, call: Callable[[], None]) -> None:
        background, gatherer = self.context.background, self.context.gatherer
        if gatherer is None:
            background.submit(call)
        else:
            gatherer.submit_later(call, GATHER_S)

    def _flush_queued(self) -> None:
        if not self.is_flush_queued:
            return
        self.is_flush_queued = False
        try:
            with hurried(PROMPT):
                self.context.storage.flush(self.lease.trial_id)
        except StorageLost:
            self.is_flush_queued = True  # they are stored with a later report, or at the end

    def write_log(self, lines: Sequence[str]) -> None:
        """Store the last lines of the trial's log soon, on the thread that stores reports, else with its end."""
        self.unstored_log = list(lines)
        self.context.background.submit(partial(self._store_log, self.context.prompt_engine))

    def _store_log(self, engine: Engine) -> None:
        lines = self.unstored_log
        if lines is None:
            return
        leases.store_log(engine, self.lease, lines)
        if self.unstored_log is lines:
            self.unstored_log = None

    def _check_lease(self) -> None:
        if self.watch.is_lost.is_set():
            raise LeaseLost(f"trial {self.lease.number} was taken over by another worker")

    def _finish_reports(self, engine: Engine) -> None:
        """Wait until all reports are stored, for as long as this engine waits."""
        if self.reports is not None:
            self.reports.finish(engine)

    def _after_trial(self, outcome: Outcome, values: list[float] | None) -> BaseException | None:
        """Tell the sampler the end of the trial before it is stored, like `optuna.Study.tell`.

        Returns:
            The error that the sampler raised. The trial has ended anyway and must be stored first.
        """
        from optuna.trial import TrialState

        if self.optuna_trial is None:  # `before_trial` failed, so Optuna has no trial
            return None
        state = {Outcome.COMPLETE: TrialState.COMPLETE, Outcome.FAILED: TrialState.FAIL}
        storage = self.context.storage
        storage.flush(self.lease.trial_id)  # suggestions before an error; later ones are written immediately
        frozen = storage.get_trial(self.lease.trial_id)
        private.system_attrs(frozen).update(self._constraint_attributes())
        if len(self.objectives) == 1:
            frozen.intermediate_values = dict(self.curve)
        return tell_sampler(self.context, self.sampler, frozen, state.get(outcome, TrialState.PRUNED), values)

    # --- In a population

    @property
    def others(self) -> Others | None:
        """The trials that this one may copy; None without population-based training."""
        population = self.context.population
        if population is None or self.extension is not None:
            return None
        from tuner.worker.population import RunningMember

        return RunningMember(population, self)

    def may_copy(self) -> bool:
        """Return whether it may copy others; the baseline may not."""
        return not self._is_baseline()

    def copies(self) -> list[Copy]:
        """Return the copies that the trial has taken."""
        return loaded_copies(self.context.storage.get_trial(self.lease.trial_id).system_attrs.get(COPIES_KEY, ()))

    def set_copies(self, copies: Sequence[Copy]) -> None:
        """Store the copies that the trial has taken; waits for the database."""
        stored = [dataclasses.asdict(copy) for copy in copies]
        self.context.storage.set_trial_system_attr(self.lease.trial_id, COPIES_KEY, stored)

    def note_copy(self, copy: Copy) -> None:
        """Report that a copy was taken."""
        self.context.say(TrialCopied(self.lease.number, copy.epoch, copy.trial, copy.hparams))

    # --- Ends

    def _is_tried_again(self, saved: Saved, record: Mapping[str, str]) -> bool:
        """Give back a failed trial to be retried, unless it has failed too often; return whether it is retried."""
        context, lease, error = self.context, self.lease, hide_password(record["error"])
        if not leases.may_retry(context.engine, lease, self.study.retries):
            return False
        saved.close()  # the checkpoint must be written, and uploaded, before another worker looks for it
        self.files.flush()
        self._finish_reports(context.engine)
        self._store_log(context.engine)
        if not leases.retry(context.engine, lease, error, self.study.retries):
            return False
        private.forget_stop(context.optuna_study)  # the search continues with this trial
        context.say(TrialRetried(lease.number, last_line(error)))
        return True

    def _end(self, saved: Saved, outcome: Outcome, values: list[float] | None, record: dict[str, Any]) -> None:
        """Store how the trial ended."""
        context, lease = self.context, self.lease
        if "error" in record:
            record["error"] = hide_password(record["error"])
        record |= self._spent()
        path = self._keep_best(saved, outcome, values)
        if path is not None:
            record["checkpoint"] = self.files.keep(path, lease.trial_id)
        last = [] if self.reports is None else self.reports.rest(context.engine)
        told: dict[str, Any] = {"log": self.unstored_log, "several": last, "objective": self.reporter.objective}
        leases.tell(context.engine, lease, outcome, values, record, self._attributes(), **told)
        saved.delete_latest()
        self.files.finish()
        if has_more_than_log(saved.folder):  # the best checkpoint, or only pictures
            context.files.collect(partial(unneeded, context.engine, context.study_id, **self._best_k()))
        stderrs = None if values is None or self.seed_values is None else self.seed_values.stderrs
        context.say(TrialEnded(lease.number, outcome, values, record["train_s"], record["compile_s"], stderrs))

    def _spent(self) -> dict[str, Any]:
        """Return the worker, how it spent its time, and the use of its GPUs, as columns of the record."""
        compiled = self._compiled()
        return {
            "worker": self.lease.worker,
            "compilations": compiled.count,
            "compile_s": round(compiled.total_s, 4),
            # Some programs compile while others run.
            "train_s": round(max(0.0, time.perf_counter() - self.began_s - compiled.total_s), 4),
            **self.gpu_use.columns(),
        }

    def _compiled(self) -> Compiled:
        return Compiled.read(self.clock).since(self.compiled_before)

    def _constraint_attributes(self) -> dict[str, float]:
        """Return the attributes in which Optuna reads the study's constraints."""
        return {constraint_key(name): value for name, value in self.violations.items()}

    def _attributes(self) -> dict[str, Any]:
        """Return attributes of the trial: constraints, programs from the compile cache, lanes, its seeds' values."""
        compiled, lanes, seeds = self._compiled(), self.context.lanes(), self.seed_values
        return {
            **self._constraint_attributes(),
            **({leases.FETCHED_KEY: compiled.fetched} if compiled.fetched else {}),
            **({leases.SAVED_KEY: round(compiled.saved_s, 3)} if compiled.fetched else {}),
            **({leases.LANES_KEY: lanes} if lanes > 1 else {}),
            **({LAST_KEY: self.latest_epoch} if self.is_last_kept else {}),
            **({} if seeds is None else {SEEDS_KEY: seeds.to_json()}),
        }

    def _best_k(self) -> dict[str, Any]:
        maximize = [direction == "maximize" for direction in self.study.all_directions]
        return {"keep": self.study.keep_best, "maximize": maximize}

    def _keep_best(self, saved: Saved, outcome: Outcome, values: list[float] | None) -> Path | None:
        """Save the best checkpoint if the trial is among the best of the study or on its front; return its path."""
        if outcome is not Outcome.COMPLETE or values is None or not self.study.keep_best:
            return None
        context = self.context
        if not is_feasible({**context.storage.get_trial(self.lease.trial_id).constraints, **self.violations}):
            return None
        if not is_worth_keeping(context.engine, context.study_id, values, **self._best_k()):
            return None
        may_keep: dict[str, Any] = {**self._best_k(), "keep": self.study.keep_last}
        is_last_written = is_worth_keeping(context.engine, context.study_id, values, **may_keep) and saved.write_last(
            self.root / LAST
        )
        path = saved.write_best()
        self.is_last_kept = is_last_written and path is not None
        return path

    def _give_back(self) -> None:
        context = self.context
        engine = context.final_writes.engine()
        try:
            self._finish_reports(engine)
            self._store_log(engine)
        finally:
            end = leases.bury if self.watchdog.is_stalled else leases.release
            end(engine, self.lease)
        context.say(TrialReleased(self.lease.number))

    # --- On the thread of the watchdog

    def _warn_of_stall(self) -> None:
        number, what = self.number, self.watchdog.describe(Overrun.STALL)
        message = f"trial {number} has {what}; it is asked to stop, which counts as a death of its worker"
        self.context.say_aside(TrialOverdue(number, message))

    def _tell_of_timeout(self) -> None:
        with contextlib.suppress(Exception):  # the trial ends anyway, maybe with its process
            self._after_trial(Outcome.TIMED_OUT, None)

    def _end_aside(self, overrun: Overrun) -> None:
        """End a trial that does not return from its code, and then the process if it is only a worker."""
        context, lease, number = self.context, self.lease, self.number
        owns_process = context.stop.owns_process
        message = f"trial {number} {self.watchdog.describe(overrun)} and does not end"
        why = "; its worker exits" if owns_process else "; it is given up, but its code continues in this process"
        context.say_aside(TrialOverdue(number, message + why))
        try:
            with contextlib.suppress(TunerError):
                if overrun is Overrun.TIME:
                    briefly(self._tell_of_timeout)
                    spent = self._spent()
                    record = {**spent, **self._timeout()}
                    leases.tell(context.engine, lease, Outcome.TIMED_OUT, None, record, self._attributes())
                    ended = TrialEnded(number, Outcome.TIMED_OUT, None, spent["train_s"], spent["compile_s"])
                    context.say_aside(ended)
                else:
                    leases.bury(context.engine, lease)
                if owns_process and context.is_cohort:  # the other trials of its cohort did nothing wrong
                    claims.release_all(context.engine, lease.worker, died=False)
        finally:
            self.watch.is_lost.set()
            if owns_process:
                os._exit(1)
