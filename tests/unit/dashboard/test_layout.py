"""How pages write values: as text that is never HTML, and as lines of small pictures."""

from __future__ import annotations

import pytest

from tuner.dashboard.layout import polyline, size, state_class, step_line, study_link, study_query, trial_link

NASTY = "<script>alert(1)</script>\"'&"


def test_a_curve_is_drawn_from_its_finite_values() -> None:
    assert polyline([0.0, 5.0, 10.0], 104, 54) == "2.0,52.0 52.0,27.0 102.0,2.0"
    assert polyline([0.0, float("nan"), 10.0], 104, 54) == "2.0,52.0 102.0,2.0"
    assert polyline([3.0], 104, 54) == ""
    assert polyline([3.0, 3.0], 104, 54) == "2.0,52.0 102.0,52.0"


def test_the_best_value_is_a_line_with_steps() -> None:
    # 10 from trial 0, 5 from trial 2, 0 from trial 3 to the last, 4: 25 pixels a trial.
    steps = "2.0,2.0 52.0,2.0 52.0,27.0 77.0,27.0 77.0,52.0 102.0,52.0"
    assert step_line([(0, 10.0), (2, 5.0), (3, 0.0)], 4, 104, 54) == steps
    assert step_line([(1, 10.0)], 4, 104, 54) == "27.0,52.0 102.0,52.0"
    assert step_line([(0, 10.0)], 0, 104, 54) == "2.0,52.0 2.0,52.0"
    assert step_line([], 4, 104, 54) == ""


def test_links_escape_names() -> None:
    assert study_query("a b&c", trial=3) == "?study=a+b%26c&trial=3"
    for link in (study_link(NASTY, NASTY), trial_link(NASTY, NASTY, 3), trial_link("", NASTY, NASTY)):
        assert "<script" not in link
        assert link.count('"') == 2, "of href alone"
    assert trial_link("", "study", None) == ""
    assert "%5Cud800" in study_link("", "\ud800")


@pytest.mark.parametrize(
    ("state", "kind"),
    [("out of hours", "state out-of-hours"), ("out_of_memory", "state out-of-memory"), (None, "state ")],
)
def test_a_state_has_a_class(state: str | None, kind: str) -> None:
    assert state_class(state) == kind


def test_sizes_are_readable() -> None:
    assert [size(value) for value in (0, 1023, 1024, 3 * 2**20, 5 * 2**30)] == [
        *("0 B", "1023 B", "1.0 KiB", "3.0 MiB", "5.0 GiB"),
    ]
