"""Studies that were deleted, and servers that were restarted, while a worker runs."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from budgeted_study import BudgetedStudy

from tuner.errors import UnknownStudy
from tuner.storage import connect
from tuner.storage.sql import prepared_statements, statements
from tuner.storage.sql.dialect import clock
from tuner.storage.worker import claims, leases
from tuner.storage.worker.claims import NoTrial
from tuner.storage.worker.studies import Registered, register


def test_a_worker_of_a_deleted_study_gets_nothing_from_its_namesake(db: BudgetedStudy) -> None:
    def make() -> Registered:
        return register(db.storage, db.engine, "again", ["minimize"], {})

    old = make()
    db.study_id = old.study_id
    claimant = db.claimant(identity=old.identity)
    db.lease(claimant)
    db.storage.delete_study(old.study_id)
    new = make()
    assert new.identity != old.identity
    if db.engine.dialect.name == "sqlite":
        assert new.study_id == old.study_id, "SQLite gives the same id again"

    with pytest.raises(UnknownStudy, match=f"was deleted while it ran: id {old.study_id}"):
        claims.claim(db.engine, claimant)
    db.study_id = new.study_id
    assert db.lease(db.claimant(identity=new.identity)).number == 0
    assert make() == new
    db.storage.delete_study(new.study_id)


@pytest.mark.parametrize("grace_s", [3600.0, 0.0])
def test_after_a_restart_of_the_server_leases_may_be_renewed_for_a_while(
    postgres_db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch, grace_s: float
) -> None:
    monkeypatch.setattr(statements, "AFTER_RESTART_S", grace_s)
    monkeypatch.setattr(prepared_statements, "_texts", {})
    started = "CAST(extract(epoch FROM pg_postmaster_start_time()) AS double precision)"
    with_own_texts = connect(postgres_db.url)
    db = BudgetedStudy(postgres_db.url, postgres_db.storage, with_own_texts)
    held = [db.lease(db.claimant(f"worker-{at}", trials=4)) for at in range(4)]
    db.set_lease(held[0], f"{started} - 1.0")
    db.set_lease(held[1], f"{started} - 3000.0")

    claimant = db.claimant(trials=4)
    if grace_s:
        assert claims.claim(db.engine, claimant) is NoTrial.WAIT
        db.set_lease(held[2], "0.0")
        assert db.lease(claimant).number == 2, "this one was given back"
        db.set_lease(held[3], f"{started} + 0.25")
        assert db.lease(claimant).number == 3, "this one ended while the server was up"
        assert claims.claim(db.engine, claimant) is NoTrial.WAIT
        leases.renew(db.engine, held[0])
        leases.renew(db.engine, held[1])
    else:
        assert [db.lease(claimant).number for _ in range(2)] == [0, 1]
    assert claims.claim(db.engine, claimant) is NoTrial.WAIT
    with_own_texts.dispose()


def test_a_lease_is_as_long_for_a_worker_that_had_to_wait_for_its_claim(
    postgres_db: BudgetedStudy, wait_until: Callable[..., Any]
) -> None:
    db, found = postgres_db, []
    claiming = threading.Thread(target=lambda: found.append(db.lease(db.claimant(lease_s=10.0))))
    engine = sa.create_engine(db.engine.url)  # the study's own has two connections at most
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with engine.connect() as owner, engine.connect() as watcher:
        owner.execute(sa.text("SELECT 1 FROM studies FOR UPDATE"))
        claiming.start()
        wait_until(lambda: watcher.execute(sa.text(blocked)).scalar_one() == 1)
        waited_to_s = watcher.execute(sa.select(clock("postgresql"))).scalar_one()
    engine.dispose()
    claiming.join()

    ((end_s,),) = db.execute(f"SELECT expires_at_s FROM tuner_leases WHERE trial_id = {found[0].trial_id}")
    assert waited_to_s + 10.0 <= end_s <= db.now_s() + 10.0, "its 10 s begin after it has waited"
