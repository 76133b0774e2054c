"""One worker's run of one trial, from the claim to its end or until it is given back."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuner.errors import CheckpointError, LeaseLost, StudyError, TrialPruned, TunerError, is_interrupted
from tuner.output.sanitize import hide_password
from tuner.storage.artifacts import FILES, LAST, LOG
from tuner.storage.read.lineage import read_metrics
from tuner.storage.read.queries import BASELINE_KEY
from tuner.storage.read.ranking import constraint_key
from tuner.storage.worker import claims, leases, rungs
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.leases import Ending
from tuner.storage.worker.renewal import Watch
from tuner.storage.worker.reporter import Reporter
from tuner.storage.worker.studies import agree
from tuner.study import trial_seed
from tuner.trial import Outcome, Report, all_finite
from tuner.trial import optuna_private as private
from tuner.trial.events import (
    EpochEnded,
    HparamsUnused,
    MetricUnusable,
    TrialBegan,
    TrialEnded,
    TrialOverdue,
    TrialReleased,
    TrialRestarted,
    TrialRetried,
)
from tuner.trial.extension import LAST_KEY, Extension
from tuner.trial.failures import describe, last_line, storable
from tuner.trial.seed_values import SEEDS_KEY, SeedValues
from tuner.worker.attempts.copies import StoredCopies
from tuner.worker.attempts.ends import store_end
from tuner.worker.attempts.judge import Judge
from tuner.worker.attempts.kept import Kept, keep_states, remove_unneeded
from tuner.worker.attempts.later_writes import LaterWrites
from tuner.worker.attempts.reports import Reports
from tuner.worker.attempts.spent import Spent
from tuner.worker.attempts.suggested import store_suggested
from tuner.worker.attempts.tell_sampler import (
    briefly,
    optuna_study,
    tell_of_end_elsewhere,
    tell_sampler,
    was_ended_by_hand,
)
from tuner.worker.attempts.trial_values import TrialValues
from tuner.worker.attempts.watchdog import Limits, Overrun, Watchdog
from tuner.worker.context import WorkerContext
from tuner.worker.extension import bring_last, extension_of
from tuner.worker.trainables.trainable import End, Saved, TrialData, check_objectives

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
    """A worker's run of a trial; implements `tuner.worker.trainables.trainable.Run`.

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
        self.kept = Kept()  # of its states, at its end
        self.devices, self.files = context.place.devices, context.files.of_attempt(lease)
        self.root = self.files.root
        self.folder = self.root / FILES
        self.reporter = Reporter(
            context.prompt_engine, lease, self.objectives[0] if len(self.objectives) == 1 else None
        )
        self.reports: Reports | None = None
        self.watch = Watch()
        self.reported = TrialValues(context.study)
        self.decision: Outcome | None = None  # made by a report
        self.judge: Judge | None = None
        self.later = LaterWrites(context, lease)
        self.optuna_trial: optuna.Trial | None = None
        self.sampler: optuna.samplers.BaseSampler | None = None
        self.hparams: Any = None
        self.watchdog = Watchdog(Limits.of(context.study), self._warn_of_stall, self._end_aside)
        self.spent, self.taken = Spent(context.runtime.clock), StoredCopies(context, lease, self._is_baseline)

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
                with self._logged(), context.place.gpus.watching(self.spent.gpu_use):
                    outcome, record = self._train(saved)
                if self.reports is not None:
                    self.reports.settle()
            values = None if outcome in _WITHOUT_VALUES else self.reported.values
            if outcome is Outcome.FAILED and self._is_tried_again(saved, record):
                return None
            self._check_constraints(outcome)
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
        return output.of_trial(self.root / LOG, self.later.write_log, self.later.keep_log)

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
            store_suggested(context, lease.trial_id)
            context.say(TrialBegan(lease.number, trial.params))
            context.claimant.preference.note(trial.params)
            if self.cannot_extend is not None:
                raise self.cannot_extend
            self._warn_of_unused(trial)
            self.judge = Judge(context, trial)
            self.reports = Reports(
                context.background,
                self.reporter,
                self.judge.is_hopeless,
                context.must_end,
                self.judge.must_judge,
                context.gatherer,
                self.later.flush_queued,
                self.judge.next_place,
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
        if self.extension is None or self.reported.latest_epoch > self.extension.after:
            return None
        return (
            f"the training ended after epoch {self.reported.latest_epoch}, although trial {self.number} continues "
            f"trial {self.extension.of} to epoch {self.extension.epochs}: a function must restore the state of its "
            "trial, and train until `trial.epochs`"
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
        if self.taken.copies():
            self.taken.set_copies([])
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
            self.reported.note(report)

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
        check_objectives(report, self.study.followed.names, "pruner's metric")
        values = report.values(self.objectives)
        # After the last report, pruning would save nothing. A trial that continues another has no equals.
        has_equals = self.extension is None and self.judge is not None and self.judge.compares()
        may_prune = not is_last and all_finite(values) and has_equals
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
        values = self.reported.note(report)
        is_hopeless = self.reports.store(report, may_prune=may_prune)
        self.context.say(EpochEnded(self.lease.number, report.epoch, report.step, values))
        return is_hopeless

    def set_constraint(self, name: str, value: float) -> None:
        """Store a constraint of the trial.

        Raises:
            StudyError: the study has a constraint of this name.
        """
        if any(constraint.metric == name for constraint in self.study.all_constraints):
            raise StudyError(f"the constraint {name!r} is one of the study's: use another name")
        self.context.storage.set_trial_system_attr(self.lease.trial_id, constraint_key(name), value)

    def _check_constraints(self, outcome: Outcome) -> None:
        """Check the study's constraints, and say which metrics of a complete trial are missing or NaN."""
        if outcome is Outcome.FAILED:
            return
        is_complete = outcome is Outcome.COMPLETE
        problems = self.reported.check_constraints(is_complete=is_complete)
        if is_complete and problems:
            message = f"trial {self.number} counts as infeasible: {'; '.join(problems)}"
            self.context.say(MetricUnusable(self.number, message))

    def set_values(self, values: Sequence[float]) -> None:
        """Set the values of the objectives."""
        self.reported.set(values)
        if any(math.isnan(value) for value in values):
            self.decision = Outcome.DIVERGED

    def set_seeds(self, values: SeedValues) -> None:
        """Set the values of the trial's seeds so far; the values of the trial are their means."""
        self.reported.set_seeds(values)

    def flush_later(self) -> None:
        """Store suggested hyperparameters soon."""
        self.later.flush_later()

    def write_log(self, lines: Sequence[str]) -> None:
        """Store the last lines of the trial's log soon, else with its end."""
        self.later.write_log(lines)

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
        private.system_attrs(frozen).update(self.reported.constraint_attributes())
        if len(self.objectives) == 1:
            frozen.intermediate_values = dict(self.reported.curve)
        return tell_sampler(self.context, self.sampler, frozen, state.get(outcome, TrialState.PRUNED), values)

    # --- In a population

    @property
    def others(self) -> Others | None:
        """The trials that this one may copy; None without population-based training."""
        population = self.context.population
        if population is None or self.extension is not None:
            return None
        from tuner.worker.population import RunningMember

        return RunningMember(population, self.taken)

    # --- Ends

    def _is_tried_again(self, saved: Saved, record: Mapping[str, str]) -> bool:
        """Give back a failed trial to be retried, unless it has failed too often; return whether it is retried."""
        context, lease, error = self.context, self.lease, hide_password(record["error"])
        if not leases.may_retry(context.engine, lease, self.study.retries):
            return False
        saved.close()  # the checkpoint must be written, and uploaded, before another worker looks for it
        self.files.flush()
        self._finish_reports(context.engine)
        self.later.store_log(context.engine)
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
        record |= {"worker": lease.worker, **self.spent.columns()}
        if outcome is Outcome.COMPLETE and values is not None:
            self.kept = keep_states(context, lease, saved, self.root / LAST, values, self.reported.violations)
        if self.kept.best is not None:
            record["checkpoint"] = self.files.keep(self.kept.best, lease.trial_id)
        last = [] if self.reports is None else self.reports.rest(context.engine)
        log, objective = self.later.log, self.reporter.objective
        store_end(context, Ending(lease, outcome, values, record, self._attributes(), log, last, objective))
        saved.delete_latest()
        self.files.finish()
        remove_unneeded(context, saved)
        stderrs = None if values is None or self.reported.seeds is None else self.reported.seeds.stderrs
        context.say(TrialEnded(lease.number, outcome, values, record["train_s"], record["compile_s"], stderrs))

    def _attributes(self) -> dict[str, Any]:
        """Return attributes of the trial: constraints, programs from the compile cache, lanes, its seeds' values."""
        compiled, lanes, seeds = self.spent.compiled(), self.context.lanes(), self.reported.seeds
        return {
            **self.reported.constraint_attributes(),
            **({leases.FETCHED_KEY: compiled.fetched} if compiled.fetched else {}),
            **({leases.SAVED_KEY: round(compiled.saved_s, 3)} if compiled.fetched else {}),
            **({leases.LANES_KEY: lanes} if lanes > 1 else {}),
            **({LAST_KEY: self.reported.latest_epoch} if self.kept.has_last else {}),
            **({} if seeds is None else {SEEDS_KEY: seeds.to_json()}),
        }

    def _give_back(self) -> None:
        context = self.context
        engine = context.final_writes.engine()
        try:
            self._finish_reports(engine)
            self.later.store_log(engine)
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
                    spent = self.spent.columns()
                    record = {"worker": lease.worker, **spent, **self._timeout()}
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
