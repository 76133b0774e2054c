"""The best hyperparameters of one study are queued in another, as far as names and domains match."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from command_line import Tuner
from optuna.trial import TrialState
from storage_tools import opened

from tuner.admin.transfer import Transferred, enqueue_best
from tuner.errors import UnknownStudy, UsageError


@pytest.fixture
def url(sqlite_url: str) -> str:
    with opened(sqlite_url) as storage:
        ours = optuna.create_study(study_name="ours", storage=storage)
        ours.optimize(define, 2)
        other = optuna.create_study(study_name="other", storage=storage, direction="maximize")
        for at, (lr, width, kind) in enumerate([(1e-3, 8, "a"), (1e-2, 64, "b"), (0.5, 16, "c"), (1e-2, 64, "b")]):
            trial = other.ask()
            trial.suggest_float("lr", 1e-5, 1.0, log=True)
            trial.suggest_int("width", 1, 99)
            trial.suggest_categorical("kind", ["a", "b", "c"])
            other.tell(trial, float(at))
            _set(storage, trial, {"lr": lr, "width": width, "kind": kind})
    return sqlite_url


def _set(storage: Any, trial: optuna.Trial, params: dict[str, Any]) -> None:
    """Give a stored trial other hyperparameters."""
    with storage.engine.begin() as connection:
        for name, value in params.items():
            number = trial.distributions[name].to_internal_repr(value)
            connection.exec_driver_sql(
                f"UPDATE trial_params SET param_value = {number} WHERE trial_id = {trial._trial_id} "
                f"AND param_name = '{name}'"
            )


def define(trial: optuna.Trial) -> float:
    trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
    trial.suggest_int("width", 8, 64, step=8)
    trial.suggest_categorical("kind", ["a", "b"])
    return 1.0


def queued(url: str) -> list[tuple[Any, Any]]:
    with opened(url) as storage:
        trials = storage.get_all_trials(storage.get_study_id_from_name("ours"), states=(TrialState.WAITING,))
        return [(trial.system_attrs["fixed_params"], trial.user_attrs["enqueued_from"]) for trial in trials]


def test_the_best_are_queued_under_new_names_and_what_does_not_match_is_listed(url: str) -> None:
    found = enqueue_best(url, "ours", "other", 4, {"lr": "learning_rate"})
    # Best first: 3, 2, 1 (as 3), 0.
    expected = [
        (3, {"learning_rate": 1e-2, "width": 64, "kind": "b"}),
        (2, {"width": 16}),
        (0, {"learning_rate": 1e-3, "width": 8, "kind": "a"}),
    ]
    assert found == Transferred(
        expected,
        ["learning_rate must be in [0.0001, 0.1] (1 of 4 trials)", "kind must be in {a, b} (1 of 4 trials)"],
    )
    assert queued(url) == [(params, {"study": "other", "trial": number}) for number, params in expected]
    with opened(url) as storage:
        study = optuna.load_study(study_name="ours", storage=storage)
        trial = study.ask()
        define(trial)
        assert trial.params == expected[0][1]


def test_a_name_that_is_not_there_is_listed(url: str) -> None:
    found = enqueue_best(url, "ours", "other", 1)
    assert found == Transferred([(3, {"width": 64, "kind": "b"})], ["there is no hyperparameter lr (1 of 1 trials)"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("ours", "other", 0), "number of trials to queue must be at least 1: got 0"),
        (
            ("ours", "other", 2, {"rate": "learning_rate"}),
            "cannot rename rate .*: 'other' has no hyperparameter 'rate'",
        ),
        (("ours", "other", 2, {"lr": "learning"}), "'ours' has no hyperparameter 'learning', .*mean 'learning_rate'"),
        (("ours", "empty"), "study 'empty' has no complete trial"),
        (("empty", "ours"), "study 'empty' has no trials yet"),
        (("apart", "other", 2), "no hyperparameter of 'other' matches study 'apart': there is no hyperparameter lr"),
    ],
)
def test_what_cannot_be_queued_is_refused(arguments: Any, reason: str, url: str) -> None:
    with opened(url) as storage:
        optuna.create_study(study_name="empty", storage=storage)
        apart = optuna.create_study(study_name="apart", storage=storage)
        apart.optimize(lambda trial: trial.suggest_float("x", 0, 1), 1)
    with pytest.raises(UsageError, match=reason):
        enqueue_best(url, *arguments)
    assert queued(url) == []


def test_both_studies_must_exist(url: str) -> None:
    for names in (("ours", "othr"), ("our", "other")):
        with pytest.raises(UnknownStudy, match="no study 'o"):
            enqueue_best(url, *names)


def test_the_front_counts_with_several_objectives(url: str) -> None:
    with opened(url) as storage:
        several = optuna.create_study(study_name="several", storage=storage, directions=["minimize", "minimize"])
        for width, values in ((8, (1.0, 2.0)), (16, (2.0, 3.0)), (24, (2.0, 1.0))):
            several.enqueue_trial({"width": width})
            trial = several.ask()
            trial.suggest_int("width", 8, 64, step=8)
            several.tell(trial, values)
    assert [number for number, _ in enqueue_best(url, "ours", "several").trials] == [0, 2]


def test_a_conditional_hyperparameter_comes_with_its_condition(sqlite_url: str) -> None:
    with opened(sqlite_url) as storage:
        for name, options in (("ours", ["sgd", "adam"]), ("other", ["sgd", "lion"])):
            study = optuna.create_study(study_name=name, storage=storage)
            space = {"optimizer": "choice('sgd', 'x')", "optimizer.momentum": "uniform(0.0, 1.0) if optimizer=sgd"}
            storage.set_study_system_attr(study._study_id, "tuner:study", {"space": space})
            study.enqueue_trial({"optimizer": "sgd"})
            study.enqueue_trial({"optimizer": options[1]})

            def define(trial: optuna.Trial, options: list[str] = options) -> float:
                kind = trial.suggest_categorical("optimizer", options)
                trial.suggest_float("optimizer.momentum", 0.0, 1.0)
                return float(kind == "sgd")  # the other is the best

            study.optimize(define, 2)
    with pytest.raises(UsageError) as caught:
        enqueue_best(sqlite_url, "ours", "other", 1)
    assert str(caught.value) == (
        "no hyperparameter of 'other' matches study 'ours': optimizer must be in {sgd, adam} (1 of 1 trials); "
        "hyperparameter optimizer.momentum needs optimizer=sgd (1 of 1 trials)"
    )
    ((number, params),) = enqueue_best(sqlite_url, "ours", "other", 2).trials
    assert (number, params.keys()) == (0, {"optimizer", "optimizer.momentum"})


# --- The command


def test_the_command_says_what_it_has_queued_and_what_does_not_match(url: str, tmp_path: Path) -> None:
    shell = Tuner(tmp_path, url)
    done = shell.run_here("enqueue", "ours", "--from", "other", "-n", "2", "--rename", "lr=learning_rate")
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "tuner: a trial of 'ours' with learning_rate=0.01, width=64, kind=b is queued, from trial 3 of 'other'",
        "tuner: a trial of 'ours' with width=16 is queued, from trial 2 of 'other'",
        "tuner: not matched: learning_rate must be in [0.0001, 0.1] (1 of 2 trials)",
        "tuner: not matched: kind must be in {a, b} (1 of 2 trials)",
    ]
    assert len(queued(url)) == 2


@pytest.mark.slow
def test_the_command_says_if_it_has_queued_fewer_than_asked_for(url: str, tmp_path: Path) -> None:
    done = Tuner(tmp_path, url).run_here("enqueue", "ours", "--from", "other", "-n", "90")
    count = len(queued(url))
    assert done.stderr.splitlines()[-1] == (
        f"tuner: queued only {count} of 90 trials: 'other' has no more complete, feasible trials with other "
        "hyperparameters"
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "pass either hyperparameters (NAME=VALUE) or another study (--from)"),
        (
            ("width=8", "--from", "other"),
            "pass either hyperparameters (NAME=VALUE) or another study (--from), not both",
        ),
        (("width=8", "-n", "2"), "`-n` and `--rename` have no effect without `--from`"),
        (("width=8", "--rename", "a=b"), "`-n` and `--rename` have no effect without `--from`"),
        (("--from", "other", "--rename", "lr"), "--rename must have the form NAME=VALUE: got 'lr'"),
    ],
)
def test_words_that_do_not_go_together_are_refused(
    words: tuple[str, ...], reason: str, url: str, tmp_path: Path
) -> None:
    done = Tuner(tmp_path, url).run_here("enqueue", "ours", *words)
    assert done.returncode == 2
    assert reason in done.stderr
    assert queued(url) == []
