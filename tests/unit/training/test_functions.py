"""Training functions that run inside compiled programs, alone and with others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from worker_log import Log, logged

import tuner
from tuner import Space, Study, choice, log_uniform, uniform
from tuner.errors import StudyError
from tuner.training import FunctionTrainer, vmappable
from tuner.trial.events import CohortChosen


class HParams(Space):
    rate: float = log_uniform(1e-2, 1.0)
    start: float = uniform(1.0, 2.0)
    width: int = choice(2, 3)


@vmappable
def shrinking(hparams: Any, key: jax.Array) -> Any:
    """Shrink a vector; the metric is its sum."""
    state = {"x": jnp.full(hparams.width, hparams.start), "epochs": 0}

    def epoch(state: Any, key: jax.Array) -> Any:
        after = {"x": state["x"] * (1.0 - hparams.rate), "epochs": state["epochs"] + 1}
        return after, {"sum": after["x"].sum(), "epochs": after["epochs"]}

    return state, epoch


@vmappable
def drawing(hparams: Any, key: jax.Array) -> Any:
    """Draw a number in each epoch."""
    return jax.random.uniform(key), lambda state, key: (state, {"sum": jax.random.uniform(key), "first": state})


def study_of(train: Any = shrinking, **settings: Any) -> Study:
    given: dict[str, Any] = {
        "name": "function", "space": HParams, "train": train, "objective": "sum", "direction": "minimize", "epochs": 4,
        "trials": 6, "sampler": "random", "pruner": "none",
    }  # fmt: skip
    return Study(**{**given, **settings})


@pytest.fixture
def work(tmp_path: Path) -> Callable[..., Log]:
    return lambda study, url, **options: logged(study, url, tmp_path / "artifacts", **options)


def trials_of(url: str) -> list[Any]:
    return optuna.load_study(study_name="function", storage=tuner.open_storage(url)).trials


@pytest.mark.slow
@pytest.mark.parametrize("cohort", [1, 3])
@pytest.mark.with_tables
def test_trials_report_what_the_function_computes(sqlite_url: str, work: Callable[..., Log], cohort: int) -> None:
    log = work(study_of(cohort=cohort), sqlite_url)
    trials = trials_of(sqlite_url)
    assert len(trials) == 6
    for trial in trials:
        first = trial.params["width"] * trial.params["start"]
        expected = {epoch: first * (1 - trial.params["rate"]) ** epoch for epoch in range(1, 5)}
        assert trial.intermediate_values == pytest.approx(expected, rel=1e-5)
        assert trial.value == trial.intermediate_values[4]
    assert [event.lanes for event in log.of(CohortChosen)] == ([] if cohort == 1 else [3])


@pytest.mark.slow
@pytest.mark.with_tables
def test_trials_and_epochs_draw_numbers_of_their_own(tmp_path: Path, work: Callable[..., Log]) -> None:
    drawn: list[list[float]] = []
    for cohort in (1, 6):
        url = f"sqlite:///{tmp_path / f'{cohort}.db'}"
        work(study_of(drawing, cohort=cohort), url)
        drawn.append([value for trial in trials_of(url) for value in trial.intermediate_values.values()])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 24


@pytest.mark.slow
@pytest.mark.with_tables
def test_a_trial_with_several_seeds_is_their_mean(sqlite_url: str, work: Callable[..., Log]) -> None:
    work(study_of(drawing, seeds=3, trials=2), sqlite_url)
    assert all(0.0 < trial.value < 1.0 for trial in trials_of(sqlite_url))


def test_it_trains_without_a_study() -> None:
    hparams = HParams(rate=0.5, start=1.0, width=2)
    training = shrinking.train_model(hparams, shrinking.own_data(0), epochs=3, seed=0)
    assert [report.metrics["sum"] for report in training] == [1.0, 0.5, 0.25]
    assert (int(training.state.params["epochs"]), training.state.params["x"].tolist()) == (3, [0.125, 0.125])


def test_it_is_a_trainer_with_data_of_its_own() -> None:
    study = study_of()
    assert (study.trainer, study.train, study.kind) == (shrinking, None, "trainer")
    assert isinstance(study_of(None, trainer=shrinking).trainer, FunctionTrainer)
    assert shrinking.__doc__ == "Shrink a vector; the metric is its sum."
    with pytest.raises(StudyError, match="epochs must be an integer of at least 1: got None"):
        study_of(epochs=None)
    for wrong in (3, lambda hparams: None):
        with pytest.raises(StudyError, match=r"vmappable needs a function of \(hparams, key\): got "):
            vmappable(wrong)  # pyright: ignore[reportArgumentType]


def returning(first: Any) -> Any:
    return lambda hparams, key: first


def with_epoch(made: Callable[[Any], Any]) -> Any:
    return lambda hparams, key: ({"x": jnp.zeros(2)}, lambda state, key: made(state))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (returning(jnp.zeros(2)), r"must return its first state and a function that trains an epoch, .*: got Array"),
        (returning((1, 2)), r"must return its first state and a function .*: got \(1, 2\)"),
        (with_epoch(lambda state: state), r"must return the next state and a dict of metrics: got \{'x'"),
        (with_epoch(lambda state: (state, {})), "must return the next state and a dict of metrics"),
        (with_epoch(lambda state: (state, {"sum": state["x"]})), r"metrics must be numbers: 'sum' has shape \(2,\)"),
        (with_epoch(lambda state: (state["x"], {"sum": 0})), "must return a state of the same structure: got "),
        (
            with_epoch(lambda state: ({"x": state["x"][:1]}, {"sum": 0})),
            r"must not change the shapes and types of the state: \['x'\] was float32\[2\], and is float32\[1\]",
        ),
        (
            with_epoch(lambda state: (state, {"sum": "x"})),
            "the metric 'sum' of .* must consist of arrays and numbers: got 'x'",
        ),
        (
            lambda hparams, key: ({"a": "text"}, lambda state, key: (state, {"sum": 0})),
            r"the first state of .* must consist of arrays and numbers: got \{'a': 'text'\}",
        ),
        (with_epoch(lambda state: (state, {"other": 0})), "does not report the objective 'sum': it reports other"),
    ],
)
def test_what_the_function_returns_is_checked_before_anything_is_stored(
    function: Any, message: str, tmp_path: Path, work: Callable[..., Log]
) -> None:
    path = tmp_path / "study.db"
    with pytest.raises(StudyError, match=message):
        work(study_of(vmappable(function)), f"sqlite:///{path}")
    assert not path.exists()


def test_there_is_no_model_to_call(sqlite_url: str) -> None:
    hparams = HParams(rate=0.5, start=1.0, width=2)
    training = shrinking.train_model(hparams, shrinking.own_data(0), epochs=1, seed=0)
    list(training)
    with pytest.raises(StudyError, match="shrinking is a function without a model to call or to export"):
        shrinking.bind_model(training.state, hparams)(np.zeros((1, 1), np.float32))
