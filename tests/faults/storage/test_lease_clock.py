"""The wall clock jumps on SQLite, as after a suspension: a worker that is alive keeps its trial."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from storage_tools import report, study_database

from tuner.storage.worker.claims import MAX_DEATHS
from tuner.storage.worker.renewal import renewed

pytestmark = pytest.mark.with_tables

FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
CLAIM = """
import sys
from tuner.storage.worker.claims import Claimant, claim
from tuner.storage.sql.engine import new_engine
print(claim(new_engine(sys.argv[1]), Claimant(int(sys.argv[2]), sys.argv[3], trials=1, lease_s=30.0)))
"""
JUMPS = ["+60s", "+8h", "-1h"]


@pytest.mark.slow
@pytest.mark.skipif(FAKETIME is None, reason="needs libfaketime (apt-get install libfaketime)")
def test_jumps_of_the_clock_take_no_trial_from_a_live_worker(sqlite_url: str) -> None:
    assert len(JUMPS) == MAX_DEATHS, "that would fail the trial"
    with study_database(sqlite_url) as db:
        lease = db.claim("alive", budget=1, lease_s=30.0)
        with renewed(db.engine, lease) as watch:
            for epoch, jump in enumerate(JUMPS, start=1):
                assert _claim(sqlite_url, db.study_id, jump) == "NoTrial.WAIT"
                report(db.engine, lease, epoch, 0.5)
            assert not watch.is_lost.is_set()
            assert db.leases() == [(0, "alive", 1, 0)]
        db.tell(lease)
        assert db.states() == ["COMPLETE"]


def _claim(url: str, study_id: int, jump: str) -> str:
    """Ask for a trial in a process whose wall clock has jumped."""
    faked = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": jump, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    command = [sys.executable, "-W", "ignore", "-c", CLAIM, url, str(study_id), f"after {jump}"]
    done = subprocess.run(command, env={**os.environ, **faked}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
