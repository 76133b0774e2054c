"""The only join: claim a trial, train it, report, prune, tell. One worker runs trials one after another."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.artifacts import artifacts_folder, collect, study_folder, trial_folder
from tuner.devices import DEVICES_VARIABLE
from tuner.errors import LeaseLost, StudyStopped, TrialPruned, TunerError
from tuner.failures import ANY_FAILURES, describe, reason_to_stop
from tuner.search import TrialPruner
from tuner.storage import connect, leases, open_storage, storage_url
from tuner.storage.leases import Lease
from tuner.storage.queries import failed_trials, last_errors, rank_of, read_system_attributes, superfluous
from tuner.storage.studies import agree, mode_of, register
from tuner.study import Study, trial_seed
from tuner.trial import Event, Outcome, Report, Stop, all_finite

if TYPE_CHECKING:
    import optuna
    from sqlalchemy import Engine


LEASE_S = 30.0
_POLL_S = 0.5


class _Stopped(Exception):
    """The worker was asked to stop in the middle of a trial."""


def default_name() -> str:
    """Return a worker's name: unique among the processes of this and other machines."""
    return os.environ.get("TUNER_WORKER") or f"{socket.gethostname()}:{os.getpid()}:{os.urandom(2).hex()}"


def run_worker(
    study: Study,
    storage: str | None = None,
    *,
    artifacts: str | None = None,
    file: str | None = None,
    name: str | None = None,
    say: Callable[[Event], None] = lambda event: None,
    stop: Stop | None = None,
) -> None:
    """Run trials of a study until its budget is spent.

    Args:
        study: The study.
        storage: Its storage's URL; `$TUNER_STORAGE`, else `sqlite:///tuner.db`, if None.
        artifacts: The folder for checkpoints; `$TUNER_ARTIFACTS`, else `tuner-artifacts`, if None. Workers on several
            machines that share one can go on with each other's trials.
        file: The study's file, which checkpoints refer to.
        name: The worker's name.
        say: Called with each event.
        stop: Set by somebody else to end early.

    Raises:
        UsageError: the study cannot run as it is written; nothing has been stored.
        StudyStopped: the same error ended three trials in a row; the message has its traceback.
        StorageLost: the database cannot be reached.

    Concurrency: any number of workers, on any number of machines.
    """
    from tuner.rehearsal import check_study, in_words
    from tuner.training.runtime import CompileClock, missing_accelerator, use_persistent_cache, worker_layout

    url = storage_url(storage)
    use_persistent_cache()
    devices = os.environ.get(DEVICES_VARIABLE, "")
    warning = missing_accelerator(devices)
    if warning:
        print(f"tuner: {warning}", file=sys.stderr)
    splits = in_words("data(seed) must return the data", study.data, study.seed)
    check_study(study, splits)
    optuna_storage = open_storage(url)
    engine = connect(url)
    about = {"study": study.name, "file": None if file is None else os.path.abspath(file)}
    place = _Place(artifacts_folder(artifacts), about, worker_layout(devices), CompileClock())
    worker = _Worker(study, splits, optuna_storage, engine, name or default_name(), say, stop or Stop(), place)
    try:
        worker.run()
    finally:
        engine.dispose()
        optuna_storage.remove_session()


@dataclass
class _Place:
    """Where a worker's trials run and leave their files."""

    artifacts: Path
    about: dict[str, Any]
    layout: Any
    clock: Any


class _Worker:
    """The claim-train-tell loop of one process."""

    def __init__(
        self,
        study: Study,
        splits: Any,
        storage: optuna.storages.BaseStorage,
        engine: Engine,
        name: str,
        say: Callable[[Event], None],
        stop: Stop,
        place: _Place,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study, self.splits, self.storage, self.engine = study, splits, storage, engine
        self.name, self.say, self.stop, self.place = name, say, stop, place
        self.study_id, recorded = register(storage, engine, study.name, study.all_directions, study.record())
        study.check_unchanged(recorded)
        identity = agree(engine, self.study_id, "tuner:id", uuid.uuid4().hex)
        self.folder = study_folder(place.artifacts, study.name, identity)
        self.optuna_study = optuna.load_study(
            study_name=study.name, storage=storage, sampler=study.make_sampler(0), pruner=study.make_pruner()
        )
        # What failed before was perhaps mended since. Before the launch, not before this worker: one that starts later
        # than the others, or again, would let the same error end three trials more.
        began_s = float(os.environ.get("TUNER_LAUNCHED_AT") or time.time())
        self.failed_before = failed_trials(engine, self.study_id, began_s)
        self.claimed_any = False

    def run(self) -> None:
        """Claim and run trials until the budget is spent or a stop is asked for."""
        study = self.study
        self.say(
            {"event": "study", "study": study.name, "trials": study.trials, "objective": ", ".join(study.objectives)}
        )
        is_idle = False
        while not self.stop.requested:
            self._stop_after_failures()
            lease = leases.claim(self.engine, self.study_id, self.name, budget=self.study.trials, lease_s=LEASE_S)
            if lease is leases.NoTrial.DONE:
                break
            if isinstance(lease, leases.NoTrial):
                if not is_idle:
                    self.say({"event": "idle"})
                is_idle = True
                time.sleep(_POLL_S)
                continue
            is_idle = False
            with contextlib.suppress(LeaseLost):
                self._run_trial(lease)
        self.say({"event": "done"})

    def _stop_after_failures(self) -> None:
        errors = last_errors(self.engine, self.study_id, ANY_FAILURES, self.failed_before)
        reason = reason_to_stop([kind for kind, _ in errors])
        if reason is not None:
            raise StudyStopped(
                f"study {self.study.name!r} stopped: {reason}; mend it and launch again\n{errors[0][1].rstrip()}"
            )

    def _run_trial(self, lease: Lease) -> None:
        """Run one claimed trial to its end, or give it back."""
        from tuner.training.checkpoints import Checkpoints

        clock = self.place.clock
        began, compile_s, compilations = time.perf_counter(), clock.total_s, clock.count
        folder, every_s = trial_folder(self.folder, lease.number), self.study.save_every_s
        checkpoints = Checkpoints(folder, every_s=every_s, writes_best=False)
        with leases.renewed(self.engine, lease) as is_lost, checkpoints:
            try:
                trial = self._ask(lease)
                outcome, values, attributes = self._train(lease, trial, checkpoints, is_lost)
                self._after_trial(trial, outcome, values)
            except _Stopped:
                checkpoints.close()  # what is saved must be there before another worker looks for it
                leases.release(self.engine, lease)
                self.say({"event": "end", "trial": lease.number, "outcome": "released"})
                return
            except LeaseLost:
                raise
            except BaseException:
                # Not this trial's fault: a study that cannot run as it is written, a database that is away, Ctrl-C.
                with contextlib.suppress(TunerError):
                    leases.release(self.engine, lease)
                raise
            compile_s = clock.total_s - compile_s
            attributes |= {
                "worker": self.name,
                "compilations": clock.count - compilations,
                "compile_s": round(compile_s, 4),
                "train_s": round(time.perf_counter() - began - compile_s, 4),
            }
            attributes |= self._keep_best(checkpoints, outcome, values)
            leases.tell(self.engine, lease, outcome, values, attributes)
            checkpoints.delete_latest()
        if "checkpoint" in attributes:
            collect(self.folder, partial(superfluous, self.engine, self.study_id, **self._best_k()))
        self.say({"event": "end", "trial": lease.number, "outcome": outcome, "values": values})

    def _best_k(self) -> dict[str, Any]:
        return {"keep": self.study.keep_best, "maximize": self.study.all_directions[0] == "maximize"}

    def _keep_best(self, checkpoints: Any, outcome: Outcome, values: list[float] | None) -> dict[str, str]:
        """Save the best checkpoint of a trial that is among the best of the study; return where."""
        maximize = self.study.all_directions[0] == "maximize"
        if outcome is not Outcome.COMPLETE or values is None or not self.study.keep_best:
            return {}
        if rank_of(self.engine, self.study_id, values[0], maximize=maximize) >= self.study.keep_best:
            return {}
        path = checkpoints.write_best()
        return {} if path is None else {"checkpoint": str(path)}

    def _ask(self, lease: Lease) -> optuna.Trial:
        """Return the Optuna trial of a claimed trial, with the sampler for its number."""
        import optuna

        sampler = self.study.make_sampler(lease.number)
        is_first, self.claimed_any = not self.claimed_any, True
        if sampler is self.study.sampler and is_first and (lease.number > 0 or lease.fence > 1):
            # An Optuna object starts from its own seed in every process: all workers would suggest the same.
            sampler.reseed_rng()
        self.optuna_study.sampler = sampler
        self._forget_trials()
        # Optuna's cache must have met a trial that it did not create.
        self.storage.get_all_trials(self.study_id, deepcopy=False)
        return optuna.trial.Trial(self.optuna_study, lease.trial_id)

    def _train(
        self, lease: Lease, trial: optuna.Trial, checkpoints: Any, is_lost: threading.Event
    ) -> tuple[Outcome, list[float] | None, dict[str, str]]:
        """Return how the trial ended, its last values, and attributes that describe its error if it failed."""
        import optuna

        from tuner.training.runtime import is_out_of_memory

        values = None
        try:
            hparams = self.study.sample(trial)
            self.say({"event": "trial", "trial": lease.number, "hparams": trial.params})
            pruner = TrialPruner(self.optuna_study, trial, partial(read_system_attributes, self.engine))
            seed = trial_seed(self.study.seed, lease.number, "training")
            reports = self.study.trainer.train_model(
                hparams,
                self.splits,
                epochs=self.study.epochs,
                seed=seed,
                objective=self.study.objectives[0],
                direction=self.study.all_directions[0],
                checkpoints=checkpoints,
                about={**self.place.about, "trial": lease.number},
                layout=self.place.layout,
                choose=partial(mode_of, self.engine, self.study_id),
                stop=lambda: self.stop.requested or is_lost.is_set(),
            )
            epoch = 0
            with contextlib.closing(reports):
                for report in reports:
                    epoch, values = report.epoch, report.values(self.study.objectives)
                    self._store(lease, report, values, is_lost)
                    if not all_finite(values):
                        return Outcome.DIVERGED, None, {}
                    # The last report is the result: there is nothing left to save by pruning it.
                    is_last = report.epoch == self.study.epochs
                    if not is_last and len(values) == 1 and pruner.should_prune(report.epoch, values[0]):
                        return Outcome.PRUNED, values, {}
            if is_lost.is_set():
                raise LeaseLost(f"trial {lease.number} was taken over by another worker")
            if epoch < self.study.epochs:  # asked to stop: saved, to go on elsewhere
                raise _Stopped
            return Outcome.COMPLETE, values, {}
        except TrialPruned:
            return Outcome.PRUNED, values, {}
        except (TunerError, _Stopped, optuna.exceptions.StorageInternalError):
            raise
        except Exception as error:
            if is_out_of_memory(error):
                return Outcome.OUT_OF_MEMORY, None, {"error": str(error)}
            return Outcome.FAILED, None, describe(error)

    def _store(self, lease: Lease, report: Report, values: list[float], is_lost: threading.Event) -> None:
        if is_lost.is_set():
            raise LeaseLost(f"trial {lease.number} was taken over by another worker")
        if len(values) == 1:
            leases.report(self.engine, lease, report.epoch, values[0])
        self.say({"event": "report", "trial": lease.number, "epoch": report.epoch, "values": values})

    def _after_trial(self, trial: optuna.Trial, outcome: Outcome, values: list[float] | None) -> None:
        """Let the sampler see the end of the trial, as `optuna.Study.tell` does."""
        from optuna.trial import TrialState

        state = {Outcome.COMPLETE: TrialState.COMPLETE, Outcome.FAILED: TrialState.FAIL}
        frozen = self.storage.get_trial(trial._trial_id)
        self._forget_trials()
        self.optuna_study.sampler.after_trial(self.optuna_study, frozen, state.get(outcome, TrialState.PRUNED), values)

    def _forget_trials(self) -> None:
        """Drop the copy of all trials that Optuna keeps for the length of one of its own trials."""
        self.optuna_study._thread_local.cached_all_trials = None
