"""Workers: claim a trial, train it, report, prune, tell."""

from tuner.worker.loop import LEASE_S, run_worker

__all__ = ["LEASE_S", "run_worker"]
