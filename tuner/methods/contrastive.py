"""SimCLR (Chen et al., 2020, https://arxiv.org/abs/2002.05709): features without labels, evaluated with a linear probe.

Two randomly changed views of each image x are used. An encoder computes the features h of a view; a projection head
computes z from h, which only the loss uses. For the pair (i, j) among the 2N views, with cosine similarity s,

    l(i, j) = -log( exp(s(z_i, z_j) / T) / sum over k != i of exp(s(z_i, z_k) / T) ).        (equation 1)
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from tuner.errors import StudyError
from tuner.methods.classification import field
from tuner.training import Mean, Model, OptimizerGroups, OptimizerSpec, PyTree, TrainerModule, TrainState, WarmupCosine
from tuner.training.data.arrays import Batch
from tuner.training.data.feed import Dataset
from tuner.training.data.labels import check_labels
from tuner.training.definition import H
from tuner.training.metrics import Metrics


def nt_xent(first: jax.Array, second: jax.Array, weights: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """Return the contrastive loss of each pair of views, averaged over both directions.

    Args:
        first: Embeddings of one view. Float[Array, "batch dimensions"].
        second: Embeddings of the other view; the same shape.
        weights: The weights of examples; weight 0 is padding, which other examples ignore. Float[Array, "batch"].
        temperature: T; > 0, may be traced.

    Returns:
        Float[Array, "batch"]. If all embeddings are equal, it is log(2 batch - 1).
    """
    count = len(first)
    views = unit(jnp.concatenate([first, second]))
    similarities = views @ views.T / temperature
    partners = jnp.roll(jnp.arange(2 * count), count)
    positives = jnp.sum(views * views[partners], axis=-1) / temperature
    # Padding is compared with its partner, so that its own loss is finite; it does not count.
    is_there = jnp.tile(weights > 0, 2)[None, :] | jax.nn.one_hot(partners, 2 * count, dtype=bool)
    is_seen = is_there & ~jnp.eye(2 * count, dtype=bool)
    losses = jax.nn.logsumexp(similarities, axis=-1, where=is_seen) - positives
    return jnp.mean(losses.reshape(2, count), axis=0)


def unit(vectors: jax.Array) -> jax.Array:
    """Normalise vectors, Float[Array, "batch dimensions"], to length 1; zero vectors are unchanged.

    The direction of a zero vector is undefined: dividing by its length would make the loss or its gradient NaN.
    """
    squares = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors / jnp.sqrt(jnp.where(squares > 0, squares, 1.0))


class ProjectionHead(nn.Module):
    """Two layers from features [batch, width] to the embeddings for the loss, [batch, dimensions]."""

    dimensions: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        return nn.Dense(self.dimensions)(nn.relu(nn.Dense(features.shape[-1])(features)))


class SimCLR(TrainerModule[H]):
    """Contrastive training of an encoder, together with a linear probe.

    Subclasses define `init_model`, the encoder, from images [batch, height, width, channels] to features h [batch,
    width]; and `view`. The data have `inputs` and `labels`, Int[Array, "batch"], with -1 for labels that the probe must
    not use. The probe is a linear layer on h of the unchanged images, with the encoder in evaluation mode. The gradient
    of its loss does not reach the encoder, and that of the contrastive loss does not reach the probe. The model's
    outputs are `features` and `logits`.

    Optional hyperparameters: `temperature` of the loss, `learning_rate` and `weight_decay` of encoder and head,
    `probe_learning_rate`, and `contrastive` (static). With `contrastive=False` the encoder keeps its random parameters,
    as a baseline; its batch statistics are updated in any case.

    Args:
        classes: The number of classes of the labels.
        dimensions: The size of the embeddings for the loss.
    """

    def __init__(self, classes: int, dimensions: int = 32) -> None:
        self.classes = classes
        self.dimensions = dimensions

    def view(self, images: jax.Array, hparams: H, key: jax.Array) -> jax.Array:
        """Return randomly changed images of the same shape; see `tuner.methods.augmentations`.

        Args:
            images: Float[Array, "batch height width channels"].
            hparams: The hyperparameters.
            key: The key for random numbers.
        """
        raise StudyError(f"{type(self).__name__} must define view(images, hparams, key)")

    def augment(self, batch: Batch, hparams: H, key: jax.Array) -> Batch:
        """Return the batch with two views of each image, `first` and `second`."""
        first, second = (self.view(batch["inputs"], hparams, own) for own in jax.random.split(key))
        return {**batch, "first": first, "second": second}

    def inputs(self, batch: Batch) -> Any:
        """Return the images, and their views if the batch has them."""
        images = super().inputs(batch)
        return (images, batch["first"], batch["second"]) if "first" in batch else images

    def build_model(self, hparams: H) -> Model:
        """Return encoder, projection head and probe as one model.

        Its parameters are dicts with these three names; its collections are the encoder's. Called with images, it
        returns `features` and `logits`. Called with images and two views of each, it also returns the projections
        `first` and `second` of the views, which alone run in training mode.
        """
        encoder = super().build_model(hparams)
        head, probe = ProjectionHead(self.dimensions), nn.Dense(self.classes)

        def init(key: jax.Array, inputs: tuple[PyTree, ...]) -> tuple[Any, Any]:
            keys = jax.random.split(key, 3)
            params, collections = encoder.init(keys[0], inputs[:1])
            features, _ = encoder.apply(params, collections, inputs[:1], train=False, key=None)
            made = {"head": head.init(keys[1], features), "probe": probe.init(keys[2], features)}
            return {"encoder": params, **{name: dict(made[name])["params"] for name in made}}, collections

        def apply(
            params: PyTree, collections: PyTree, inputs: tuple[PyTree, ...], *, train: bool, key: jax.Array | None
        ) -> tuple[Any, Any]:
            images, *views = inputs
            outputs: dict[str, Any] = {}
            if views:
                both = (jnp.concatenate(views),)
                hidden, collections = encoder.apply(params["encoder"], collections, both, train=train, key=key)
                projections: Any = head.apply({"params": params["head"]}, hidden)
                outputs["first"], outputs["second"] = jnp.split(projections, 2)
            features, _ = encoder.apply(params["encoder"], collections, (images,), train=False, key=key)
            features = jax.lax.stop_gradient(features)
            logits = probe.apply({"params": params["probe"]}, features)
            return {**outputs, "features": features, "logits": logits}, collections

        return Model(init, apply, encoder.module)

    def check_data(self, dataset: Dataset, hparams: H, part: str) -> None:
        check_labels(dataset, self.classes, part, lowest=-1)

    def init_optimizer(self, hparams: H, total_steps: int) -> OptimizerGroups:
        """Return AdamW for encoder and head (they are frozen if not contrastive), and Adam for the probe."""
        spec = super().init_optimizer(hparams, total_steps)
        assert isinstance(spec, OptimizerSpec)
        probe = OptimizerSpec("adam", field(hparams, "probe_learning_rate", 0.01), schedule=WarmupCosine())
        groups = {"features": spec if field(hparams, "contrastive", True) else None, "probe": probe}
        return OptimizerGroups(groups, lambda path: "probe" if path.startswith("probe/") else "features")

    def loss(self, outputs: PyTree, batch: Batch, hparams: H) -> tuple[jax.Array, dict[str, Any]]:
        """Return the sum of the contrastive loss and the probe's loss; they share no parameters.

        Metrics: `contrastive`; `probe_loss` and `probe_accuracy`, both over the examples with a label. `contrastive`
        grows with the logarithm of the batch size: values of training and validation are not comparable.
        """
        contrastive = nt_xent(outputs["first"], outputs["second"], batch["weight"], field(hparams, "temperature", 0.5))
        labels = batch["labels"].astype(jnp.int32)
        is_labelled = labels >= 0
        errors = optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], jnp.maximum(labels, 0))
        known = batch["weight"] * is_labelled.astype(jnp.float32)
        metrics = {
            "contrastive": contrastive,
            "probe_loss": Mean.of(errors, known),
            "probe_accuracy": Mean.of(jnp.argmax(outputs["logits"], axis=-1) == labels, known),
        }
        return contrastive + jnp.where(is_labelled, errors, 0.0), metrics

    def eval_step(self, state: TrainState, batch: Batch, hparams: H) -> Metrics:
        """Return the metrics in evaluation mode; every validation uses the same random views."""
        return super().eval_step(state, self._augmented(batch, hparams, jax.random.key(0)), hparams)
