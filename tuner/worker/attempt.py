"""One worker's run of one trial, from the claim to its end or until it is given back."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from tuner.artifacts import collect, trial_folder
from tuner.errors import LeaseLost, StorageLost, TrialPruned, TunerError
from tuner.failures import describe, storable
from tuner.search import TrialPruner
from tuner.storage import claims, hide_password, leases
from tuner.storage.fences import Lease
from tuner.storage.queries import BASELINE_KEY, rank_of, superfluous
from tuner.storage.renewal import Watch, renewed
from tuner.storage.reporter import Reporter
from tuner.storage.studies import agree
from tuner.study import trial_seed
from tuner.trial import Outcome, Report, all_finite

if TYPE_CHECKING:
    import optuna

    from tuner.training.checkpoints import Checkpoints
    from tuner.worker.loop import Worker


class _Stopped(Exception):
    """The trial is to be given back in the middle."""


class Attempt:
    """One worker's run of one trial.

    Args:
        worker: The worker.
        lease: Its claim on the trial.
    """

    def __init__(self, worker: Worker, lease: Lease) -> None:
        self.worker, self.lease, self.study = worker, lease, worker.study
        self.objectives = worker.study.objectives
        self.reporter = Reporter(worker.prompt_engine, lease, self.objectives[0] if len(self.objectives) == 1 else None)
        self.watch = Watch()
        self.clock = worker.place.clock
        self.began = time.perf_counter(), self.clock.total_s, self.clock.count

    def run(self) -> None:
        """Run the trial to its end, or give it back.

        Raises:
            LeaseLost: another worker has the trial.
            TunerError: the study cannot run as it is written, or the database stays away.
        """
        from tuner.training.checkpoints import Checkpoints

        worker, lease = self.worker, self.lease
        folder = trial_folder(worker.folder, lease.number)
        checkpoints = Checkpoints(folder, every_s=self.study.save_every_s, writes_best=False)
        must_stop = partial(claims.must_stop, worker.prompt_engine, worker.claimant)
        with renewed(worker.engine, lease, must_stop) as self.watch, checkpoints, self._held():
            try:
                with worker.account.doing("training"):
                    trial = self._ask()
                    outcome, values, record = self._train(trial, checkpoints)
                    self.reporter.flush(worker.engine)
                    self._after_trial(trial, outcome, values)
                if outcome is Outcome.COMPLETE and self._is_baseline(trial):
                    agree(worker.engine, worker.study_id, BASELINE_KEY, {"number": lease.number})
                self._end(checkpoints, outcome, values, record)
            except _Stopped:
                checkpoints.close()  # what is saved must be there before another worker looks for it
                self._give_back()
            except LeaseLost:
                raise
            except BaseException:
                # Not this trial's fault: a study that cannot run as it is written, a database that is away, Ctrl-C.
                with contextlib.suppress(TunerError):
                    leases.release(worker.brief_engine(), lease)
                raise

    @contextlib.contextmanager
    def _held(self) -> Any:
        try:
            yield
        finally:
            self.worker.storage.drop(self.lease.trial_id)

    def _ask(self) -> optuna.Trial:
        """Return the Optuna trial of the claimed trial, with the sampler for its number."""
        import optuna

        worker = self.worker
        worker.storage.hold(self.lease, worker.study_id)
        if self.study.baseline is not None and self.lease.number == 0:
            # Optuna's own way to give a trial its hyperparameters; it suggests no others then.
            worker.storage.set_trial_system_attr(self.lease.trial_id, "fixed_params", self.study.baseline_params)
        worker.optuna_study.sampler = worker.sampler_of(self.lease)
        self._forget_trials()
        return optuna.trial.Trial(worker.optuna_study, self.lease.trial_id)

    def _train(
        self, trial: optuna.Trial, checkpoints: Checkpoints
    ) -> tuple[Outcome, list[float] | None, dict[str, str]]:
        """Return how the trial ended, its last values, and what is to be recorded of its error if it failed."""
        import optuna

        from tuner.training.runtime import is_out_of_memory

        worker, study, lease = self.worker, self.study, self.lease
        values = None
        try:
            hparams = study.sample(trial)
            worker.storage.flush(lease.trial_id)
            worker.say({"event": "trial", "trial": lease.number, "hparams": trial.params})
            pruner, is_baseline = TrialPruner(worker.optuna_study, trial), self._is_baseline(trial)
            reports = study.trainer.train_model(
                hparams,
                worker.splits,
                epochs=study.epochs,
                seed=trial_seed(study.seed, lease.number, "training"),
                objective=self.objectives[0],
                direction=study.all_directions[0],
                checkpoints=checkpoints,
                about={**worker.place.about, "trial": lease.number},
                layout=worker.place.layout,
                optimizer_rules=worker.optimizer_rules,
                choose=worker.mode_of,
                stop=self._must_stop,
            )
            epoch = 0
            with contextlib.closing(reports):
                for report in reports:
                    if epoch == 0 and checkpoints.restored is not None:
                        self.reporter.keep(Report(**earlier) for earlier in checkpoints.restored["reports"])
                    epoch, values = report.epoch, report.values(self.objectives)
                    is_stored = self._store(report, values)
                    if not all_finite(values):
                        return Outcome.DIVERGED, None, {}
                    # The last report is the result: there is nothing left to save by pruning it. And while the
                    # database is away nothing can be compared.
                    may_prune = is_stored and report.epoch < study.epochs and len(values) == 1
                    if may_prune and self._is_hopeless(pruner, report.epoch, values[0]) and not is_baseline:
                        return Outcome.PRUNED, values, {}
            self._check_lease()
            if epoch < study.epochs:  # asked to stop: saved, to go on elsewhere
                raise _Stopped
            return Outcome.COMPLETE, values, {}
        except TrialPruned:
            return Outcome.PRUNED, values, {}
        except (TunerError, _Stopped, optuna.exceptions.StorageInternalError):
            raise
        except Exception as error:
            if is_out_of_memory(error):
                return Outcome.OUT_OF_MEMORY, None, {"error": storable(str(error))}
            return Outcome.FAILED, None, describe(error)

    def _is_baseline(self, trial: optuna.Trial) -> bool:
        return self.study.baseline is not None and trial.params == self.study.baseline_params

    def _is_hopeless(self, pruner: TrialPruner, epoch: int, value: float) -> bool:
        """Ask the pruner; a database that goes away meanwhile is not waited for, and prunes nothing."""
        storage = self.worker.storage
        waiting, storage.engine = storage.engine, self.worker.prompt_engine
        try:
            return pruner.should_prune(epoch, value)
        except StorageLost:
            return False
        finally:
            storage.engine = waiting

    def _must_stop(self) -> bool:
        watch = self.watch
        self.worker.say_seconds()
        return self.worker.stop.requested or watch.is_lost.is_set() or watch.must_stop.is_set()

    def _check_lease(self) -> None:
        if self.watch.is_lost.is_set():
            raise LeaseLost(f"trial {self.lease.number} was taken over by another worker")

    def _store(self, report: Report, values: list[float]) -> bool:
        self._check_lease()
        is_stored = self.reporter.store(report)
        where = {"trial": self.lease.number, "epoch": report.epoch, "step": report.step}
        self.worker.say({"event": "report", **where, "values": values})
        return is_stored

    def _after_trial(self, trial: optuna.Trial, outcome: Outcome, values: list[float] | None) -> None:
        """Let the sampler see the end of the trial, as `optuna.Study.tell` does."""
        from optuna.trial import TrialState

        state = {Outcome.COMPLETE: TrialState.COMPLETE, Outcome.FAILED: TrialState.FAIL}
        frozen = self.worker.storage.get_trial(trial._trial_id)
        self._forget_trials()
        study = self.worker.optuna_study
        study.sampler.after_trial(study, frozen, state.get(outcome, TrialState.PRUNED), values)

    def _forget_trials(self) -> None:
        """Drop the copy of all trials that Optuna keeps for the length of one of its own trials."""
        self.worker.optuna_study._thread_local.cached_all_trials = None

    # --- Ends

    def _end(
        self, checkpoints: Checkpoints, outcome: Outcome, values: list[float] | None, record: dict[str, Any]
    ) -> None:
        """Tell the storage how the trial ended; one that failed is tried again, if it has not been too often."""
        worker, lease = self.worker, self.lease
        if "error" in record:
            record["error"] = hide_password(record["error"])
        if outcome is Outcome.FAILED and leases.retry(worker.engine, lease, record["error"], self.study.retries):
            checkpoints.close()
            last_line = record["error"].rstrip().rpartition("\n")[2]
            worker.say({"event": "retry", "level": "warning", "trial": lease.number, "error": last_line})
            return
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
        leases.tell(worker.engine, lease, outcome, values, record)
        checkpoints.delete_latest()
        if checkpoints.folder.exists():  # with the best checkpoint, or with pictures only
            collect(worker.folder, partial(superfluous, worker.engine, worker.study_id, **self._best_k()))
        took = {name: record[name] for name in ("train_s", "compile_s")}
        worker.say({"event": "end", "trial": lease.number, "outcome": outcome, "values": values, **took})

    def _best_k(self) -> dict[str, Any]:
        return {"keep": self.study.keep_best, "maximize": self.study.all_directions[0] == "maximize"}

    def _keep_best(self, checkpoints: Checkpoints, outcome: Outcome, values: list[float] | None) -> str | None:
        """Save the best checkpoint of a trial that is among the best of the study; return where."""
        if outcome is not Outcome.COMPLETE or values is None or not self.study.keep_best:
            return None
        maximize = self.study.all_directions[0] == "maximize"
        if rank_of(self.worker.engine, self.worker.study_id, values[0], maximize=maximize) >= self.study.keep_best:
            return None
        path = checkpoints.write_best()
        return None if path is None else str(path)

    def _give_back(self) -> None:
        worker = self.worker
        engine = worker.brief_engine()
        self.reporter.flush(engine)
        leases.release(engine, self.lease)
        worker.say({"event": "end", "trial": self.lease.number, "outcome": "released"})
