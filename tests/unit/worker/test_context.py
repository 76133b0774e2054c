"""What every trial of a worker needs: its final writes, and the sampler of each trial."""

import time
from typing import Any, cast

import optuna
import pytest
import sqlalchemy as sa

from tuner.storage.sql.retry import Patience
from tuner.storage.worker.fences import Lease
from tuner.study import StudySpec
from tuner.worker import context
from tuner.worker.context import FinalWrites, Samplers


def patience_of(engine: sa.Engine) -> Patience:
    return engine.get_execution_options()["tuner_patience"]


def test_all_final_writes_share_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    final_writes = FinalWrites(sa.create_engine("sqlite://"))
    assert not final_writes.is_over(), "it has not begun"

    assert patience_of(final_writes.engine()).seconds == context._LAST_PATIENCE_S
    now_s += 2.0
    assert patience_of(final_writes.engine()).seconds == pytest.approx(context._LAST_PATIENCE_S - 2.0)
    assert not final_writes.is_over()
    now_s += context._LAST_PATIENCE_S
    assert final_writes.is_over()

    final_writes.forget()
    assert not final_writes.is_over()
    assert patience_of(final_writes.engine()).seconds == context._LAST_PATIENCE_S


class Reseeded(optuna.samplers.RandomSampler):
    count = 0

    def reseed_rng(self) -> None:
        self.count += 1


class OneSampler:
    """A study with an Optuna sampler object."""

    def __init__(self) -> None:
        self.sampler = Reseeded(seed=0)

    def make_sampler(self, number: int, agreed: Any = None) -> Reseeded:
        return self.sampler


@pytest.mark.parametrize(
    ("first", "fence", "reseeds"), [(0, 1, 0), (0, 2, 1), (3, 1, 1)], ids=["first", "taken over", "later worker"]
)
def test_a_sampler_object_is_reseeded_once_in_a_worker_that_is_not_the_first(
    first: int, fence: int, reseeds: int
) -> None:
    study = OneSampler()
    samplers = Samplers(cast("StudySpec", cast("Any", study)))
    for number, of in ((first, fence), (first + 1, 1), (first + 2, 1)):
        assert samplers.make(Lease(number, number, "one", of, 30.0)) is study.sampler
    assert study.sampler.count == reseeds
