"""Compiles a study's programs into the compile cache, so that its trials need not compile them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

from tuner.errors import StudyError, UsageError
from tuner.output.log import tell
from tuner.storage.artifacts import artifacts_of
from tuner.study import StudyData, StudySpec
from tuner.study.space import Space, is_space, static_combinations, static_names, to_params
from tuner.trial import Event, Stop
from tuner.trial.environment import DEVICES_VARIABLE
from tuner.trial.events import ProgramsCompiled
from tuner.trial.failures import describe, last_line

_MOST = 1000


def count_static(study: StudySpec) -> int:
    """Return the number of combinations of static hyperparameters whose programs can be compiled ahead; 0 if none."""
    return len(_combinations(study)) if study.trainer is not None and study.cohort == 1 else 0


def static_parameters(study: StudySpec) -> frozenset[str]:
    """Return the hyperparameters on which the programs of the study's trials depend."""
    return static_names(study.space) if study.trainer is not None and is_space(study.space) else frozenset()


def _combinations(study: StudySpec) -> list[Space]:
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
        StudyError: the programs of no combination can be compiled. Of some, a line is printed for each.
    """
    if study.trainer is None:
        raise UsageError(f"study {study.name!r} has no programs to compile ahead: it has no `trainer`")
    if study.cohort != 1:
        raise UsageError(
            f"study {study.name!r} has no programs to compile ahead: its trials train in cohorts, whose size is part "
            "of a program"
        )
    combinations, static = _combinations(study), static_parameters(study)
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
    if stop is not None:
        stop.is_heeded = True  # an exception of a signal in the middle of JAX would be printed
    clock, began_s = CompileClock(), time.perf_counter()
    assert study.data is not None
    assert study.epochs is not None
    data, done = StudyData(study.data, study.seed), 0
    compile_one = partial(compile_ahead, study.trainer, epochs=study.epochs, layout=layout)
    failed: list[str] = []
    for hparams in combinations:
        if stop is not None and stop.requested:
            break
        try:
            compile_one(hparams, data.for_hparams(hparams))
            done += 1
        except Exception as error:  # its trials will end in the same way
            values = ", ".join(f"{name}={value}" for name, value in to_params(hparams).items() if name in static)
            failed.append(f"{values}: {last_line(describe(error)['error'])}")
            tell(f"cannot compile the programs for {failed[-1]}", "compile", "warning")
        tidy()
    if failed and not done:
        raise StudyError(f"no program of study {study.name!r} can be compiled: {failed[0]}")
    if done:
        say(ProgramsCompiled(done, clock.count, clock.fetched, round(time.perf_counter() - began_s, 1)))
