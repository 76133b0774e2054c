"""The options of a launch: what they refuse, and the command lines that they make, as the command itself reads them."""

import os
import sys
from typing import Any

import pytest

from tuner.cli import app, run
from tuner.errors import UsageError
from tuner.launch import LaunchOptions
from tuner.launch.process import EVENTS_VARIABLE
from tuner.output import log
from tuner.study.file import Settings
from tuner.trial.environment import RELAYED_VARIABLE


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"trials": 0}, "`trials` must be at least 1: got 0"),
        ({"seed": -1}, "`seed` must be at least 0: got -1"),
        ({"metrics_host": "0.0.0.0"}, "`metrics_host` 0.0.0.0 has no effect without `metrics_port`: pass both"),
    ],
)
def test_wrong_options_are_refused_in_one_line(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=f"^{reason}"):
        LaunchOptions(**given)


def test_the_worker_command_says_what_the_launch_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    options = LaunchOptions(
        storage="postgresql://me:secret@db/tuner",
        artifacts="kept here",
        workers=3,
        trials=7,
        wall_hours=0.5,
        trial_minutes=30,
        stall_minutes=2.5,
        seed=0,
        fixed={"rate": "1e-3", "name": "a=b"},
        name="mine",
        objectives=("loss", "size"),
        directions=("minimize", "maximize"),
        sampler="random",
        pruner={"name": "asha", "reduction_factor": 4},
        cohort=16,
        owner="ann",
        labels=("vision", "a b"),
        mlflow="http://host",
        live=False,
    )
    command = options.worker_command("study.py:one")
    assert command[:5] == [sys.executable, "-m", "tuner", "worker", "study.py:one"]

    read: dict[str, Any] = {}
    monkeypatch.setattr(run, "_work", lambda *given: read.update(given=given[:4]))
    monkeypatch.setattr(run, "_stop_on_signals", lambda has_launcher: run.Stop())
    app(command[3:], standalone_mode=False)
    limits = {"trial_minutes": 30.0, "stall_minutes": 2.5}
    search = {"sampler": "random", "pruner": {"name": "asha", "reduction_factor": 4}, "cohort": 16}
    ownership = {"owner": "ann", "labels": ("vision", "a b")}
    settings = Settings(
        name="mine",
        objectives=["loss", "size"],
        directions=["minimize", "maximize"],
        trials=7,
        fixed={"rate": "1e-3", "name": "a=b"},
        more={"wall_hours": 0.5, "device_hours": None, **limits, "seed": 0, **search, **ownership},
    )
    assert read["given"] == ("study.py:one", None, "kept here", settings)


def test_a_launch_that_logs_json_has_workers_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LaunchOptions(fixed=None).worker_command("a.py")[4:] == ["a.py"]
    monkeypatch.setattr("tuner.launch.options.is_json", lambda: True)
    assert LaunchOptions().worker_command("a.py")[4:] == ["a.py", "--log-format=json"]
    assert not log.is_json()


@pytest.mark.parametrize(
    ("variables", "has_launcher"), [((), False), (("EVENTS",), True), (("EVENTS", "RELAYED"), False)]
)
def test_a_worker_knows_whether_a_launcher_will_kill_it(
    monkeypatch: pytest.MonkeyPatch, variables: tuple[str, ...], has_launcher: bool
) -> None:
    found: list[bool] = []
    monkeypatch.setattr(run, "_work", lambda *given: None)
    monkeypatch.setattr(run, "_stop_with_launcher", lambda stop, at_once: None)
    monkeypatch.setattr(run, "_stop_on_signals", lambda has_launcher: found.append(has_launcher) or run.Stop())
    if "EVENTS" in variables:
        monkeypatch.setenv(EVENTS_VARIABLE, str(os.dup(1)))
    if "RELAYED" in variables:
        monkeypatch.setenv(RELAYED_VARIABLE, "1")
    app(["worker", "study.py"], standalone_mode=False)
    assert found == [has_launcher]
