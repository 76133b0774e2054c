"""Tells a sampler the end of a trial, as `optuna.Study.tell` does, also of one that was ended elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tuner.errors import LeaseLost, StorageLost
from tuner.storage.worker import leases
from tuner.storage.worker.fences import Lease
from tuner.trial import Outcome
from tuner.trial import optuna_private as private
from tuner.trial.events import SamplerFailed
from tuner.trial.failures import describe, last_line

if TYPE_CHECKING:
    import optuna
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, TrialState

    from tuner.worker.context import WorkerContext

_ASIDE_S = 5.0


def optuna_study(context: WorkerContext) -> optuna.Study:
    """Return the study for a sampler: without a stale copy of the trials, and with `Study.stop` allowed."""
    study = context.optuna_study
    private.forget_trials(study)
    private.allow_stop(study)
    return study


def tell_sampler(
    context: WorkerContext,
    sampler: BaseSampler | None,
    trial: FrozenTrial,
    state: TrialState,
    values: Sequence[float] | None,
) -> BaseException | None:
    """Tell a sampler the end of a trial. With a Hyperband pruner it gets the study of the trial's bracket.

    Args:
        context: The context of the worker's trials.
        sampler: The sampler; None for the study's present one.
        trial: The trial as it was before its end, or after it.
        state: Its state at the end.
        values: Its values at the end.

    Returns:
        The error that the sampler raised.
    """
    from optuna.exceptions import StorageInternalError

    # Another trial of a cohort may ask its own sampler at the same time.
    own = private.copied(context.optuna_study)
    private.allow_stop(own)
    if sampler is not None:
        own.sampler = sampler
    study = private.filter_study(own, trial)
    try:
        with context.time_use.doing("training"):
            study.sampler.after_trial(study, trial, state, values)
    except (LeaseLost, StorageLost, StorageInternalError):
        raise  # the database is down
    except BaseException as error:
        return error
    finally:
        if private.has_stopped(own):
            private.note_stop(context.optuna_study)
    return None


def tell_of_end_elsewhere(context: WorkerContext, lease: Lease, sampler: BaseSampler | None = None) -> None:
    """Tell a sampler that a trial has ended which this worker did not end itself, if it has ended.

    An error of the sampler is a warning.

    Args:
        context: The context of the worker's trials.
        lease: A lease on the trial, which is over.
        sampler: The sampler of the trial, if the worker has run it; by default it is made.
    """
    context.storage.drop(lease.trial_id)  # to read it as others have stored it
    try:
        trial = context.storage.get_trial(lease.trial_id)
        if not trial.state.is_finished():
            return
        error = tell_sampler(context, sampler or context.samplers.make(lease), trial, trial.state, trial.values)
    except (LeaseLost, StorageLost, KeyError):  # it was deleted, or the database is down
        return
    except Exception as raised:
        error = raised
    if error is not None:
        if not isinstance(error, Exception):
            raise error
        why = last_line(describe(error)["error"])
        message = f"the sampler failed after trial {lease.number}, which was ended elsewhere: {why}"
        context.say(SamplerFailed(lease.number, message))


def was_ended_by_hand(context: WorkerContext, lease: Lease) -> bool:
    """Return whether a trial that this worker ran was ended by a user, not taken over by another worker."""
    try:
        return leases.find_ending(context.engine, lease) == Outcome.PRUNED.value
    except StorageLost:
        return False


def briefly(call: Callable[[], object]) -> None:
    """Make a call on a thread, and wait for it for a few seconds: the trial's own thread may have what it needs."""
    thread = threading.Thread(target=call, name="sampler", daemon=True)
    thread.start()
    thread.join(_ASIDE_S)
