"""Python code that asks for a traced number ends in one line that names it and says what to write."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import numpy as np
import pytest
from flax import nnx

from tuner import Space, int_uniform, uniform
from tuner.errors import StudyError
from tuner.methods import Classifier
from tuner.training import ArrayDataset, OptimizerSpec, Splits, memory
from tuner.training.loop.checks import check_trainer


class HParams(Space):
    rate: float = uniform(0.1, 0.5)
    depth: int = int_uniform(1, 3, traced=True)


H = HParams(rate=0.25, depth=2)
DATA = ArrayDataset(inputs=np.random.default_rng(0).normal(size=(8, 3)), labels=np.arange(8) % 2)
SPLITS = Splits(DATA, DATA)


class Base(Classifier):
    loop = "step"

    def __init__(self) -> None:
        super().__init__(2)

    def init_model(self, hparams: Any) -> Any:
        return nn.Dense(2)

    def init_optimizer(self, hparams: Any, total_steps: int) -> OptimizerSpec:
        return OptimizerSpec("sgd", 0.1)


class Dropping(nn.Module):
    rate: Any

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.Dropout(self.rate)(x, deterministic=not train)
        return nn.Dense(2)(x)


class LinenDropout(Base):
    def init_model(self, hparams: Any) -> Any:
        return Dropping(hparams.rate)


class DroppingNNX(nnx.Module):
    def __init__(self, rate: Any, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(3, 2, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.dense(self.dropout(x))


class NNXDropout(Base):
    def init_model(self, hparams: Any) -> Any:
        return lambda rngs: DroppingNNX(hparams.rate, rngs)


class Branch(Base):
    def init_model(self, hparams: Any) -> Any:
        if hparams.rate > 0.3:
            return nn.Dense(3)
        return nn.Dense(2)


class Shape(Base):
    def init_model(self, hparams: Any) -> Any:
        return nn.Dense(hparams.depth)


class Loop(Base):
    def init_model(self, hparams: Any) -> Any:
        return nn.Sequential([nn.Dense(2) for _ in range(hparams.depth)])


class NumPy(Base):
    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return super().loss(outputs * np.sqrt(hparams.rate), batch, hparams)


class Number(Base):
    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return super().loss(outputs * float(hparams.rate), batch, hparams)


class Outputs(Base):
    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return super().loss(outputs if outputs.sum() > 0 else -outputs, batch, hparams)


HERE = r"test_tracing.py:\d+"
STATIC = r".*use jnp.where or jax.lax.cond instead of `if`, or make the hyperparameter static"
CASES: list[tuple[Any, str]] = [
    (
        LinenDropout(),
        rf"rate of flax.linen.Dropout must not be a traced hyperparameter .*{HERE}.*use tuner.training.Dropout ",
    ),
    (
        NNXDropout(),
        rf"rate of flax.nnx.Dropout must not be .*{HERE}.*use tuner.training.nnx_layers.Dropout ",
    ),
    (Branch(), rf"depends on the traced hyperparameter rate at .*{HERE}: if hparams.rate > 0.3:{STATIC}"),
    (Shape(), rf"depends on the traced hyperparameter depth{STATIC}"),
    (Loop(), rf"depends on the traced hyperparameter depth at .*{HERE}: .*range{STATIC}"),
    (NumPy(), rf"depends on the traced hyperparameter rate at .*{HERE}: .*np.sqrt{STATIC}"),
    (Number(), rf"depends on the traced hyperparameter rate at .*{HERE}: .*float{STATIC}"),
    (Outputs(), rf"a shape depends on a traced number at .*{HERE}: .*outputs.sum"),
]


@pytest.mark.parametrize(("trainer", "message"), CASES, ids=[type(trainer).__name__ for trainer, _ in CASES])
def test_jax_s_error_becomes_one_line(trainer: Any, message: str) -> None:
    with pytest.raises(StudyError, match=message) as found:
        check_trainer(trainer, H, SPLITS, ["loss"], 1)
    assert "\n" not in str(found.value)
    with pytest.raises(StudyError, match=message):
        list(trainer.train_model(H, SPLITS, epochs=1, seed=0))


def test_what_is_asked_beside_training_says_the_same() -> None:
    for ask in (lambda: Branch().print_tabulate(H, SPLITS), lambda: memory(Branch(), H, SPLITS)):
        with pytest.raises(StudyError, match="depends on the traced hyperparameter rate"):
            ask()


def test_other_errors_stay_what_they_are() -> None:
    class Broken(Base):
        def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
            raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine(\n|$)"):
        list(Broken().train_model(H, SPLITS, epochs=1, seed=0))
