"""Every private name of Optuna that is used is there in the installed version, does what it is used for, and is used
in one file only."""

import ast
import functools
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.pruners import HyperbandPruner, SuccessiveHalvingPruner
from optuna.trial import TrialState

from tuner.trial import optuna_private as private

TUNER = Path(private.__file__).parents[1]
NAMES = {
    "_trial_id": private.trial_id,
    "_study_id": private.study_id,
    "_storage": private.storage_of,
    "_system_attrs": private.system_attrs,
    "_user_attrs": private.user_attrs,
    "_distributions": private.distributions,
    "_thread_local": private.forget_trials,
    "_stop_flag": private.has_stopped,
    "_filter_study": private.filter_study,
    "_min_resource": private.halving,
    "_reduction_factor": private.halving,
    "_min_early_stopping_rate": private.halving,
    "_bootstrap_count": private.halving,
    "_max_resource": private.has_max_resource,
    "_pruners": private.bracket,
    "_try_initialization": private.bracket,
    "_get_bracket_id": private.bracket,
    "_min_n_trials": private.fewest_trials,
    "_rdb": private.table_models,
    "_VersionManager": private.storage_on_checked_tables,
    "_frozen": None,
    "_FrozenStudy": None,
    "_params": private.params,
    "_values": private.values,
    "_get_trials": private.all_trials,
    "_study": private.with_storage,
    "_contains": private.contains,
    "_note": private.notes,
    "_get_generation_key": private.generation_key,
    "_multi_objective": private.domination_ranks,
    "_fast_non_domination_rank": private.domination_ranks,
    "_search_space": private.replace_intersection,
    "_intersection_search_space": private.replace_intersection,
    "_include_pruned": private.replace_intersection,
    "_brute_force": private.has_untried,
    "_TreeNode": private.has_untried,
    "_populate_tree": private.has_untried,
    "_avoid_premature_stop": private.has_untried,
}


def names_in(path: Path) -> set[str]:
    """Return the private names that a file takes from objects other than `self`, and those it imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optuna"):
            found |= {*(node.module or "").split("."), *(one.name for one in node.names)}
            found |= {one.asname for one in node.names if one.asname}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            found.add(node.value)
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def test_the_list_above_has_every_private_name() -> None:
    assert names_in(Path(private.__file__)) == set(NAMES)


def test_no_other_file_uses_one() -> None:
    others = [path for path in TUNER.rglob("*.py") if path.name != "optuna_private.py"]
    used = {path.name: names for path in others if (names := names_in(path) & set(NAMES))}
    assert used == {}


def test_no_other_file_imports_private_parts_of_optuna() -> None:
    for path in TUNER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optuna"):
                words = [*(node.module or "").split("."), *(one.name for one in node.names)]
                assert path.name == "optuna_private.py" or not any(word.startswith("_") for word in words), path


@pytest.fixture
def study() -> optuna.Study:
    made = optuna.create_study(storage=optuna.storages.InMemoryStorage(), sampler=optuna.samplers.RandomSampler(seed=0))
    for value in (1.0, 2.0):
        trial = made.ask({"rate": optuna.distributions.FloatDistribution(0, 1)})
        trial.set_user_attr("outcome", "complete")
        trial.report(value, 1)
        made.tell(trial, value)
    return made


def test_ids_are_those_by_which_the_storage_answers(study: optuna.Study) -> None:
    storage = private.storage_of(study)
    first, second = study.get_trials()
    assert storage.get_study_name_from_id(private.study_id(study)) == study.study_name
    assert storage.get_trial(private.trial_id(second)).number == second.number == 1
    assert private.trial_id(first) != private.trial_id(second)
    (frozen,) = storage.get_all_studies()
    assert private.study_id(frozen) == private.study_id(study)


def test_what_a_trial_holds_can_be_changed(study: optuna.Study) -> None:
    trial = study.get_trials()[0]
    private.system_attrs(trial)["seen"] = 1
    private.user_attrs(trial)["mine"] = 2
    assert (trial.system_attrs["seen"], trial.user_attrs["mine"]) == (1, 2)
    assert private.distributions(trial) == trial.distributions == {"rate": optuna.distributions.FloatDistribution(0, 1)}
    assert (private.params(trial), private.values(trial)) == (trial.params, trial.values)
    fields: dict[str, Any] = vars(trial)
    assert fields[private.VALUES] == trial.values
    assert fields[private.DISTRIBUTIONS] == trial.distributions
    assert [fields[name] for name in private.ATTRIBUTES] == [trial.params, trial.user_attrs, trial.system_attrs]


def test_a_sampler_may_see_a_study_with_another_storage(study: optuna.Study) -> None:
    private.set_system_attrs(study.get_trials(deepcopy=False)[0], {"seen": 1})
    other: Any = optuna.storages.InMemoryStorage()
    other.create_new_study([optuna.study.StudyDirection.MINIMIZE], study.study_name)
    for pruner in (None, HyperbandPruner(min_resource=1, max_resource=9)):
        study.pruner = pruner or study.pruner
        seen = private.with_storage(private.filter_study(study, study.trials[0]), other, study.trials[0])
        assert private.storage_of(seen) is other
        assert private.all_trials(seen) == []
        assert isinstance(seen.pruner, HyperbandPruner) == (pruner is not None)
    assert [trial.system_attrs for trial in private.all_trials(study)] == [{"seen": 1}, {}]


def test_a_domain_contains_the_values_that_a_trial_may_have() -> None:
    width = optuna.distributions.IntDistribution(1, 9, step=2)
    assert [private.contains(width, value) for value in (1, 9, 2, 11, "wide", None)] == [True] * 2 + [False] * 4
    kind = optuna.distributions.CategoricalDistribution(("a", None))
    assert [private.contains(kind, value) for value in ("a", None, "b")] == [True, True, False]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_point_is_left_until_a_trial_has_each_of_them() -> None:
    sampler = optuna.samplers.BruteForceSampler()
    width = optuna.distributions.IntDistribution(1, 3)
    done = [optuna.trial.create_trial(params={"w": at}, distributions={"w": width}, value=0.0) for at in (1, 2, 2, 3)]
    assert [private.has_untried(sampler, done[:count]) for count in range(5)] == [True, True, True, True, False]


def test_a_genetic_algorithm_stores_generations_under_its_key(study: optuna.Study) -> None:
    study.sampler = optuna.samplers.NSGAIISampler(population_size=2)
    study.ask({"rate": optuna.distributions.FloatDistribution(0, 1)})
    assert study.trials[-1].system_attrs[private.generation_key(optuna.samplers.NSGAIISampler)] == 0


def test_a_number_is_set_together_with_the_id() -> None:
    trial = optuna.create_trial(value=1.0)
    private.set_number(trial, -3)
    assert (trial.number, private.trial_id(trial)) == (-3, -3)


def test_a_trial_has_no_mapping_but_these() -> None:
    """Copies of trials copy these fields, so a new one of Optuna must be known."""
    trial = optuna.create_trial(value=1.0)
    mappings = {name for name, value in vars(trial).items() if isinstance(value, dict | list)}
    assert mappings == {*private.ATTRIBUTES, private.DISTRIBUTIONS, private.VALUES, "intermediate_values"}


def test_a_sampler_may_stop_a_study_that_optimize_does_not_run(study: optuna.Study) -> None:
    with pytest.raises(RuntimeError, match="inside an objective"):
        study.stop()
    private.allow_stop(study)
    assert not private.has_stopped(study)
    study.stop()
    assert private.has_stopped(study)
    private.forget_stop(study)
    assert not private.has_stopped(study)


def test_trials_are_read_again_once_forgotten(study: optuna.Study) -> None:
    study.ask()  # Optuna keeps the trials of this moment for its sampler
    seen = study._get_trials(deepcopy=False, use_cache=True)
    study.add_trial(optuna.create_trial(value=3.0))
    assert len(study._get_trials(deepcopy=False, use_cache=True)) == len(seen)
    private.forget_trials(study)
    assert len(study._get_trials(deepcopy=False, use_cache=True)) == len(seen) + 1


def test_under_hyperband_a_sampler_sees_one_bracket(study: optuna.Study) -> None:
    pruner = HyperbandPruner(min_resource=1, max_resource=9, reduction_factor=3)
    study.pruner = pruner
    trial = study.get_trials()[0]
    number, of_bracket = private.bracket(pruner, study, trial)
    assert isinstance(of_bracket, SuccessiveHalvingPruner)
    assert private.halving(of_bracket) == private.Halving(1, 3, number, 0)
    assert private.has_max_resource(pruner)
    assert not private.has_max_resource(HyperbandPruner())
    seen = private.filter_study(study, trial)
    brackets = [private.bracket(pruner, study, one)[0] for one in study.get_trials()]
    assert len(seen.get_trials(states=[TrialState.COMPLETE])) == brackets.count(number)


def test_halving_has_the_settings_it_was_given() -> None:
    pruner = SuccessiveHalvingPruner(2, reduction_factor=5, min_early_stopping_rate=1, bootstrap_count=3)
    assert private.halving(pruner) == private.Halving(2, 5, 1, 3)
    assert private.halving(SuccessiveHalvingPruner()).min_resource is None


def test_a_storage_on_checked_tables_changes_no_other_storage(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'tuner.db'}"
    theirs = optuna.storages.RDBStorage(url)
    optuna.create_study(storage=theirs, study_name="one")
    with theirs.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'v1.2.0.a'"))
    ours = private.storage_on_checked_tables(url, {})
    assert ours.get_study_name_from_id(ours.get_study_id_from_name("one")) == "one"
    with pytest.raises(RuntimeError, match="optuna storage upgrade"):
        optuna.storages.RDBStorage(url)
    for storage in (ours, theirs):
        storage.remove_session()
        storage.engine.dispose()


@pytest.mark.parametrize("change", ["another name", "decorated", "with a closure"])
def test_a_storage_that_is_made_in_another_way_looks_itself(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optuna.storages._rdb import storage as module

    url, original = f"sqlite:///{tmp_path / 'tuner.db'}", module.RDBStorage.__init__
    optuna.storages.RDBStorage(url).engine.dispose()

    # Without a closure, like the real one.
    def renamed(self: Any, *args: Any, made: Any = (module, original, module._VersionManager), **given: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(made[0], "_VersionManager", made[2], raising=False)
            made[1](self, *args, **given)

    def enclosing(self: Any, *args: Any, **given: Any) -> None:
        original(self, *args, **given)

    if change == "another name":
        monkeypatch.delattr(module, "_VersionManager")
    if change == "decorated":
        functools.update_wrapper(renamed, original)
    monkeypatch.setattr(module.RDBStorage, "__init__", enclosing if change == "with a closure" else renamed)
    ours = private.storage_on_checked_tables(url, {})
    assert ours.get_all_studies() == []
    ours.remove_session()
    ours.engine.dispose()


def test_tables_and_migrations_are_optunas() -> None:
    models = private.table_models()
    assert models.SCHEMA_VERSION >= 12
    assert {"studies", "trials", "version_info"} <= set(models.BaseModel.metadata.tables)
    assert (private.migrations() / "versions").is_dir()
