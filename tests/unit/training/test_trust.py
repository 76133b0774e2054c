"""What is read from a checkpoint or a database runs no code that nobody trusts, and names no file elsewhere."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.errors import CheckpointError
from tuner.storage.artifacts import study_folder
from tuner.training import ArrayDataset, Checkpoints, TrainerModule, load_from_checkpoint, load_run

CODE = """
from pathlib import Path
import jax.numpy as jnp, optax
from tuner.training import TrainerModule

with (Path(__file__).parent / "ran").open("a") as file:
    file.write("x")

class Trainer(TrainerModule):
    def init_model(self, hparams):
        return lambda key, x: jnp.ones(2), lambda params, x: x @ params
    def loss(self, outputs, batch, hparams):
        return outputs**2, {}
    def init_optimizer(self, hparams, total_steps):
        return optax.sgd(hparams["learning_rate"])
"""


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of a trainer whose file counts how often it is run, and that file; both are forgotten here."""
    from tuner.study.source import import_file

    code = tmp_path / "code"
    code.mkdir()
    (code / "own.py").write_text(CODE)
    module: Any = import_file(code / "own.py")
    splits = ArrayDataset(inputs=np.eye(4, 2, dtype=np.float32)).split(0.5, 0)
    with Checkpoints(tmp_path / "run" / "ck", every_s=0) as checkpoints:
        list(
            module.Trainer().train_model(
                {"learning_rate": 0.1}, splits, epochs=1, seed=0, checkpoints=checkpoints, log=tmp_path / "run"
            )
        )
    sys.modules.pop(module.__name__)
    (code / "ran").unlink()
    return tmp_path / "run", code / "own.py"


@pytest.mark.slow
def test_the_file_that_a_checkpoint_names_is_imported_only_if_it_is_trusted(stored: tuple[Path, Path]) -> None:
    folder, file = stored
    for load in (lambda **options: load_from_checkpoint(folder / "ck", **options), lambda **o: load_run(folder, **o)):
        with pytest.raises(
            CheckpointError, match=r"importing that file runs its code; pass trainer=, or trust=True"
        ) as error:
            load()
        assert "\n" not in str(error.value)
        assert not file.with_name("ran").exists()
        load(trainer=Given())
        assert not file.with_name("ran").exists()
    loaded = load_from_checkpoint(folder / "ck", trust=True)
    assert type(loaded.trainer).__name__ == "Trainer"
    assert file.with_name("ran").read_text() == "x"
    load_from_checkpoint(folder / "ck")
    assert file.with_name("ran").read_text() == "x", "it is imported already, and used as it is"


class Given(TrainerModule):
    def init_model(self, hparams: Any) -> Any:
        import jax.numpy as jnp

        return lambda key, x: jnp.ones(2), lambda params, x: x @ params

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return outputs**2, {}

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        import optax

        return optax.sgd(hparams["learning_rate"])


def change_log(folder: Path, **changes: Any) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("how", ["plain", "dots", "link", "study"])
@pytest.mark.slow
def test_a_file_inside_is_never_imported(stored: tuple[Path, Path], how: str) -> None:
    folder, file = stored
    inside = folder / "own.py"
    shutil.copy(file, inside)
    (folder.parent / "link").symlink_to(folder)
    named = {"dots": folder.parent / "code" / ".." / "run" / "own.py", "link": folder.parent / "link" / "own.py"}
    reference = {"file": str(named.get(how, inside)), "module": "own", "name": "Trainer"}
    change_log(folder, **({"study": "x", "file": str(inside)} if how == "study" else {"class": reference}))
    with pytest.raises(CheckpointError, match="must not be inside"):
        load_run(folder, trust=True)
    assert not (folder / "ran").exists()


def test_nothing_but_a_trainer_is_made_of_what_is_imported_already(
    stored: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    called: list[int] = []
    monkeypatch.setattr(os, "abort", lambda: called.append(1))
    change_log(stored[0], **{"class": {"file": os.path.realpath(os.__file__), "module": "os", "name": "abort"}})
    with pytest.raises(CheckpointError, match="must be a TrainerModule"):
        load_run(stored[0])
    assert not called


# --- Names in paths


@given(name=st.text(), identity=st.text())
def test_a_studys_folder_is_directly_below_that_of_all(name: str, identity: str) -> None:
    folder = study_folder(Path("/artifacts"), name, identity)
    assert folder.parent == Path("/artifacts")
    assert folder.name not in ("", ".", "..")
    assert "\0" not in folder.name


@pytest.mark.parametrize("identity", ["../../x", "/etc", "..", "", "a/../../b", "0123abc/", "\0"])
def test_an_identity_that_is_a_path_leads_nowhere(identity: str) -> None:
    folder = study_folder(Path("/artifacts"), "..", identity)
    assert folder.resolve().parent == Path("/artifacts")


def test_the_folders_of_studies_are_those_of_earlier_versions() -> None:
    assert study_folder(Path("a"), "my study/é", "5616fd0a" + 24 * "0") == Path("a/my study%2F%C3%A9-5616fd0a")
