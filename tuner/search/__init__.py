"""Samplers and pruners by name: Optuna's and our own. Optuna is imported when one is created."""

from tuner.search.pruners import PRUNERS, TrialPruner, make_pruner, rungs_of
from tuner.search.samplers import SAMPLERS, Context, make_sampler

__all__ = ["PRUNERS", "SAMPLERS", "Context", "TrialPruner", "make_pruner", "make_sampler", "rungs_of"]
