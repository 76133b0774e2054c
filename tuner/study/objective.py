"""An Optuna objective, to be run by workers: `Study(train=OptunaObjective(objective))`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuner.errors import StudyError

if TYPE_CHECKING:
    from tuner.search import Followed
    from tuner.study.constraints import Constraint


@dataclass(frozen=True)
class OptunaObjective:
    """A function of an `optuna.Trial` that returns the value of the objective, or a list of several.

    Attributes:
        function: The function, as for `optuna.Study.optimize`.

    Raises:
        StudyError: this is not a function of one argument.
    """

    function: Callable[[Any], Any]

    def __post_init__(self) -> None:
        if not callable(self.function) or inspect.isclass(self.function) or not takes(self.function, 1):
            raise StudyError(f"an Optuna objective must be a function of a trial: got {self.function!r}")


def takes(function: Callable[..., Any], count: int) -> bool:
    """Return whether a function can be called with this number of positional arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # a built-in function without a signature
        return True
    return True


def check_watched(constraints: Sequence[Constraint], pruner: object, followed: Followed) -> None:
    """Raise StudyError if the constraints or the pruner of a study with an Optuna objective need other metrics."""
    from tuner.search import prunes_nothing

    if constraints:
        names = ", ".join(repr(constraint.metric) for constraint in constraints)
        raise StudyError(
            f"an Optuna objective reports no metrics: call trial.set_constraint(name, value) in it instead of "
            f"constraints= on {names}"
        )
    if followed.metric is not None or (len(followed.names) > 1 and not prunes_nothing(pruner)):
        raise StudyError(f"an Optuna objective can only be pruned by its one objective: got pruner={pruner!r}")
