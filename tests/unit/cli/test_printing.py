"""What commands print: CSV that reads back equal and runs nothing, and tables that steer no terminal."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner import Study
from tuner.cli.arguments import Format
from tuner.cli.explain import explained
from tuner.cli.printing import emit, print_fields, to_csv
from tuner.errors import StudyError, TunerError, UsageError
from tuner.output.cells import csv_text, plain_cell
from tuner.results.export import export_trials
from tuner.storage import connect
from tuner.study.space import Space
from tuner.training import TrainerModule

HOSTILE = "\x1b]0;owned\x07\x9b2Jx\r\n\u202e"


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=3), min_size=1))
def test_every_text_of_a_csv_file_reads_back(rows: list[list[str]]) -> None:
    text = csv_text(rows)
    found = list(csv.reader(io.StringIO(text, newline="")))
    assert [[plain_cell(cell) for cell in row] for row in found] == rows
    assert text.endswith("\n")
    assert not text.endswith("\r\n")


def test_a_csv_row_has_no_formula_and_numbers_stay() -> None:
    rows = [{"study": "=1+1", "value": -0.5, "text": "-0.5", "hparams": {"a": "@x", "=b": "+1"}}]
    head, row = csv.reader(io.StringIO(to_csv(rows), newline=""))
    assert head == ["study", "value", "text", "hparams.a", "hparams.=b"]
    assert row == ["'=1+1", "-0.5", "-0.5", "'@x", "+1"]


@pytest.mark.parametrize("show", [lambda row: emit([row], Format.TABLE), print_fields])
def test_a_table_has_nothing_that_a_terminal_obeys(show: Any, capsys: pytest.CaptureFixture[str]) -> None:
    show({"study": HOSTILE, "hparams": {HOSTILE: HOSTILE, "ok": "é"}})
    shown = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\x9b", "\r", "\u202e"} & set(shown)
    assert "\\x1b]0;owned\\x07\\x9b2Jx\\x0d" in shown
    assert "é" in shown


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A storage with one study of odd names and values, stored by plain Optuna and upgraded by us."""
    from tuner.storage import open_storage

    url = f"sqlite:///{tmp_path_factory.mktemp('odd') / 'study.db'}"
    storage = open_storage(url)
    study = optuna.create_study(study_name="=odd é漢\x1b[2J", storage=storage)
    choices = ["=cmd|' /C calc'!A0", "\ud800", "line\rbreak"]
    for _ in choices:
        study.tell(study.ask({"x": optuna.distributions.CategoricalDistribution(choices)}), 1.0)
    storage.close()
    return url


def run(url: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tuner", *words],
        capture_output=True,
        encoding="latin-1",
        env={**os.environ, "TUNER_STORAGE": url, **env},
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "env", [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}]
)
def test_a_terminal_without_utf_8_gets_escapes_and_no_traceback(odd: str, env: dict[str, str]) -> None:
    done = run(odd, "studies", **env)
    assert done.returncode == 0, done.stderr
    assert "\\u6f22\\x1b[2J" in done.stdout


@pytest.mark.slow
def test_a_huge_trial_number_is_no_trial(odd: str) -> None:
    done = run(odd, "show", "=odd é漢\x1b[2J", str(10**25))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "has no trial 10000000000000000000000000: it has 0 to 2" in done.stderr


def test_an_export_escapes_what_utf_8_lacks_and_reads_back(odd: str, tmp_path: Path) -> None:
    engine = connect(odd)
    export_trials(engine, "=odd é漢\x1b[2J", tmp_path / "out.csv")
    engine.dispose()
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    allowed = {"=cmd|' /C calc'!A0", "\\ud800", "line\rbreak"}
    assert {plain_cell(row["hparams.x"]) for row in rows} <= allowed
    assert len(rows) == 3


def raised(work: Any) -> BaseException:
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("it must fail")


def test_errors_of_libraries_about_odd_input_are_one_line() -> None:
    import contextlib
    import sqlite3

    deep = explained(raised(lambda: json.loads("[" * 100_000)))
    assert type(deep) is TunerError
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        huge = explained(raised(lambda: connection.execute("SELECT ?", (2**70,))))
        surrogate = explained(raised(lambda: connection.execute("SELECT ?", ("\udcff",))))
    assert isinstance(huge, UsageError)
    assert isinstance(surrogate, UsageError)
    assert "\\udcff" in str(surrogate)
    assert all(str(one).count("\n") == 0 for one in (deep, huge, surrogate))
    assert explained(ValueError("a fault of ours")) is None
    assert explained(raised(lambda: {}["gone"])) is None


class Nothing(Space):
    """A space without hyperparameters: the name is looked at first."""


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_study_has_a_name_that_every_database_takes(name: str) -> None:
    with pytest.raises(StudyError, match=r"^the name of a study must not contain NUL or a lone surrogate: got 'a\\"):
        Study(
            name=name, space=Nothing, trainer=TrainerModule(), data=lambda seed: None,
            objective="loss", direction="minimize", epochs=1, trials=1,
        )  # fmt: skip
