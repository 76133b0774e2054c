"""Models by name: a stored trial rebuilds its model; the trainer hosts every one of them."""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuner import Space, choice, int_uniform, log_uniform, uniform
from tuner.errors import StudyError
from tuner.models import CNN, MLP, MODELS, make_model
from tuner.study.space import from_params, to_params
from tuner.training.model.adapters import as_model

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (4, 8, 8, 3))


class Searched(Space):
    model: str = choice("mlp", "cnn", "cifar_resnet")
    width: int = choice(8, 16)
    depth: int = int_uniform(1, 3)
    dropout_rate: float = uniform(0.0, 0.5)
    learning_rate: float = log_uniform(1e-4, 1e-1)


@pytest.mark.parametrize("name", ["mlp", "cnn", "cifar_resnet"])
def test_a_stored_trial_rebuilds_its_model(name: str) -> None:
    hparams = Searched(model=name, width=16, depth=3, dropout_rate=0.25, learning_rate=0.01)
    made = make_model(hparams.model, hparams, classes=5)
    stored = from_params(Searched, to_params(hparams))
    again = make_model(stored.model, stored, classes=5)
    assert again == made
    assert made.classes == 5
    if name != "cnn":
        assert made.width == 16
    if name != "cifar_resnet":
        assert (made.depth, made.dropout_rate) == (3, 0.25)


GIVEN: dict[str, dict[str, Any]] = {
    "nnx_mlp": {"features": 192, "classes": 5},
    "encoder": {"vocabulary": 7, "outputs": 5},
    "decoder": {"vocabulary": 7},
    "resnet": {"classes": 5, "width": 8, "stem": "small"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name == "cifar_resnet")) for name in MODELS]
)
def test_every_model_is_hosted(name: str) -> None:
    given = GIVEN.get(name, {"classes": 5})
    is_of_tokens = "vocabulary" in given
    inputs = jnp.arange(24).reshape(4, 6) % 7 if is_of_tokens else IMAGES
    model = as_model(make_model(name, **given))
    params, collections = jax.jit(model.init)(KEY, (inputs,))
    outputs, _ = jax.jit(partial(model.apply, train=True))(params, collections, (inputs,), key=KEY)
    expected = (4, 6, 7 if name == "decoder" else 5) if is_of_tokens else (4, 5)
    assert (outputs.shape, outputs.dtype) == (expected, jnp.float32)
    assert float(outputs.std()) > 0


def test_what_is_given_comes_before_what_is_searched() -> None:
    assert make_model("mlp", {"width": 8, "depth": 1, "other": 3}, classes=2, width=32) == MLP(2, 32, 1)
    assert make_model("decoder", vocabulary=7).is_causal
    assert not make_model("encoder", vocabulary=7).is_causal


@pytest.mark.slow
def test_dense_models_by_hand() -> None:
    module: Any = MLP(3, width=4, depth=1)
    outputs, variables = jax.jit(partial(module.init_with_output, train=False))(KEY, IMAGES)
    first, second = variables["params"]["Dense_0"], variables["params"]["Dense_1"]
    images, first, second = jax.tree.map(np.asarray, (IMAGES, first, second))
    hidden = np.maximum(images.reshape(4, -1) @ first["kernel"] + first["bias"], 0.0)
    np.testing.assert_allclose(outputs, hidden @ second["kernel"] + second["bias"], rtol=1e-4, atol=1e-5)

    small: Any = CNN(3, channels=4, depth=5)  # more poolings than the image has halves
    outputs, variables = jax.eval_shape(partial(small.init_with_output, train=False), KEY, IMAGES[..., 0])
    assert outputs.shape == (4, 3)
    assert variables["params"]["Conv_4"]["kernel"].shape == (3, 3, 32, 64)
    assert "bias" not in variables["params"]["Conv_0"]


@pytest.mark.parametrize(
    ("words", "given", "why"),
    [
        (("resnett",), {}, "must be one of cifar_resnet, .*: got 'resnett'; did you mean 'resnet'"),
        (("mlp",), {"class": 3}, "has no argument 'class': it has classes, width, depth, .*; did you mean 'classes'"),
        (("mlp",), {}, "the model 'mlp' needs classes: pass a value, or add a field"),
        (("nnx_mlp", {"classes": 3}), {}, "needs features"),
    ],
)
def test_what_is_no_model_is_refused(words: Any, given: Any, why: str) -> None:
    with pytest.raises(StudyError, match=why):
        make_model(*words, **given)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if "dtype" in signature(MODELS[name]).parameters])
def test_half_precision_works_under_strict_promotion(name: str) -> None:
    """In programs that set `JAX_NUMPY_DTYPE_PROMOTION=strict`."""
    given = GIVEN.get(name, {"classes": 5})
    inputs = jnp.arange(24).reshape(4, 6) % 7 if "vocabulary" in given else IMAGES
    module = make_model(name, dtype=jnp.bfloat16, **given)

    def loss(params: Any, others: Any) -> Any:
        variables, rngs = {**others, "params": params}, {"dropout": KEY}
        return module.apply(variables, inputs, train=True, rngs=rngs, mutable=["batch_stats"])[0].mean()

    with jax.numpy_dtype_promotion("strict"):
        shapes = dict(jax.eval_shape(lambda: module.init(KEY, inputs, train=False)))
        params = shapes.pop("params")
        grads = jax.eval_shape(jax.grad(loss), params, shapes)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), grads) == jax.tree.map(
        lambda leaf: (leaf.shape, jnp.float32), params
    )


@pytest.mark.parametrize("name", ["mlp", "cnn", "cifar_resnet", "decoder"])
def test_the_trainers_half_precision_reaches_every_layer(name: str) -> None:
    given = GIVEN.get(name, {"classes": 5})
    inputs = jnp.arange(24).reshape(4, 6) % 7 if "vocabulary" in given else IMAGES
    module = make_model(name, **given)
    half: Any = jax.eval_shape(lambda: module.init(KEY, inputs, train=False))
    half = {**half, "params": jax.tree.map(lambda leaf: leaf.update(dtype=jnp.bfloat16), half["params"])}
    rounded = inputs if "vocabulary" in given else inputs.astype(jnp.bfloat16)

    def run(variables: Any) -> Any:
        return module.apply(variables, rounded, train=False, capture_intermediates=True)

    with jax.numpy_dtype_promotion("standard"):  # Flax's normalisations mix types on purpose
        outputs, kept = jax.eval_shape(run, half)
    inner = [leaf for path, leaf in jax.tree.leaves_with_path(kept) if len(path) > 3]
    assert {leaf.dtype for leaf in inner if jnp.issubdtype(leaf.dtype, jnp.floating)} == {jnp.dtype("bfloat16")}
    assert outputs.dtype == jnp.float32
