"""A study tried out without running it: what would fail in every trial is found before anything is stored."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from tuner.errors import PACKAGE, StudyError, TunerError
from tuner.study import Study


def check_study(study: Study, splits: Any) -> None:
    """Trace the training for an example of each conditional branch, before anything is stored.

    Raises:
        UsageError: see `tuner.training.loop.checks.check_trainer`.
    """
    import optuna

    from tuner.study.domains import is_space
    from tuner.study.space import examples
    from tuner.training.loop.checks import check_trainer

    if is_space(study.space):
        candidates = examples(study.space)
    else:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.RandomSampler(seed=study.seed)
        trial = optuna.create_study(sampler=sampler).ask()
        candidates = iter([in_words("the space's function must return hyperparameters", study.sample, trial)])
    for hparams in candidates:
        in_words("the trainer must run", check_trainer, study.trainer, hparams, splits, study.objectives, study.epochs)


def in_words(must: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the study's author; of an error tell in one line what and where it was."""
    try:
        return function(*arguments)
    except TunerError:
        raise
    except Exception as error:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "site-packages" not in frame.filename and not frame.filename.startswith(PACKAGE)
        ] or traceback.extract_tb(error.__traceback__)
        last = frames[-1]
        reason = str(error).strip().partition("\n")[0]
        raise StudyError(f"{must}: {last.filename}:{last.lineno}: {type(error).__name__}: {reason}") from error
