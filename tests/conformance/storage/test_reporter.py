"""Reports are kept while the database is away, and stored once it is back."""

import itertools
import json
import math
import types
from collections.abc import Sequence

import pytest
import sqlalchemy as sa
from budgeted_study import BudgetedStudy, stored_reports

from tuner.errors import LeaseLost, StorageLost
from tuner.storage.worker import reporter
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.leases import Ending, end, end_together
from tuner.storage.worker.reporter import Reporter
from tuner.trial import Outcome, Report

nan, inf = math.nan, math.inf


class Away:
    """A storage that can be away, and a clock that is moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_away, self.now_s = False, 0.0
        self.calls: list[list[int]] = []
        self.error: Exception = StorageLost("cannot reach the storage")
        real = reporter.report

        def report_if_there(engine: sa.Engine, lease: Lease, several: Sequence[Report], objective: str | None) -> None:
            self.calls.append([one.epoch for one in several])
            if self.is_away:
                raise self.error
            real(engine, lease, several, objective)

        monkeypatch.setattr(reporter, "report", report_if_there)
        monkeypatch.setattr(reporter, "time", types.SimpleNamespace(monotonic=lambda: self.now_s))


def one_report(epoch: int, **metrics: float) -> Report:
    return Report(epoch, 10 * epoch, {"loss": epoch / 8, **metrics})


def refuse_constant(word: str) -> None:
    raise ValueError(f"no JSON: {word}")


def test_reports_are_kept_while_the_storage_is_away_and_stored_together(
    db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    away, lease = Away(monkeypatch), db.lease(db.claimant())
    ours = Reporter(db.engine, lease, "loss")
    assert ours.store(one_report(1))

    away.is_away = True
    assert not ours.store(one_report(2))
    assert not ours.store(one_report(3))  # at once: nobody asks a storage that has just been away
    assert away.calls == [[1], [2]]
    away.is_away = False
    assert not ours.store(one_report(4))
    away.now_s += 0.6
    assert ours.store(one_report(5))
    assert away.calls == [[1], [2], [2, 3, 4, 5]]
    assert ours.store(one_report(6))

    assert stored_reports(db, lease) == {epoch: (10 * epoch, {"loss": epoch / 8}) for epoch in range(1, 7)}
    assert db.trials()[0].intermediate_values == {epoch: epoch / 8 for epoch in range(1, 7)}
    assert capsys.readouterr().err.splitlines() == [
        "tuner: cannot reach the storage; trial 0 continues meanwhile",
        "tuner: the storage answers again",
    ]


def test_the_pauses_between_tries_grow_to_a_limit_and_start_again(
    db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, lease = Away(monkeypatch), db.lease(db.claimant())
    ours, epoch, tried = Reporter(db.engine, lease, "loss"), 0, []

    def train(seconds: int) -> None:
        nonlocal epoch
        for _ in range(10 * seconds):
            epoch += 1
            away.now_s += 0.1
            before = len(away.calls)
            ours.store(one_report(epoch))
            tried.extend([away.now_s] * (len(away.calls) - before))

    away.is_away = True
    train(60)
    pauses = [after - before for before, after in itertools.pairwise(tried)]
    assert all(0.25 * 2**at - 0.1 <= pause <= 0.5 * 2**at + 0.2 for at, pause in enumerate(pauses[:5]))
    assert all(7.5 - 0.1 <= pause <= 15.2 for pause in pauses[5:])
    assert len(pauses) > 6
    away.is_away = False
    train(16)
    assert len(stored_reports(db, lease)) == epoch, "as before, once it is back"
    away.is_away, tried = True, []
    train(1)
    assert 2 <= len(tried) <= 3


def test_the_rest_is_stored_at_the_end(db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    away, lease = Away(monkeypatch), db.lease(db.claimant())
    ours = Reporter(db.engine, lease, "loss")
    away.is_away = True
    for epoch in (1, 2, 3):
        assert not ours.store(one_report(epoch))
    with pytest.raises(StorageLost):
        ours.flush(db.engine)
    away.is_away = False
    ours.flush(db.engine)  # whatever the pause
    ours.flush(db.engine)

    assert away.calls == [[1], [1, 2, 3], [1, 2, 3]], "nothing is sent twice"
    assert list(stored_reports(db, lease)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("count", "left"), [(0, []), (4, [1, 2, 3, 4]), (20, [17, 18, 19, 20]), (64, list(range(1, 65)))]
)
def test_the_last_reports_are_stored_with_the_end(db: BudgetedStudy, count: int, left: list[int]) -> None:
    lease = db.lease(db.claimant())
    ours = Reporter(db.engine, lease, "loss")
    ours.keep([one_report(epoch) for epoch in range(1, count + 1)])
    last = ours.take_last(db.engine)
    assert [one.epoch for one in last] == left
    assert len(stored_reports(db, lease)) == count - len(left)
    end(db.engine, Ending(lease, Outcome.COMPLETE, [0.5], {}, several=last, objective="loss"))
    assert list(stored_reports(db, lease)) == list(range(1, count + 1))
    (trial,) = db.trials()
    assert trial.values == [0.5]
    assert trial.intermediate_values == {epoch: epoch / 8 for epoch in range(1, count + 1)}


def test_the_ends_of_several_trials_are_stored_together_except_of_those_that_were_taken_over(db: BudgetedStudy) -> None:
    lost = db.lease(db.claimant("gone", lease_s=-1.0))
    db.lease(db.claimant("two"))  # takes it over
    first, second = db.lease(db.claimant()), db.lease(db.claimant())
    report = Report(1, 10, {"loss": 0.25})
    several = [
        Ending(second, Outcome.COMPLETE, [0.5], {"worker": "one"}, {"k": 1}, ["a line"], [report], "loss"),
        Ending(lost, Outcome.COMPLETE, [0.75], {"worker": "gone"}, {"k": 2}, ["a line"], [report], "loss"),
        Ending(first, Outcome.PRUNED, None, {"worker": "one"}),
    ]
    assert end_together(db.engine, several) == [True, False, True]

    states = {trial.number: (trial.state.name, trial.values) for trial in db.trials()}
    assert states[second.number] == ("COMPLETE", [0.5])
    assert states[lost.number] == ("RUNNING", None)
    assert states[first.number][0] == "PRUNED"
    assert stored_reports(db, second) == {1: (10, {"loss": 0.25})}
    assert stored_reports(db, lost) == {}
    with pytest.raises(LeaseLost):
        end(db.engine, several[0])
    end(db.engine, several[0], may_be_stored=True)
    assert end_together(db.engine, several) == [False] * 3


def test_who_lost_its_trial_learns_it_from_a_report(db: BudgetedStudy) -> None:
    lease = db.lease(db.claimant(lease_s=-1.0))
    ours = Reporter(db.engine, lease, "loss")
    db.lease(db.claimant("two"))

    with pytest.raises(LeaseLost):
        ours.store(one_report(1))
    with pytest.raises(LeaseLost):
        ours.flush(db.engine)
    assert stored_reports(db, lease) == {}


def test_all_metrics_are_stored_as_json_that_any_language_reads(db: BudgetedStudy) -> None:
    lease = db.lease(db.claimant())
    metrics = {"accuracy": 0.1, "nan": nan, "up": inf, "down": -inf, "tiny": 5e-324}
    assert Reporter(db.engine, lease, "accuracy").store(one_report(1, **metrics))

    query = f"SELECT metrics FROM tuner_reports WHERE trial_id = {lease.trial_id}"
    ((text,),) = db.execute(query)
    assert json.loads(text, parse_constant=refuse_constant) == {
        "loss": 0.125,
        "accuracy": 0.1,
        "nan": "nan",
        "up": "inf",
        "down": "-inf",
        "tiny": 5e-324,
    }
    assert db.trials()[0].intermediate_values == {1: 0.1}


def test_optuna_is_told_no_value_of_several_objectives(db: BudgetedStudy) -> None:
    lease = db.lease(db.claimant())
    assert Reporter(db.engine, lease, None).store(one_report(1, size=3.0))

    assert stored_reports(db, lease) == {1: (10, {"loss": 0.125, "size": 3.0})}
    assert db.trials()[0].intermediate_values == {}


def test_however_long_the_storage_was_away_all_is_stored(db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    away, lease = Away(monkeypatch), db.lease(db.claimant())
    ours = Reporter(db.engine, lease, "loss")
    away.is_away = True
    for epoch in range(1, 701):
        ours.store(one_report(epoch))
    away.is_away = False
    ours.flush(db.engine)

    assert stored_reports(db, lease) == {epoch: (10 * epoch, {"loss": epoch / 8}) for epoch in range(1, 701)}
