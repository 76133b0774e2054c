"""Databases, checkpoints, bundles and MLflow models of older versions still work.

`tests/data/v0.1/make.py` made them with that version.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from command_line import Tuner
from optuna.storages import RDBStorage

from tuner.training.saved.checkpoints import read

OLD = Path(__file__).parents[2] / "data" / "v0.1"
STOPPED = 12
"""A trial whose worker was stopped after its second epoch of six."""


class Restored(NamedTuple):
    """An old database in a folder of its own, with the study's file and the checkpoints."""

    tuner: Tuner
    expected: dict[str, Any]

    def upgraded(self) -> Restored:
        done = self.tuner.run_here("upgrade")
        assert done.returncode == 0, done.stderr
        return self


@pytest.fixture(params=["sqlite", "postgres"])
def restored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Restored]:
    kind = request.param
    url = request.getfixturevalue(f"{kind}_url")
    if kind == "sqlite":
        shutil.copy(OLD / "sqlite.file", url.removeprefix("sqlite:///"))
    else:
        engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg2"))
        with engine.begin() as connection:
            connection.exec_driver_sql((OLD / "postgres.sql").read_text().replace("%", "%%"))
        engine.dispose()
    shutil.copy(OLD / "study.py", tmp_path)
    shutil.copytree(OLD / "checkpoints" / kind, tmp_path / "tuner-artifacts")
    tuner = Tuner(tmp_path, url)
    yield Restored(tuner, json.loads((OLD / f"expected.{kind}.json").read_text()))
    tuner.end()


def seen_by_optuna(url: str) -> list[str]:
    """Return what plain Optuna reads: all but the times, which an upgrade may convert."""
    storage = RDBStorage(url.replace("postgresql://", "postgresql+psycopg2://"))
    try:
        trials = optuna.load_study(study_name="old", storage=storage).get_trials(deepcopy=False)
        # As text, in which NaN equals NaN.
        return [
            repr((t.number, t.state, t.params, t.values, t.intermediate_values, t.distributions, t.system_attrs))
            for t in trials
        ]
    finally:
        storage.remove_session()
        storage.engine.dispose()


def facts(rows: list[dict[str, Any]]) -> list[Any]:
    return [(row["number"], row["outcome"], row["value"], row["hparams"]) for row in rows]


def test_an_old_database_opens_or_says_in_one_line_how_to_upgrade_it(restored: Restored) -> None:
    done = restored.tuner.run_here("best", "old")
    if done.returncode != 0:
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"tuner: [^\n]*`tuner upgrade`[^\n]*\n", done.stderr), done.stderr


COMMANDS = [
    "studies",
    "trials old",
    "show old 1",
    "compare old old",
    "importance old",
    "plot old history --out old.png",
    "export old old.csv",
    "enqueue old learning_rate=0.1",
    "retry old 1",
    "stop old",
    "resume old",
    "delete old --yes",
    "dashboard --port 0",
    "track old --once --tensorboard board",
    "reproduce old 1 --file study.py",
    "confirm old --file study.py",
    "watch old",
    "register old --mlflow sqlite:///mlflow.db",
]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_answers_on_an_old_database_or_says_in_one_line_how_to_upgrade_it(
    restored: Restored, command: str
) -> None:
    """In this process; `launch` and `worker` change the process itself."""
    done = restored.tuner.run_here(*command.split())
    assert not re.search(r"Traceback|SELECT|no such|does not exist", done.stderr)
    if done.returncode != 0:
        pattern = (
            r"tuner: the tables of \w+ in .* are at version \d+, but this installation needs \d+; .*`tuner upgrade`"
        )
        assert re.fullmatch(pattern, done.stderr.splitlines()[-1])


def test_an_upgrade_changes_no_result(restored: Restored) -> None:
    url = restored.tuner.env["TUNER_STORAGE"]
    before = seen_by_optuna(url)
    assert len(before) == 15
    tuner, expected = restored.upgraded()
    assert seen_by_optuna(url) == before
    assert facts(tuner.rows("best", "old", "-n", "3")) == facts(expected["best"])
    assert facts(tuner.rows("trials", "old")) == facts(expected["trials"])
    found = tuner.rows("show", "old", str(STOPPED))
    assert found["reports"] == expected["stopped"]["reports"]
    assert [attempt["ending"] for attempt in found["attempts"]] == ["preempted"]
    assert tuner.run_here("upgrade").returncode == 0  # once more does nothing


@pytest.mark.slow
@pytest.mark.parametrize("restored", [pytest.param("sqlite", marks=pytest.mark.long), "postgres"], indirect=True)
def test_an_unfinished_trial_of_an_old_database_resumes_under_its_number(restored: Restored) -> None:
    tuner, expected = restored.upgraded()
    done = tuner.run("worker", "study.py", "--trials", "14")  # the queued ones as well
    assert done.returncode == 0, done.stderr
    rows = tuner.rows("trials", "old")
    assert [row["number"] for row in rows] == list(range(15))
    assert {row["outcome"] for row in rows} <= {"complete", "pruned", "diverged", "failed"}
    ended = {"complete", "pruned", "diverged", "failed"}
    kept = [row for row in expected["trials"] if row["outcome"] in ended]
    assert facts([row for row in rows if row["number"] in {row["number"] for row in kept}]) == facts(kept)

    resumed = tuner.rows("show", "old", str(STOPPED))
    assert resumed["outcome"] == "complete"
    assert resumed["hparams"] == expected["stopped"]["hparams"]
    assert [report["epoch"] for report in resumed["reports"]] == [1, 2, 3, 4, 5, 6]
    assert resumed["reports"][:2] == expected["stopped"]["reports"]
    assert [attempt["ending"] for attempt in resumed["attempts"]] == ["preempted", "complete"]
    # The same as an uninterrupted training, but for the last bits, which depend on the processor.
    done = tuner.run_here("reproduce", "old", str(STOPPED), "--file", "study.py", "--tolerance", "1e-3")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_old_bundle_runs(tmp_path: Path) -> None:
    with zipfile.ZipFile(OLD / "bundle.zip") as bundle:
        bundle.extractall(tmp_path)
    done = subprocess.run([sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"(\w+): (\S+), recorded (\S+)", done.stdout)
    assert {name for name, *_ in found} == {"loss", "far"}
    for _, value, recorded in found:
        assert float(value) == pytest.approx(float(recorded), rel=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow warns while it is imported
def test_an_old_mlflow_model_predicts_what_its_arrays_say() -> None:
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(OLD / "mlflow-model"))
    inputs = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    plain, _ = read(OLD / "mlflow-model" / "data" / "bundle" / "checkpoint")
    second, first = (plain["params"][name] for name in ("Dense_0", "Dense_1"))  # Flax numbers the outer layer first
    hidden = np.tanh(inputs @ first["kernel"] + first["bias"])
    by_hand = (hidden @ second["kernel"] + second["bias"])[:, 0]
    np.testing.assert_allclose(model.predict(inputs), by_hand, rtol=1e-4, atol=1e-5)
