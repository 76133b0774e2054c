"""Compiles a study's programs into the compile cache, so that its trials need not compile them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

from tuner.errors import UsageError
from tuner.storage.artifacts import artifacts_of
from tuner.study import StudyData, StudySpec
from tuner.study.source import call_study_code
from tuner.study.space import is_space, static_combinations, static_names
from tuner.trial import Event, Stop
from tuner.trial.environment import DEVICES_VARIABLE
from tuner.trial.events import ProgramsCompiled

_MOST = 1000


def count_static(study: StudySpec) -> int:
    """Return the number of combinations of static hyperparameters whose programs can be compiled ahead; 0 if none."""
    return len(_combinations(study)) if study.trainer is not None and study.cohort == 1 else 0


def static_parameters(study: StudySpec) -> frozenset[str]:
    """Return the hyperparameters on which the programs of the study's trials depend."""
    return static_names(study.space) if study.trainer is not None and is_space(study.space) else frozenset()


def _combinations(study: StudySpec) -> list[object]:
    return [*static_combinations(study.space, _MOST, study.fixed)] if is_space(study.space) else []


def compile_programs(
    study: StudySpec,
    *,
    artifacts: str | None = None,
    say: Callable[[Event], None] = lambda event: None,
    stop: Stop | None = None,
) -> None:
    """Compile the programs of all combinations of static hyperparameters, and run no trial.

    Args:
        study: The study.
        artifacts: As for `run_worker`; the programs are stored there if it is a folder.
        say: Called at the end with `ProgramsCompiled`.
        stop: Set by another thread to end after the present combination.

    Raises:
        UsageError: the study has no such programs, or too many combinations.
    """
    if study.trainer is None:
        raise UsageError(f"study {study.name!r} has no programs to compile ahead: it has no trainer=")
    if study.cohort != 1:
        raise UsageError(
            f"study {study.name!r} has no programs to compile ahead: its trials train in cohorts, whose size is part "
            "of a program"
        )
    combinations = _combinations(study)
    if not combinations:
        raise UsageError(
            f"study {study.name!r} has more than {_MOST} combinations of static hyperparameters, or a function as its "
            "space: their programs cannot be compiled ahead"
        )
    from tuner.training.loop.ahead import compile_ahead
    from tuner.training.loop.runtime import CompileClock, tidy, use_persistent_cache, worker_layout

    files = artifacts_of(artifacts)
    # Whoever needs a program now must not wait until this process, which may have no time on any core, has compiled it.
    use_persistent_cache(files.folder if files.store is None else None, locks=False)
    layout = worker_layout(os.environ.get(DEVICES_VARIABLE, ""))
    if layout.size > 1:
        raise UsageError("programs for several devices cannot be compiled ahead: give the worker one device")
    clock, began_s = CompileClock(), time.perf_counter()
    assert study.data is not None
    assert study.epochs is not None
    data, done = StudyData(study.data, study.seed), 0
    for hparams in combinations:
        if stop is not None and stop.requested:
            break
        splits = call_study_code(data.failure, data.for_hparams, hparams)
        compiling = partial(compile_ahead, study.trainer, hparams, splits, epochs=study.epochs, layout=layout)
        done += call_study_code("the trainer failed", _has_compiled, compiling)
        tidy()
    say(ProgramsCompiled(done, clock.count, clock.fetched, round(time.perf_counter() - began_s, 1)))


def _has_compiled(compiling: Callable[[], None]) -> bool:
    """Compile; return False if the program does not fit into memory, so that its trials end as `out_of_memory`."""
    try:
        compiling()
    except MemoryError:
        return False
    return True
