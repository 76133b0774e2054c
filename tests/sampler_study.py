"""A study for samplers and pruners, whose trials train nothing, and one worker that runs it in this process."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optax
import pytest
from fake_trainer import FakeTrainer, small_data
from storage_tools import opened

from tuner import Space, Study, choice, int_uniform, uniform
from tuner.errors import StudyStopped
from tuner.trial.events import encode
from tuner.worker import run_worker

NUMBERS, LETTERS = [1, 2, 3], ["a", "b"]
POINTS = set(itertools.product(NUMBERS, LETTERS))


class Finite(Space):
    n: int = int_uniform(1, 3)
    c: str = choice(*LETTERS)


class Floats(Space):
    x: float = uniform(0.0, 1.0)
    y: float = uniform(-1.0, 1.0)


class Trainer(FakeTrainer):
    """Counts its trainings; each fails with `error`, if that is set."""

    def __init__(self) -> None:
        self.begun = 0
        self.error: Exception | None = None

    def init_optimizer(self, hparams: Any, total_steps: int) -> optax.GradientTransformation:
        return optax.sgd(0.1)

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        errors = (outputs[:, 0] - batch["targets"]) ** 2
        return errors, {"size": errors}

    def train_model(self, hparams: Any, splits: Any, *, epochs: int, **options: Any) -> Any:
        self.begun += 1
        if self.error is not None:
            raise self.error
        yield from super().train_model(hparams, splits, epochs=epochs, **options)

    def values(self, hparams: Any, epoch: int) -> dict[str, float]:
        size = float(sum(value if isinstance(value, float | int) else 0.5 for value in vars(hparams).values()))
        return {"loss": size + 1.0 / epoch, "size": -size}


def make_study(**settings: Any) -> Study:
    given: dict[str, Any] = {"name": "objects", "space": Finite, "trainer": Trainer(), "data": small_data}
    given |= {"objective": "loss", "direction": "minimize", "epochs": 2, "trials": 6, "keep_best": 0, "pruner": "none"}
    return Study(**{**given, **settings})


@pytest.fixture
def work(tmp_path: Path) -> Callable[[Study], tuple[list[Any], list[dict[str, Any]], StudyStopped | None]]:
    """Run one worker; return the trials, what the worker said, and what it raised."""
    url = f"sqlite:///{tmp_path}/study.db"

    def run(study: Study) -> tuple[list[Any], list[dict[str, Any]], StudyStopped | None]:
        events: list[dict[str, Any]] = []
        raised = None
        try:
            run_worker(study, url, artifacts=str(tmp_path / "files"), say=lambda event: events.append(encode(event)))
        except StudyStopped as error:
            raised = error
        with opened(url) as storage:
            trials = storage.get_all_trials(storage.get_study_id_from_name(study.name))
        return trials, events, raised

    return run
