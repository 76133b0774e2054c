"""Pictures that hooks save: where they go, what is in them, and what happens where they cannot be written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import pytest
from matplotlib.image import imread

from tuner import Space, Study, log_uniform
from tuner.errors import StudyError
from tuner.storage.artifacts import artifacts_of
from tuner.training import ArrayDataset, Checkpoints, TrainerModule, save_picture, tile
from tuner.worker import run_worker

RNG = np.random.default_rng(0)
SPLITS = ArrayDataset(inputs=RNG.normal(size=(20, 2)), labels=RNG.normal(size=20)).split(0.2, 0)
GRAY = np.array([[0.0, 0.5, 1.0], [-2.0, 3.0, np.nan]])


class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1.0)


class Painter(TrainerModule):
    loop = "scan"

    def init_model(self, hparams: Any) -> Any:
        return nn.Dense(1)

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (outputs[:, 0] - batch["labels"]) ** 2, {}

    def on_training_start(self, state: Any, hparams: Any) -> None:
        save_picture("start", GRAY)

    def on_training_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> None:
        save_picture(f"trained-{epoch}", np.ones((2, 2, 3)))

    def on_validation_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> None:
        save_picture("latest", np.full((4, 4), epoch / 255))


PAINTER = Painter()  # one for all, so that its programs are compiled once


def train(**options: Any) -> list[Any]:
    return list(PAINTER.train_model({"learning_rate": 0.1}, SPLITS, epochs=2, seed=0, **options))


@pytest.mark.parametrize("where", ["log", "checkpoints", "both"])
def test_hooks_of_all_kinds_save_into_the_folder_of_the_run(where: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        if where != "log":
            options["checkpoints"] = checkpoints
        if where != "checkpoints":
            options["log"] = tmp_path / "log"
        train(**options)
    folder = tmp_path / ("checkpoints" if where == "checkpoints" else "log") / "pictures"
    assert sorted(os.listdir(folder)) == ["latest.png", "start.png", "trained-1.png", "trained-2.png"]
    assert [path.name for path in tmp_path.rglob("pictures")] == ["pictures"]
    # What is beyond 0 and 1 is clipped, NaN is 0; a picture of the same name is replaced.
    gray = imread(folder / "start.png")[..., :3]
    np.testing.assert_allclose(gray[..., 0], [[0, 128 / 255, 1], [0, 1, 0]], atol=1e-6)
    assert (gray == gray[..., :1]).all()
    np.testing.assert_allclose(imread(folder / "latest.png")[..., :3], 2 / 255, atol=1e-6)


def test_without_a_folder_and_outside_of_hooks_nothing_is_saved(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    train()
    save_picture("nowhere", GRAY)
    train(log=tmp_path / "log")
    save_picture("late", GRAY)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert not (tmp_path / "log" / "pictures" / "late.png").exists()


def test_of_two_trainings_each_saves_into_its_own(tmp_path: Path) -> None:
    def begin(name: str) -> Any:
        return PAINTER.train_model({"learning_rate": 0.1}, SPLITS, epochs=2, seed=0, log=tmp_path / name)

    pairs = list(zip(begin("one"), begin("two"), strict=True))
    assert len(pairs) == 2
    for name in ("one", "two"):
        assert len(os.listdir(tmp_path / name / "pictures")) == 4


@pytest.mark.parametrize("trouble", ["full", "occupied", "no matplotlib"])
def test_what_cannot_be_written_is_told_once_and_the_training_goes_on(
    trouble: str, tmp_path: Path, request: pytest.FixtureRequest, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, why = tmp_path / "run", "File exists"
    folder.mkdir()
    if trouble == "full":
        folder, why = request.getfixturevalue("small_disk") / "run", "No space left on device"
        with Checkpoints(folder) as checkpoints:
            (folder / "pictures").mkdir(parents=True)
            with pytest.raises(OSError, match="No space left"):
                (folder.parent / "ballast").write_bytes(bytes(2**21))
            reports = train(checkpoints=checkpoints)
    else:
        if trouble == "occupied":
            (folder / "pictures").write_text("")
        else:
            monkeypatch.setitem(__import__("sys").modules, "matplotlib.image", None)
            why = "pip install -e '.[plots]'"
        reports = train(log=folder)
    assert len(reports) == 2
    told = [line for line in capfd.readouterr().err.splitlines() if "pictures" in line]
    assert len(told) == 1
    assert why in told[0]
    found = os.listdir(folder / "pictures") if (folder / "pictures").is_dir() else []
    assert found == []  # no scratch file either


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "../up", "x" * 101, None])
def test_a_name_that_is_no_files_is_refused(name: Any) -> None:
    with pytest.raises(StudyError, match="the name of a picture must be"):
        save_picture(name, GRAY)


@pytest.mark.parametrize("shape", [(3,), (0, 4), (4, 4, 2), (1, 4, 4, 3)])
def test_an_array_that_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(StudyError, match="must have the shape"):
        save_picture("wrong", np.zeros(shape))


@pytest.mark.slow
@pytest.mark.parametrize("keep", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_pictures_go_with_the_trials_folder(keep: int, tmp_path: Path) -> None:
    study = Study(
        name="painted",
        space=HParams,
        trainer=PAINTER,
        data=lambda seed: SPLITS,
        objective="loss",
        direction="minimize",
        epochs=2,
        trials=4,
        sampler="random",
        pruner="none",
        keep_best=keep,
    )
    run_worker(study, f"sqlite:///{tmp_path}/study.db", artifacts=str(tmp_path / "files"))
    (folder,) = artifacts_of(tmp_path / "files").folder.iterdir()
    kept = list(folder.iterdir())
    assert len(kept) == keep
    for trial in kept:
        assert sorted(os.listdir(trial)) == ["best", "pictures"]
        assert len(os.listdir(trial / "pictures")) == 4


def test_tiles_stand_in_rows_with_lines_between() -> None:
    images = np.arange(12.0).reshape(3, 2, 2) / 12
    made = tile(images, columns=2)
    assert made.shape == (5, 5)
    np.testing.assert_array_equal(made[:2, :2], images[0])
    np.testing.assert_array_equal(made[:2, 3:], images[1])
    np.testing.assert_array_equal(made[3:, :2], images[2])
    assert (made[2] == 1).all()
    assert (made[:, 2] == 1).all()
    assert (made[3:, 3:] == 1).all()
