"""Functions, objectives and commands whose worker is killed: nothing is lost, doubled or left running."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

TRIALS, EPOCHS = 4, 5
STUDY = '''
"""A study whose curve is a known function of its hyperparameter; it kills its own process once, at a given place."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

import tuner.worker.opening
import tuner.worker.trainables.saves
from tuner import Command, OptunaObjective, Space, Study, uniform

tuner.worker.opening.LEASE_S = 2.0
FORM, PLACE, FOLDER = os.environ["KILL_FORM"], os.environ["KILL_PLACE"], Path(__file__).parent


class HParams(Space):
    x: float = uniform(0.0, 1.0)


def kill(place, trial):
    if place == PLACE and trial == 1:
        try:
            (FOLDER / "killed").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


def note(trial, epoch):
    with (FOLDER / "epochs").open("a") as file:
        file.write(f"{trial} {epoch}\\n")


def state_of(trial):
    state = trial.restore()
    return np.zeros(2) if state is None else state["weights"]


write_content = tuner.worker.trainables.saves._write_content


def write_or_die(folder, content):
    write_content(folder, content)
    if content.epoch == 3:
        kill("save", content.record["trial"])


tuner.worker.trainables.saves._write_content = write_or_die


def epochs(hparams, trial):
    """Yield the metrics of each epoch, and save after it."""
    weights = state_of(trial)
    for epoch in range(trial.epoch + 1, EPOCHS + 1):
        weights = weights + hparams.x
        note(trial.number, epoch)
        yield epoch, {"loss": float(weights.sum())}
        if epoch == 3:
            kill("reports", trial.number)
        trial.save({"weights": weights})
        if epoch == EPOCHS:
            kill("end", trial.number)


def generator(hparams, trial):
    yield from epochs(hparams, trial)


def reporter(hparams, trial):
    reports = epochs(hparams, trial)
    for epoch, metrics in reports:
        trial.report(metrics, epoch=epoch)


def returner(hparams, trial):
    loss = 2 * EPOCHS * hparams.x
    note(trial.number, EPOCHS)
    kill("end", trial.number)
    return loss


def objective(trial):
    x, loss = trial.suggest_float("x", 0.0, 1.0), 0.0
    for epoch in range(1, EPOCHS + 1):
        loss = 2 * epoch * x
        note(trial.number, epoch)
        trial.report(loss, epoch)
        if epoch == 3:
            kill("reports", trial.number)
    kill("end", trial.number)
    return loss


COMMAND = """
import json, os, pathlib, signal, sqlite3, sys, time
trial, x, folder = int(sys.argv[1]), float(sys.argv[2]), pathlib.Path(sys.argv[3])
place = os.environ["KILL_PLACE"]
path = folder / "state.json"
state = json.loads(path.read_text()) if path.exists() else {"epoch": 0, "weights": 0.0}

def kill(at):
    if at == place and trial == 1:
        try:
            (pathlib.Path(os.environ["KILL_FOLDER"]) / "killed").touch(exist_ok=False)
        except FileExistsError:
            return
        while not is_stored(EPOCHS if at == "end" else 3):  # a report that was not read yet would be lost
            time.sleep(0.02)
        os.kill(int(os.environ["KILL_WORKER"]), signal.SIGKILL)
        time.sleep(600)

def is_stored(epoch):
    with sqlite3.connect(os.path.join(os.environ["KILL_FOLDER"], "study.db"), timeout=60) as connection:
        query = "SELECT count(*) FROM tuner_reports JOIN trials USING (trial_id) WHERE number = ? AND epoch = ?"
        return connection.execute(query, (trial, epoch)).fetchone()[0]

for epoch in range(state["epoch"] + 1, EPOCHS + 1):
    state = {"epoch": epoch, "weights": state["weights"] + 2 * x}
    with open(os.path.join(os.environ["KILL_FOLDER"], "epochs"), "a") as file:
        print(trial, epoch, file=file)
    print(json.dumps({"epoch": epoch, "loss": state["weights"]}), flush=True)
    if epoch == 3:
        kill("reports")
    (folder / "new.json").write_text(json.dumps(state))
    if epoch == 3:
        kill("save")
    (folder / "new.json").replace(path)
kill("end")
""".replace("EPOCHS", str(EPOCHS))

os.environ |= {"KILL_WORKER": str(os.getpid()), "KILL_FOLDER": str(FOLDER)}
(FOLDER / "program.py").write_text(COMMAND) if not (FOLDER / "program.py").exists() else None
command = Command([sys.executable, str(FOLDER / "program.py"), "{number}", "{x}", "{folder}"])
forms = {"generator": generator, "reporter": reporter, "returner": returner, "command": command}
train = forms[FORM] if FORM in forms else OptunaObjective(objective)
study = Study(
    name="killed", space=HParams if FORM in forms else None, train=train, objective="loss", direction="minimize",
    trials=TRIALS, sampler="random", pruner="none",
)
'''


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "place"),
    [
        ("generator", "save"),
        ("reporter", "reports"),
        ("objective", "reports"),
        ("command", "end"),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in [
                *(("generator", "reports"), ("generator", "end"), ("reporter", "save"), ("reporter", "end")),
                *(("returner", "end"), ("objective", "end"), ("command", "reports"), ("command", "save")),
            ]
        ),
    ],
)
def test_a_killed_worker_loses_and_doubles_nothing(
    form: str, place: str, tuner_on_sqlite: Any, wait_until: Callable[..., Any]
) -> None:
    tuner, folder = tuner_on_sqlite, tuner_on_sqlite.folder
    (folder / "study.py").write_text(STUDY.replace("EPOCHS", str(EPOCHS)).replace("TRIALS", str(TRIALS)))
    workers = 2 if form == "generator" else 1
    done = tuner.run("launch", "study.py", "--workers", str(workers), KILL_FORM=form, KILL_PLACE=place)
    assert done.returncode == 0, done.stderr
    assert (folder / "killed").exists()
    assert "SIGKILL" in done.stderr, "the worker was killed"
    trials = optuna.load_study(study_name="killed", storage=tuner.env["TUNER_STORAGE"]).trials
    assert [one.number for one in trials] == list(range(TRIALS)), "the budget is exact"
    for trial in trials:
        x = trial.params["x"]
        assert trial.state == TrialState.COMPLETE
        assert trial.value == pytest.approx(2 * EPOCHS * x)
        if form == "returner":
            assert list(trial.intermediate_values) == [1]
        else:
            expected = {epoch: pytest.approx(2 * epoch * x) for epoch in range(1, EPOCHS + 1)}
            assert trial.intermediate_values == expected
    ran = [line.split() for line in (folder / "epochs").read_text().splitlines()]
    of_killed = [int(epoch) for trial, epoch in ran if trial == "1"]
    if form == "objective":
        assert of_killed == [*range(1, (3 if place == "reports" else EPOCHS) + 1), *range(1, EPOCHS + 1)], (
            "it restarted"
        )
    elif form != "returner" and place != "end":
        assert of_killed[:3] == [1, 2, 3]
        assert of_killed[3] > 1, "it resumed from a state"
    wait_until(lambda: not programs(folder))


def programs(folder: Path) -> list[int]:
    """Return the processes that run the program of a folder."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if str(folder / "program.py").encode() in words and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found
