"""Workers: claim a trial, train it, report, prune, tell."""

from tuner.worker.loop import LEASE_S, default_name, run_worker

__all__ = ["LEASE_S", "default_name", "run_worker"]
