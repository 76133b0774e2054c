"""Ends a study early, for all its workers, if its target, patience or terminator says so."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING

from tuner.errors import StudyError
from tuner.results.confidence import single_difference
from tuner.results.stopping import End, at_target, recorded_end, without_progress
from tuner.storage.read.queries import END_KEY
from tuner.storage.read.ranking import count_ended, read_results
from tuner.storage.worker.confirmations import read_confirmations
from tuner.storage.worker.studies import end_study, put_record, reopen_study
from tuner.study import StudySpec
from tuner.trial import optuna_private as private

if TYPE_CHECKING:
    import optuna
    from sqlalchemy import Engine


class StopRules:
    """The settings of a study that end it early.

    Args:
        study: The study.
        study_id: Its id.
        optuna_study: The study for its terminator; None if it has none.
    """

    def __init__(self, study: StudySpec, study_id: int, optuna_study: optuna.Study) -> None:
        self._study, self._study_id, self._optuna_study = study, study_id, optuna_study
        self._terminator = None if study.terminator is None else study.make_terminator()
        self._is_any = bool(study.targets) or study.patience is not None or self._terminator is not None
        self._judged = -1  # the number of ended trials at the latest judgement

    def reopen(self, engine: Engine) -> End | None:
        """Let a study that a rule has ended go on if the present rules do not end it; return why it has ended.

        Raises:
            StudyError: the terminator cannot judge the study.

        Concurrency: safe from many workers with the same rules.
        """
        ended = recorded_end(engine, self._study_id)
        if ended is None:
            return None
        found = self._judge(engine) if self._is_any else None
        if found is None:
            reopen_study(engine, self._study_id)
        elif found != ended:
            put_record(engine, self._study_id, END_KEY, asdict(found))
        return found

    def apply(self, engine: Engine) -> None:
        """End the study for all workers if a rule says so; looks again only after a trial has ended.

        Raises:
            StudyError: the terminator cannot judge the study.

        Concurrency: the first worker that ends the study records why.
        """
        if not self._is_any:
            return
        count = count_ended(engine, self._study_id)
        if count == self._judged:
            return
        found = self._judge(engine)
        self._judged = count
        if found is not None:
            end_study(engine, self._study_id, asdict(found))

    def _judge(self, engine: Engine) -> End | None:
        study, results = self._study, read_results(engine, self._study_id, len(self._study.objectives))
        found = at_target(results, study)
        if found is None and study.patience is not None:
            measured = single_difference(read_confirmations(engine, self._study_id))
            found = without_progress(results, study, measured)
        if found is None and self._terminator is not None and self._is_terminated():
            found = End("terminator", f"Optuna's terminator {self._label()} expects no more improvement", None)
        return found

    def _is_terminated(self) -> bool:
        assert self._terminator is not None
        private.forget_trials(self._optuna_study)
        try:
            with warnings.catch_warnings(action="ignore"):
                return self._terminator.should_terminate(self._optuna_study)
        except (ValueError, ImportError) as error:
            raise StudyError(
                f"the terminator {self._label()} cannot judge study {self._study.name!r}: {error}"
            ) from None

    def _label(self) -> str:
        from tuner.search.terminators import name_of

        return repr(name_of(self._study.terminator))
