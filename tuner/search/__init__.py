"""Samplers and pruners by name: Optuna's and our own. Optuna is imported when one is created."""

from tuner.search.context import Agreed, Context, Plan, Prior
from tuner.search.followed import Followed, followed_metrics, prunes_nothing
from tuner.search.pruners import PRUNERS, TrialPruner, make_pruner, rungs_of
from tuner.search.samplers import SAMPLERS, learns_as, make_sampler, sees_window

__all__ = [
    "PRUNERS",
    "SAMPLERS",
    "Agreed",
    "Context",
    "Followed",
    "Plan",
    "Prior",
    "TrialPruner",
    "followed_metrics",
    "learns_as",
    "make_pruner",
    "make_sampler",
    "prunes_nothing",
    "rungs_of",
    "sees_window",
]
