"""What `launch --on` refuses before anything is stored or submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

POSTGRES = "postgresql+psycopg2://me:secret@db/tuner"
ON = ["launch", "tiny.py", "--on", "slurm"]
ON_RAY = ["launch", "tiny.py", "--on", "ray", "--storage", POSTGRES]
ON_KUBERNETES = ["launch", "tiny.py", "--on", "kubernetes", "--storage", POSTGRES]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["launch", "tiny.py", "--on", "pbs", "--storage", POSTGRES],
            "--on must be slurm, kubernetes or ray: got 'pbs'",
        ),
        (
            [*ON, "--storage", "sqlite:///x.db"],
            "workers on a cluster need a Postgres database, because several hosts cannot share a SQLite file: got",
        ),
        ([*ON, "--storage", POSTGRES, "--devices", "0,1"], "--devices is for this machine: got '0,1' with --on"),
        (
            [*ON, "--storage", POSTGRES, "--mlflow", "http://m"],
            "--mlflow cannot be used with --on: run `tuner track STUDY --mlflow URI` beside the job",
        ),
        (
            [*ON, "--storage", POSTGRES, "--metrics-port", "0"],
            "--metrics-port cannot be used with --on: `tuner dashboard` serves",
        ),
        ([*ON, "--storage", POSTGRES, "--workers", "0"], "--workers must be at least 1: got 0"),
        ([*ON, "--storage", POSTGRES, "--option", "array=1-9"], "the option 'array' of sbatch is set by tuner"),
        ([*ON, "--storage", POSTGRES, "--option", "partition"], "--option must have the form NAME=VALUE"),
        ([*ON, "--storage", POSTGRES, "--hosts-per-worker", "0"], "--hosts-per-worker must be at least 1: got 0"),
        (
            [*ON, "--storage", POSTGRES, "--hosts-per-worker", "2"],
            "--hosts-per-worker needs a study with `trainer`, because other code cannot be divided among hosts",
        ),
        (["launch", "tiny.py", "--hosts-per-worker", "2"], "--hosts-per-worker has no effect without --on"),
        (ON_KUBERNETES, "kubernetes needs the container image of the workers: pass --option image="),
        ([*ON_KUBERNETES, "--logs", "x"], "--logs has no effect with --on kubernetes, which keeps logs itself"),
        ([*ON_KUBERNETES, "--option", "image=i"], "--artifacts must be where all pods can reach them: s3://BUCKET"),
        ([*ON_KUBERNETES, "--option", "queues=a"], "got 'queues'; did you mean 'queue'?"),
        ([*ON_RAY, "--option", "addresses=auto"], "got 'addresses'; did you mean 'address'?"),
        ([*ON_RAY, "--option", "address=ray://head:1"], "that this machine has joined with `ray start`: got 'ray://"),
        ([*ON_RAY, "--option", "cpus=0"], "the option 'cpus' must be more than 0: got '0'"),
        ([*ON_RAY, "--option", "memory=16GB"], "the option 'memory' must be an amount such as 16Gi: got '16GB'"),
        ([*ON_RAY, "--option", "resources=GPU=1"], "the option 'resources' must not have GPU: use the options cpus"),
        ([*ON_RAY, "--option", "device=a", "--option", "resources=a=1"], "must not have a: use --devices-per-worker"),
        ([*ON_RAY, "--detach"], "--detach needs a cluster: without --option address=..., ray runs on this machine and"),
        (["launch", "none.py", "--on", "slurm", "--storage", POSTGRES], "study file not found: 'none.py'"),
        (["launch", "tiny.py", "--detach"], "--detach has no effect without --on: pass a cluster"),
        (["launch", "tiny.py", "--dry-run"], "--dry-run has no effect without --on"),
        (["launch", "tiny.py", "--option", "a=b"], "--option has no effect without --on"),
        (["launch", "tiny.py", "--logs", "x"], "--logs has no effect without --on"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    tuner_on_sqlite: Any, tiny_function: Path, words: list[str], message: str
) -> None:
    done = tuner_on_sqlite.run_here(*words)

    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert message in line
    assert "me:secret" not in line
    assert sorted(path.name for path in tiny_function.parent.iterdir() if path.suffix != ".pyc") in (
        ["tiny.py"],
        ["__pycache__", "tiny.py"],
    ), "nothing was written"


def test_a_dry_run_prints_the_script_and_needs_no_database(
    tuner_on_sqlite: Any, tiny_function: Path, tmp_path: Path
) -> None:
    options = ["--workers", "3", "--devices-per-worker", "1", "--option", "partition=gpu", "--trials", "9"]
    done = tuner_on_sqlite.run_here(*ON, *options, "--storage", POSTGRES, "--dry-run")

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert {"#!/bin/bash", "#SBATCH --array=1-3", "#SBATCH --gpus-per-node=1", "#SBATCH --partition=gpu"} <= set(lines)
    (srun,) = [line for line in lines if line.startswith("  srun ")]
    # Absolute, because a node may start it in another folder.
    assert f" -m tuner worker {tiny_function} --trials=9 --artifacts={tmp_path / 'tuner-artifacts'}" in srun
    assert "secret" not in done.stdout


def test_a_dry_run_for_kubernetes_prints_a_manifest_and_needs_no_cluster(
    tuner_on_sqlite: Any, tiny_function: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tiny_function.parent / "none"))
    options = ["--workers", "3", "--option", "image=i", "--option", "volume=claim:/data", "--artifacts", "/data/a"]
    done = tuner_on_sqlite.run_here(*ON_KUBERNETES, *options, "--dry-run")

    assert (done.returncode, done.stderr) == (0, "")
    made = yaml.safe_load(done.stdout)
    assert made["spec"]["parallelism"] == 3
    (container,) = made["spec"]["template"]["spec"]["containers"]
    # As it was given: the image has its own folders and its own Python.
    assert container["command"] == ["python", "-m", "tuner", "worker", "tiny.py", "--artifacts=/data/a"]
    assert "secret@" not in done.stdout
    assert done.stdout.startswith(f"# A launch also makes the Secret {made['metadata']['name']};")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scale", "tiny", "2"], "the study has no job on a cluster: submit one with `tuner launch FILE --on ENGINE`"),
        (
            ["logs", "tiny"],
            "study 'tiny' has no job on a cluster (Slurm, Kubernetes or Ray): its workers print to the terminal",
        ),
    ],
)
def test_a_study_that_was_launched_here_has_no_job(
    tuner_on_sqlite: Any, tiny_function: Path, words: list[str], message: str
) -> None:
    import tuner

    storage = tuner.open_storage(tuner_on_sqlite.env["TUNER_STORAGE"])
    import optuna

    optuna.create_study(storage=storage, study_name="tiny")
    storage.close()

    done = tuner_on_sqlite.run_here(*words)

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert message in line
