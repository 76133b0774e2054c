"""The launcher, its workers and the queries, as a user runs them."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest


def notes(folder: Path) -> list[dict[str, str]]:
    """What the workers of a tiny study were given."""
    return [dict(line.split("=", 1) for line in path.read_text().splitlines()) for path in sorted(folder.iterdir())]


@pytest.mark.slow
def test_a_study_runs_resumes_and_is_queried(tuner_on_sqlite: Any, tiny_function: Path, tmp_path: Path) -> None:
    tuner, given = tuner_on_sqlite, tmp_path / "notes"
    given.mkdir()

    done = tuner.run("launch", "tiny.py", "--workers", "2", TINY_NOTES=str(given))

    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("tuner: tiny.py with 2 workers on cpu ")
    assert "6/6 trials, 6 complete, 0 pruned, 0 running, 0 failed, best " in lines[-1]
    assert done.stdout.startswith("best trial of 'tiny':\nnumber ")
    cores = [note["cores"].split(",") for note in notes(given)]
    if len(os.sched_getaffinity(0)) > 1:
        assert not set(cores[0]) & set(cores[1])
    assert [note["OMP_NUM_THREADS"] for note in notes(given)] == [str(len(own)) for own in cores]

    trials = tuner.rows("trials", "tiny")
    assert [row["number"] for row in trials] == list(range(6))
    assert all(set(row) >= {"number", "outcome", "value", "hparams", "seconds"} for row in trials)
    assert all(row["outcome"] == "complete" and row["seconds"] > 0 for row in trials)
    of_best = {"value_epoch": "last", "kept_epoch": "last", "confirmed": None, "baseline": None}
    by_value = [row | of_best for row in sorted(trials, key=lambda row: row["value"])]
    assert tuner.rows("best", "tiny") == by_value[:1]
    assert tuner.rows("best", "tiny", "-n", "4") == by_value[:4]
    shown = tuner.rows("show", "tiny", "3")
    assert [report["epoch"] for report in shown["reports"]] == [1, 2, 3]
    assert shown["reports"][-1]["value"] == trials[3]["value"] == shown["value"]
    assert tuner.rows("studies")[0] | {"best": None} == tuner.rows("studies")[0] | {
        "study": "tiny",
        "objective": "loss",
        "direction": "minimize",
        "complete": 6,
        "best": None,
    }
    as_csv = list(csv.DictReader(io.StringIO(tuner.run("trials", "tiny", "--format", "csv").stdout)))
    assert [float(row["hparams.noise"]) for row in as_csv] == [row["hparams"]["noise"] for row in trials]
    table = tuner.run_here("trials", "tiny").stdout.splitlines()
    assert table[0].split() == ["number", "outcome", "value", "seconds", "learning_rate", "noise"]
    assert len(table) == 7

    again = tuner.run("launch", "tiny.py", "--workers", "1")
    assert again.returncode == 0
    assert tuner.rows("trials", "tiny") == trials

    more = tuner.run("launch", "tiny.py", "--workers", "1", "--trials", "8")
    assert more.returncode == 0
    assert tuner.rows("trials", "tiny")[:6] == trials
    assert len(tuner.rows("trials", "tiny")) == 8

    changed = tuner.run("launch", "tiny.py", "--workers", "1", TINY_EPOCHS="4")
    assert changed.returncode == 2
    assert "epochs was 3 and is now 4" in changed.stderr.splitlines()[-1]
    fixed = tuner.run("worker", "tiny.py", "--set", "noise=0.25")
    assert fixed.returncode == 2
    assert (
        "space.noise was uniform(0.0, 1.0) and is now uniform(0.0, 1.0) fixed at 0.25" in fixed.stderr.splitlines()[-1]
    )
    assert len(tuner.rows("trials", "tiny")) == 8


@pytest.mark.slow
def test_two_launches_on_postgres_share_one_exact_budget(tuner_on_postgres: Any, tiny_function: Path) -> None:
    tuner = tuner_on_postgres
    options = ("--workers", "1", "--trials", "12", "--set", "noise=0.5")
    first, second = (tuner.start("launch", "tiny.py", *options, TINY_PAUSE_S="0.1") for _ in range(2))

    outputs = [process.communicate(timeout=300)[0] for process in (first, second)]

    assert (first.returncode, second.returncode) == (0, 0), outputs
    trials = tuner.rows("trials", "tiny")
    assert [row["number"] for row in trials] == list(range(12))
    assert {row["outcome"] for row in trials} == {"complete"}
    assert {row["hparams"]["noise"] for row in trials} == {0.5}
    assert len({row["hparams"]["learning_rate"] for row in trials}) == 12, "no two workers draw the same"
    workers = {tuner.rows("show", "tiny", str(number))["worker"] for number in range(12)}
    assert len(workers) == 2, "both took part"


@pytest.mark.slow
def test_workers_get_their_gpus(tuner_on_sqlite: Any, tiny_study: Path, tmp_path: Path) -> None:
    given, tools = tmp_path / "notes", tmp_path / "bin"
    given.mkdir()
    tools.mkdir()
    (tools / "nvidia-smi").write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n3\\n'\n")
    (tools / "nvidia-smi").chmod(0o755)
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "TINY_NOTES": str(given), "JAX_PLATFORMS": "cpu"}

    paired = tuner_on_sqlite.run("launch", "tiny.py", "--devices", "0,1,2,3", "--devices-per-worker", "2", **env)

    assert paired.returncode == 0, paired.stderr
    assert "2 workers on gpu 0,1 | gpu 2,3" in paired.stderr
    assert "JAX finds only CPUs: run `pip install -e '.[cuda]'` in the clone of tuner" in paired.stderr
    assert {note["CUDA_VISIBLE_DEVICES"] for note in notes(given)} == {"0,1", "2,3"}
    assert {note["XLA_PYTHON_CLIENT_MEM_FRACTION"] for note in notes(given)} == {""}

    for path in given.iterdir():
        path.unlink()
    function = (Path(__file__).parents[2] / "tiny_function.py").read_text()
    (tmp_path / "function.py").write_text(function.replace('name="tiny"', 'name="function"'))
    shared = tuner_on_sqlite.run("launch", "function.py", "--devices", "2", "--workers", "2", **env)
    assert shared.returncode == 0, shared.stderr
    assert [note["CUDA_VISIBLE_DEVICES"] for note in notes(given)] == ["2", "2"]
    assert [note["XLA_PYTHON_CLIENT_MEM_FRACTION"] for note in notes(given)] == ["0.450", "0.450"]


@pytest.mark.slow
def test_a_worker_runs_in_the_foreground(tuner_on_sqlite: Any, tiny_function: Path) -> None:
    done = tuner_on_sqlite.run("worker", "tiny.py:tiny", "--trials", "2", "--seed", "5")

    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("tuner: trial 1")]
    assert lines[0].startswith("tuner: trial 1: learning_rate=")
    assert lines[1].startswith("tuner: trial 1, epoch 1: ")
    assert lines[-1] == "tuner: trial 1: complete"
    assert done.stdout == ""


@pytest.mark.parametrize("module", ["tuner", "tuner.cli", "tuner.launch", "tuner.launch.devices"])
def test_commands_start_without_the_heavy_imports(module: str) -> None:
    heavy = (
        "jax",
        "flax",
        "optuna",
        "sqlalchemy",
        "numpy",
        "mlflow",
        "tensorboard",
        "wandb",
        "cheroot",
        "prometheus_client",
    )
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_queries_import_neither_jax_nor_optuna() -> None:
    code = "import sys, tuner.results.rows; print([m for m in ('jax', 'flax', 'optuna', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("call", ["study.run()", "study.launch(workers=1)"])
def test_a_study_runs_from_python(tuner_on_sqlite: Any, tiny_function: Path, call: str) -> None:
    tiny_function.write_text(f"{tiny_function.read_text()}\n\nif __name__ == '__main__':\n    {call}\n")

    done = subprocess.run(
        [sys.executable, "tiny.py"],
        cwd=tiny_function.parent,
        env=tuner_on_sqlite.env,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr
    assert [row["outcome"] for row in tuner_on_sqlite.rows("trials", "tiny")] == ["complete"] * 6


@pytest.mark.long
@pytest.mark.slow
def test_a_trial_that_violates_a_constraint_is_never_the_best(
    tuner_on_sqlite: Any, tiny_study: Path, tmp_path: Path
) -> None:
    """Nor is its checkpoint kept. An Optuna sampler computes the constraint; the loss falls where it is violated."""
    tuner, text = tuner_on_sqlite, tiny_study.read_text()
    sampler = "TPESampler(seed=3, n_startup_trials=99, constraints_func=lambda trial: [trial.params['noise'] - LIMIT])"
    text = text.replace('sampler="random"', f"sampler=optuna.samplers.{sampler}, keep_best=2")
    text = text.replace("class HParams", "import optuna\nLIMIT = float(os.environ['LIMIT'])\n\n\nclass HParams")
    text = text.replace('if MODE == "nan":', "errors = errors - 100.0 * hparams.noise\n        if False:")
    tiny_study.write_text(text)

    done = tuner.run("launch", "tiny.py", "--workers", "1", "--trials", "3", LIMIT="-1.0")
    assert done.returncode == 0, done.stderr
    reason = "no best trial: none of the 3 complete trials of 'tiny' satisfies all constraints"
    assert done.stdout.startswith(reason)
    assert "3/3 trials, 3 complete, 0 pruned, 0 running, 0 failed" in done.stderr.splitlines()[-1]
    assert "best" not in done.stderr.splitlines()[-1]
    assert list((tmp_path / "tuner-artifacts").rglob("best")) == []
    assert [tuner.rows("show", "tiny", str(number)).get("checkpoint") for number in range(3)] == [None] * 3
    assert tuner.run("best", "tiny", LIMIT="-1.0").stdout.startswith(reason)
    for command in (["export", "tiny", "model.zip"], ["confirm", "tiny"]):
        refused = tuner.run(*command, LIMIT="-1.0")
        assert refused.returncode != 0
        assert reason in refused.stderr.splitlines()[-1]

    done = tuner.run("launch", "tiny.py", "--workers", "1", "--trials", "12", LIMIT="0.5")
    assert done.returncode == 0, done.stderr
    rows = tuner.rows("trials", "tiny")
    feasible = [row for row in rows[3:] if row["hparams"]["noise"] <= 0.5]
    assert [row["is_feasible"] for row in rows] == [row in feasible for row in rows]
    best = sorted(feasible, key=lambda row: row["value"])[:2]
    assert best[0]["value"] > min(row["value"] for row in rows)
    assert [row["number"] for row in tuner.rows("best", "tiny", "-n", "2")] == [row["number"] for row in best]
    assert f"best {best[0]['value']:.4f} (trial {best[0]['number']})" in done.stderr.splitlines()[-1]
    assert done.stdout.splitlines()[1].split() == ["number", str(best[0]["number"])]
    kept = {path.parent.name for path in (tmp_path / "tuner-artifacts").rglob("best")}
    assert kept == {str(row["number"]) for row in best}


@pytest.mark.slow
def test_the_best_of_several_objectives_are_a_front(tuner_on_sqlite: Any) -> None:
    storage = optuna.storages.RDBStorage(tuner_on_sqlite.env["TUNER_STORAGE"])
    study = optuna.create_study(study_name="two", storage=storage, directions=["minimize", "maximize"])
    for values in [(1.0, 1.0), (2.0, 1.5), (3.0, 1.2)]:
        study.add_trial(optuna.create_trial(values=values))
    storage.engine.dispose()

    assert [row["values"] for row in tuner_on_sqlite.rows("best", "two")] == [[1.0, 1.0], [2.0, 1.5]]
    preferred = tuner_on_sqlite.rows("best", "two", "-n", "1", "--prefer", "1")
    assert [row["number"] for row in preferred] == [1]
    vague = tuner_on_sqlite.run_here("best", "two", "-n", "1")
    assert (vague.returncode, vague.stdout) == (2, "")
    assert "pass --prefer to say which of them -n 1 lists" in vague.stderr


@pytest.mark.slow
def test_a_launch_ends_when_an_optuna_grid_has_no_point_left(tuner_on_sqlite: Any, tiny_function: Path) -> None:
    text = tiny_function.read_text()
    grid = 'optuna.samplers.GridSampler({"learning_rate": [0.01, 0.02, 0.05], "noise": [0.25, 0.5]})'
    assert text.count('sampler="random"') == 1
    tiny_function.write_text("import optuna\n" + text.replace('sampler="random"', f"sampler={grid}"))

    done = tuner_on_sqlite.run("launch", "tiny.py", "--workers", "2", "--trials", "20")
    assert done.returncode == 0, done.stderr
    trials = tuner_on_sqlite.rows("trials", "tiny")
    assert {row["outcome"] for row in trials} == {"complete"}
    points = {(row["hparams"]["learning_rate"], row["hparams"]["noise"]) for row in trials}
    assert points == {(rate, noise) for rate in (0.01, 0.02, 0.05) for noise in (0.25, 0.5)}
    assert f"the sampler has ended the search with {len(trials)} of 20 trials finished" in done.stderr
    assert "died" not in done.stderr
