"""Studies with several objectives, trials with user attributes: labelled tables, columns, the choice of a trial."""

from __future__ import annotations

import csv
import io
import json
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from command_line import Tuner

import tuner

NOTE = {"reason": "=1+1", "tries": [1, 2]}


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Tuner:
    """A storage with a study of two objectives, whose third trial has attributes, and one of one objective."""
    folder = tmp_path_factory.mktemp("objectives")
    url = f"sqlite:///{folder / 'study.db'}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = tuner.open_storage(url)
    study = optuna.create_study(study_name="pair", storage=storage, directions=["maximize", "minimize"])
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["accuracy", "size"])
    for accuracy, size in ((0.99, 100.0), (0.5, 500.0), (0.97, 20.0), (0.60, 1.0)):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        if trial.number == 2:
            trial.set_user_attr("note", NOTE)
            trial.set_user_attr("host", "node7")
        study.tell(trial, [accuracy, size])
    single = optuna.create_study(study_name="single", storage=storage)
    single.tell(single.ask(), 1.0)
    storage.close()
    return Tuner(folder, url)


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


@pytest.mark.parametrize("command", ["trials", "best"])
@pytest.mark.slow
def test_every_table_names_its_objectives(shell: Tuner, command: str) -> None:
    head, first, *_ = table(shell.run_here(command, "pair").stdout)
    assert head[:4] == ["number", "outcome", "values.accuracy", "values.size"]
    assert first[:4] == ["0", "complete", "0.99", "100"]
    (row, *_) = csv.DictReader(io.StringIO(shell.run_here(command, "pair", "--format", "csv").stdout))
    assert (row["values.accuracy"], row["values.size"]) == ("0.99", "100.0")
    (found, *_) = shell.rows(command, "pair")
    assert (found["values"], found["objectives"]) == ([0.99, 100.0], ["accuracy", "size"])


@pytest.mark.slow
def test_show_names_objectives_and_attributes(shell: Tuner) -> None:
    lines = table(shell.run_here("show", "pair", "2").stdout)
    assert ["values.accuracy", "0.97"] in lines
    assert ["values.size", "20"] in lines
    assert lines[lines.index(["user_attrs"]) + 2] == ["host", "node7"]
    assert json.loads(shell.run_here("show", "pair", "2", "--format", "json").stdout)["user_attrs"]["note"] == NOTE
    (row,) = csv.DictReader(io.StringIO(shell.run_here("show", "pair", "2", "--format", "csv").stdout))
    assert json.loads(row["user_attrs.note"]) == NOTE
    assert "user_attrs" not in shell.run_here("show", "single", "0").stdout


def test_chosen_columns_are_printed_in_their_order(shell: Tuner) -> None:
    words = ("--columns", "user_attrs.host, number,values.size,x", "--sort", "values.size", "--limit", "2")
    head, first, second = table(shell.run_here("trials", "pair", *words).stdout)
    assert head == ["user_attrs.host", "number", "values.size", "x"]
    assert (first[:3], second[:3]) == (["-", "3", "1"], ["node7", "2", "20"])
    (row,) = shell.rows("trials", "pair", "--where", "user_attrs.host=node7", "--columns", "number,user_attrs.note")
    assert row == {"number": 2, "user_attrs.note": NOTE}
    refused = shell.run_here("trials", "pair", "--columns", "number,user_attrs.hots")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--columns must name one of number, outcome, values.accuracy" in refused.stderr
    assert "did you mean 'user_attrs.host'?" in refused.stderr


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_exports_have_user_attributes(shell: Tuner, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"trials.{kind}"
    assert shell.run_here("export", "pair", str(path)).returncode == 0
    rows: Any
    if kind == "parquet":
        from pyarrow import parquet

        rows = parquet.read_table(path).to_pylist()
    else:
        text = path.read_text()
        rows = json.loads(text) if kind == "json" else list(csv.DictReader(io.StringIO(text)))
    note = rows[2]["user_attrs.note"]
    assert (note if kind == "json" else json.loads(note)) == NOTE
    assert rows[2]["user_attrs.host"] == "node7"
    assert rows[0].get("user_attrs.host") in (None, "")
    assert float(rows[2]["values.accuracy"]) == 0.97


def numbers(shell: Tuner, *words: str) -> list[int]:
    return [row["number"] for row in shell.rows("best", "pair", *words)]


@pytest.mark.slow
def test_the_front_is_ordered_by_a_stated_rule(shell: Tuner) -> None:
    assert numbers(shell) == [0, 2, 3]
    assert numbers(shell, "--prefer", "accuracy") == [0, 2, 3]
    assert numbers(shell, "--prefer", "size", "-n", "2") == [3, 2]
    assert numbers(shell, "--prefer", "knee", "-n", "1") == [2]
    assert numbers(shell, "-n", "3") == [0, 2, 3], "the whole front"
    study = tuner.open_study("pair", shell.env["TUNER_STORAGE"])
    assert study.best(prefer="knee").number == 2
    assert "<th style='text-align:left'>values.accuracy</th><td>0.97</td>" in study.best("knee")._repr_html_()
    assert study.best("size").user_attrs == {}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("best pair -n 1", "the Pareto front of 'pair' has 3 trials: pass --prefer to say which of them -n 1 lists"),
        ("export pair x.zip", "pass one of accuracy, size, knee as --prefer"),
        (
            "plot pair picture",
            "choose one of the trials of `tuner best` as --trial, or pass one of accuracy, size, knee",
        ),
        ("export pair x.zip --prefer sizes", "--prefer must be one of accuracy, size, knee: got 'sizes'"),
        ("export pair x.zip --prefer size --trial 2", "--trial and --prefer both choose a trial: got 2 and 'size'"),
        ("export pair x.zip --prefer size", "trial 3 of 'pair' has no checkpoint"),
        ("export pair x.csv --prefer size", "--prefer works only with a bundle (.zip): got 'x.csv'"),
        ("best single --prefer knee", "--prefer needs several objectives: study 'single' has one"),
        ("export single x.zip --prefer knee", "--prefer needs several objectives: study 'single' has one"),
    ],
)
def test_a_command_that_needs_one_trial_takes_none_without_a_rule(shell: Tuner, words: str, expected: str) -> None:
    refused = shell.run_here(*words.split())
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert expected in refused.stderr
