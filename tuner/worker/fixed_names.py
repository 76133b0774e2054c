"""What `partial_fixed` fixes in a study whose hyperparameters are known only once a trial has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from tuner.errors import nearest
from tuner.study.space import is_space
from tuner.trial import optuna_private as private

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from tuner.study import StudySpec


class FixedNames:
    """Finds fixed names that no trial has, once.

    Args:
        study: The study. A `Space` class was checked when it was defined.
    """

    def __init__(self, study: StudySpec) -> None:
        sampler: Any = study.sampler
        given: Mapping[str, Any] = cast("Any", sampler) if isinstance(sampler, Mapping) else {}
        is_unknown = given.get("name") == "partial_fixed" and not is_space(study.space)
        self._names: Sequence[str] = [str(name) for name in given["fixed"]] if is_unknown else ()

    def check(self, read: Callable[[], Sequence[FrozenTrial]]) -> list[str]:
        """Return a line for each fixed name that no ended trial has; nothing before one has hyperparameters.

        Args:
            read: Returns the trials of the study; it is only called until one has hyperparameters.
        """
        if not self._names:
            return []
        known = sorted({name for trial in read() if trial.state.is_finished() for name in private.params(trial)})
        if not known:
            return []
        unseen = [name for name in self._names if name not in known]
        self._names = ()
        return [
            f"the sampler 'partial_fixed' fixes {name!r}, which no trial has suggested so far: they have "
            f"{', '.join(known)}{nearest(name, known)}"
            for name in unseen
        ]
