"""One worker's run of one trial, from the claim to its end or until it is given back."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tuner.errors import LeaseLost, StorageLost, TrialPruned, TunerError, is_interrupted
from tuner.output.sanitize import hide_password
from tuner.search import TrialPruner
from tuner.storage.artifacts import collect, trial_folder
from tuner.storage.read.queries import BASELINE_KEY
from tuner.storage.read.ranking import is_among_best, is_feasible, removable
from tuner.storage.sql.retry import PROMPT, hurried
from tuner.storage.worker import claims, leases
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.renewal import Watch, renewed
from tuner.storage.worker.reporter import Reporter
from tuner.storage.worker.studies import agree
from tuner.study import trial_seed
from tuner.trial import Outcome, Report, all_finite
from tuner.trial import optuna_private as private
from tuner.trial.events import (
    EpochEnded,
    HparamsUnused,
    TrialBegan,
    TrialEnded,
    TrialReleased,
    TrialRestarted,
    TrialRetried,
)
from tuner.trial.failures import describe, last_line, storable
from tuner.worker.context import WorkerContext
from tuner.worker.reports import Reports

if TYPE_CHECKING:
    import optuna
    from sqlalchemy import Engine

    from tuner.training.saved.checkpoints import Checkpoints


class _Stopped(Exception):
    """Raised to give back the trial before its end."""


@dataclass(frozen=True)
class Ended:
    """How a trial ended, and the error that its sampler raised afterwards, if any."""

    outcome: Outcome
    sampler_error: BaseException | None


class Attempt:
    """A worker's run of a trial.

    Args:
        context: The context of the worker's trials.
        lease: The worker's claim on the trial.
    """

    def __init__(self, context: WorkerContext, lease: Lease) -> None:
        self.context, self.lease, self.study = context, lease, context.study
        self.objectives = context.study.objectives
        self.reporter = Reporter(
            context.prompt_engine, lease, self.objectives[0] if len(self.objectives) == 1 else None
        )
        self.reports: Reports | None = None
        self.watch = Watch()
        self.curve: dict[int, float] = {}  # the epochs that were reported to Optuna
        self.is_asked = False
        self.clock = context.place.clock
        self.began = time.perf_counter(), self.clock.total_s, self.clock.count

    def run(self) -> Ended | None:
        """Run the trial to its end, or give it back.

        Returns:
            How it ended; None if it was given back or is retried.

        Raises:
            LeaseLost: another worker has the trial.
            TunerError: the study's file is wrong, or the database cannot be reached.
        """
        from tuner.training.saved.checkpoints import Checkpoints

        context, lease = self.context, self.lease
        folder = trial_folder(context.folder, lease.number)
        every_s = self.study.save_every_s
        checkpoints = Checkpoints(folder, every_s=every_s, writes_best=False, restart=self._restart)
        must_stop = partial(claims.must_stop, context.prompt_engine, context.claimant)
        with renewed(context.engine, lease, must_stop, context.must_end) as self.watch, checkpoints, self._held():
            try:
                with context.time_use.doing("training"):
                    self._hold()
                    outcome, values, record = self._train(checkpoints)
                    self._finish_reports(context.engine)
                if outcome is Outcome.FAILED and self._is_tried_again(checkpoints, record):
                    return None
                error = self._after_trial(outcome, values)
                if outcome is Outcome.COMPLETE and self._is_baseline():
                    agree(context.engine, context.study_id, BASELINE_KEY, {"number": lease.number})
                self._end(checkpoints, outcome, values, record)
                return Ended(outcome, error)
            except _Stopped:
                checkpoints.close()  # the checkpoint must be written before another worker looks for it
                self._give_back()
                return None
            except LeaseLost:
                raise
            except BaseException:
                # Not an error of this trial: the study's file is wrong, the database is down, or Ctrl-C.
                with contextlib.suppress(TunerError):
                    leases.release(context.final_writes.engine(), lease)
                raise

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
        import optuna

        study = self._optuna_study()
        private.forget_stop(study)  # a trial that is retried asks its sampler again
        study.sampler = self.context.samplers.make(self.lease)
        trial = optuna.trial.Trial(study, self.lease.trial_id)
        self.is_asked = True
        return trial

    def _train(self, checkpoints: Checkpoints) -> tuple[Outcome, list[float] | None, dict[str, str]]:
        """Return how the trial ended, its last values, and the attributes of its error if it failed."""
        import optuna

        from tuner.training.loop.runtime import is_out_of_memory

        context, study, lease = self.context, self.study, self.lease
        values = None
        try:
            trial = self._ask()
            hparams = study.sample(trial)
            context.storage.flush(lease.trial_id)
            context.say(TrialBegan(lease.number, trial.params))
            self._warn_of_unused(trial)
            pruner, is_baseline = TrialPruner(context.pruning_study, trial), self._is_baseline()
            self.reports = Reports(
                context.background,
                self.reporter,
                lambda report: self._is_hopeless(pruner, report.epoch, report.values(self.objectives)[0]),
                context.must_end,
            )
            reports = study.trainer.train_model(
                hparams,
                context.splits,
                epochs=study.epochs,
                seed=trial_seed(study.seed, lease.number, "training"),
                objective=self.objectives[0],
                direction=study.all_directions[0],
                checkpoints=checkpoints,
                about={**context.place.about, "trial": lease.number},
                layout=context.place.layout,
                optimizer_rules=context.optimizer_rules,
                choose=context.modes.choose,
                stop=self._must_stop,
            )
            epoch = 0
            with contextlib.closing(reports):
                for report in reports:
                    if epoch == 0 and checkpoints.restored is not None:
                        self._keep(self.reports, (Report(**earlier) for earlier in checkpoints.restored["reports"]))
                    epoch, values = report.epoch, report.values(self.objectives)
                    # After the last report, pruning would save nothing.
                    may_prune = report.epoch < study.epochs and len(values) == 1 and all_finite(values)
                    is_hopeless = self._store(self.reports, report, values, may_prune)
                    if not all_finite(values):
                        return Outcome.DIVERGED, None, {}
                    if is_hopeless and not is_baseline:
                        return Outcome.PRUNED, values, {}
            self._check_lease()
            if epoch < study.epochs:  # asked to stop: the trial is saved and resumed by another worker
                raise _Stopped
            return Outcome.COMPLETE, values, {}
        except TrialPruned:
            return Outcome.PRUNED, values, {}
        except (TunerError, _Stopped, optuna.exceptions.StorageInternalError):
            raise
        except Exception as error:
            if is_interrupted(error):
                raise
            if is_out_of_memory(error):
                return Outcome.OUT_OF_MEMORY, None, {"error": storable(str(error))}
            return Outcome.FAILED, None, describe(error)

    def _warn_of_unused(self, trial: optuna.Trial) -> None:
        """Warn if a trial was queued with hyperparameters that it does not have."""
        given = self.context.storage.get_trial(self.lease.trial_id).system_attrs.get("fixed_params", {})
        unused = [f"{name}={value}" for name, value in given.items() if name not in trial.params]
        if unused:
            message = f"trial {trial.number} was queued with {', '.join(unused)}, which it does not use"
            self.context.say(HparamsUnused(trial.number, message))

    def _is_baseline(self) -> bool:
        if self.study.baseline is None:
            return False
        return self.context.storage.get_trial(self.lease.trial_id).params == self.study.baseline_params

    def _is_hopeless(self, pruner: TrialPruner, epoch: int, value: float) -> bool:
        """Ask the pruner; if the database goes down, do not wait, and do not prune."""
        try:
            with hurried(dataclasses.replace(PROMPT, is_over=self.context.must_end)):
                return pruner.should_prune(epoch, value)
        except StorageLost:
            return False

    def _must_stop(self) -> bool:
        watch = self.watch
        self.context.say_seconds()
        return self.context.stop.requested or watch.is_lost.is_set() or watch.must_stop.is_set()

    def _restart(self, why: str) -> None:
        """Delete the trial's reports, because its checkpoint does not fit the study's file any more."""
        leases.forget_reports(self.context.engine, self.lease)
        self.context.say(TrialRestarted(self.lease.number, why))

    def _check_lease(self) -> None:
        if self.watch.is_lost.is_set():
            raise LeaseLost(f"trial {self.lease.number} was taken over by another worker")

    def _keep(self, reports: Reports, earlier: Iterable[Report]) -> None:
        """Store the reports from before a restart with the next one."""
        several = list(earlier)
        reports.keep(several)
        self.curve |= {report.epoch: report.values(self.objectives)[0] for report in several}

    def _store(self, reports: Reports, report: Report, values: list[float], may_prune: bool) -> bool:
        self._check_lease()
        self.curve[report.epoch] = values[0]
        is_hopeless = reports.store(report, may_prune=may_prune)
        self.context.say(EpochEnded(self.lease.number, report.epoch, report.step, values))
        return is_hopeless

    def _finish_reports(self, engine: Engine) -> None:
        """Wait until all reports are stored, for as long as this engine waits."""
        if self.reports is not None:
            self.reports.finish(engine)

    def _after_trial(self, outcome: Outcome, values: list[float] | None) -> BaseException | None:
        """Tell the sampler the end of the trial before it is stored, like `optuna.Study.tell`.

        With a Hyperband pruner it gets the study of the trial's bracket.

        Returns:
            The error that the sampler raised. The trial has ended anyway and must be stored first.
        """
        from optuna.exceptions import StorageInternalError
        from optuna.trial import TrialState

        if not self.is_asked:  # `before_trial` failed, so Optuna has no trial
            return None
        state = {Outcome.COMPLETE: TrialState.COMPLETE, Outcome.FAILED: TrialState.FAIL}
        storage = self.context.storage
        storage.flush(self.lease.trial_id)  # suggestions before an error; later ones are written immediately
        frozen = storage.get_trial(self.lease.trial_id)
        if len(self.objectives) == 1:
            frozen.intermediate_values = dict(self.curve)
        study = private.filter_study(self._optuna_study(), frozen)
        try:
            with self.context.time_use.doing("training"):
                study.sampler.after_trial(study, frozen, state.get(outcome, TrialState.PRUNED), values)
        except (LeaseLost, StorageLost, StorageInternalError):
            raise  # the database is down
        except BaseException as error:
            return error
        return None

    def _optuna_study(self) -> optuna.Study:
        """Return the study for a sampler: without a stale copy of the trials, and with `Study.stop` allowed."""
        study = self.context.optuna_study
        private.forget_trials(study)
        private.allow_stop(study)
        return study

    # --- Ends

    def _is_tried_again(self, checkpoints: Checkpoints, record: Mapping[str, str]) -> bool:
        """Give back a failed trial to be retried, unless it has failed too often; return whether it is retried."""
        context, lease, error = self.context, self.lease, hide_password(record["error"])
        if not leases.retry(context.engine, lease, error, self.study.retries):
            return False
        checkpoints.close()
        private.forget_stop(context.optuna_study)  # the search continues with this trial
        context.say(TrialRetried(lease.number, last_line(error)))
        return True

    def _end(
        self, checkpoints: Checkpoints, outcome: Outcome, values: list[float] | None, record: dict[str, Any]
    ) -> None:
        """Store how the trial ended."""
        context, lease = self.context, self.lease
        if "error" in record:
            record["error"] = hide_password(record["error"])
        began, compile_s, compilations = self.began
        compile_s = self.clock.total_s - compile_s
        record |= {
            "worker": lease.worker,
            "compilations": self.clock.count - compilations,
            "compile_s": round(compile_s, 4),
            "train_s": round(time.perf_counter() - began - compile_s, 4),
        }
        path = self._keep_best(checkpoints, outcome, values)
        if path is not None:
            record["checkpoint"] = path
        leases.tell(context.engine, lease, outcome, values, record)
        checkpoints.delete_latest()
        if checkpoints.folder.exists():  # with the best checkpoint, or only with pictures
            collect(context.folder, partial(removable, context.engine, context.study_id, **self._best_k()))
        context.say(TrialEnded(lease.number, outcome, values, record["train_s"], record["compile_s"]))

    def _best_k(self) -> dict[str, Any]:
        return {"keep": self.study.keep_best, "maximize": self.study.all_directions[0] == "maximize"}

    def _keep_best(self, checkpoints: Checkpoints, outcome: Outcome, values: list[float] | None) -> str | None:
        """Save the best checkpoint if the trial is among the best of the study; return its path."""
        if outcome is not Outcome.COMPLETE or values is None or not self.study.keep_best:
            return None
        context = self.context
        if not is_feasible(context.storage.get_trial(self.lease.trial_id).constraints):
            return None
        if not is_among_best(context.engine, context.study_id, values[0], **self._best_k()):
            return None
        path = checkpoints.write_best()
        return None if path is None else str(path)

    def _give_back(self) -> None:
        context = self.context
        engine = context.final_writes.engine()
        try:
            self._finish_reports(engine)
        finally:
            leases.release(engine, self.lease)
        context.say(TrialReleased(self.lease.number))
