"""Which epoch of a trainer counts: its value ranks the trials, and its model is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import numpy as np
import pytest
from storage_tools import opened

from tuner import Space, Study, log_uniform
from tuner.errors import StudyError
from tuner.results.rows import best_rows, show_row
from tuner.storage.worker.studies import register
from tuner.training import ArrayDataset, Splits, TrainerModule, load_from_checkpoint
from tuner.worker import run_worker

pytestmark = pytest.mark.with_tables

VALUES = (3.0, 1.0, 2.0)
"""The objective after each epoch: the second is the best, the third the last."""


class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1e-1)


class Trainer(TrainerModule):
    def init_model(self, hparams: Any) -> nn.Module:
        return nn.Dense(1)

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (outputs[:, 0] - batch["targets"]) ** 2, {}

    def on_validation_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> dict[str, float]:
        return {"value": VALUES[epoch - 1]}


def data(seed: int) -> Splits:
    inputs = np.random.default_rng(seed).normal(size=(20, 2))
    return ArrayDataset(inputs=inputs, targets=inputs.sum(1)).split(0.2, seed)


def study_of(value: Literal["last", "best"]) -> Study:
    return Study(
        name="one", space=HParams, trainer=Trainer, data=data, objective="value", direction="minimize", epochs=3,
        trials=1, value=value,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "is_old", "expected", "kept"),
    [("last", False, 2.0, 3), ("best", False, 1.0, 2), ("last", True, 2.0, 2)],
    ids=["last", "best", "recorded before the choice"],
)
def test_the_model_of_the_epoch_that_counts_is_kept(
    value: Literal["last", "best"], is_old: bool, expected: float, kept: int, sqlite_url: str, tmp_path: Path
) -> None:
    study = study_of(value)
    with opened(sqlite_url) as storage:
        if is_old:
            record = study.record()
            assert record.pop("value") == "last"
            register(storage, storage.engine, study.name, study.all_directions, record)
        run_worker(study, sqlite_url, artifacts=str(tmp_path))
        (row,) = best_rows(storage.engine, "one")
        assert (row.get("value"), row["value_epoch"]) == (expected, value)
        assert row["kept_epoch"] == {3: "last", 2: "best"}[kept]
        path = show_row(storage.engine, "one", 0)["checkpoint"]
    assert path is not None
    loaded = load_from_checkpoint(path, trainer=Trainer())
    assert loaded.record["best"]["epoch"] == kept
    assert loaded.state.step is not None
    assert int(loaded.state.step) == kept  # one batch in each epoch


def test_another_choice_is_another_study(sqlite_url: str) -> None:
    record = study_of("last").record()
    del record["value"]
    study_of("last").check_unchanged(record)
    with pytest.raises(StudyError, match="value was last and is now best"):
        study_of("best").check_unchanged(record)
