"""Wrong input: one clear line, the right exit status, nothing half written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import optuna
import pytest

SECRET = "s3cret"


def one_line(tuner: Any, words: list[str], *, here: bool = False) -> tuple[int, str]:
    """Run a command that must fail, in a process of its own or here.

    Returns:
        Its exit status and its only line after the opening one.
    """
    done = tuner.run_here(*words) if here else tuner.run(*words)
    lines = [line for line in done.stderr.splitlines() if not re.search(r" with \d workers? on ", line)]
    assert done.stdout == ""
    assert len(lines) == 1, done.stderr
    assert SECRET not in done.stderr
    return done.returncode, lines[0]


BEFORE = [
    (["launch", "none.py"], 2, "study file not found: 'none.py'"),
    (["launch", "syntax.py"], 2, "the study file is not valid Python: syntax.py:2: "),
    (["launch", "tiny.py", "--trials", "0"], 2, "--trials must be at least 1: got 0"),
    (["launch", "tiny.py", "--trials", "-3"], 2, "--trials must be at least 1: got -3"),
    (["launch", "tiny.py", "--workers", "0"], 2, "--workers must be at least 1: got 0"),
    (["launch", "tiny.py", "--workers", "-1"], 2, "--workers must be at least 1: got -1"),
    (["launch", "tiny.py", "--seed", "-1"], 2, "--seed must be at least 0: got -1"),
    (["launch", "tiny.py", "--devices", "4711"], 2, "no device 4711 on this machine: it has cpu 0"),
    (["launch", "tiny.py", "--devices", "all"], 2, "--devices must be auto or ids such as 0,1,2: got 'all'"),
    (
        ["launch", "tiny.py", "--live"],
        2,
        "--live needs a terminal on standard error: got no terminal; use `tuner watch STUDY`",
    ),
    (["launch", "tiny.py", "--set", "noise"], 2, "--set must have the form NAME=VALUE: got 'noise'"),
    (
        ["launch", "tiny.py", "--storage", "nonsense"],
        2,
        "a storage URL must be sqlite:///FILE or postgresql+psycopg2://",
    ),
    (["launch", "tiny.py", "--storage", f"mysql://u:{SECRET}@h/d"], 2, "got 'mysql' in 'mysql://u:***@h/d'"),
    (
        ["best", "tiny", "--storage", f"postgresql://u:{SECRET}@127.0.0.1:1/d"],
        75,
        "cannot reach the storage postgresql://u:***",
    ),
    (["best", "tiny"], 2, "the storage does not exist: no file"),
    (["studies", "--label", ""], 2, "labels must be texts of 1 to 100 characters without commas, such as labels"),
    (["studies", "--owner", ""], 2, "owner must be a line of 1 to 100 characters: got ''"),
    (["worker", "tiny.py", "--trials", "0"], 2, "--trials must be at least 1: got 0"),
    (["dashboard", "--port", "70000"], 2, "--port must be 1 to 65535, or 0 for a free one: got 70000"),
    (["dashboard", "--host", "0.0.0.0"], 2, "any address but loopback needs a login"),
]


ONE_OF_EACH_COMMAND = list({words[0]: (words, *others) for words, *others in BEFORE}.values())


@pytest.mark.parametrize(
    ("here", "words", "status", "message"),
    [*((True, *one) for one in BEFORE), *((False, *one) for one in ONE_OF_EACH_COMMAND)],
)
def test_what_is_wrong_before_anything_runs(
    tuner_on_sqlite: Any, tiny_study: Path, tmp_path: Path, here: bool, words: list[str], status: int, message: str
) -> None:
    (tmp_path / "syntax.py").write_text("x = 1\ndef f(:\n")

    found = one_line(tuner_on_sqlite, words, here=here)

    assert found[0] == status
    assert message in found[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["syntax.py", "tiny.py"], "nothing was written"


@pytest.mark.without_tables
@pytest.mark.slow
def test_a_launch_waits_a_moment_for_a_server_that_is_not_there(
    tuner_on_sqlite: Any, tiny_function: Path, tmp_path: Path
) -> None:
    done = tuner_on_sqlite.run("launch", "tiny.py", "--storage", f"postgresql://u:{SECRET}@127.0.0.1:1/d")

    assert (done.returncode, done.stdout) == (75, "")
    assert SECRET not in done.stderr
    _, waiting, why = done.stderr.splitlines()
    assert "cannot reach the storage postgresql://u:***" in why
    assert why.endswith("; check the storage URL")
    assert waiting == f"{why.removesuffix('; check the storage URL')}; waiting up to 10 s for it to start"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.py"], "nothing was written"


def line_of(text: str, part: str) -> int:
    """Return the number of the line in which a part of a text begins."""
    return text[: text.index(part)].count("\n") + 1


@pytest.mark.without_tables
@pytest.mark.parametrize(
    ("kind", "old", "new", "message"),
    [
        (
            "tiny_study",
            'objective="loss"',
            'objective="los"',
            "objective 'los': it reports loss, train_grad_norm, train_loss; did you mean 'loss'?",
        ),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (
                    "tiny_study",
                    "    noise: float",
                    "    other: float",
                    "HParams has no hyperparameter 'noise' (it has learning_rate, other)",
                ),
                (
                    "tiny_function",
                    'sampler="random"',
                    'sampler="tpee"',
                    "partial_fixed, qmc, random, tpe: got 'tpee'; did you mean",
                ),
                (
                    "tiny_function",
                    "pruner=PRUNER",
                    'pruner="ahsa"',
                    "one of asha, curve, hyperband, median, none, patient, pbt, percentile",
                ),
                (
                    "tiny_function",
                    "import numpy as np",
                    "import numpie",
                    "tiny.py:{line}: ModuleNotFoundError: No module named 'num",
                ),
            ]
        ),
    ],
)
def test_what_is_wrong_in_the_study(
    tuner_on_sqlite: Any,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    kind: str,
    old: str,
    new: str,
    message: str,
) -> None:
    path = request.getfixturevalue(kind)
    text = path.read_text().replace('MODE == "nan"', "True")
    assert old in text
    path.write_text(text.replace(old, new))

    status, line = one_line(tuner_on_sqlite, ["launch", "tiny.py", "--workers", "1"])

    assert status == 2
    assert message.format(line=line_of(text, old)) in line
    written = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert written == {"tiny.py"}, "no storage was made for a study that cannot run"


@pytest.mark.slow
def test_an_unknown_study_has_a_nearest_one(tuner_on_sqlite: Any, tiny_function: Path) -> None:
    assert tuner_on_sqlite.run("worker", "tiny.py", "--trials", "1").returncode == 0

    for command in (["best", "tinny"], ["trials", "tinny"], ["show", "tinny", "0"]):
        assert one_line(tuner_on_sqlite, command, here=True) == (
            2,
            "tuner: no study 'tinny' in this storage: it has tiny; did you mean 'tiny'?",
        )
    found = one_line(tuner_on_sqlite, ["show", "tiny", "7"])
    assert found == (2, "tuner: study 'tiny' has no trial 7: it has 0 to 0")


@pytest.mark.parametrize(
    ("kind", "old", "new", "message"),
    [
        (
            "tiny_study",
            "    rng = ",
            "    raise FileNotFoundError('data.csv')\n    rng = ",
            "data(seed) failed: {file}:{line}: FileNotFound",
        ),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (
                    "tiny_study",
                    "data=data",
                    "data=lambda seed: 1",
                    "data must be a tuner.training.Splits (training and validation data): got int",
                ),
                (
                    "tiny_study",
                    "nn.Dense(1)(x)[:, 0]",
                    "nn.Dense(1)(x).no",
                    "the trainer failed: {file}:{line}: AttributeError: ",
                ),
                (
                    "tiny_study",
                    "nn.Dense(1)(x)[:, 0]",
                    "nn.Dense(1)(x)",
                    "must have one value per example, not a mean: 'loss' has shape (64, 64)",
                ),
                (
                    "tiny_function",
                    "class HParams",
                    "raise SystemExit(0)\n\n\nclass HParams",
                    "the study file cannot be imported: tiny.py:{line}: SystemExit: 0",
                ),
            ]
        ),
    ],
)
def test_what_fails_in_the_authors_code(
    tuner_on_sqlite: Any, request: pytest.FixtureRequest, kind: str, old: str, new: str, message: str
) -> None:
    path = request.getfixturevalue(kind)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))

    status, line = one_line(tuner_on_sqlite, ["launch", "tiny.py", "--workers", "1"])

    assert status == 2
    assert message.format(file=path, line=line_of(text, old)) in line


@pytest.mark.slow
def test_a_file_that_is_no_database(tuner_on_sqlite: Any, tiny_function: Path, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database " * 100)

    status, line = one_line(tuner_on_sqlite, ["launch", "tiny.py", "--workers", "1", "--storage", "sqlite:///text.db"])

    assert status == 2
    assert "file is not a database" in line


@pytest.mark.slow
def test_a_study_of_another_tool_with_another_direction(tuner_on_sqlite: Any, tiny_function: Path) -> None:
    storage = optuna.storages.RDBStorage(tuner_on_sqlite.env["TUNER_STORAGE"])
    optuna.create_study(study_name="tiny", storage=storage, direction="maximize")
    storage.engine.dispose()

    status, line = one_line(tuner_on_sqlite, ["launch", "tiny.py", "--workers", "1"])

    assert status == 2
    assert "study 'tiny' has direction maximize in this storage, but minimize in its file" in line
