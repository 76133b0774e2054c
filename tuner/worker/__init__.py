"""Workers: claim a trial, train it, report, prune, tell."""

from tuner.worker.loop import run_worker
from tuner.worker.opening import LEASE_S

__all__ = ["LEASE_S", "run_worker"]
