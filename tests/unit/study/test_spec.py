"""What a study refuses, how one is loaded from a file, and what must not change between launches."""

import copy
import dataclasses
import inspect
import json
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tuner.launch
import tuner.worker
from tuner import Space, Study, choice, int_uniform, log_uniform, uniform
from tuner.errors import SpaceError, StudyError, StudyFileError
from tuner.launch import LaunchOptions
from tuner.study import StudySpec, load_study, trial_seed
from tuner.study.file import split_target


class SGD(Space):
    momentum: float = uniform(0.0, 0.9)


class Adam(Space):
    beta: float = uniform(0.8, 0.99)


class HParams(Space):
    learning_rate: float = log_uniform(1e-4, 1e-1)
    width: int = choice(32, 64)
    optimizer: SGD | Adam = choice(SGD, Adam)


class Integers(Space):
    width: int = choice(32, 64)
    depth: int = int_uniform(1, 3)


def by_run(trial: optuna.Trial) -> HParams:
    rate = trial.suggest_float("learning_rate", 0.01, 0.1)
    return HParams(learning_rate=rate, width=trial.suggest_int("width", 3, 5), optimizer=SGD(momentum=0.5))


def study(**changes: Any) -> Study:
    values = {
        "name": "digits",
        "space": HParams,
        "trainer": SimpleNamespace(train_model=None),
        "data": lambda seed: None,
        "objective": "accuracy",
        "direction": "maximize",
        "epochs": 20,
        "trials": 30,
    }
    return Study(**{**values, **changes})


def pareto(**changes: Any) -> Study:
    both = {"objective": ["accuracy", "seconds"], "direction": None, "directions": ["maximize", "minimize"]}
    return study(**{**both, **changes})


def ask(made: StudySpec, **params: Any) -> tuple[Any, dict[str, Any]]:
    """Return the hyperparameters and what Optuna stores of them."""
    optuna_study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    optuna_study.enqueue_trial(params)
    trial = optuna_study.ask()
    return made.sample(trial), trial.params


@pytest.fixture(autouse=True)
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "the name of a study must be a text of 1 to 512 characters: got ''"),
        ({"name": "x" * 513}, "the name of a study must be a text of 1 to 512 characters: got 'xxx"),
        ({"name": 3}, "the name of a study must be a text of 1 to 512 characters: got 3"),
        ({"epochs": 0}, r"epochs must be an integer of at least 1: got 0 \(study 'digits'\)"),
        ({"epochs": 2.0}, r"epochs must be an integer of at least 1: got 2\.0"),
        ({"epochs": True}, "epochs must be an integer of at least 1: got True"),
        ({"trials": 0}, "trials must be an integer of at least 1: got 0"),
        ({"trials": "30"}, "trials must be an integer of at least 1: got '30'"),
        ({"seed": -1}, "seed must be an integer of at least 0: got -1"),
        ({"seed": None}, "seed must be an integer of at least 0: got None"),
        ({"space": {"width": 3}}, r"space must be a Space class or a function of an Optuna trial: got \{'width': 3\}"),
        ({"space": HParams(learning_rate=1, width=32, optimizer=SGD(momentum=0))}, "space must be .*: got HParams"),
        ({"data": 3}, "data must be a function that takes the study's seed: got 3"),
        ({"direction": None}, "one direction for each objective: got objective='accuracy', direction=None, dir.*=None"),
        ({"directions": ["maximize"]}, r"one direction .*direction='maximize', directions=\['maximize'\] \(study 'd"),
        ({"objective": ["a", "b"]}, r"one direction for each objective: got objective=\['a', 'b'\], direction='max"),
        ({"direction": None, "directions": ["maximize"] * 2}, "one direction for each objective: got objective='acc"),
        ({"objective": ""}, "objective must name one metric, or several different metrics: got ''"),
        ({"objective": [], "direction": None, "directions": []}, r"objective must name one metric, .*: got \[\]"),
        ({"objective": None}, "objective must name one metric, or several different metrics: got None"),
        ({"direction": "max"}, "a direction must be 'maximize' or 'minimize': got 'max'"),
        ({"direction": None, "directions": ["up"]}, "a direction must be 'maximize' or 'minimize': got 'up'"),
        ({"space": by_run, "fixed": {"width": 3}}, "of a define-by-run space: change its function"),
        ({"sampler": "tpee"}, "the sampler must be one of .*: got 'tpee'; did you mean 'tpe'"),
        ({"sampler": 3}, "the sampler must be a name, a mapping or an Optuna sampler: got 3"),
        ({"pruner": "asah"}, "the pruner must be one of .*: got 'asah'; did you mean 'asha'"),
        ({"pruner": 3}, "the pruner must be a name, a mapping or an Optuna pruner: got 3"),
        ({"sampler": "grid"}, "'grid' needs a Space class without conditional fields"),
    ],
)
def test_what_a_study_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        study(**changes)


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        ((), {"trails": 4}, r"^Study has no argument 'trails'; did you mean 'trials'\?$"),
        ((), {"zzz": 4}, r"^Study has no argument 'zzz'$"),
        ((), {"name": "a", "objective": "loss"}, r"^Study needs the argument 'trials'$"),
        ((), {"name": "a"}, r"^Study needs the arguments 'objective', 'trials'$"),
        (("a",), {}, r"^Study takes its arguments by name, as in Study\(name=..., trials=...\): got 'a'$"),
    ],
)
def test_arguments_with_wrong_names_are_refused(given: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        Study(*given, **settings)


def test_the_signature_of_a_study_has_its_arguments() -> None:
    assert list(inspect.signature(Study).parameters) == [field.name for field in dataclasses.fields(StudySpec)]


def test_several_objectives_are_not_pruned_unless_the_pruner_compares_them() -> None:
    for pruner in ("median", {"name": "median"}, optuna.pruners.MedianPruner()):
        with pytest.raises(StudyError, match=r"only the pruners asha and hyperband compare several obj.*: got pruner="):
            pareto(pruner=pruner)
    assert isinstance(pareto(pruner="asha").make_pruner(), optuna.pruners.SuccessiveHalvingPruner)
    assert isinstance(pareto(pruner={"name": "hyperband"}).make_pruner(), optuna.pruners.HyperbandPruner)
    for made in (pareto(), pareto(pruner="none")):
        assert isinstance(made.make_pruner(), optuna.pruners.NopPruner)
        assert (made.objectives, made.all_directions) == (("accuracy", "seconds"), ("maximize", "minimize"))


def test_one_objective_has_one_name_and_direction() -> None:
    for made in (study(), study(direction=None, directions=["maximize"], objective=["accuracy"])):
        assert (made.objectives, made.all_directions) == (("accuracy",), ("maximize",))
        assert isinstance(made.make_pruner(), optuna.pruners.SuccessiveHalvingPruner)


@pytest.mark.parametrize(
    "at_the_bound", [{"name": "x" * 512}, {"name": "x"}, {"epochs": 1}, {"trials": 1}, {"seed": 0}]
)
def test_bounds_themselves_are_allowed(at_the_bound: dict[str, Any]) -> None:
    study(**at_the_bound)
    study(sampler="grid", space=Integers, trials=6)


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"widthh": 32}, "no hyperparameter 'widthh': the space has .*; did you mean 'width'"),
        ({"learning_rate": 7.0}, r"learning_rate must be in log_uniform\(0.0001, 0.1\): got 7.0"),
        ({"optimizer.momentum": -1}, "optimizer.momentum must be in .*: got -1"),
        ({"width": 7}, r"width must be in choice\(32, 64\): got 7"),
        ({"width": 32, "optimizer": "SGD"}, "optimizer must be in .*: got 'SGD'"),
    ],
)
def test_what_cannot_be_fixed_is_refused(fixed: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        study(fixed=fixed)


@pytest.mark.parametrize("objective", [["a", "a"], ["a", ""], ["a", 3]])
def test_objectives_must_be_different_names(objective: list[Any]) -> None:
    with pytest.raises(StudyError, match="objective must name one metric, or several different metrics: got"):
        pareto(objective=objective)


def test_an_objective_must_be_a_name() -> None:
    with pytest.raises(StudyError, match="objective"):
        study(objective=3)


# Samples


def test_a_space_class_is_sampled() -> None:
    hparams, params = ask(study(), learning_rate=0.01, width=64, optimizer="SGD", **{"optimizer.momentum": 0.25})
    assert hparams == HParams(learning_rate=0.01, width=64, optimizer=SGD(momentum=0.25))
    assert params == {"learning_rate": 0.01, "width": 64, "optimizer": "SGD", "optimizer.momentum": 0.25}


def test_what_is_fixed_is_stored_but_not_searched() -> None:
    hparams, params = ask(study(fixed={"width": 64, "optimizer": Adam, "optimizer.beta": 0.9}), learning_rate=0.01)
    assert hparams == HParams(learning_rate=0.01, width=64, optimizer=Adam(beta=0.9))
    assert params == {"learning_rate": 0.01, "width": 64, "optimizer": "Adam", "optimizer.beta": 0.9}


def test_a_function_is_a_space_too() -> None:
    hparams, params = ask(study(space=by_run), learning_rate=0.05, width=4)
    assert hparams == HParams(learning_rate=0.05, width=4, optimizer=SGD(momentum=0.5))
    assert params == {"learning_rate": 0.05, "width": 4}


def test_a_function_must_return_a_space() -> None:
    def plain(trial: optuna.Trial) -> Any:
        return {"width": trial.suggest_int("width", 1, 2)}

    with pytest.raises(StudyError, match=r"the space's function must return a Space instance: got \{'width': 1\}"):
        ask(study(space=plain), width=1)


def test_named_samplers_are_made_anew_and_objects_are_kept() -> None:
    def draw(made: Study, number: int) -> Any:
        optuna_study = optuna.create_study(sampler=made.make_sampler(number))
        return made.sample(optuna_study.ask())

    named = study(sampler="random")
    assert draw(named, 3) == draw(named, 3) != draw(named, 4)
    assert draw(named, 3) != draw(study(sampler="random", seed=1), 3)
    sampler = optuna.samplers.RandomSampler(seed=0)
    assert study(sampler=sampler).make_sampler(0) is study(sampler=sampler).make_sampler(1) is sampler
    pruner = optuna.pruners.NopPruner()
    assert study(pruner=pruner).make_pruner() is pruner


# Seeds


def test_a_trials_seed_never_changes() -> None:
    # Golden: another value would make the trials of every stored study unrepeatable.
    assert trial_seed(0, 0, "training") == 1721222435
    assert trial_seed(0, 0, "sampler") == 1933340843
    assert trial_seed(0, 1, "training") == 614774089
    assert trial_seed(7, 17, "training") == 1005981820
    assert trial_seed(2**40, 10**6, "sampler") == 1835831832


@given(st.integers(0), st.integers(0))
def test_a_trials_seed_lies_in_31_bits(study_seed: int, number: int) -> None:
    assert 0 <= trial_seed(study_seed, number, "training") < 2**31


def test_seeds_differ_between_studies_trials_and_purposes() -> None:
    seeds = [trial_seed(s, n, purpose) for s in range(12) for n in range(12) for purpose in ("training", "sampler")]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) > 2**30 > min(seeds)


# Changes


def test_changed_takes_settings_from_the_command_line() -> None:
    first = study(fixed={"width": 32})
    made = first.changed(trials=5, seed=9, fixed={"learning_rate": "0.01", "optimizer": "Adam"})
    assert (made.trials, made.seed) == (5, 9)
    assert made.fixed == {"width": 32, "learning_rate": 0.01, "optimizer": Adam}
    assert first.fixed == {"width": 32}
    assert (first.trials, first.seed) == (30, 0)
    assert first.changed() == first
    assert first.changed(seed=0, fixed={"width": "64"}).fixed == {"width": 64}
    assert study(seed=5).changed(seed=0).seed == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"trials": 0}, StudyError, "trials must be an integer of at least 1: got 0"),
        ({"seed": -1}, StudyError, "seed must be an integer of at least 0: got -1"),
        ({"fixed": {"widthh": "64"}}, SpaceError, "no hyperparameter 'widthh': .*; did you mean 'width'"),
        ({"fixed": {"width": "65"}}, SpaceError, r"width must be in choice\(32, 64\): got '65'"),
        ({"fixed": {"learning_rate": "1"}}, SpaceError, "learning_rate must be in .*: got 1.0"),
    ],
)
def test_changes_are_checked(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        study().changed(**options)


def test_a_define_by_run_space_cannot_be_fixed() -> None:
    with pytest.raises(StudyError, match="of a define-by-run space: change its function"):
        study(space=by_run).changed(fixed={"width": "3"})
    assert study(space=by_run).changed(trials=7, fixed={}).trials == 7


def test_what_is_recorded() -> None:
    record = study(fixed={"width": 64}, seed=3).record()
    assert record == {
        "objective": ["accuracy"],
        "direction": ["maximize"],
        "epochs": 20,
        "seed": 3,
        "space": {
            "learning_rate": "log_uniform(0.0001, 0.1)",
            "width": "choice(32, 64) fixed at 64",
            "optimizer": "choice('SGD', 'Adam')",
            "optimizer.momentum": "uniform(0.0, 0.9) if optimizer=SGD",
            "optimizer.beta": "uniform(0.8, 0.99) if optimizer=Adam",
        },
        "optimizer_rules": 2,
        "value": "last",
    }
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize("made", [study(), study(space=by_run), study(fixed={"optimizer": Adam}), pareto()])
def test_the_same_study_may_go_on_with_more_trials_and_another_search(made: Study) -> None:
    recorded = json.loads(json.dumps(made.record()))
    before = copy.deepcopy(recorded)
    made.check_unchanged(recorded)
    dataclasses.replace(made, trials=1000, sampler="random", pruner="none", data=print).check_unchanged(recorded)
    assert recorded == before


class Wider(HParams):
    width: int = choice(32, 64, 128)  # pyright: ignore[reportGeneralTypeIssues]


class Longer(HParams):
    depth: int = choice(1, 2)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"objective": "loss"}, "objective was accuracy and is now loss"),
        ({"direction": "minimize"}, "direction was maximize and is now minimize"),
        ({"epochs": 21}, "epochs was 20 and is now 21"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"space": Wider}, r"space.width was choice\(32, 64\) and is now choice\(32, 64, 128\)"),
        ({"space": Longer}, r"space.depth was absent and is now choice\(1, 2\)"),
        ({"space": SGD}, r"space.learning_rate was log_uniform\(0.0001, 0.1\) and is now absent"),
        ({"fixed": {"width": 64}}, r"space.width was choice\(32, 64\) and is now choice\(32, 64\) fixed at 64"),
        ({"space": by_run}, "space.by_run was absent and is now function, sha256 [0-9a-f]{12}"),
        ({"epochs": 2, "seed": 3}, "epochs was 20 and is now 2; seed was 0 and is now 3"),
        (
            {"objective": ["accuracy", "loss"], "direction": None, "directions": ["maximize", "minimize"]},
            "objective was accuracy and is now accuracy, loss; direction was maximize and is now maximize, minimize",
        ),
    ],
)
def test_a_changed_study_is_refused(changes: dict[str, Any], difference: str) -> None:
    may_migrate = difference.startswith("space.") and "by_run" not in difference
    how = r", change the stored study \(`tuner migrate`\)," if may_migrate else ","
    message = f"study 'digits' has changed since its first launch.*: .*{difference}.*; change it back{how} or give"
    with pytest.raises(StudyError, match=message):
        study(**changes).check_unchanged(json.loads(json.dumps(study().record())))


# Files

HEAD = """
    from tuner import Space, Study, uniform; from types import SimpleNamespace
    class H(Space):
        rate: float = uniform(0.0, 1.0)
    def make(name, space=H):
        return Study(name=name, space=space, trainer=SimpleNamespace(train_model=0), data=print, objective="loss",
                     direction="minimize", epochs=1, trials=1)
"""
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a study file and return its path; imports leave no trace."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text: str, name: str = "some.py", head: str = HEAD) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(head).lstrip() + textwrap.dedent(text))
        return str(path)

    yield write
    for name in [name for name in sys.modules if name.startswith(("tuner.study.modules.", "sibling_"))]:
        del sys.modules[name]


@pytest.mark.parametrize(("target", "named"), [("none.py", "none.py"), ("none.py:s", "none.py"), ("", "."), (".", ".")])
def test_the_file_must_exist(target: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyFileError, match=f"study file not found: '{named}'"):
        load_study(target)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = (2\n", r"some\.py:2: '\(' was never closed"),
        ("x = 1\x00", r"the study file is not valid Python: .*some\.py"),
    ],
)
def test_the_file_must_be_python(text: str, message: str, write: Write) -> None:
    with pytest.raises(StudyFileError, match=message):
        split_target(write(text, head=""))


def test_the_files_name_must_end_as_pythons_do(write: Write) -> None:
    with pytest.raises(StudyFileError, match=r"a study file must be a Python file, FILE\.py: got .*some\.txt"):
        load_study(write("", "some.txt"))


@pytest.mark.parametrize("spelling", ["{tmp}/some.py", "some.py", "./some.py", "sub/../some.py", "link.py"])
def test_an_import_error_shows_the_files_own_line(
    spelling: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
        import json
        def read():
            return json.loads("{")  # the last own line, 10
        read()
    """
    write(text)
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.py").symlink_to("some.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        StudyFileError, match=r"the study file cannot be imported: .*\.py:10: JSONDecodeError: Expecting"
    ):
        load_study(spelling.format(tmp=tmp_path))


def test_an_error_in_a_sibling_shows_the_line_that_imports_it(write: Write) -> None:
    write("\n\n1 / 0", "sibling_that_fails.py", head="")
    with pytest.raises(StudyFileError, match=r"some\.py:2: ZeroDivisionError: division by zero"):
        load_study(write("import sys\nimport sibling_that_fails", head=""))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("class Bad(Space):\n    rate: float = uniform(1.0, 0.0)\n", SpaceError, r"some\.py:7: Bad\.rate: low must be"),
        ("\nmake('')\n", StudyError, r"some\.py:5: the name of a study must be"),
    ],
)
def test_our_own_errors_keep_their_kind_and_show_the_line(
    text: str, error: type[Exception], message: str, write: Write
) -> None:
    with pytest.raises(error, match=message) as caught:
        load_study(write(text))
    assert caught.type is error


def test_a_file_must_hold_a_study(write: Write) -> None:
    with pytest.raises(StudyFileError, match=r"no study in .*some\.py: assign `Study\(\.\.\.\)`"):
        load_study(write("_hidden = make('x'); others = [make('y')]"))


def test_one_of_several_studies_is_loaded_by_either_name(write: Write) -> None:
    path = write("first, second = make('one'), make('two')\n")
    with pytest.raises(StudyFileError, match=r"several studies: choose one with .*some\.py:NAME, .* first, second"):
        load_study(path)
    assert [load_study(f"{path}:{name}").name for name in ("first", "one", "second", "two")] == ["one"] * 2 + [
        "two"
    ] * 2
    for name in ("three", "make", ""):
        with pytest.raises(
            StudyFileError, match=rf"no study or function '{name}' in .*: its studies are first, second"
        ):
            load_study(f"{path}:{name}")


def test_one_study_under_two_names_is_one(write: Write) -> None:
    assert load_study(write("a = make('one')\nb = a\n")).name == "one"


def test_names_are_told_where_the_only_study_is_not_the_one_asked_for(write: Write) -> None:
    with pytest.raises(StudyFileError, match=r"no study or function 'x' in .*: its studies are none"):
        load_study(f"{write('')}:x")


def test_siblings_can_be_imported_and_the_module_has_its_file(write: Write) -> None:
    write("NAME = 'from the sibling'", "sibling_of_a_study.py", head="")
    made = load_study(write("from sibling_of_a_study import NAME\ns = make(NAME)\nassert __name__ != '__main__'\n"))
    assert made.name == "from the sibling"
    assert sys.modules[made.space.__module__].__file__ == write("")


def test_a_study_of_an_older_version_goes_on_and_one_of_a_newer_version_is_refused() -> None:
    made = study()
    recorded = made.record()
    del recorded["optimizer_rules"]
    made.check_unchanged(recorded)
    with pytest.raises(StudyError, match=r"newer version of tuner .optimizer_rules=3, .* supports 2.: upgrade"):
        made.check_unchanged({**recorded, "optimizer_rules": 3})


def test_a_colon_in_a_folder_is_no_name(write: Write) -> None:
    path = write("s = make('one')", "a:b/some.py")
    assert split_target(path) == (Path(path), None)
    assert split_target(f"{path}:s") == (Path(path), "s")
    assert load_study(path).name == load_study(f"{path}:s").name == "one"


def test_a_changed_function_is_a_changed_space(write: Write) -> None:
    text = "def space(trial):\n    return H(rate=trial.suggest_float('r', 0, {high}))\ns = make('one', space)\n"
    one, same, other = (load_study(write(text.format(high=high), f"{at}.py")) for at, high in enumerate((1, 1, 2)))
    same.check_unchanged(one.record())
    with pytest.raises(
        StudyError, match=r"space\.space was function, sha256 \w{12} and is now function, sha256 \w{12};"
    ):
        other.check_unchanged(one.record())
    assert 0 <= ask(other)[0].rate <= 2


# Running


def test_launch_names_file_and_study(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(tuner.launch, "launch", lambda *args: calls.append(args))
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    made = study(seed=4)
    with pytest.raises(
        StudyFileError,
        match=r"workers import the running script, so it must .*; call run\(\) instead",
    ):
        made.launch()
    main.__file__ = "/some/study.py"
    with pytest.raises(StudyFileError, match=r"cannot launch study 'digits' from /some/study\.py"):
        made.launch()  # it is another study's script
    vars(main)["searched"] = made
    made.launch(workers=2)
    assert calls == [("/some/study.py:searched", LaunchOptions(workers=2))]
    with pytest.raises(TypeError, match="worker"):
        made.launch(worker=2)


def test_run_is_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(tuner.worker, "run_worker", lambda *args, file, say: calls.append(args))
    made = study()
    made.run("sqlite:///x.db")
    made.run()
    assert [(study, str(url)) for study, url in calls] == [(made, "sqlite:///x.db"), (made, "sqlite:///tuner.db")]


def test_a_changed_constant_is_refused() -> None:
    def with_classes(count: int) -> type[Space]:
        class HParams(Space):
            width: int = choice(32, 64)
            classes: int = count

        return HParams

    recorded = study(space=with_classes(10)).record()
    study(space=with_classes(10)).check_unchanged(recorded)
    with pytest.raises(StudyError, match=r"space\.classes was constant 10 and is now constant 20"):
        study(space=with_classes(20)).check_unchanged(recorded)
