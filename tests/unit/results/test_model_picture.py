"""The picture that a study draws of a model: of which trial, with which weights, and what can be wrong."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import Tuner

from tuner.errors import TunerError, UnknownStudy, UsageError
from tuner.results.model_picture import draw_picture
from tuner.results.rows import trial_rows
from tuner.storage import connect
from tuner.study import load_study
from tuner.worker import run_worker

PICTURE = """
import dataclasses
from matplotlib.figure import Figure


def picture(loaded, splits):
    host = splits.validation.host()
    loss = float(np.mean((loaded(host["inputs"]) - host["targets"]) ** 2))
    figure = Figure(figsize=(2, 2))
    figure.subplots().set_title(f"noise {loaded.hparams.noise!r} loss {loss!r}")
    return figure


Trainer.loop = "scan"
study = dataclasses.replace(study, picture=picture, keep_best=2, trials=3, seed=5)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with a study of three trials, of which the two best have a checkpoint; and its storage."""
    folder = tmp_path_factory.mktemp("drawn")
    tests = Path(__file__).parents[2]
    (folder / "tiny.py").write_text((tests / "tiny_study.py").read_text() + PICTURE)
    shutil.copy(tests / "tiny_environment.py", folder)
    url = f"sqlite:///{folder / 'study.db'}"
    study = load_study(str(folder / "tiny.py"))
    run_worker(study, url, file=str(folder / "tiny.py"), say=lambda event: None, artifacts=str(folder / "artifacts"))
    return folder, url


@pytest.fixture
def engine(place: Any) -> Any:
    engine = connect(place[1])
    yield engine
    engine.dispose()


def said(path: Path) -> tuple[float, float]:
    """Return the noise and the loss in an SVG's title."""
    found = re.search(r"<!-- noise (\S+) loss (\S+) -->", path.read_text())
    assert found is not None
    return float(found[1]), float(found[2])


@pytest.mark.slow
def test_the_picture_is_of_the_trial_that_is_asked_for(engine: Any, place: Any, tmp_path: Path) -> None:
    stored: list[Any] = list(trial_rows(engine, "tiny"))
    rows = sorted(stored, key=lambda row: row["value"])
    path = tmp_path / "out.svg"
    assert draw_picture(engine, "tiny", path) == (rows[0]["number"], False)
    assert said(path) == (rows[0]["hparams"]["noise"], pytest.approx(rows[0]["value"], rel=1e-5))
    first = path.read_bytes()
    assert draw_picture(engine, "tiny", path, rows[1]["number"], force=True) == (rows[1]["number"], False)
    assert said(path) == (rows[1]["hparams"]["noise"], pytest.approx(rows[1]["value"], rel=1e-5))
    assert path.read_bytes() != first
    draw_picture(engine, "tiny", path, rows[0]["number"], force=True)
    assert path.read_bytes() == first, "the same trial gives the same file"
    with pytest.raises(UsageError, match=r"trial \d of 'tiny' has no checkpoint: a study keeps"):
        draw_picture(engine, "tiny", tmp_path / "other.svg", rows[2]["number"])
    assert os.listdir(tmp_path) == ["out.svg"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("picture = None", r"study 'tiny' has no picture function: set Study\(picture=...\)"),
        ("picture = lambda loaded, splits: 3", r"picture\(loaded, splits\) must return a matplotlib Figure: got int"),
        (
            "def picture(loaded, splits):\n    figure = Figure()\n    figure.suptitle('$\\\\foo{$')\n    return figure",
            r"cannot draw the figure that picture\(loaded, splits\) returned: .*: ValueError: ",
        ),
        (
            "class HParams(Space):\n    other: float = uniform(0.0, 1.0)\n"
            "study = dataclasses.replace(study, space=HParams)",
            r"the study's file has changed since trial \d ran: .*other\.py; restore it",
        ),
        (
            "study = dataclasses.replace(study, name='other')",
            r"no study or function 'tiny' in .*other\.py: its studies are",
        ),
        (
            "def picture(loaded, splits):\n    raise ValueError('none today')",
            r"picture\(loaded, splits\) failed: .*other\.py:\d+: ValueError: none today",
        ),
        ("picture = 'out.png'", "picture must be a function of a trained model and the data: got 'out.png'"),
    ],
)
@pytest.mark.slow
def test_what_is_wrong_with_a_study_is_told(
    engine: Any, place: Any, tmp_path: Path, change: str, expected: str
) -> None:
    text = (place[0] / "tiny.py").read_text()
    (tmp_path / "other.py").write_text(f"{text}\n\n{change}\nstudy = dataclasses.replace(study, picture=picture)\n")
    with pytest.raises(TunerError, match=expected) as caught:
        draw_picture(engine, "tiny", tmp_path / "out.png", file=str(tmp_path / "other.py"))
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.slow
def test_a_changed_file_draws_and_is_known_to_have_changed(engine: Any, place: Any, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text((place[0] / "tiny.py").read_text() + "\nmore = 1\n")
    number, has_changed = draw_picture(engine, "tiny", tmp_path / "out.png", file=f"{tmp_path / 'other.py'}:study")
    assert (number in range(3), has_changed) == (True, True)


def test_what_is_wrong_with_the_question_is_told(engine: Any, place: Any, tmp_path: Path) -> None:
    with pytest.raises(UnknownStudy):
        draw_picture(engine, "none", tmp_path / "out.png")
    with pytest.raises(UnknownStudy, match="99"):
        draw_picture(engine, "tiny", tmp_path / "out.png", 99)
    with pytest.raises(UsageError, match=r"the plot 'picture' must end in \.png or \.svg"):
        draw_picture(engine, "tiny", tmp_path / "out.html")
    (tmp_path / "out.png").write_text("mine")
    with pytest.raises(UsageError, match="pass `force` to overwrite it"):
        draw_picture(engine, "tiny", tmp_path / "out.png")
    assert (tmp_path / "out.png").read_text() == "mine"


@pytest.mark.slow
def test_the_command(place: Any, tmp_path: Path) -> None:
    tuner = Tuner(tmp_path, place[1])
    done = tuner.run("plot", "tiny", "picture", "--file", str(place[0] / "tiny.py"))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"tuner: picture of trial \d of 'tiny' written to tiny-picture\.png\n", done.stderr)
    assert (tmp_path / "tiny-picture.png").read_bytes()[:4] == b"\x89PNG"
    refused = tuner.run_here("plot", "tiny", "history", "--trial", "1")
    assert (refused.returncode, refused.stderr) == (
        2, "tuner: --trial works only with a picture: got 'history'\n",
    )  # fmt: skip
