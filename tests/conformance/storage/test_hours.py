"""The hours that a study has used, and the limits on them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from budgeted_study import BudgetedStudy, add_ended

from tuner.storage.read import hours
from tuner.storage.sql.tables import attempts
from tuner.storage.worker import claims, leases
from tuner.storage.worker.claims import NoTrial


@dataclass
class Interval:
    """An attempt in quarters of a second; its end is None while it goes on, and then it has a lease."""

    start: int
    end: int | None
    devices: int
    lease_end: int | None = None
    worker: str = "x"

    def cells(self, now: int) -> range:
        """Return the quarters in which somebody was at work."""
        if self.end is not None:
            return range(self.start, self.end)
        assert self.lease_end is not None
        return range(self.start, min(now, self.lease_end))


DEVICES = {"x": 1, "y": 3, "z": 8}


def store_attempts(db: BudgetedStudy, several: Sequence[Interval]) -> None:
    """Write each attempt, a trial with it; those that ended belong to the trial of the one before, now and then."""
    rows = []
    for at, one in enumerate(several):
        trial_id, fence = rows[-1]["trial_id"] if rows else 0, at + 1
        if at % 3 == 0 or several[at - 1].end is None:
            (trial_id,) = add_ended(db, "RUNNING")
        end_s = None if one.end is None else one.end / 4
        row = {
            "trial_id": trial_id,
            "fence": fence,
            "study_id": db.study_id,
            "worker": one.worker,
            "devices": one.devices,
        }
        rows.append({**row, "start_s": one.start / 4, "end_s": end_s, "ending": None if end_s is None else "died"})
        if one.lease_end is not None:
            lease = {"id": trial_id, "fence": fence, "end_s": one.lease_end / 4, "worker": one.worker}
            names = "trial_id, worker, fence, deaths, expires_at_s"
            db.execute(f"INSERT INTO tuner_leases ({names}) VALUES (:id, :worker, :fence, 0, :end_s)", lease)
    columns = "trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending"
    values = ":trial_id, :fence, :study_id, :worker, :devices, :start_s, :end_s, :ending"
    if rows:
        db.execute(f"INSERT INTO tuner_attempts ({columns}) VALUES ({values})", rows)


@pytest.mark.timezone
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8, 20, 60])
def test_the_hours_spent_are_those_of_a_count_by_hand(db: BudgetedStudy, count: int) -> None:
    generator, now = random.Random(count), 300
    other = BudgetedStudy(db.url, db.storage, db.engine)
    store_attempts(other, [Interval(0, 1000, 8)])
    several = []
    for _ in range(count):
        start, length = generator.randrange(400), generator.choice([0, 1, 5, 20, 80])
        worker = generator.choice(list(DEVICES))
        if generator.random() < 0.3:  # still open, with a lease that goes on, has ended, or never began
            lease_end = generator.choice([0, start - 4, 290, 900])
            several.append(Interval(start, None, DEVICES[worker], lease_end, worker))
        else:
            several.append(Interval(start, start + length, DEVICES[worker], worker=worker))
    store_attempts(db, several)

    covered = {cell for one in several for cell in one.cells(now)}
    with db.engine.connect() as connection:
        used, settled = hours.count_hours(connection, db.study_id, now / 4, hours.Hours())
    assert settled == hours.Hours(), "too few to settle"
    assert used.wall_s == len(covered) / 4
    # What a worker trains at once counts once.
    of_worker = {name: {cell for one in several if one.worker == name for cell in one.cells(now)} for name in DEVICES}
    assert used.device_s == sum(len(cells) * DEVICES[name] for name, cells in of_worker.items()) / 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_hours_that_are_settled_are_not_counted_otherwise_later(
    db: BudgetedStudy, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts begin, go on and end; a worker with settled hours counts what one counts that has none."""
    monkeypatch.setattr(hours, "_SETTLE_AFTER", 3)
    generator, settled, marks = random.Random(seed), hours.Hours(), []
    now, running = 1000, {}
    for _ in range(40):
        now += generator.choice([0, 1, 7, 30])
        for trial_id in [
            one for one, lease_end in running.items() if generator.random() < 0.3 or lease_end <= now - 50
        ]:
            # It ends now, or a worker that vanished is found to have ended when its lease did.
            lease_end = running.pop(trial_id)
            where = f"WHERE trial_id = {trial_id}"
            db.execute(f"UPDATE tuner_attempts SET ended_at_s = {min(now, lease_end) / 4}, ending = 'died' {where}")
            db.execute(f"DELETE FROM tuner_leases {where}")
        for trial_id, lease_end in running.items():
            if generator.random() < (0.7 if lease_end > now else 0.3):  # also one that had slept through its lease
                running[trial_id] = now + 30
                db.execute(f"UPDATE tuner_leases SET expires_at_s = {(now + 30) / 4} WHERE trial_id = {trial_id}")
        if generator.random() < 0.6:
            worker = generator.choice(list(DEVICES))
            store_attempts(db, [Interval(now, None, DEVICES[worker], now + 30, worker)])
            (newest,) = db.execute("SELECT max(trial_id) AS id FROM trials")
            running[newest.id] = now + 30
        with db.engine.connect() as connection:
            expected, _ = hours.count_hours(connection, db.study_id, now / 4, hours.Hours())
            used, settled = hours.count_hours(connection, db.study_id, now / 4, settled)
        assert used == expected
        marks.append(settled.until_s)
    assert len(set(marks)) > 5


@pytest.mark.parametrize(("limit", "spent_s"), [("wall_s", 150.0), ("device_s", 360.0)])
def test_hours_end_a_study_and_more_of_them_let_it_go_on(db: BudgetedStudy, limit: str, spent_s: float) -> None:
    # Two at once for 20 seconds, then nobody for long, then one: 150 seconds in all, 360 of devices.
    store_attempts(db, [Interval(0, 400, 2), Interval(320, 480, 2, worker="y"), Interval(40_000, 40_120, 3)])
    running = db.lease(db.claimant("running", devices=4))
    short, enough = (db.claimant("one", **{limit: seconds}) for seconds in (spent_s, spent_s + 60.0))

    assert claims.claim(db.engine, short) is NoTrial.HOURS
    assert claims.must_stop(db.engine, short)
    assert not claims.must_stop(db.engine, enough)
    lease = db.lease(enough)
    for held in (lease, running):
        leases.release(db.engine, held)
    assert claims.claim(db.engine, short) is NoTrial.HOURS, "nor is an unfinished trial taken over"
    assert db.lease(enough).number == running.number


@pytest.mark.timezone
def test_the_hours_of_running_trials_count_as_they_pass(db: BudgetedStudy) -> None:
    by_wall, by_device = db.claimant("one", wall_s=60.0, devices=4), db.claimant("two", device_s=400.0, devices=4)
    db.lease(by_wall)

    def pass_by(seconds: float) -> None:
        db.execute(attempts.update().values(started_at_s=attempts.c.started_at_s - seconds))

    assert not claims.must_stop(db.engine, by_wall)
    pass_by(59.0)
    assert not claims.must_stop(db.engine, by_wall)
    assert not claims.must_stop(db.engine, by_device)
    pass_by(1.0)
    assert claims.must_stop(db.engine, by_wall)
    assert claims.claim(db.engine, by_wall) is NoTrial.HOURS
    db.lease(by_device)
    pass_by(19.0)  # 4 devices for 79 seconds, 4 others for 19
    assert not claims.must_stop(db.engine, by_device)
    pass_by(2.0)
    assert claims.must_stop(db.engine, by_device)


def test_a_vanished_worker_counts_to_the_end_of_its_lease(db: BudgetedStudy) -> None:
    claimant = db.claimant(wall_s=100.0)
    lease = db.lease(claimant)
    db.execute(attempts.update().where(attempts.c.trial_id == lease.trial_id).values(started_at_s=1000.0))

    assert claims.must_stop(db.engine, claimant)
    db.set_lease(lease, "1099.0")
    assert not claims.must_stop(db.engine, claimant)


def test_a_study_whose_trials_are_done_is_done_whatever_its_hours(db: BudgetedStudy) -> None:
    store_attempts(db, [Interval(0, 400, 1)])
    claimant = db.claimant(trials=1, wall_s=1.0)
    add_ended(db, "COMPLETE")

    assert claims.claim(db.engine, claimant) is NoTrial.DONE
