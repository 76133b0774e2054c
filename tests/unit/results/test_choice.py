"""Which trial of a Pareto front a command takes, against geometry and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.errors import UsageError
from tuner.results.choice import pareto_front, preferred
from tuner.storage.read.queries import StudyRow, TrialRow
from tuner.trial import Outcome

PAIR = StudyRow(1, "pair", ("maximize", "minimize"), {"objective": ["accuracy", "size"]})


def trials_of(*values: tuple[float, ...]) -> list[TrialRow]:
    return [TrialRow(at, at, Outcome.COMPLETE, None, None, list(own)) for at, own in enumerate(values)]


FRONT = trials_of((0.99, 100.0), (0.97, 20.0), (0.90, 10.0), (0.60, 1.0))
"""Scaled: (0, 1), (0.051, 0.19), (0.23, 0.09) and (1, 0)."""


def numbers(prefer: str | None, front: list[TrialRow] = FRONT, study: StudyRow = PAIR) -> list[int]:
    return [trial.number for trial in preferred(study, front, prefer)]


def test_an_objective_orders_the_front_by_itself_and_the_knee_by_balance() -> None:
    assert numbers("accuracy") == [0, 1, 2, 3]
    assert numbers("size") == [3, 2, 1, 0]
    assert numbers("knee") == [1, 2, 0, 3]


def test_without_a_rule_no_trial_is_taken() -> None:
    with pytest.raises(UsageError, match=r"4 trials on its Pareto front: choose .* one of accuracy, size, knee as `pr"):
        preferred(PAIR, FRONT, None)
    with pytest.raises(UsageError, match=r"`prefer` must be one of accuracy, size, knee: got 'sizes'; did you mean 's"):
        preferred(PAIR, FRONT, "sizes")
    assert numbers(None, FRONT[2:3]) == [2], "one trial needs no choice"
    equal = trials_of((0.5, 1.0), (0.5, 1.0))
    assert numbers(None, equal) == [0, 1], "nor do equal ones, of which the earlier is as good"


@pytest.mark.parametrize("values", [((1.0, 2.0), (0.0, 1.0)), ((0.0, 0.0), (1.0, 1.0), (2.0, 2.0))])
def test_a_straight_front_has_no_knee(values: tuple[tuple[float, float], ...]) -> None:
    front = trials_of(*values)
    with pytest.raises(UsageError, match=r"has no knee: trials 0, 1.* balance the objectives equally well; choose one"):
        preferred(PAIR, front, "knee")
    assert numbers("size", front)[0] == (1 if len(values) == 2 else 0)


def test_an_objective_that_is_not_finite_is_never_the_knee() -> None:
    front = trials_of((math.inf, 100.0), (0.97, 20.0), (0.90, 10.0), (0.60, -math.inf), (0.95, 12.0))
    assert numbers("knee", front)[0] in (1, 2, 4)
    assert numbers("accuracy", front)[0] == 0


points = st.lists(st.tuples(*[st.integers(0, 1000)] * 2), min_size=3, max_size=30, unique=True)


@settings(deadline=None, max_examples=100)
@given(points=points)
def test_the_knee_is_the_trial_farthest_from_the_line_between_the_ends(points: list[tuple[int, int]]) -> None:
    front = pareto_front(trials_of(*[(float(a), float(b)) for a, b in points]), PAIR.maximize)
    values = np.array([trial.values for trial in front]) * [-1, 1]  # costs
    width = np.ptp(values, axis=0)
    if not width.all():
        return
    scaled = (values - values.min(axis=0)) / width
    start, end = scaled[scaled[:, 0].argmin()], scaled[scaled[:, 0].argmax()]
    along, away = end - start, scaled - start
    towards_best = (along[1] * away[:, 0] - along[0] * away[:, 1]) / np.hypot(*along)  # signed distance
    best = np.abs(towards_best - towards_best.max()) < 1e-6
    if best.sum() == 1:
        assert preferred(PAIR, front, "knee")[0].number == front[int(best.argmax())].number
