"""Transformers: who sees whom, positions by hand, loops against unrolled layers, counts by formula."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tuner.errors import StudyError
from tuner.models import Transformer
from tuner.models.transformer import rotate

KEY = jax.random.key(0)
TOKENS = jax.random.randint(jax.random.key(1), (3, 12), 1, 11)


def made(**settings: Any) -> tuple[Any, Any]:
    module: Any = Transformer(11, width=16, heads=2, depth=2, longest=16, **settings)
    return module, jax.jit(lambda: module.init(KEY, TOKENS, train=False))()


def changed(at: int) -> np.ndarray:
    """The tokens, with another one at a place."""
    tokens = np.array(TOKENS)
    tokens[:, at] = tokens[:, at] % 10 + 1
    return tokens


def run(module: Any, variables: Any, tokens: Any) -> np.ndarray:
    """In one program: op by op, each shape of each operation would be compiled by itself."""
    return np.asarray(jax.jit(lambda given, tokens: module.apply(given, tokens, train=False))(variables, tokens))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("positions", "is_scanned"),
    [
        ("learned", True),
        ("rotary", False),
        pytest.param("learned", False, marks=pytest.mark.long),
        pytest.param("rotary", True, marks=pytest.mark.long),
    ],
)
def test_a_causal_decoder_does_not_look_ahead(positions: str, is_scanned: bool) -> None:
    module, variables = made(is_causal=True, positions=positions, is_scanned=is_scanned)
    apply = jax.jit(lambda tokens: module.apply(variables, tokens, train=False))
    before = np.asarray(apply(TOKENS))
    for at in (0, 5, 11):
        after = np.asarray(apply(changed(at)))
        np.testing.assert_array_equal(before[:, :at], after[:, :at])
        assert float(abs(before[:, at:] - after[:, at:]).min(-1).max()) > 1e-4, "it and later ones do move"


@pytest.mark.slow
def test_an_encoder_looks_both_ways() -> None:
    module, variables = made()
    before, after = (run(module, variables, tokens) for tokens in (TOKENS, changed(11)))
    assert float(abs(before[:, 0] - after[:, 0]).max()) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("is_causal", [pytest.param(True, marks=pytest.mark.long), False])
def test_padding_is_not_seen(is_causal: bool) -> None:
    module, variables = made(padding=0, is_causal=is_causal)
    tokens = np.array(TOKENS)[:, :7]
    short, long = (run(module, variables, np.pad(tokens, ((0, 0), (0, pad)))) for pad in (0, 5))
    np.testing.assert_allclose(short, long[:, :7], atol=1e-5)
    assert np.isfinite(run(module, variables, np.zeros_like(tokens))).all(), "nothing but padding"


def test_rotary_positions_by_hand() -> None:
    heads = jnp.asarray([[[[1.0, 2.0, 3.0, 4.0]], [[1.0, 2.0, 3.0, 4.0]]]])  # two places, one head of four numbers
    turned = rotate(heads)[0, :, 0]
    np.testing.assert_array_equal(turned[0], heads[0, 0, 0])
    by_hand = [
        1 * math.cos(1) - 3 * math.sin(1), 2 * math.cos(0.01) - 4 * math.sin(0.01),
        3 * math.cos(1) + 1 * math.sin(1), 4 * math.cos(0.01) + 2 * math.sin(0.01),
    ]  # fmt: skip
    np.testing.assert_allclose(turned[1], by_hand, rtol=1e-6)


@pytest.mark.slow
def test_rotary_scores_depend_on_distances_alone() -> None:
    query, key = jax.random.normal(KEY, (2, 8))
    turned = [rotate(jnp.broadcast_to(one, (1, 10, 1, 8)))[0, :, 0] for one in (query, key)]
    scores = turned[0] @ turned[1].T
    for distance in range(-9, 10):
        np.testing.assert_allclose(np.diag(scores, distance), np.diag(scores, distance)[0], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("remat", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_loop_of_layers_is_the_layers_one_after_another(remat: bool) -> None:
    unrolled, variables = made(is_scanned=False, is_causal=True)
    scanned, _ = made(is_causal=True, remat=remat)
    params = dict(variables["params"])
    layers = [params.pop(f"layer_{at}") for at in range(2)]
    stacked = {"params": {**params, "stack": {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}}}

    def outputs_and_slopes(module: Any, given: Any) -> Any:
        def loss(given: Any) -> Any:
            outputs = module.apply(given, TOKENS, train=False)
            return (outputs**2).mean(), outputs

        slopes, outputs = jax.jit(jax.grad(loss, has_aux=True))(given)
        return outputs, slopes["params"]

    outputs, by_layers = outputs_and_slopes(unrolled, variables)
    looped, by_loop = outputs_and_slopes(scanned, stacked)
    np.testing.assert_allclose(outputs, looped, atol=1e-5)
    of_loop = [jax.tree.map(lambda leaf, at=at: leaf[at], by_loop["stack"]["layers"]) for at in range(2)]
    for at in range(2):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), by_layers[f"layer_{at}"], of_loop[at])


@pytest.mark.long
@pytest.mark.slow
def test_a_loop_that_forgets_takes_less_memory() -> None:
    """By the compiled program's own account; the page on systems has the figures."""

    def temporary_bytes(**settings: Any) -> int:
        module: Any = Transformer(50, width=32, heads=2, depth=8, longest=64, is_causal=True, **settings)
        tokens = jnp.ones((8, 64), int)
        params = jax.eval_shape(lambda: module.init(KEY, tokens, train=False))
        step = jax.jit(jax.grad(lambda given: module.apply(given, tokens, train=False).sum()))
        analysis: Any = step.lower(params).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    found = [temporary_bytes(is_scanned=False), temporary_bytes(), temporary_bytes(remat=True)]
    assert found[2] < 0.2 * found[1]
    page = (Path(__file__).parents[3] / "docs" / "systems.md").read_text()
    stated = re.search(r"a Transformer's step are ([\d.]+) MB unrolled, ([\d.]+) in a loop, ([\d.]+) with remat", page)
    assert stated is not None
    # Another XLA may lay out its memory otherwise, somewhat.
    assert [size / 1e6 for size in found] == pytest.approx([float(size) for size in stated.groups()], rel=0.2)


@pytest.mark.slow
def test_parameters_by_formula() -> None:
    _, variables = made()
    size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    width, vocabulary, longest, depth = 16, 11, 16, 2
    attention, network, norms = 4 * (width + 1) * width, (8 * width + 5) * width, 4 * width
    layers = depth * (attention + network + norms)
    assert size == vocabulary * width + longest * width + layers + 2 * width + (width + 1) * vocabulary


@pytest.mark.slow
def test_at_first_all_tokens_are_about_as_likely() -> None:
    module: Any = Transformer(100, width=64, heads=4, is_causal=True, longest=32)
    tokens = jax.random.randint(KEY, (16, 32), 0, 100)
    outputs, _ = jax.jit(lambda: module.init_with_output(KEY, tokens, train=False))()
    loss = optax.softmax_cross_entropy_with_integer_labels(outputs[:, :-1], tokens[:, 1:]).mean()
    assert abs(float(loss) - math.log(100)) < 0.7


@pytest.mark.slow
def test_a_rate_may_be_traced_and_drops_in_training_only() -> None:
    without, variables = made(dropout_rate=0.0)

    def outputs(rate: Any, train: bool) -> jax.Array:
        module = without.clone(dropout_rate=rate)
        return module.apply(variables, TOKENS, train=train, rngs={"dropout": KEY})

    traced: Any = jax.jit(outputs, static_argnames="train")
    np.testing.assert_allclose(traced(0.0, True), traced(0.5, False), atol=1e-5)
    assert float(abs(traced(0.5, True) - traced(0.0, True)).max()) > 0.1
    assert traced._cache_size() == 2


@pytest.mark.slow
def test_bf16_is_that_of_activations_and_near_float32() -> None:
    exact, variables = made()
    rough = exact.clone(dtype=jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # Flax's normalisations mix types on purpose
        outputs = run(rough, variables, TOKENS)
        made_rough = jax.eval_shape(lambda: rough.init(KEY, TOKENS, train=False))
    assert outputs.dtype == jnp.float32
    np.testing.assert_allclose(outputs, run(exact, variables, TOKENS), atol=0.1)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(made_rough)}
    assert kinds == {jnp.dtype("float32")}


@pytest.mark.long
@pytest.mark.slow
def test_reversing_is_learned() -> None:
    """The UvA course's task: an encoder that sees all places reverses a sequence."""
    module: Any = Transformer(10, width=32, heads=2, depth=1, longest=8)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params: Any, state: Any, key: jax.Array) -> Any:
        tokens = jax.random.randint(key, (64, 8), 0, 10)

        def loss(params: Any) -> Any:
            outputs = module.apply(params, tokens, train=False)
            found = optax.softmax_cross_entropy_with_integer_labels(outputs, tokens[:, ::-1]).mean()
            return found, (outputs.argmax(-1) == tokens[:, ::-1]).sum()

        (_, hits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, hits

    params = module.init(KEY, jnp.zeros((1, 8), int), train=False)
    state, hits = optimizer.init(params), 0
    with jax.numpy_dtype_promotion("standard"):  # optax's own
        for at in range(400):
            params, state, hits = step(params, state, jax.random.key(at))
    assert int(hits) > 0.99 * 64 * 8


@pytest.mark.parametrize(
    ("settings", "shape", "why"),
    [
        ({"longest": 8}, (1, 9), "at most longest=8 tokens: got 9; raise longest"),
        ({"width": 18, "heads": 4}, (1, 9), "a multiple of heads: got width=18, heads=4"),
        ({"width": 12, "heads": 4, "positions": "rotary"}, (1, 9), "need an even width / heads: got width=12, heads=4"),
        ({"positions": "learnt"}, (1, 9), "one of learned, rotary: got 'learnt'; did you mean 'learned'"),
        ({"norm": "rsm"}, (1, 9), "norm must be one of layer, rms, rms_kernel: got 'rsm'; did you mean 'rms'"),
        ({"is_scanned": False, "remat": True}, (1, 9), "remat saves no memory without is_scanned"),
        ({}, (1, 9, 2), r"tokens must have shape \[batch, length\]: got \(1, 9, 2\)"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: Any, shape: Any, why: str) -> None:
    with pytest.raises(StudyError, match=why):
        Transformer(11, **settings).init(KEY, jnp.zeros(shape), train=False)


def test_rounded_tokens_are_refused() -> None:
    with pytest.raises(StudyError, match=r"tokens must be integers, .*: got bfloat16"):
        Transformer(1000).init(KEY, jnp.zeros((1, 4), jnp.bfloat16), train=False)
