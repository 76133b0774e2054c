"""`tuner migrate`: a stored study gets another space, which Optuna and running caches then see. On both databases."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, json_to_distribution
from optuna.trial import TrialState, create_trial
from storage_tools import opened

from tuner.admin.edits import end_trial, enqueue
from tuner.admin.migrate import Migration, migrate
from tuner.admin.transfer import enqueue_best
from tuner.errors import StudyChanged, UsageError
from tuner.search.view import SamplerView
from tuner.storage import connect
from tuner.storage import storage_url as parsed
from tuner.storage.read.queries import MIGRATIONS_KEY
from tuner.storage.sql.tables import trial_params, trials
from tuner.storage.worker import claims, leases
from tuner.storage.worker.claims import Claimant, claim
from tuner.storage.worker.searches import Prepared, agree_on_search
from tuner.study.file import load_study
from tuner.study.migration import recorded_domains
from tuner.trial.extension import EXTENSION_KEY, Extension
from tuner.worker import run_worker

HEAD = """
import math

from tuner import Space, Study, choice, int_uniform, log_uniform, uniform

class SGD(Space):
    momentum: float = uniform(0.0, 0.9)

class Adam(Space):
    beta: float = uniform(0.8, 0.99)

class HParams(Space):
"""
TAIL = """
def train(hparams: HParams, trial):
    return (math.log10(hparams.rate) + 2) ** 2 + hparams.width / 64

study = Study(
    name="one", space=HParams, train=train, objective="loss", direction="minimize", trials=12,
    sampler={sampler!r}, {more}
)
"""
OLD = {
    "rate": "float = log_uniform(1e-3, 1e-1)",
    "width": "int = int_uniform(8, 32, step=8)",
    "kind": 'str = choice("relu", "tanh")',
    "optimizer": "SGD | None = choice(SGD, None)",
    "slope": "float = 0.1",
}


class Migrations:
    """A study with 12 trials in a storage, and files with other spaces."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.artifacts = str(folder / "artifacts")

    def file(self, *, sampler: Any = "random", more: str = "", remove: Sequence[str] = (), **fields: str) -> str:
        kept = {name: text for name, text in {**OLD, **fields}.items() if name not in remove}
        body = "".join(f"    {name}: {text}\n" for name, text in kept.items())
        path = self.folder / f"study_{abs(hash((body, str(sampler), more)))}.py"
        path.write_text(HEAD + body + TAIL.format(sampler=sampler, more=more))
        return str(path)

    def run(self, file: str, trials: int = 12) -> None:
        run_worker(load_study(file).changed(trials=trials), self.url, artifacts=self.artifacts, file=file)

    def __call__(self, is_dry: bool = False, defaults: dict[str, str] | None = None, **fields: Any) -> Migration:
        return migrate(parsed(self.url), "one", self.file(**fields), defaults=defaults, is_dry=is_dry)

    def plain(self) -> optuna.Study:
        """Return the study as plain Optuna loads it."""
        return optuna.load_study(study_name="one", storage=optuna.storages.RDBStorage(parsed(self.url).for_optuna))

    def rows(self) -> list[Any]:
        columns = (trials.c.number, trial_params.c.param_name, trial_params.c.param_value)
        query = sa.select(*columns, trial_params.c.distribution_json).join(
            trials, trials.c.trial_id == trial_params.c.trial_id
        )
        engine = connect(self.url)
        with engine.connect() as connection:
            found = sorted(map(tuple, connection.execute(query)))
        engine.dispose()
        return found


@pytest.fixture
def study(tmp_path: Path, storage_url: str, monkeypatch: pytest.MonkeyPatch) -> Migrations:
    monkeypatch.chdir(tmp_path)
    made = Migrations(tmp_path, storage_url)
    made.run(made.file())
    return made


WIDER: dict[str, Any] = {
    "rate": "float = log_uniform(1e-4, 1.0)",
    "width": "int = int_uniform(8, 64, step=8)",
    "kind": 'str = choice("relu", "tanh", "gelu")',
    "optimizer": "SGD | Adam | None = choice(SGD, None, Adam)",
    "slope": "float = uniform(0.0, 0.5)",
}


@pytest.mark.slow
def test_plain_optuna_goes_on_with_a_wider_space(study: Migrations) -> None:
    before = study.plain()
    best, values = before.best_trial, [trial.value for trial in before.trials]
    done = study(**WIDER)
    assert done.version == 1
    after = study.plain()
    assert after.best_trial.number == best.number
    assert after.best_value == best.value
    assert [trial.value for trial in after.trials] == values
    for trial, old in zip(after.trials, before.trials, strict=True):
        assert {name: value for name, value in trial.params.items() if name != "slope"} == old.params
        assert trial.params["slope"] == 0.1
        assert trial.distributions["rate"] == FloatDistribution(1e-4, 1.0, log=True)
        assert trial.distributions["width"] == IntDistribution(8, 64, step=8)
        assert trial.distributions["kind"] == CategoricalDistribution(("relu", "tanh", "gelu"))
        assert trial.distributions["optimizer"] == CategoricalDistribution(("SGD", None, "Adam"))
        assert trial.distributions["slope"] == FloatDistribution(0.0, 0.5)
    for sampler in (
        optuna.samplers.TPESampler(seed=0, n_startup_trials=5),
        optuna.samplers.TPESampler(multivariate=True),
    ):
        after.sampler = sampler
        asked = after.ask(dict(after.trials[0].distributions))
        after.tell(asked, 1.0)
        assert set(asked.params) == set(after.trials[0].distributions)
    shared = optuna.search_space.intersection_search_space(after.get_trials())
    assert set(shared) >= {"rate", "width", "kind", "optimizer", "slope"}


@pytest.mark.slow
def test_the_study_continues_under_its_number_of_trials(study: Migrations) -> None:
    new = study.file(**WIDER, sampler={"name": "tpe", "n_startup_trials": 4})
    with pytest.raises(StudyChanged, match=r"change it back, change the stored study \(`tuner migrate`\), or give"):
        study.run(new, trials=30)
    study(**WIDER)
    study.run(new, trials=20)
    study.run(study.file(**WIDER), trials=30)
    with pytest.raises(StudyChanged):
        study.run(study.file(), trials=40)
    found = study.plain().trials
    assert len(found) == 30
    assert {trial.state for trial in found} == {TrialState.COMPLETE}
    assert any(trial.params["kind"] == "gelu" for trial in found[12:])
    assert any(trial.params["optimizer"] == "Adam" and "optimizer.beta" in trial.params for trial in found[12:])
    assert any(trial.params["slope"] != 0.1 for trial in found[12:])


def test_the_dry_run_lists_what_would_change_and_changes_nothing(study: Migrations) -> None:
    before = study.rows()
    found = study(is_dry=True, **WIDER)
    assert study.rows() == before
    assert found.backup is None
    assert found.lines == (
        "slope: added: constant 0.1 -> uniform(0.0, 0.5); earlier trials get 0.1",
        "rate: wider range: log_uniform(0.001, 0.1) -> log_uniform(0.0001, 1.0)",
        "width: wider range: int_uniform(8, 32, step=8) -> int_uniform(8, 64, step=8)",
        "kind: added choices 'gelu': choice('relu', 'tanh') -> choice('relu', 'tanh', 'gelu')",
        "optimizer: added choices 'Adam': choice('SGD', None) -> choice('SGD', None, 'Adam')",
        "optimizer.beta: added: absent -> uniform(0.8, 0.99) if optimizer=Adam",
        "12 trials: the stored domain of rate is replaced",
        "12 trials: the stored domain of width is replaced",
        "12 trials: the stored domain of kind is replaced",
        "12 trials: the stored domain of optimizer is replaced",
        "12 trials: slope is added",
    )
    assert study(**WIDER).lines == found.lines, "they are what is then done"
    assert study(**WIDER).lines[0].startswith("the space of 'one' is that of ")
    assert study(**WIDER).version is None


@pytest.mark.slow
def test_a_narrower_space_keeps_distributions_and_hides_trials_outside(study: Migrations) -> None:
    narrow: dict[str, Any] = {"rate": "float = log_uniform(1e-3, 1e-2)"}
    before, rows = study.plain().trials, study.rows()
    outside = [trial.number for trial in before if trial.params["rate"] > 1e-2]
    assert 0 < len(outside) < 12
    found = study(**narrow)
    assert found.lines[-1] == (
        f"{len(outside)} trial{'s' * (len(outside) > 1)} outside of the new space: samplers do not see "
        f"{', '.join(map(str, outside))}"
    )
    assert study.rows() == rows
    assert study.plain().best_trial.number == min(before, key=lambda trial: trial.value or 0.0).number
    file = study.file(**narrow, sampler="tpe")
    with opened(study.url) as storage:
        view: Any = SamplerView(storage, load_study(file).distributions())
        seen = optuna.load_study(study_name="one", storage=view).trials
    assert [trial.number for trial in seen] == [number for number in range(12) if number not in outside]
    assert {trial.distributions["rate"] for trial in seen} == {FloatDistribution(1e-3, 1e-2, log=True)}
    study.run(file, trials=20)
    assert all(trial.params["rate"] <= 1e-2 for trial in study.plain().trials[12:])
    study.run(study.file(**narrow, sampler={"name": "cmaes"}), trials=24)


@pytest.mark.filterwarnings("ignore:Fixed parameter")
def test_samplers_do_not_see_a_value_outside_of_its_own_distribution(study: Migrations) -> None:
    """Optuna only warns of a queued value that is outside."""
    narrow: dict[str, Any] = {"rate": FloatDistribution(1e-3, 1e-2, log=True)}
    plain = study.plain()
    for rate in (0.05, 0.01):
        plain.enqueue_trial({"rate": rate})
        plain.tell(plain.ask(narrow), 1.0)
    with opened(study.url) as storage:
        view: Any = SamplerView(storage, narrow)
        seen = [trial.number for trial in optuna.load_study(study_name="one", storage=view).trials]
    assert [number for number in seen if number >= 12] == [13]


@pytest.mark.slow
def test_no_trial_outside_of_a_narrower_space_is_queued(study: Migrations) -> None:
    narrow: dict[str, Any] = {"rate": "float = log_uniform(1e-3, 1e-2)", "kind": 'str = choice("relu", "tanh", "gelu")'}
    assert enqueue(study.url, "one", {"rate": "0.05"}) == {"rate": 0.05}
    study(**narrow)
    with pytest.raises(UsageError, match=r"^rate must be in \[0.001, 0.01\]: got '0.05'$"):
        enqueue(study.url, "one", {"rate": "0.05"})
    assert enqueue(study.url, "one", {"rate": "0.01", "kind": "gelu", "optimizer": "SGD"}) == {
        "rate": 0.01,
        "kind": "gelu",
        "optimizer": "SGD",
    }
    source = optuna.create_study(study_name="other", storage=study.plain()._storage)
    for rate in (0.05, 0.005):
        distribution = FloatDistribution(1e-3, 1e-1, log=True)
        source.add_trial(create_trial(params={"rate": rate}, distributions={"rate": distribution}, value=rate))
    found = enqueue_best(study.url, "one", "other")
    assert found.trials == [(1, {"rate": 0.005})]
    assert found.unmatched == ["rate must be in [0.001, 0.01] (1 of 2 trials)"]


def test_a_fixed_hyperparameter_is_queued_only_at_its_value() -> None:
    recorded = {
        "a": "choice('x if y', 'z') fixed at 'x if y' if b=c",
        "n": "int_uniform(1, 9) fixed at 3",
        "c": "constant 1",
    }
    found = {name: domain.distribution() for name, domain in recorded_domains(recorded).items()}
    assert found == {"a": CategoricalDistribution(("x if y",)), "n": IntDistribution(3, 3)}


@pytest.mark.slow
def test_a_linear_scale_becomes_a_logarithmic_one(study: Migrations) -> None:
    study(width="int = int_uniform(8, 32, log=True)", slope="float = uniform(0.1, 0.5)")
    found = study.plain()
    assert {trial.distributions["width"] for trial in found.trials} == {IntDistribution(8, 32, log=True)}
    trial = found.ask()
    trial.suggest_int("width", 8, 32, log=True)
    found.tell(trial, state=TrialState.FAIL)
    study(
        width="int = int_uniform(16, 32, log=True)",
        slope="float = uniform(0.1, 0.5)",
        rate="float = uniform(0.01, 1.0)",
    )
    found = study.plain()
    assert {trial.distributions["rate"] for trial in found.trials[:12]} == {FloatDistribution(1e-3, 1.0)}
    found.ask().suggest_float("rate", 0.01, 1.0)


def test_a_new_field_needs_the_value_of_earlier_trials(study: Migrations) -> None:
    new: dict[str, Any] = {"drop": "float = uniform(0.0, 0.5)"}
    with pytest.raises(UsageError, match=r"^earlier trials have no value for the new hyperparameter 'drop': pass"):
        study(**new)
    with pytest.raises(UsageError, match=r"the default of drop must be in uniform\(0.0, 0.5\): got 'x'$"):
        study(**new, defaults={"drop": "x"})
    with pytest.raises(UsageError, match=r"earlier trials have drop=0.7, which must be in uniform\(0.0, 0.5\): widen"):
        study(**new, defaults={"drop": "0.7"})
    with pytest.raises(UsageError, match=r"`default` has 'rate', which is not a new hyperparameter"):
        study(**new, defaults={"drop": "0.2", "rate": "0.1"})
    with pytest.raises(UsageError, match=r"^cannot migrate study 'one': earlier trials have slope=0.1: `default` says"):
        study(slope="float = uniform(0.0, 0.5)", defaults={"slope": "0.2"})
    study(**new, defaults={"drop": "0.2"})
    assert {trial.params["drop"] for trial in study.plain().trials} == {0.2}


def test_trials_without_any_hyperparameter_get_the_new_field(tmp_path: Path, sqlite_url: str) -> None:
    """All fields of the space were constants."""
    constant: dict[str, Any] = {
        "rate": "float = 0.01",
        "width": "int = 8",
        "kind": 'str = "relu"',
        "slope": "float = 0.1",
    }
    study = Migrations(tmp_path, sqlite_url)
    study.run(study.file(**constant, remove=["optimizer"]), trials=3)
    study.plain().enqueue_trial({})
    new = "float = uniform(0.0, 0.5)"
    found = study(**constant, drop=new, remove=["optimizer"], defaults={"drop": "0.2"})
    assert found.lines[-1] == "3 trials: drop is added"
    after = study.plain().trials
    assert [trial.params for trial in after] == [{"drop": 0.2}] * 3 + [{}]
    assert after[0].distributions == {"drop": FloatDistribution(0.0, 0.5)}


@pytest.mark.slow
def test_a_new_choice_of_spaces_gets_the_values_below_it(study: Migrations) -> None:
    new: dict[str, Any] = {"inner": "SGD | Adam = choice(SGD, Adam)"}
    with pytest.raises(UsageError, match=r"no value for the new hyperparameter 'inner.beta'"):
        study(**new, defaults={"inner": "Adam"})
    study(**new, defaults={"inner": "Adam", "inner.beta": "0.9"})
    assert {(one.params["inner"], one.params["inner.beta"]) for one in study.plain().trials} == {("Adam", 0.9)}


@pytest.mark.parametrize("storage_url", ["sqlite", pytest.param("postgres", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"kind": 'str = choice("relu")'},
            "kind was choice('relu', 'tanh') and is now choice('relu'): choices cannot be removed",
        ),
        ({"kind": 'str = choice("tanh", "relu")'}, "choices must keep their order, with new ones at the end"),
        ({"kind": 'str = choice("elu", "relu", "tanh")'}, "choices must keep their order, with new ones at the end"),
        (
            {"rate": "float = choice(0.001, 0.01)"},
            "rate was log_uniform(0.001, 0.1) and is now choice(0.001, 0.01): the kind of a hyperparameter cannot",
        ),
        ({"width": "float = uniform(8.0, 32.0)"}, "the kind of a hyperparameter cannot change"),
        ({"rate": "float = log_uniform(1e-3, 1e-1, static=True)"}, "whether it is traced cannot change"),
        ({"width": "int = int_uniform(8, 32, step=8, traced=True)"}, "whether it is traced cannot change"),
        ({"remove": ["kind"]}, "kind was removed: keep the field"),
        ({"remove": ["slope"]}, "slope was removed: keep the field"),
        (
            {"slope": "float = 0.2"},
            "slope was constant 0.1 and is now constant 0.2: trials with other values would count",
        ),
        (
            {"rate": "float = 0.01"},
            "rate was log_uniform(0.001, 0.1) and is now constant 0.01: trials with other values",
        ),
        (
            {"slope": "float = log_uniform(0.2, 0.5)"},
            "earlier trials have slope=0.1, which must be in log_uniform(0.2, 0.5)",
        ),
        ({"more": 'fixed={"kind": "relu"}'}, "it must stay fixed at the same value, or searched; pass"),
        ({"more": "seed=3, epochs=4, value='best'"}, "epochs was None and is now 4"),
    ],
)
def test_what_cannot_be_migrated(study: Migrations, fields: dict[str, Any], message: str) -> None:
    rows = study.rows()
    with pytest.raises(UsageError) as raised:
        study(**fields)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert study.rows() == rows


def test_every_reason_is_named(study: Migrations) -> None:
    with pytest.raises(UsageError, match=r"rate was .*; kind was removed"):
        study(remove=["kind"], rate="float = choice(0.001, 0.01)")


# --- Caches


@contextlib.contextmanager
def another_reader(url: str) -> Iterator[tuple[Any, optuna.Study]]:
    with opened(url) as storage:
        yield storage, optuna.load_study(study_name="one", storage=storage)


@pytest.mark.slow
def test_a_cache_of_another_process_notices(study: Migrations) -> None:
    with another_reader(study.url) as (storage, seen):
        study_id = seen._study_id
        assert len(seen.trials) == len(storage.get_window(study_id)) == 12
        study(**WIDER)
        choices = CategoricalDistribution(("relu", "tanh", "gelu"))
        assert {one.distributions["kind"] for one in storage.get_all_trials(study_id)} == {choices}
        assert {one.distributions["kind"] for one in storage.get_window(study_id)} == {choices}


def test_a_process_that_only_creates_trials_notices_too(study: Migrations) -> None:
    with opened(study.url) as storage:
        old, new = CategoricalDistribution(("relu", "tanh")), CategoricalDistribution(("relu", "tanh", "gelu"))
        first = storage.create_new_trial(1)
        storage.set_trial_param(first, "kind", 1.0, old)
        storage.set_trial_state_values(first, TrialState.FAIL)
        study(**WIDER)
        second = storage.create_new_trial(1)
        storage.set_trial_param(second, "kind", 2.0, new)
        with pytest.raises(ValueError, match="does not support dynamic value space"):
            storage.set_trial_param(storage.create_new_trial(1), "kind", 1.0, old)


def test_a_worker_from_before_gets_no_trial(study: Migrations) -> None:
    engine = connect(study.url)
    before = Claimant(1, "before", trials=20, lease_s=30.0)
    study(**WIDER)
    with pytest.raises(StudyChanged, match="was changed by `tuner migrate` while this worker ran: launch it again"):
        claim(engine, before)
    assert not isinstance(
        claim(engine, Claimant(1, "after", trials=20, lease_s=30.0, space_version="1")), claims.NoTrial
    )
    engine.dispose()


# --- Safety


def test_no_worker_may_hold_a_trial(study: Migrations) -> None:
    engine = connect(study.url)
    lease = claim(engine, Claimant(1, "worker", trials=20, lease_s=30.0))
    assert not isinstance(lease, claims.NoTrial)
    for is_dry in (True, False):
        with pytest.raises(UsageError, match=r"^a worker runs trial 12: run `tuner stop`, and wait until it has exi"):
            study(is_dry=is_dry, **WIDER)
    leases.release(engine, lease)
    study(**WIDER)
    engine.dispose()


def test_no_other_program_may_run_a_trial(study: Migrations) -> None:
    study.plain().ask()
    with pytest.raises(UsageError, match=r"^another program runs trial 12: end it, or wait an hour after its start$"):
        study(**WIDER)


@pytest.mark.slow
def test_no_trial_may_wait_to_continue_another(study: Migrations) -> None:
    extension = Extension(3, 1, 2, 3, "/gone").to_json()
    for state in (TrialState.FAIL, TrialState.WAITING):
        study.plain().add_trial(create_trial(state=state, system_attrs={EXTENSION_KEY: extension}))
    for is_dry in (True, False):
        with pytest.raises(
            UsageError, match=r"^trial 13 waits to continue another one .*: launch the study and let it run first"
        ):
            study(is_dry=is_dry, **WIDER)
    end_trial(study.url, "one", 13)
    assert study(**WIDER).version == 1


def test_the_backup_has_what_was_there(study: Migrations) -> None:
    rows = study.rows()
    done = study(**WIDER)
    assert done.backup is not None
    if study.url.startswith("sqlite"):
        assert Migrations(study.folder, f"sqlite:///{done.backup}").rows() == rows
        return
    saved = json.loads(done.backup.read_text())
    assert saved["study"] == "one"
    assert sorted(tuple(one.values()) for one in saved["params"]) == rows
    assert json.loads(saved["attributes"]["tuner:study"])["space"]["kind"] == "choice('relu', 'tanh')"


@pytest.mark.slow
def test_it_is_recorded(study: Migrations) -> None:
    study(**WIDER)
    study(**{**WIDER, "kind": 'str = choice("relu", "tanh", "gelu", "elu")'})
    with opened(study.url) as storage:
        recorded = storage.get_study_system_attrs(1)[MIGRATIONS_KEY]
    assert [one["version"] for one in recorded] == [1, 2]
    assert recorded[1]["changes"] == [
        {
            "name": "kind",
            "what": "added choices 'elu'",
            "before": "choice('relu', 'tanh', 'gelu')",
            "after": "choice('relu', 'tanh', 'gelu', 'elu')",
        }
    ]
    assert recorded[0]["defaults"] == {"slope": 0.1}


def test_an_error_changes_nothing(study: Migrations, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuner.storage.worker import migrations

    rows = study.rows()
    monkeypatch.setattr(migrations, "_put", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        study(**WIDER)
    assert study.rows() == rows


def test_a_baseline_gets_the_new_field(tmp_path: Path, sqlite_url: str) -> None:
    study = Migrations(tmp_path, sqlite_url)
    base = 'rate=0.01, width=8, kind="tanh", optimizer=None'
    study.run(study.file(more=f"baseline=HParams({base})"), trials=3)
    new: dict[str, Any] = {"slope": "float = uniform(0.0, 0.5)", "more": f"baseline=HParams({base}, slope=0.1)"}
    study(**new)
    study.run(study.file(**new), trials=5)
    with pytest.raises(StudyChanged, match="baseline"):
        study(**{**new, "more": f"baseline=HParams({base}, slope=0.2)"}, rate="float = log_uniform(1e-4, 1.0)")


@pytest.mark.slow
def test_other_distributions_of_a_trial_are_found(study: Migrations) -> None:
    """Two changes in a row: those of trials from before the first are rewritten by the second."""
    study(rate="float = log_uniform(1e-3, 1e-2)")
    study.run(study.file(rate="float = log_uniform(1e-3, 1e-2)"), trials=14)
    study(rate="float = log_uniform(1e-4, 1.0)")
    texts = {json_to_distribution(row[3]) for row in study.rows() if row[1] == "rate"}
    assert texts == {FloatDistribution(1e-4, 1.0, log=True)}


@pytest.mark.slow
def test_trials_of_earlier_studies_are_seen_in_the_changed_space(study: Migrations) -> None:
    file = Path(study.file(sampler={"name": "tpe", "multivariate": True}, more='warm_start=["one"],'))
    file.write_text(file.read_text().replace('name="one"', 'name="two"'))
    study.run(str(file), trials=2)
    new: dict[str, str] = {
        "rate": "float = log_uniform(1e-3, 1e-2)",
        "kind": 'str = choice("relu", "tanh", "gelu")',
        "drop": "float = uniform(0.0, 0.5)",
    }
    moved = Path(study.file(**new, sampler={"name": "tpe", "multivariate": True}, more='warm_start=["one"],'))
    moved.write_text(moved.read_text().replace('name="one"', 'name="two"'))
    migrate(parsed(study.url), "two", str(moved), defaults={"drop": "0.25"})
    with opened(study.url) as storage:
        made = load_study(str(moved))
        agreed = agree_on_search(storage.engine, storage.get_study_id_from_name("two"), made, Prepared({}))
    inside = [trial for trial in study.plain().trials if trial.params["rate"] <= 1e-2]
    assert 0 < len(inside) < 12
    assert [trial.params for trial in agreed.earlier] == [{**trial.params, "drop": 0.25} for trial in inside]
    for trial in agreed.earlier:
        assert trial.distributions["rate"] == FloatDistribution(1e-3, 1e-2, log=True)
        assert trial.distributions["kind"] == CategoricalDistribution(("relu", "tanh", "gelu"))
        assert trial.distributions["drop"] == FloatDistribution(0.0, 0.5)
    study.run(str(moved), trials=4)
