"""docs/guide/notebooks.md as a notebook, in a real kernel."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from command_line import Tuner
from nbclient import NotebookClient

import tuner
from tuner.study import load_study
from tuner.worker import run_worker

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "guide" / "notebooks.md").read_text()
CELLS = re.findall(r"(?ms)^```python\n(.*?)^```$", PAGE)
SHOWN = ["study", "study.best()", "study.trials()", 'study.plot("history")']
"""What a user evaluates as the last line of a cell."""
SHORT = """
import dataclasses

study = dataclasses.replace(study, epochs=2, trials=2, pruner="none", fixed={"width": 32, "depth": 1})
"""


def executed(cells: list[str], folder: Path, env: dict[str, str]) -> list[list[Any]]:
    """Run cells in a new kernel that works in a folder; return the outputs of each."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, **env})
    return [cell.outputs for cell in notebook.cells]


def data_of(outputs: list[Any], kind: str) -> list[str]:
    """Return what cells show in one format."""
    return ["".join(one["data"][kind]) for one in outputs if kind in one.get("data", {})]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_page_runs_in_a_kernel_and_its_study_resumes_in_another(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'tuner.db'}"
    shell = Tuner(tmp_path, url)
    file = tmp_path / "digits_mlp.py"
    file.write_text((ROOT / "studies" / file.name).read_text() + SHORT)
    run_worker(load_study(str(file)), url, file=str(file), artifacts=str(tmp_path / "tuner-artifacts"))
    # The page runs on a storage of the folder, without the variable.
    env = {name: value for name, value in shell.env.items() if name != "TUNER_STORAGE"}

    *of_page, last = executed([*CELLS[:-1], *SHOWN, CELLS[-1]], tmp_path, env)

    tables = [data_of(outputs, "text/html") for outputs in of_page[-len(SHOWN) :]]
    assert "complete</th><td>2</td>" in tables[0][0]
    assert "hparams.learning_rate" in tables[1][0]
    assert "dataframe" in tables[2][0]
    (picture,) = data_of(of_page[-1], "image/png")
    assert picture.startswith("iVBOR"), "PNG in base64"
    first, second = data_of(last, "text/html")
    assert "<b>mine</b>: 3 of 3 trials" in first
    assert "<b>mine</b>: 4 of 4 trials" in second
    assert "(2, 1)" in "".join(one.get("text", "") for one in last)

    definition, _ = CELLS[-1].split("opened = mine.run(trials=3)")
    again = f"{definition}import tuner\nprint(tuner.open_study('mine').load().hparams)\nmine.run(trials=5)"
    (outputs,) = executed([again], tmp_path, env)
    assert "learning_rate" in "".join(one.get("text", "") for one in outputs)
    mine = tuner.open_study("mine", url)
    assert set(mine.trials()["outcome"]) <= {"complete", "pruned"}
    assert list(mine.trials()["number"]) == [0, 1, 2, 3, 4]
