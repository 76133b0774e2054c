"""A short run of `tests/faults/chaos.py` with fixed seeds; by hand it runs hundreds of episodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faults import chaos  # tests/ is on the path


@pytest.fixture(scope="module")
def server() -> Iterator[chaos.Server]:
    with chaos.postgres() as server:
        yield server


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 2, *(pytest.param(seed, marks=pytest.mark.long) for seed in (4, 6))])
def test_random_faults_on_sqlite_leave_what_would_be_there_without_them(seed: int) -> None:
    faults, violations = chaos.run_episode(seed, None)

    assert violations == [], faults


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 3, *(pytest.param(seed, marks=pytest.mark.long) for seed in (5, 7))])
def test_random_faults_on_postgres_leave_what_would_be_there_without_them(seed: int, server: chaos.Server) -> None:
    faults, violations = chaos.run_episode(seed, server)

    assert violations == [], faults


def test_the_harness_knows_the_studys_metrics() -> None:
    """By hand: learning rate 0.1, noise 0.5, epoch 2: (-1 + 2)^2 + 0.25 + 0.5."""
    import chaos_study

    assert chaos.loss_at(0.1, 0.5, 2) == chaos_study.loss_at(0.1, 0.5, 2) == 1.75
