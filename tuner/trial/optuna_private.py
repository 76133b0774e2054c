"""Every private name of Optuna that tuner uses, and what it uses it for.

Optuna may change these without notice. `tests/unit/trial/test_optuna_private.py` checks each against the installed
version, and that no other module uses one.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner, HyperbandPruner, SuccessiveHalvingPruner
    from optuna.samplers import BaseGASampler, BaseSampler, BruteForceSampler
    from optuna.search_space import IntersectionSearchSpace
    from optuna.storages import RDBStorage
    from optuna.study._frozen import FrozenStudy as _FrozenStudy
    from optuna.terminator import BaseTerminator
    from optuna.trial import FrozenTrial

    FrozenStudy: TypeAlias = _FrozenStudy

# --- Ids and storages, which Optuna's public objects have, but do not show


def trial_id(trial: FrozenTrial | optuna.Trial) -> int:
    """Return the id by which storages know a trial."""
    return trial._trial_id


def study_id(study: optuna.Study | FrozenStudy) -> int:
    """Return the id by which storages know a study."""
    return study._study_id


def storage_of(study: optuna.Study) -> Any:
    """Return a study's storage: an `optuna.storages.BaseStorage`, perhaps with methods of ours."""
    return study._storage


# --- What a trial holds: its properties return copies, or may only be set as a whole


def system_attrs(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's system attributes themselves."""
    return trial._system_attrs


def set_number(trial: FrozenTrial, number: int) -> None:
    """Set a trial's number, and its id to the same."""
    trial.number = trial._trial_id = number


def set_system_attrs(trial: FrozenTrial, attributes: dict[str, Any]) -> None:
    """Set a trial's system attributes themselves."""
    trial._system_attrs = attributes


def user_attrs(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's user attributes themselves."""
    return trial._user_attrs


def params(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's parameters themselves."""
    return trial._params


def values(trial: FrozenTrial) -> list[float] | None:
    """Return the values of a trial's objectives themselves; None before its end."""
    return trial._values


def distributions(trial: FrozenTrial) -> dict[str, BaseDistribution]:
    """Return a trial's distributions themselves."""
    return trial._distributions


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Return whether a value, as a trial has it, is in a domain."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (ValueError, TypeError):
        return False


ATTRIBUTES = ("_params", "_user_attrs", "_system_attrs")
"""The fields of a trial that are mappings from names to values."""
DISTRIBUTIONS = "_distributions"
"""The field of a trial that maps names to distributions."""
VALUES = "_values"
"""The field of a trial with its objectives' values, a list or None."""


# --- What `optuna.Study.optimize` does, which workers do themselves


def forget_trials(study: optuna.Study) -> None:
    """Make a study read its trials again: it keeps a copy while samplers and pruners look at it."""
    study._thread_local.cached_all_trials = None


def allow_stop(study: optuna.Study) -> None:
    """Make `Study.stop` possible, which raises an error outside of `Study.optimize`."""
    study._thread_local.in_optimize_loop = True


def has_stopped(study: optuna.Study) -> bool:
    """Return whether `Study.stop` was called."""
    return study._stop_flag


def forget_stop(study: optuna.Study) -> None:
    """Forget that `Study.stop` was called."""
    study._stop_flag = False


def note_stop(study: optuna.Study) -> None:
    """Note that `Study.stop` was called, on another object for the same study."""
    study._stop_flag = True


def copied(study: optuna.Study) -> optuna.Study:
    """Return another object for the same study, whose sampler can be set; it has no trials cached."""
    return copy.copy(study)


def filter_study(study: optuna.Study, trial: FrozenTrial) -> optuna.Study:
    """Return the study that a sampler sees: under Hyperband it has only the trials of the trial's bracket."""
    from optuna.pruners import _filter_study

    return _filter_study(study, trial)


def all_trials(study: optuna.Study, *, use_cache: bool = True) -> list[FrozenTrial]:
    """Return the trials of a study; they must not be changed.

    Args:
        study: The study.
        use_cache: Whether to return the copy that the study keeps while samplers look at it.
    """
    return study._get_trials(deepcopy=False, use_cache=use_cache)


def with_storage(study: optuna.Study, storage: Any, trial: FrozenTrial) -> optuna.Study:
    """Return the study for the sampler of a trial, with another storage."""
    copied = copy.copy(getattr(study, "_study", study))  # Hyperband's study of a bracket has the whole one
    copied._storage = storage
    return filter_study(copied, trial)


def replace_intersection(sampler: BaseSampler, make: Callable[[bool], IntersectionSearchSpace]) -> None:
    """Replace the object with which a sampler computes the parameters that all trials have, if it has one.

    Args:
        sampler: The sampler.
        make: Returns the new one; it is passed whether pruned trials count.
    """
    for name in ("_search_space", "_intersection_search_space"):
        known: Any = getattr(sampler, name, None)
        if hasattr(known, "_include_pruned"):
            setattr(sampler, name, make(known._include_pruned))


def generation_key(kind: type[BaseGASampler]) -> str:
    """Return the system attribute in which a genetic algorithm stores the generation of a trial."""
    return kind._get_generation_key()


def domination_ranks(costs: np.ndarray, count: int) -> np.ndarray:
    """Return the non-domination rank of each trial, 0 for the Pareto front.

    Args:
        costs: The values of each trial to minimize. Float[Array, "trials objectives"].
        count: Ranks are right for at least so many of the best trials; those of others are larger.

    Returns:
        Int[Array, "trials"].
    """
    from optuna.study._multi_objective import _fast_non_domination_rank

    return _fast_non_domination_rank(costs, n_below=count)


# --- Settings of pruners

RUNG_KEY = "completed_rung_"
"""With the number of a rung: the system attribute in which successive halving stores a trial's value."""


@dataclass(frozen=True)
class Halving:
    """The settings of a successive-halving pruner; `min_resource` is None until it is inferred."""

    min_resource: int | None
    reduction_factor: int
    min_early_stopping_rate: int
    bootstrap_count: int


def halving(pruner: SuccessiveHalvingPruner) -> Halving:
    """Return the settings of a successive-halving pruner."""
    return Halving(
        pruner._min_resource, pruner._reduction_factor, pruner._min_early_stopping_rate, pruner._bootstrap_count
    )


def has_max_resource(pruner: HyperbandPruner) -> bool:
    """Return whether a Hyperband pruner has a given maximum resource."""
    return pruner._max_resource != "auto"


def bracket(pruner: HyperbandPruner, study: optuna.Study, trial: FrozenTrial) -> tuple[int, BasePruner]:
    """Return the number of a trial's bracket, and the bracket's pruner."""
    if not pruner._pruners:
        pruner._try_initialization(study)
    number = pruner._get_bracket_id(study, trial)
    return number, pruner._pruners[number]


# --- Settings of terminators


def fewest_trials(terminator: BaseTerminator) -> int:
    """Return the number of complete trials before which a terminator never ends a study; 0 if that is not known."""
    return getattr(terminator, "_min_n_trials", 0)


# --- Tables


def table_models() -> Any:
    """Return the module with Optuna's tables and the version of its schema."""
    from optuna.storages._rdb import models

    return models


def migrations() -> Path:
    """Return the folder of Optuna's Alembic scripts."""
    from optuna.storages import _rdb

    return Path(str(_rdb.__file__)).parent / "alembic"


def storage_on_checked_tables(url: str, engine_kwargs: dict[str, Any]) -> RDBStorage:
    """Return an `RDBStorage` that does not look at the versions of its tables, which have been checked.

    Its own look imports Alembic, and needs three statements. If a later Optuna makes the storage in another way, the
    storage looks, and only the time is lost.
    """
    from optuna.storages import RDBStorage
    from optuna.storages._rdb import storage as module

    original: Any = RDBStorage.__init__
    settings: dict[str, Any] = {"skip_compatibility_check": True, "skip_table_creation": True}
    is_known = hasattr(module, "_VersionManager") and not hasattr(original, "__wrapped__")
    if not is_known or getattr(original, "__closure__", None) is not None:
        return RDBStorage(url, engine_kwargs, **settings)

    class Checked(module._VersionManager):
        def _init_version_info_model(self) -> None:
            pass

        def _init_alembic(self) -> None:
            pass

    # The same function with another global: other threads may make an `RDBStorage` of their own at any moment.
    init: Any = FunctionType(original.__code__, {**vars(module), "_VersionManager": Checked})
    init.__defaults__, init.__kwdefaults__ = original.__defaults__, original.__kwdefaults__
    storage = RDBStorage.__new__(RDBStorage)
    init(storage, url, engine_kwargs, **settings)
    return storage


def has_untried(sampler: BruteForceSampler, trials: list[FrozenTrial]) -> bool:
    """Return whether a point is left that no trial has; True if the trials have different domains."""
    from optuna.samplers._brute_force import _TreeNode

    tree = _TreeNode()
    try:
        sampler._populate_tree(tree, trials, {})
    except ValueError:  # the space was changed
        return True
    return tree.is_any_expandable(not sampler._avoid_premature_stop)


# --- Notes


def notes() -> Any:
    """Return the module of optuna-dashboard with the form in which notes are stored."""
    from optuna_dashboard import _note

    return _note
