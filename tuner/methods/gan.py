"""Generative adversarial networks: two networks and two optimizers (Goodfellow et al., 2014, arXiv:1406.2661)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tuner.errors import StudyError
from tuner.methods.classification import field, refuse_uncalled
from tuner.training import Mean, Metric, Model, OptimizerSpec, PyTree, TrainerModule
from tuner.training.data.arrays import Batch
from tuner.training.definition import H
from tuner.training.metrics import Metrics
from tuner.training.model.adapters import as_model
from tuner.training.optim.build import as_optimizer, skipped_steps
from tuner.training.state import Average, Stream, TrainState

Objective = Callable[[Any], tuple[jax.Array, tuple[Any, Metrics]]]
"""params -> the loss of a network, Float[Array, ""], its collections after the step, and metrics."""


def value(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
    """Return the value of the game, log D(x) + log(1 - D(G(z))) (the paper's equation 1), for each pair of samples."""
    return nn.log_sigmoid(real_logits) + nn.log_sigmoid(-fake_logits)


def generator_loss(fake_logits: jax.Array) -> jax.Array:
    """Return -log D(G(z)): the paper's loss whose gradient does not vanish if the discriminator is confident."""
    return -nn.log_sigmoid(fake_logits)


def squared_slopes(logits: Callable[[jax.Array], jax.Array], samples: jax.Array) -> jax.Array:
    """Return |grad_x D(x)|^2 at each sample: the penalty R1 (Mescheder et al., 2018, equation 9).

    Args:
        logits: Samples -> Float[Array, "batch"].
        samples: Float[Array, "batch ..."].
    """
    slopes = jax.grad(lambda samples: jnp.sum(logits(samples)))(samples)
    return jnp.sum(slopes.reshape(slopes.shape[0], -1) ** 2, axis=1)


class GANTrainer(TrainerModule[H]):
    """Trains a generator against a discriminator; subclasses define `init_networks` and `judge`.

    An example has `inputs`, a real sample, and `noise`, from which the generator makes a sample in validation; it is
    part of the data, so that all trials are evaluated with the same noise. In training, new normal noise of this shape
    is drawn.

    Parameters, optimizer states and collections are dicts with an entry for each network. A step updates the
    discriminator first, then the generator; neither changes the other, including its batch statistics. As a model
    (`bind_model`, `load_from_checkpoint`) it maps noise to samples.

    `penalty`, `augment`, `loss`, `init_model` and `init_optimizer` are not called; defining them is an error.

    Optional hyperparameters: `discriminator_steps` per step of the generator (static, default 1); `gradient_penalty`,
    the weight gamma of gamma / 2 |grad_x D(x)|^2 on real samples; and those of `init_optimizers`.
    """

    def init_networks(self, hparams: H) -> tuple[Any, Any]:
        """Return generator and discriminator, each like the result of `init_model`.

        The generator maps noise to samples, the discriminator samples to logits, Float[Array, "batch"].
        """
        raise StudyError(f"{type(self).__name__} must define init_networks(hparams)")

    def init_optimizers(self, hparams: H, total_steps: int) -> tuple[Any, Any]:
        """Return the optimizers of generator and discriminator, each like the result of `init_optimizer`.

        By default Adam with two rates (Heusel et al., 2017): `learning_rate`, multiplied for the discriminator by the
        optional hyperparameter `discriminator_speed`. Schedules count the steps of each network.
        """
        rate = field(hparams, "learning_rate")
        if rate is None:
            raise StudyError(
                "the default optimizers need a hyperparameter 'learning_rate': "
                f"{type(hparams).__name__} has none; add it, or define init_optimizers in {type(self).__name__}"
            )
        return OptimizerSpec("adam", rate), OptimizerSpec("adam", rate * field(hparams, "discriminator_speed", 1.0))

    def judge(self, real: jax.Array, fake: jax.Array, batch: Batch, hparams: H) -> dict[str, Any]:
        """Return metrics of real and generated validation samples: one value per sample, or a `Metric`."""
        return {}

    # Derived from the methods above.

    def build_networks(self, hparams: H) -> dict[str, Model]:
        """Return both networks by name."""
        generator, discriminator = self.init_networks(hparams)
        return {"generator": as_model(generator), "discriminator": as_model(discriminator)}

    def build_optimizers(self, hparams: H, total_steps: int, key: jax.Array | None = None) -> dict[str, Any]:
        """Return both optimizers by name, as optax transformations; the key seeds their noise, if they have any."""
        generator, discriminator = self.init_optimizers(hparams, total_steps)
        steps = total_steps * field(hparams, "discriminator_steps", 1)
        return {
            "generator": as_optimizer(generator, total_steps, key),
            "discriminator": as_optimizer(discriminator, steps, None if key is None else jax.random.fold_in(key, 1)),
        }

    def build_model(self, hparams: H) -> Model:
        """Return both networks as one model whose input is noise; its initialisation needs samples too."""
        networks = self.build_networks(hparams)

        def init(key: jax.Array, inputs: tuple[PyTree, ...]) -> tuple[Any, Any]:
            params, collections = {}, {}
            for one, argument, (name, network) in zip(jax.random.split(key), inputs, networks.items(), strict=True):
                params[name], collections[name] = network.init(one, (argument,))
            return params, collections

        def apply(
            params: PyTree, collections: PyTree, inputs: tuple[PyTree, ...], *, train: bool, key: jax.Array | None
        ) -> tuple[Any, Any]:
            found, after = networks["generator"].apply(
                params["generator"], collections["generator"], inputs[:1], train=train, key=key
            )
            return found, {**collections, "generator": after}

        return Model(init, apply, networks["generator"].module)

    def inputs(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Return the inputs of generator and discriminator."""
        return batch["noise"], batch["inputs"]

    def init_state(self, hparams: H, batch: Batch, key: jax.Array, total_steps: int) -> TrainState:
        steps = dict.fromkeys(("penalty", "augment", "loss"), "discriminator_step or generator_step")
        refuse_uncalled(self, GANTrainer, **steps, init_model="init_networks", init_optimizer="init_optimizers")
        if self.precision != "float32":
            raise StudyError(f"a GANTrainer needs precision='float32': got {self.precision!r}")
        params, collections = self.build_model(hparams).init(Stream.INIT.key(key), self._arguments(batch, hparams))
        optimizers = self.build_optimizers(hparams, total_steps, Stream.NOISE.key(key))
        opt_state = {name: optimizer.init(params[name]) for name, optimizer in optimizers.items()}
        average = None if self.ema_decay(hparams) is None else Average(params, collections)
        return TrainState(jnp.int32(0), params, opt_state, collections, key, average, total_steps=total_steps)

    def discriminator_step(
        self, state: TrainState, batch: Batch, hparams: H, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Return the state after a step of the discriminator, and the value of the game."""
        noise_key, *keys = jax.random.split(key, 4)
        fake, _ = self._generate(state.params, state, batch, hparams, noise_key, keys[0])
        network, gamma = self.build_networks(hparams)["discriminator"], field(hparams, "gradient_penalty")

        def objective(params: PyTree) -> tuple[jax.Array, tuple[Any, Metrics]]:
            before = state.collections["discriminator"]
            real_logits, after = network.apply(params, before, (batch["inputs"],), train=True, key=keys[1])
            fake_logits, after = network.apply(params, after, (fake,), train=True, key=keys[2])
            played = Mean.of(value(real_logits, fake_logits), batch["weight"])
            if gamma is None:
                return -played.value, (after, {"value": played})

            def logits(samples: jax.Array) -> jax.Array:
                return network.apply(params, before, (samples,), train=True, key=keys[1])[0]

            slopes = Mean.of(squared_slopes(logits, batch["inputs"]), batch["weight"])
            return -played.value + gamma / 2 * slopes.value, (after, {"value": played, "squared_slope": slopes})

        return self._descend("discriminator", state, objective, hparams, jnp.sum(batch["weight"]))

    def generator_step(self, state: TrainState, batch: Batch, hparams: H, key: jax.Array) -> tuple[TrainState, Metrics]:
        """Return the state after a step of the generator, and its loss."""
        noise_key, *keys = jax.random.split(key, 3)
        network = self.build_networks(hparams)["discriminator"]

        def objective(params: PyTree) -> tuple[jax.Array, tuple[Any, Metrics]]:
            fake, after = self._generate({"generator": params}, state, batch, hparams, noise_key, keys[0])
            logits, _ = network.apply(
                state.params["discriminator"], state.collections["discriminator"], (fake,), train=True, key=keys[1]
            )
            loss = Mean.of(generator_loss(logits), batch["weight"])
            return loss.value, (after, {"generator_loss": loss})

        return self._descend("generator", state, objective, hparams, jnp.sum(batch["weight"]))

    def train_step(self, state: TrainState, batch: Batch, hparams: H, key: jax.Array) -> tuple[TrainState, Metrics]:
        """Return the state after the steps of both networks, and the metrics of the last step of each."""
        *keys, last = jax.random.split(key, field(hparams, "discriminator_steps", 1) + 1)
        before = state.opt_state
        metrics: Metrics = {}
        for one in keys:
            state, metrics = self.discriminator_step(state, batch, hparams, one)
        state, more = self.generator_step(state, batch, hparams, last)
        average, decay = state.average, self.ema_decay(hparams)
        if average is not None and decay is not None:
            updated = average.update(state.params, state.collections, decay)
            steps = {"generator": 1, "discriminator": len(keys)}
            average = _of_updated(average, updated, before, state.opt_state, steps)
        assert state.step is not None
        state = dataclasses.replace(state, step=state.step + jnp.ones_like(state.step), average=average)
        return state, {**metrics, **more}

    def eval_step(self, state: TrainState, batch: Batch, hparams: H) -> Metrics:
        """Return the metrics of `judge` for the validation samples, and `value`."""
        weights, networks = state.for_evaluation(), self.build_networks(hparams)

        def run(name: str, argument: jax.Array) -> jax.Array:
            params, collections = weights.params[name], weights.collections[name]
            return networks[name].apply(params, collections, (argument,), train=False, key=None)[0]

        real, fake = batch["inputs"], run("generator", batch["noise"])
        played = value(run("discriminator", real), run("discriminator", fake))
        return {
            name: found if isinstance(found, Metric) else Mean.of(found, batch["weight"])
            for name, found in {"value": played, **self.judge(real, fake, batch, hparams)}.items()
        }

    def _generate(
        self, params: PyTree, state: TrainState, batch: Batch, hparams: H, noise_key: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Return samples from new noise, and the generator's collections after it."""
        noise = jax.random.normal(noise_key, batch["noise"].shape, batch["noise"].dtype)
        network, collections = self.build_networks(hparams)["generator"], state.collections["generator"]
        return network.apply(params["generator"], collections, (noise,), train=True, key=key)

    def _descend(
        self, name: str, state: TrainState, objective: Objective, hparams: H, weight: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Return the state after a step of one network; the other does not change."""
        grads, (collections, metrics) = jax.grad(objective, has_aux=True)(state.params[name])
        assert state.key is not None
        optimizer = self.build_optimizers(hparams, state.total_steps, Stream.NOISE.key(state.key))[name]
        before = TrainState(
            params=state.params[name], opt_state=state.opt_state[name], collections=state.collections[name]
        )
        after = before.apply_gradients(optimizer, grads, collections, weight=weight)
        return dataclasses.replace(
            state,
            params={**state.params, name: after.params},
            opt_state={**state.opt_state, name: after.opt_state},
            collections={**state.collections, name: after.collections},
        ), metrics


def _of_updated(
    average: Average, updated: Average, before: dict[str, PyTree], after: dict[str, PyTree], steps: dict[str, int]
) -> Average:
    """Return the smoothed weights, updated for each network that had a step that was not skipped."""
    params, collections = dict(updated.params), dict(updated.collections)
    for name, made in steps.items():
        skipped, skipped_before = skipped_steps(after[name]), skipped_steps(before[name])
        if skipped is not None and skipped_before is not None:
            is_updated = skipped - skipped_before < made
            params[name], collections[name] = jax.tree.map(
                partial(jnp.where, is_updated),
                (params[name], collections[name]),
                (average.params[name], average.collections[name]),
            )
    return Average(params, collections)
