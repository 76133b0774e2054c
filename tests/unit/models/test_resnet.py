"""Residual networks: published parameter counts, shapes by hand, blocks that start as the identity."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tuner.errors import StudyError
from tuner.models import ResNet, cifar_resnet, resnet
from tuner.models.resnet import Block

KEY = jax.random.key(0)


def count(module: Any, *shape: int) -> int:
    """Return how many parameters a model has, without making them."""
    made = jax.eval_shape(lambda: module.init(KEY, jnp.zeros((1, *shape)), train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(made["params"]))


@pytest.mark.parametrize(("depth", "published"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_parameters_are_as_many_as_published(depth: int, published: int) -> None:
    assert count(resnet(1000, depth), 224, 224, 3) == published


def test_the_cifar_network_has_the_counts_of_the_course() -> None:
    # 16 channels: the stem 432 + 32, three blocks 3 * 4672; 32: 13,952 + 544 + 2 * 18,560; 64: ...; the head 650.
    first = 9 * 3 * 16 + 32 + 3 * (2 * 9 * 16 * 16 + 2 * 32)
    others = [
        9 * half * whole + 9 * whole * whole + 4 * whole + (half + 1) * whole + 2 * (18 * whole * whole + 4 * whole)
        for half, whole in ((16, 32), (32, 64))
    ]
    assert count(cifar_resnet(10), 32, 32, 3) == first + sum(others) + 65 * 10 == 272_378


@pytest.mark.slow
def test_each_stage_halves_the_image_and_doubles_the_channels() -> None:
    def shapes(module: Any, size: int) -> list[tuple[int, ...]]:
        def run() -> Any:
            _, kept = module.init_with_output(
                KEY, jnp.zeros((2, size, size, 3)), train=False, capture_intermediates=True
            )
            return kept["intermediates"]

        made = jax.eval_shape(run)
        ends = [f"stage_{at}_block_{blocks - 1}" for at, blocks in enumerate(module.blocks)]
        return [made[name]["__call__"][0].shape for name in ends]

    assert shapes(resnet(10, 18), 224) == [(2, 56, 56, 64), (2, 28, 28, 128), (2, 14, 14, 256), (2, 7, 7, 512)]
    assert shapes(resnet(10, 50), 224) == [(2, 56, 56, 256), (2, 28, 28, 512), (2, 14, 14, 1024), (2, 7, 7, 2048)]
    assert shapes(resnet(10, 34, stem="small"), 32) == [(2, 32 // n, 32 // n, 64 * n) for n in (1, 2, 4, 8)]
    assert shapes(cifar_resnet(10), 32) == [(2, 32, 32, 16), (2, 16, 16, 32), (2, 8, 8, 64)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["basic", pytest.param("bottleneck", marks=pytest.mark.long)])
def test_a_block_starts_as_the_identity(kind: str) -> None:
    module: Any = ResNet(10, kind, (1,), width=4, stem="small")
    images = jax.random.normal(KEY, (2, 8, 8, 3))
    block = jax.jit(lambda: module.init(KEY, images, train=False))()["params"]["stage_0_block_0"]
    norms = sorted(name for name in block if name.startswith("BatchNorm"))
    last = norms[1] if kind == "basic" else norms[2]
    assert [float(abs(block[name]["scale"]).max()) for name in norms] == [float(name != last) for name in norms]

    norm = partial(nn.BatchNorm, use_running_average=False)
    inputs = jax.random.normal(KEY, (2, 8, 8, 4 if kind == "basic" else 16))
    module: Any = Block(kind, 4, 1, norm, True, jnp.float32)
    outputs, _ = jax.jit(lambda: module.init_with_output(KEY, inputs))()
    np.testing.assert_array_equal(outputs, jax.nn.relu(inputs))


@pytest.mark.slow
def test_convolutions_before_a_normalisation_have_no_bias_and_momentum_is_as_told() -> None:
    module: Any = cifar_resnet(10, 1, width=4, bn_momentum=0.75)
    images = 3.0 + jax.random.normal(KEY, (8, 8, 8, 3))
    variables = jax.jit(lambda: module.init(KEY, images, train=False))()
    names = ["/".join(key.key for key in path) for path, _ in jax.tree.leaves_with_path(variables["params"])]
    assert any("Conv" in name for name in names)
    assert not [name for name in names if name.endswith("bias") and ("Conv" in name or "stem/" in name)]

    _, updated = module.apply(variables, images, train=True, mutable=["batch_stats"])
    seen = jax.lax.conv(
        images.transpose(0, 3, 1, 2), variables["params"]["stem"]["kernel"].transpose(3, 2, 0, 1), (1, 1), "SAME"
    ).mean((0, 2, 3))
    np.testing.assert_allclose(updated["batch_stats"]["stem_norm"]["mean"], 0.25 * seen, rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.slow
def test_half_precision_is_that_of_activations_only() -> None:
    module: Any = cifar_resnet(10, 1, width=4, dtype=jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # Flax's normalisations mix types on purpose
        outputs, variables = module.init_with_output(KEY, jnp.ones((2, 8, 8, 3)), train=False)
        _, kept = module.apply(variables, jnp.ones((2, 8, 8, 3)), train=False, capture_intermediates=True)
    assert outputs.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert kept["intermediates"]["stage_2_block_0"]["__call__"][0].dtype == jnp.bfloat16


@pytest.mark.long
@pytest.mark.slow
def test_thirty_two_images_are_learned_by_heart() -> None:
    module: Any = cifar_resnet(4, 1, width=8)
    images = jax.random.normal(KEY, (32, 8, 8, 3))
    labels = jnp.arange(32) % 4
    variables = jax.jit(lambda: module.init(KEY, images, train=False))()
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params: Any, stats: Any, state: Any) -> Any:
        def loss(params: Any) -> Any:
            outputs, new = module.apply(
                {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean(), (outputs, new)

        (_, (outputs, new)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), new["batch_stats"], state, (outputs.argmax(-1) == labels).all()

    params, stats, hits = variables["params"], variables["batch_stats"], False
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):  # optax's own
        for _ in range(60):
            params, stats, state, hits = step(params, stats, state)
    assert bool(hits)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: resnet(10, 101), "the depth of a resnet must be one of 18, 34, 50: got 101"),
        (lambda: resnet(10, stem="smalll"), "one of imagenet, small: got 'smalll'; did you mean 'small'"),
        (lambda: cifar_resnet(10, 0), "must have a block in each stage: got blocks=0"),
    ],
)
def test_what_is_no_network_is_refused(make: Any, why: str) -> None:
    with pytest.raises(StudyError, match=why):
        make()
