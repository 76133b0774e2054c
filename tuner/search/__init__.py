"""Samplers and pruners by name: Optuna's and our own. Optuna is imported when one is created."""

from tuner.search.followed import Followed, followed_metrics, prunes_nothing
from tuner.search.pruners import PRUNERS, TrialPruner, make_pruner, rungs_of
from tuner.search.samplers import SAMPLERS, Context, make_sampler

__all__ = [
    "PRUNERS",
    "SAMPLERS",
    "Context",
    "Followed",
    "TrialPruner",
    "followed_metrics",
    "make_pruner",
    "make_sampler",
    "prunes_nothing",
    "rungs_of",
]
