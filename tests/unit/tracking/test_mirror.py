"""The mirror against a tracker that keeps a book: nothing lost, nothing doubled, whatever is cut off where."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from storage_tools import StudyDatabase, shared_study_database
from tracking_tools import curves, fill, report, rows

from tuner.errors import StorageLost, TrackerLost, TrackerRefused, UnknownStudy
from tuner.storage import mirroring
from tuner.storage.worker import leases
from tuner.tracking import TrackedReport, TrackedStudy, TrackedTrial, mirror
from tuner.tracking.mirror import Ending, follow
from tuner.trial import Outcome, Report


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared_db(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudyDatabase]:
    with shared_study_database(request, tmp_path_factory, "mirror") as db:
        yield db


@pytest.fixture
def db(shared_db: StudyDatabase) -> StudyDatabase:
    """A study of its own."""
    return StudyDatabase(shared_db.url, shared_db.storage, shared_db.engine)


class Book:
    """A tracker as MLflow is one: a row that is equal in key, time, step and value is taken once, none is changed."""

    def __init__(self) -> None:
        self.target = "book"
        self.rows: dict[str, list[tuple[str, int, float, float]]] = {}
        self.trials: dict[str, TrackedTrial] = {}
        self.ended: dict[str, int] = {}
        self.is_finished = False
        self.place = "library"
        self.calls: list[str] = []
        self.fails: Callable[[str, str], None] = lambda call, run: None
        self.measure: Callable[[Sequence[TrackedReport]], None] = lambda reports: None

    def _note(self, call: str, run: str) -> None:
        self.calls.append(call)
        self.fails(call, run)

    def open_study(self, study: TrackedStudy, place: str | None, known: Collection[str]) -> str:
        self._note("open_study", "")
        self.study, self.is_finished = study, False
        return self.place

    def open_trial(self, trial: TrackedTrial, run: str | None) -> str:
        run = run or next((run for run, known in self.trials.items() if known.number == trial.number), None)
        run = run or f"run {trial.number}.{len(self.trials)}"
        self.trials[run] = trial
        self.rows.setdefault(run, [])
        self._note("open_trial", run)
        return run

    def log(self, run: str, reports: Sequence[TrackedReport]) -> None:
        self.measure(reports)
        self._write(run, reports)
        self._note("log", run)

    def _write(self, run: str, reports: Sequence[TrackedReport]) -> None:
        known = set(map(repr, self.rows[run]))  # NaN equals itself in text alone
        for one in reports:
            for name, value in one.metrics.items():
                row = (name, one.step, one.at_s, value)
                if repr(row) not in known:
                    known.add(repr(row))
                    self.rows[run].append(row)

    def end_trial(self, run: str, trial: TrackedTrial, reports: Sequence[TrackedReport]) -> None:
        self.fails("before_end", run)
        self._write(run, reports)
        self.trials[run] = trial
        self.ended[run] = self.ended.get(run, 0) + 1
        self._note("end_trial", run)

    def drop_trial(self, run: str) -> None:
        del self.rows[run], self.trials[run]
        self._note("drop_trial", run)

    def end_study(self) -> None:
        self.is_finished = True

    def close(self) -> None:
        pass

    def curves(self) -> dict[int, dict[tuple[str, int], float]]:
        found: dict[int, dict[tuple[str, int], float]] = {}
        for run, trial in self.trials.items():
            assert trial.number not in found, "no trial is doubled"
            own = found[trial.number] = {(name, step): value for name, step, _, value in self.rows[run]}
            assert len(own) == len(self.rows[run]), "no point is doubled"
        return found


def catch_up(db: StudyDatabase, book: Book) -> None:
    follow(db.url, db.name, [book], once=True, ending=Ending())


def check(db: StudyDatabase, book: Book) -> None:
    """Compare the book with the database."""
    assert repr(sorted_points(book.curves())) == repr(sorted_points(curves(db.url, db.name)))
    told = {trial.number: (trial.outcome, dict(trial.hparams)) for trial in book.trials.values()}
    assert told == {n: (Outcome(row["outcome"]), row["hparams"]) for n, row in rows(db.url, db.name).items()}


def sorted_points(found: dict[int, dict[Any, float]]) -> list[Any]:
    return sorted((number, *point, value) for number, points in found.items() for point, value in points.items())


def held(db: StudyDatabase) -> list[Any]:
    query = "SELECT owner, expires_at_s FROM tuner_mirrors WHERE study_id = :id"
    with db.engine.connect() as connection:
        return list(connection.execute(sa.text(query), {"id": db.study_id}))


@pytest.mark.slow
def test_a_study_is_sent_whole(db: StudyDatabase) -> None:
    fill(db)
    book = Book()

    catch_up(db, book)

    check(db, book)
    by_number = {trial.number: trial for trial in book.trials.values()}
    first = by_number[0]
    assert first.results == {"value": 0.5, "train_s": 1.5, "seconds": first.results["seconds"]}
    assert first.step == 20
    assert first.tags == {
        "worker": "one", "attempts": "1", "endings": "complete", "host": "here", "devices": "gpu 0",
        "file": "/studies/it.py", "git.commit": "abc", "git.is_changed": "True", "versions.jax": "0.10.2",
    }  # fmt: skip
    assert by_number[4].tags["error"] == "Traceback\nValueError: no"
    assert by_number[5].tags["endings"] == "failed, complete"
    assert by_number[6].tags["endings"] == "preempted, complete"
    assert by_number[6].tags["worker"] == "two"
    assert by_number[8].results == {}
    assert by_number[8].ended_s is None
    assert first.ended_s is not None
    assert first.began_s <= min(at_s for *_, at_s, _ in book.rows["run 0.0"]) <= first.ended_s
    assert not book.is_finished
    assert [row.owner for row in held(db)] == [None]


def test_what_was_sent_is_not_sent_again_and_what_is_new_is(db: StudyDatabase) -> None:
    fill(db)
    book = Book()
    catch_up(db, book)
    book.calls.clear()

    catch_up(db, book)
    assert book.calls == ["open_study", "open_trial"], "of the trial that runs there may be tags"

    with db.engine.connect() as connection:
        query = sa.text("SELECT trial_id FROM trials WHERE study_id = :id AND number = 8")
        lease = leases.Lease(connection.execute(query, {"id": db.study_id}).scalar_one(), 8, "one", 1, 300.0)
    report(db, lease, 2)
    db.tell(lease)
    book.calls.clear()
    catch_up(db, book)

    assert book.calls == ["open_study", "open_trial", "end_trial"], "the last reports go with the end"
    assert "run 8.8" in book.ended
    check(db, book)


@pytest.mark.slow
@pytest.mark.parametrize("call", ["open_study", "open_trial", "log", "end_trial"])
@pytest.mark.parametrize("at", [1, 4])
def test_a_tracker_that_goes_away_after_taking_something_is_caught_up(
    db: StudyDatabase, monkeypatch: pytest.MonkeyPatch, call: str, at: int
) -> None:
    fill(db)
    monkeypatch.setattr(mirror, "_ONCE_PATIENCE_S", 0.0)
    monkeypatch.setattr(mirror, "_EPOCHS", 1)
    book = Book()

    def fails(name: str, run: str) -> None:
        if name == call and book.calls.count(call) >= at:
            raise TrackerLost("the book is shut")

    if (call, at) == ("open_study", 4):
        catch_up(db, book)
        book.calls = ["open_study"] * 3
    book.fails = fails
    with pytest.raises(
        TrackerLost, match=r"^the book is shut; send the missing data of '\w+' later with `tuner track`$"
    ):
        catch_up(db, book)
    book.fails = lambda name, run: None
    catch_up(db, book)

    check(db, book)


@pytest.mark.parametrize("at", [1, 2])
def test_what_was_accepted_and_not_remembered_is_not_doubled(
    db: StudyDatabase, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    fill(db)
    monkeypatch.setattr(mirror, "_TRIALS", 5)
    book, made = Book(), []
    save = mirroring.save

    def die(*arguments: Any, **options: Any) -> bool:
        made.append(1)
        if len(made) == at:
            raise StorageLost("killed")
        return save(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(mirroring, "save", die)
        with pytest.raises(StorageLost, match="killed"):
            catch_up(db, book)
    assert book.ended
    catch_up(db, book)

    assert book.calls.count("end_trial") > len(book.ended), "something was sent twice"
    check(db, book)


def test_numbers_that_have_changed_are_sent_anew(db: StudyDatabase) -> None:
    """A trial that began again on other devices reports other numbers for the same epochs."""
    lease, book = db.claim(), Book()
    report(db, lease, 1, 2)
    catch_up(db, book)
    leases.release(db.engine, lease)
    lease = db.claim("two")
    report(db, lease, 1, 2, 3, loss=1.5)
    db.tell(lease)

    catch_up(db, book)

    assert "drop_trial" in book.calls
    assert book.curves() == {0: {("loss", 10): 1.5, ("loss", 20): 0.75, ("loss", 30): 0.5}}
    check(db, book)


@pytest.mark.timezone
def test_a_report_keeps_its_first_time(db: StudyDatabase) -> None:
    lease = db.claim()
    report(db, lease, 1)
    with db.engine.begin() as connection:
        connection.execute(sa.text("UPDATE tuner_reports SET reported_at_s = reported_at_s - 100"))

    report(db, lease, 1, 2)

    with db.engine.connect() as connection:
        query = sa.text("SELECT reported_at_s FROM tuner_reports WHERE trial_id = :id ORDER BY epoch")
        first, second = connection.execute(query, {"id": lease.trial_id}).scalars()
    assert second - 200 < first < second - 50


@pytest.mark.timezone
def test_reports_of_before_there_were_times_are_as_old_as_their_trial(db: StudyDatabase) -> None:
    lease, book = db.claim(), Book()
    report(db, lease, 1)
    with db.engine.begin() as connection:
        connection.execute(sa.text("UPDATE tuner_reports SET reported_at_s = NULL"))

    catch_up(db, book)

    ((_, _, at_s, _),) = book.rows["run 0.0"]
    assert at_s == book.trials["run 0.0"].began_s > 1e9


def test_another_process_sends_until_its_lease_ends(db: StudyDatabase, capfd: pytest.CaptureFixture[str]) -> None:
    report(db, db.claim(), 1)
    book, ending = Book(), Ending(by_s=math.inf)
    assert mirroring.hold(db.engine, db.study_id, "book", "other", 300.0)

    follow(db.url, db.name, [book], once=False, ending=ending)  # whoever ends does not wait for the other

    assert book.calls == []
    assert f"another process is sending {db.name!r} to book; waiting for it to finish" in capfd.readouterr().err
    assert not mirroring.hold(db.engine, db.study_id, "book", "third", 300.0)
    assert mirroring.hold(db.engine, db.study_id, "book", "other", -1.0)
    catch_up(db, book)
    check(db, book)


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.mark.slow
def test_whoever_is_asked_to_end_sends_the_rest_as_long_as_the_tracker_takes_it(
    db: StudyDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(db)
    clock, book, told = Clock(), Book(), []
    monkeypatch.setattr(mirror, "time", clock)
    book.fails = lambda call, run: clock.sleep(14.0)
    ending = Ending(on_progress=lambda: told.append(clock.now_s))
    ending.ask(15.0, 120.0)

    follow(db.url, db.name, [book], once=False, ending=ending)

    check(db, book)
    assert clock.now_s > 1200.0, "each call took nearly as long as may pass without one"
    assert len(told) >= 19, "nine trials, opened and ended"
    assert max(later - before for before, later in itertools.pairwise(told)) < 60.0


@pytest.mark.slow
def test_whoever_is_asked_to_end_gives_up_a_tracker_that_takes_nothing_more(
    db: StudyDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(db)
    clock, book = Clock(), Book()
    monkeypatch.setattr(mirror, "time", clock)
    monkeypatch.setattr(mirror, "_TRIALS", 1)

    def hang(call: str, run: str) -> None:
        if call == "end_trial" and len(book.ended) == 3:
            clock.sleep(16.0)
            raise TrackerRefused("too slow")

    book.fails = hang
    ending = Ending()
    ending.ask(15.0, 120.0)
    with pytest.raises(
        TrackerLost, match=r"^not all data of '\w+' was sent in time; send the rest later with `tuner track`$"
    ):
        follow(db.url, db.name, [book], once=False, ending=ending)
    assert len(book.ended) == 3

    book.fails = lambda call, run: None
    catch_up(db, book)
    check(db, book)


def test_a_tracker_that_was_away_for_a_moment_is_not_given_up_after_a_long_time_of_sending(
    db: StudyDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(db)
    clock, book = Clock(), Book()
    monkeypatch.setattr(mirror, "time", clock)

    def fail_once(call: str, run: str) -> None:
        clock.sleep(10.0)
        if call == "end_trial" and run.startswith("run 6."):
            book.fails = lambda call, run: None
            raise TrackerLost("away for a moment")

    book.fails = fail_once
    catch_up(db, book)

    assert clock.now_s > 1000.0 + 10.0 * 10
    check(db, book)


def test_reports_with_many_metrics_are_sent_in_small_pieces(db: StudyDatabase) -> None:
    lease, book = db.claim(), Book()
    metrics = {f"metric {number}": 0.5 for number in range(500)}
    leases.report(db.engine, lease, [Report(epoch, epoch, {"loss": 1.0, **metrics}) for epoch in range(1, 11)], "loss")
    sizes: list[int] = []
    book.measure = lambda reports: sizes.append(sum(len(one.metrics) for one in reports))

    catch_up(db, book)

    assert sizes == [3 * 501, 3 * 501, 3 * 501, 501]
    check(db, book)


def test_a_process_that_lost_its_lease_remembers_nothing(db: StudyDatabase) -> None:
    lease = db.claim()
    report(db, lease, 1)
    book = Book()

    def lose(call: str, run: str) -> None:
        if call == "log":
            book.fails = lambda call, run: None
            with db.engine.begin() as connection:
                connection.execute(sa.text("UPDATE tuner_mirrors SET owner = 'other', expires_at_s = 1e12"))

    book.fails = lose
    follow(db.url, db.name, [book], once=False, ending=Ending(by_s=math.inf))

    with db.engine.connect() as connection:
        query = sa.text("SELECT * FROM tuner_mirrored WHERE trial_id = :id")
        assert list(connection.execute(query, {"id": lease.trial_id})) == []
    assert [row.owner for row in held(db)] == ["other"]
    with db.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM tuner_mirrors"))


def test_a_tracker_that_has_nothing_of_a_study_gets_all_of_it(db: StudyDatabase) -> None:
    fill(db)
    catch_up(db, Book())
    empty = Book()
    empty.place = "new library"

    catch_up(db, empty)

    check(db, empty)


def test_a_trial_that_is_refused_holds_nothing_up(db: StudyDatabase, capfd: pytest.CaptureFixture[str]) -> None:
    fill(db)
    book = Book()

    def refuse(call: str, run: str) -> None:
        if call == "before_end" and run.startswith("run 2."):
            raise TrackerRefused("not this one")
        if call == "end_trial" and run.startswith("run 3.") and book.ended[run] == 1:
            raise TrackerLost("away for a moment")  # so that all is gone through once more

    book.fails = refuse
    with pytest.raises(TrackerRefused, match=r"^cannot send 1 of the trials; the first: trial 2: not this one$"):
        catch_up(db, book)

    assert capfd.readouterr().err.count("cannot send trial 2, skipping it: not this one") == 1
    known = curves(db.url, db.name)[2]
    assert repr(sorted_points({2: book.curves()[2]})) == repr(sorted_points({2: known})), "what is known of it is there"
    book.fails = lambda call, run: None
    catch_up(db, book)
    check(db, book)


def test_a_study_is_followed_until_its_budget_is_used(db: StudyDatabase) -> None:
    with db.engine.begin() as connection:
        connection.execute(sa.text("UPDATE tuner_budgets SET trials = 1 WHERE study_id = :id"), {"id": db.study_id})
    lease = db.claim(budget=1)
    book = Book()

    def go_on(call: str, run: str) -> None:
        if call == "open_trial" and lease.trial_id:
            book.fails = lambda call, run: None
            report(db, lease, 1, 2)
            db.tell(lease)

    book.fails = go_on
    follow(db.url, db.name, [book], once=False, ending=Ending())

    check(db, book)
    assert book.is_finished


def test_a_study_without_trials_and_one_that_is_not_there(db: StudyDatabase) -> None:
    book = Book()
    catch_up(db, book)
    assert book.calls == ["open_study"]
    assert book.study.name == db.name
    assert "sqlite:///" in book.study.settings["storage"] or "postgres:@" in book.study.settings["storage"]
    with pytest.raises(UnknownStudy, match="no study 'nowhere'"):
        follow(db.url, "nowhere", [book], once=True, ending=Ending())


def test_enqueued_trials_wait_and_deleted_ones_are_forgotten(db: StudyDatabase) -> None:
    db.study.enqueue_trial({"x": 0.5})
    book = Book()
    catch_up(db, book)
    assert book.trials == {}

    optuna.delete_study(study_name=db.name, storage=db.storage)
    with pytest.raises(UnknownStudy):
        catch_up(db, book)


@pytest.mark.slow
def test_many_trials_and_long_curves_are_sent_in_pieces(db: StudyDatabase) -> None:
    lease, book = db.claim(budget=50), Book()
    several = [Report(epoch, 10 * epoch, {"loss": 1.0 / epoch}) for epoch in range(1, 431)]
    leases.report(db.engine, lease, several, "loss")
    for _ in range(25):
        other = db.claim(budget=50)
        report(db, other, 1)
        db.tell(other)

    catch_up(db, book)

    assert (book.calls.count("log"), book.calls.count("end_trial")) == (3, 25)
    check(db, book)
