"""Methods that are given what they cannot do say so in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuner import Space, log_uniform
from tuner.errors import MissingHParam, StudyError
from tuner.methods import (
    AdversarialClassifier,
    ArchitectureSearch,
    Autoencoder,
    Classifier,
    Curriculum,
    EnsembleClassifier,
    Flow,
    GANTrainer,
    LangevinClassifier,
    LaplaceClassifier,
    MapClassifier,
    held_out_losses,
)
from tuner.models import linear
from tuner.training import ArrayDataset, Splits
from tuner.training.hparams import register
from tuner.training.loop.checks import check_trainer

DATA = ArrayDataset(inputs=np.zeros((12, 4)), labels=np.arange(12) % 3)


class Plain(Classifier):
    def init_model(self, hparams: Any) -> Any:
        return linear(self.classes)


class Staged(Curriculum, Plain): ...


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LaplaceClassifier(9, draws=63), "an even number of at least 2: got 63"),
        (lambda: EnsembleClassifier(9, members=0), "members must be at least 1: got 0"),
        (lambda: LangevinClassifier(9, samples=0), "samples must be at least 1 .*: got samples=0"),
        (lambda: LangevinClassifier(9, burn_in=1.0), r"burn_in in \[0, 1\): got samples=16, burn_in=1.0"),
        (lambda: Autoencoder(every=0), "must be at least 1: got 0"),
        (lambda: AdversarialClassifier(3, epsilon=0.1, pgd_steps=0), "pgd_steps must be at least 1: got 0"),
        (lambda: Flow(2).init(jax.random.key(0), jnp.zeros((3, 1))), "at least 2 features: got 1"),
        (
            lambda: held_out_losses(Plain(3), {}, DATA, epochs=1, seed=0, folds=1),
            "from 2 to the number of examples, 12: got 1",
        ),
        (
            lambda: held_out_losses(Plain(3), {}, DATA, epochs=1, seed=0, folds=13),
            "from 2 to the number of examples, 12: got 13",
        ),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        make()


def test_a_curriculum_without_stages_is_found_before_anything_is_stored() -> None:
    class Bare(Space):
        learning_rate: float = log_uniform(1e-3, 1e-1)

    hparams = Bare(learning_rate=0.01)
    register(hparams)
    with pytest.raises(MissingHParam, match="Bare has no hyperparameter 'stages'"):
        check_trainer(Staged(3), hparams, Splits(DATA, DATA), ["accuracy"], 2)
    with pytest.raises(StudyError, match="no hyperparameter 'stages': it has learning_rate"):
        check_trainer(Staged(3), {"learning_rate": 0.01}, Splits(DATA, DATA), ["accuracy"], 2)


class Tanh(nn.Module):
    @nn.compact
    def __call__(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = nn.tanh(nn.Dense(2)(inputs))
        return nn.Dense(3)(hidden), hidden


@pytest.mark.parametrize("method", [LaplaceClassifier, LangevinClassifier])
def test_posteriors_have_no_smoothed_weights(method: Any) -> None:
    class Trainer(method):
        def init_model(self, hparams: Any) -> Any:
            return Tanh()

    hparams = {"learning_rate": 0.01, "prior_precision": 1.0, "ema_decay": 0.9}
    assert Trainer(12).ema_decay(hparams) is None


@pytest.mark.parametrize("method", [MapClassifier, EnsembleClassifier, LangevinClassifier, LaplaceClassifier])
@pytest.mark.slow
def test_a_posterior_of_other_data_is_refused(method: Any) -> None:
    class Trainer(method):
        def init_model(self, hparams: Any) -> Any:
            return Tanh()

    hparams = {"learning_rate": 0.01, "prior_precision": 1.0}
    check_trainer(Trainer(12), hparams, Splits(DATA, DATA), ["nll"], 2)
    with pytest.raises(
        StudyError, match="examples must equal the number of training examples: Trainer has 13, the data 12"
    ):
        check_trainer(Trainer(13), hparams, Splits(DATA, DATA), ["nll"], 2)


@pytest.mark.parametrize(
    ("method", "instead"),
    [
        *((name, "discriminator_step or generator_step") for name in ("penalty", "augment", "loss")),
        ("init_model", "init_networks"),
        ("init_optimizer", "init_optimizers"),
    ],
)
def test_what_a_gan_does_not_call_is_refused(method: str, instead: str) -> None:
    trainer = type("Mine", (GANTrainer,), {method: lambda self, *given: None})()
    with pytest.raises(StudyError, match=f"GANTrainer does not call {method}: in Mine define {instead} instead$"):
        trainer.init_state({}, {}, jax.random.key(0), 1)
    with pytest.raises(StudyError, match=r"must define init_networks"):
        GANTrainer().init_state({}, {}, jax.random.key(0), 1)


@pytest.mark.parametrize("method", ["penalty", "augment", "init_optimizer", "ema_decay"])
def test_what_a_search_of_architectures_does_not_call_is_refused(method: str) -> None:
    trainer = type("Mine", (ArchitectureSearch,), {method: lambda self, *given: None})(3)
    with pytest.raises(StudyError, match=f"ArchitectureSearch does not call {method}: in Mine define "):
        trainer.init_state({}, {}, jax.random.key(0), 1)


@pytest.mark.slow
def test_an_ensembles_skipped_steps_are_counted_together() -> None:
    class Trainer(EnsembleClassifier):
        loop = "step"

        def init_model(self, hparams: Any) -> Any:
            return linear(3)

        def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
            from tuner.training import OptimizerSpec

            return OptimizerSpec("sgd", 0.1, skip_nonfinite=True)

    spoilt = np.zeros((12, 4))
    spoilt[0] = np.nan
    data = ArrayDataset(inputs=spoilt, labels=np.arange(12) % 3)
    training = Trainer(12, members=2).train_model({"prior_precision": 1.0}, Splits(data, DATA), epochs=1, seed=0)
    (report,) = training
    assert report.metrics["train_skipped_steps"] == 2.0
