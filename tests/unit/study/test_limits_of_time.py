"""The limits of time of a study's trials."""

from __future__ import annotations

from typing import Any

import pytest

from tuner import Space, Study, uniform
from tuner.errors import StudyError


class HParams(Space):
    rate: float = uniform(0.0, 1.0)


def study(**changes: Any) -> Study:
    given: dict[str, Any] = {"objective": "score", "direction": "maximize", "trials": 2, **changes}
    return Study(name="limited", space=HParams, train=lambda hparams, trial: 1.0, **given)


@pytest.mark.parametrize("setting", ["trial_minutes", "stall_minutes"])
@pytest.mark.parametrize("value", [0, -1.5, float("nan"), True, "30"])
def test_a_limit_is_a_number_of_minutes_above_zero(setting: str, value: object) -> None:
    with pytest.raises(StudyError, match=f"{setting} must be a number of minutes above 0: got {value!r}"):
        study(**{setting: value})


def test_limits_may_change_between_launches() -> None:
    limited = study(trial_minutes=30, stall_minutes=2.5)
    limited.check_unchanged(study().record())
    changed = limited.changed(trial_minutes=45.0, stall_minutes=None)
    assert (changed.trial_minutes, changed.stall_minutes) == (45.0, 2.5)
