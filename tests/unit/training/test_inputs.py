"""A trainer whose `inputs` takes the hyperparameters: traced ones as JAX values, static ones as Python values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuner import Space, choice, uniform
from tuner.errors import StudyError
from tuner.training import ArrayDataset, Checkpoints, OptimizerSpec, Splits, TrainerModule, load_from_checkpoint, memory
from tuner.training.loop.checks import check_trainer

RATE = 0.125


class HParams(Space):
    factor: float = uniform(0.0, 8.0)
    power: int = choice(1, 2)


class Line(TrainerModule):
    """Predicts w * factor * x ** power, from w = 1; notes what its `inputs` is given."""

    def __init__(self, loop: Any = "step") -> None:
        self.loop = loop
        self._seen: list[tuple[bool, bool]] = []

    def init_model(self, hparams: Any) -> Any:
        return lambda key, x: {"w": jnp.ones(())}, lambda params, x: params["w"] * x

    def inputs(self, batch: Any, hparams: Any) -> Any:
        self._seen.append((type(hparams.power) is int, isinstance(hparams.factor, jax.Array)))
        return hparams.factor * batch["x"] ** hparams.power

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return OptimizerSpec("sgd", RATE)

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (outputs - batch["y"]) ** 2, {"outputs": outputs}


X, Y = np.array([1.0, 3.0]), np.array([4.0, 8.0])
DATA = ArrayDataset(x=X, y=Y)
SPLITS = Splits(DATA, DATA)


def by_hand(factor: float, power: int) -> tuple[Any, Any]:
    """Return the weight after one step from 1, and the mean squared error with it."""
    inputs = factor * X**power
    weight = 1.0 - RATE * np.mean(2 * (inputs - Y) * inputs)
    return weight, np.mean((weight * inputs - Y) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["step", "scan"])
def test_training_and_evaluation_pass_the_hyperparameters(loop: str, tmp_path: Path) -> None:
    trainer = Line(loop)
    for factor, power in ((0.5, 1), (0.25, 1), (0.5, 2)):
        hparams = HParams(factor=factor, power=power)
        with Checkpoints(tmp_path / f"{factor} {power}", every_s=60) as checkpoints:
            training = trainer.train_model(hparams, SPLITS, epochs=1, seed=0, checkpoints=checkpoints)
            (report,) = training
        # All numbers are sums of few powers of two: no rounding.
        weight, loss = by_hand(factor, power)
        assert training.state.params["w"] == weight
        assert report.metrics["loss"] == loss
        assert report.metrics["train_outputs"] == np.mean(factor * X**power)
        assert trainer.eval_model(training.state, DATA, hparams)["loss"] == loss
        # A bound model takes the model's arguments, not a batch.
        assert trainer.bind_model(training.state, hparams)(np.float32(3.0)) == weight * 3.0
        loaded = load_from_checkpoint(checkpoints.folder, trainer=trainer, hparams=hparams)
        assert loaded.trainer.eval_model(loaded.state, DATA, loaded.hparams)["loss"] == loss
    assert set(trainer._seen) == {(True, True)}


@pytest.mark.slow
def test_other_traced_numbers_compile_nothing_new() -> None:
    trainer = Line()
    list(trainer.train_model(HParams(factor=0.5, power=1), SPLITS, epochs=1, seed=0))
    traced = len(trainer._seen)
    list(trainer.train_model(HParams(factor=0.75, power=1), SPLITS, epochs=1, seed=0))
    assert len(trainer._seen) == traced
    list(trainer.train_model(HParams(factor=0.5, power=2), SPLITS, epochs=1, seed=0))
    assert len(trainer._seen) > traced


@pytest.mark.slow
def test_what_looks_at_a_model_passes_them_too(capsys: pytest.CaptureFixture[str]) -> None:
    trainer, hparams = Line(), HParams(factor=0.5, power=2)
    check_trainer(trainer, hparams, SPLITS, ["loss"], 1)
    trainer.print_tabulate(hparams, SPLITS)
    assert "│ w " in capsys.readouterr().out
    assert memory(trainer, hparams, SPLITS)["arguments"] > 0
    (report,) = trainer.train_model(hparams, SPLITS, epochs=1, seed=0, debug=True)
    assert report.metrics["loss"] == by_hand(0.5, 2)[1]


def test_inputs_that_take_only_a_batch_may_call_those_of_tuner() -> None:
    class Doubled(Line):
        def inputs(self, batch: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return 2 * TrainerModule.inputs(self, {"inputs": batch["x"]})

    (report,) = Doubled().train_model(HParams(factor=7.0, power=2), SPLITS, epochs=1, seed=0)
    assert report.metrics["loss"] == by_hand(2.0, 1)[1]


def test_inputs_with_other_parameters_are_refused_before_anything_runs() -> None:
    class Wrong(Line):
        def inputs(self, batch: Any, hparams: Any, key: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return batch["x"]

    with pytest.raises(StudyError) as caught:
        check_trainer(Wrong(), HParams(factor=0.5, power=1), SPLITS, ["loss"], 1)
    assert str(caught.value) == "Wrong.inputs must take (batch) or (batch, hparams): got (batch, hparams, key)"
