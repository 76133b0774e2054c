"""Mixtures of operations, cells, the bilevel step, and what is left of them."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import rounding

from tuner import Space, choice, log_uniform
from tuner.errors import StudyError
from tuner.methods import (
    ArchitectureSearch,
    DiscreteClassifier,
    DiscreteNetwork,
    SearchNetwork,
    alphas_of,
    genotype,
    paired_halves,
)
from tuner.methods.darts import architecture_gradient, split
from tuner.methods.darts_networks import edges
from tuner.methods.darts_ops import OPERATIONS, Cell, Mixed, Operation
from tuner.training import ArrayDataset, Splits
from tuner.training.hparams import register

KEY = jax.random.key(0)
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
FIVE = ("skip_connect", "max_pool_3x3", "avg_pool_3x3", "sep_conv_3x3", "sep_conv_5x5")
CHEAP = ("none", "skip_connect", "avg_pool_3x3", "dil_conv_3x3")


def is_same(left: Any, right: Any) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(left), jax.tree.leaves(right)))


# Operations.


def variables_of(module: nn.Module, *inputs: Any, scale: float = 0.5) -> Any:
    """Return variables drawn on the host, which takes no program; statistics are those of the start."""
    shapes, rng = jax.eval_shape(partial(module.init, train=False), KEY, *inputs), np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> Any:
        if path[0].key == "batch_stats":
            return jnp.full(leaf.shape, float(path[-1].key == "var"))
        if path[-1].key in ("scale", "bias"):
            return jnp.full(leaf.shape, float(path[-1].key == "scale"))
        return jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def run(module: nn.Module, *inputs: Any, scale: float = 0.5) -> Any:
    return jit(partial(module.apply, train=False))(variables_of(module, *inputs, scale=scale), *inputs)


@pytest.mark.parametrize(("operations", "share"), [(FIVE, 3 / 5), (OPERATIONS, 3 / 8)])
def test_a_uniform_mixture_without_convolutions_is_the_share_of_the_rest(operations: Any, share: float) -> None:
    ones, logits = jnp.ones((1, 6, 6, 2)), jnp.zeros(len(operations))
    found = run(Mixed(operations), ones, logits, scale=0.0)
    np.testing.assert_allclose(found[:, 1:-1, 1:-1], share, rtol=1e-5)


@pytest.mark.slow
def test_the_mixture_is_weighted_by_the_softmax() -> None:
    images = jax.random.normal(KEY, (2, 5, 5, 2))
    logits = jnp.log(jnp.array([1.0, 2.0, 5.0]))
    found = run(Mixed(("none", "skip_connect", "max_pool_3x3")), images, logits)
    expected = (2 * images + 5 * run(Operation("max_pool_3x3"), images)) / 8
    # A logarithm, an exponential and sums of three terms, which may cancel: errors go by the greatest term.
    np.testing.assert_allclose(found, expected, atol=rounding(32) * float(jnp.abs(images).max()))


@pytest.mark.parametrize("shape", [(8,), (4,), (1, 5)])
def test_logits_that_do_not_fit_the_operations_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(StudyError, match=r"one number for each operation: got shape .* for 5 operations"):
        run(Mixed(FIVE), jnp.ones((1, 6, 6, 2)), jnp.zeros(shape))


def test_the_average_does_not_count_padding() -> None:
    assert float(run(Operation("avg_pool_3x3"), jnp.ones((1, 4, 4, 1)))[0, 0, 0, 0]) == 1.0


@pytest.mark.parametrize("kind", OPERATIONS)
@pytest.mark.parametrize("size", [8, 5])
def test_every_operation_keeps_the_channels_and_stride_two_halves_the_image(kind: str, size: int) -> None:
    images = jax.ShapeDtypeStruct((2, size, size, 4), jnp.float32)
    for stride, after in ((1, size), (2, (size + 1) // 2)):
        module = Operation(kind, stride, affine=False)
        shape, variables = jax.eval_shape(lambda x, module=module: module.init_with_output(KEY, x, train=True), images)
        assert shape.shape == (2, after, after, 4)
        names = {str(path[-1].key) for path, _ in jax.tree_util.tree_leaves_with_path(variables)}
        assert names <= {"kernel", "depthwise", "pointwise", "mean", "var"}  # neither scale nor offset, and no bias


@pytest.mark.parametrize(
    ("kind", "convolutions"),
    [
        ("sep_conv_3x3", [(3, 3, 1, 4), (1, 1, 4, 4)] * 2),
        ("sep_conv_5x5", [(5, 5, 1, 4), (1, 1, 4, 4)] * 2),
        ("dil_conv_3x3", [(3, 3, 1, 4), (1, 1, 4, 4)]),
        ("dil_conv_5x5", [(5, 5, 1, 4), (1, 1, 4, 4)]),
    ],
)
def test_convolutions_are_the_papers(kind: str, convolutions: Any) -> None:
    images = jnp.ones((1, 9, 9, 4))
    variables = jax.eval_shape(partial(Operation(kind).init, train=True), KEY, images)
    shapes = [leaf.shape for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4]
    assert sorted(shapes) == sorted(convolutions)
    # How far a pixel reaches in evaluation mode: the receptive field.
    pixel = jnp.zeros((1, 15, 15, 1)).at[0, 7, 7, 0].set(1.0)
    reached = np.nonzero(np.asarray(run(Operation(kind), pixel))[0, :, :, 0])
    field = {"sep_conv_3x3": 5, "sep_conv_5x5": 9, "dil_conv_3x3": 5, "dil_conv_5x5": 9}[kind]
    assert int(np.ptp(reached[0])) + 1 <= field
    assert not np.asarray(run(Operation(kind), -pixel)).any()  # ReLU comes first


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(StudyError, match=r"must be one of none, .*: got 'skip_conect'; did you mean 'skip_"):
        run(Operation("skip_conect"), jnp.ones((1, 4, 4, 1)))


@pytest.mark.slow
def test_a_cell_adds_up_its_edges_by_hand() -> None:
    # Node 0 is the mean of both inputs' copies, node 1 half of (input 1 + node 0); inputs are normalised on their way.
    wiring: Any = tuple(tuple((("none", "skip_connect"), source) for source in range(2 + node)) for node in range(2))
    cell = Cell(3, wiring, is_reduction=False, follows_reduction=False, affine=False)
    earlier, later = jax.random.normal(KEY, (2, 2, 4, 4, 3))
    even, last = jnp.zeros((5, 2)), jnp.array([[0.0, 0.0]] * 2 + [[50.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    variables = variables_of(cell, earlier, later, even)
    apply = jit(partial(cell.apply, train=False, capture_intermediates=True, mutable=["intermediates"]))
    outputs, states = {}, {}
    for name, logits in (("even", even), ("last", last)):
        outputs[name], seen = apply(variables, earlier, later, logits)
        states[name] = seen["intermediates"]
    first, second = (states["even"][name]["__call__"][0] for name in ("earlier", "later"))
    node = (first + second) / 2
    expected = jnp.concatenate([node, (first + second + node) / 2], -1)
    np.testing.assert_allclose(outputs["even"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs["last"][..., 3:], (second + node) / 2, rtol=1e-5, atol=1e-6)


# The two levels.


def quadratic(weights: Any, alphas: Any) -> Any:
    return 0.5 * jnp.sum((weights["w"] - alphas["a"]) ** 2)


@pytest.mark.slow
def test_the_gradient_that_looks_ahead_by_hand() -> None:
    # L_train = (w - a)^2 / 2, L_held_out = (w - 3)^2 / 2: w' = w - r (w - a), dL/da = r (w' - 3); first order sees 0.
    weights, alphas, rate = {"w": jnp.array([2.0])}, {"a": jnp.array([1.0])}, 0.1

    def held_out(weights: Any, alphas: Any) -> Any:
        return 0.5 * jnp.sum((weights["w"] - 3.0) ** 2)

    ahead = 2.0 - rate * (2.0 - 1.0)
    loss, grads = architecture_gradient(quadratic, held_out, weights, alphas, rate)
    np.testing.assert_allclose(loss, 0.5 * (ahead - 3.0) ** 2, rtol=1e-6)
    np.testing.assert_allclose(grads["a"], [rate * (ahead - 3.0)], rtol=1e-3)
    loss, grads = architecture_gradient(quadratic, held_out, weights, alphas, None)
    np.testing.assert_allclose(loss, 0.5, rtol=1e-6)
    np.testing.assert_array_equal(grads["a"], [0.0])


@pytest.mark.slow
def test_the_difference_of_gradients_is_the_product_with_second_derivatives() -> None:
    keys = jax.random.split(KEY, 4)
    x, y = jax.random.normal(keys[0], (2, 16, 3)), jax.random.normal(keys[1], (2, 16))
    weights, alphas = {"w": jax.random.normal(keys[2], (3,))}, {"a": jax.random.normal(keys[3], (3,))}

    def loss_on(part: int) -> Any:
        def loss(weights: Any, alphas: Any) -> Any:
            made = jnp.tanh(x[part] @ (weights["w"] * jax.nn.softmax(alphas["a"]))) + 0.1 * jnp.sum(alphas["a"] ** 2)
            return jnp.mean((made - y[part]) ** 2)

        return loss

    def exact(alphas: Any) -> Any:
        step = jax.grad(loss_on(0))(weights, alphas)
        return loss_on(1)(jax.tree.map(lambda w, slope: w - 2.0 * slope, weights, step), alphas)

    loss, found = jit(lambda: architecture_gradient(loss_on(0), loss_on(1), weights, alphas, 2.0))()
    value, expected = jit(jax.value_and_grad(exact))(alphas)
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    np.testing.assert_allclose(found["a"], expected["a"], rtol=5e-3)
    _, first = jit(lambda: architecture_gradient(loss_on(0), loss_on(1), weights, alphas, None))()
    assert np.abs(first["a"] - expected["a"]).max() > 0.05  # the test tells them apart


@pytest.mark.slow
@pytest.mark.parametrize(
    "planted",
    ["max_pool_3x3", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("avg_pool_3x3", "skip_connect"))],
)
def test_the_planted_operation_gets_the_highest_weight(planted: str) -> None:
    module = Mixed(OPERATIONS)
    images = jax.random.normal(KEY, (2, 16, 6, 6, 2))
    targets = jnp.stack([run(Operation(planted), part) for part in images])
    variables = variables_of(module, images[0], jnp.zeros(8))

    def loss_on(part: int) -> Any:
        def loss(weights: Any, logits: Any) -> Any:
            variables_ = {**variables, "params": weights}
            made, _ = module.apply(variables_, images[part], logits, train=True, mutable=["batch_stats"])
            return jnp.mean((made - targets[part]) ** 2)

        return loss

    @jit
    def step(weights: Any, logits: Any) -> Any:
        _, slope = architecture_gradient(loss_on(0), loss_on(1), weights, logits, None)
        logits = logits - 5.0 * slope
        moved = jax.tree.map(lambda w, slope: w - 0.1 * slope, weights, jax.grad(loss_on(0))(weights, logits))
        return moved, logits

    weights, logits = variables["params"], jnp.zeros(8)
    for _ in range(40):
        weights, logits = step(weights, logits)
    shares = np.asarray(jax.nn.softmax(logits))
    assert OPERATIONS[int(shares.argmax())] == planted
    assert shares.max() > 2 * np.sort(shares)[-2]


# The trainer.


def data(rows: int = 48) -> Splits[Any]:
    rng = np.random.default_rng(0)
    dataset = ArrayDataset(inputs=rng.normal(size=(rows, 6, 6, 1)), labels=rng.integers(0, 3, rows))
    return Splits(paired_halves(dataset, 0), dataset)


class Search(ArchitectureSearch):
    def batch_size(self, hparams: Any) -> int:
        return 8


SEARCH = Search(3, ("normal",), channels=2, nodes=1, operations=("skip_connect", "dil_conv_3x3"))


class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1.0)
    architecture_rate: float = log_uniform(1e-3, 1.0)
    search_order: str = choice("second", "first", "none")


def hparams(order: str = "second") -> HParams:
    made = HParams(learning_rate=0.1, architecture_rate=0.05, search_order=order)
    register(made)
    return made


def batch_of(rows: int = 8) -> Any:
    return {name: jnp.asarray(array[:rows]) for name, array in data().train.host().items()}


INIT = jit(SEARCH.init_state, static_argnums=3)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["second", "first"])
def test_held_out_data_alone_move_the_architecture_and_training_data_the_weights(order: str) -> None:
    batch, given = batch_of(), hparams(order)
    # Not at the first step, where the weights' rate is 0.
    state = dataclasses.replace(INIT(given, batch, KEY, 10), step=jnp.int32(3))
    architecture_step, weights_step = jit(SEARCH.architecture_step), jit(SEARCH.weights_step)
    noise = jax.random.normal(KEY, batch["inputs"].shape)

    after, _ = architecture_step(state, batch, given, KEY)
    assert is_same(split(after.params)[0], split(state.params)[0])
    assert is_same(after.collections, state.collections)
    assert not is_same(split(after.params)[1], split(state.params)[1])
    other, _ = architecture_step(state, {**batch, "held_out_inputs": noise}, given, KEY)
    assert not is_same(split(other.params)[1], split(after.params)[1])
    other, _ = architecture_step(state, {**batch, "inputs": noise}, given, KEY)
    # Looking ahead, training data say where the weights will be; else they say nothing.
    assert is_same(other.opt_state, after.opt_state) == (order == "first")

    after, _ = weights_step(state, batch, given, KEY)
    assert is_same(split(after.params)[1], split(state.params)[1])
    other, _ = weights_step(state, {**batch, "held_out_inputs": noise}, given, KEY)
    assert is_same((other.params, other.opt_state), (after.params, after.opt_state))
    other, _ = weights_step(state, {**batch, "inputs": noise}, given, KEY)
    assert not is_same(other.opt_state, after.opt_state)


@pytest.mark.slow
def test_without_a_search_the_architecture_stays_as_it_began() -> None:
    batch, given = batch_of(), hparams("none")
    state = INIT(given, batch, KEY, 10)
    after, metrics = jit(SEARCH.train_step)(state, batch, given, KEY)
    assert is_same(alphas_of(after.params), alphas_of(state.params))
    assert int(after.step) == 1
    assert "held_out_loss" not in metrics
    with pytest.raises(StudyError, match="search_order must be 'second', 'first' or 'none': got 'third'"):
        SEARCH.train_step(state, batch, dataclasses.replace(given, search_order="third"), KEY)


@pytest.mark.slow
def test_padding_changes_no_loss() -> None:
    batch, given = batch_of(), hparams("first")
    state = INIT(given, batch, KEY, 10)
    weights = jnp.array([1.0] * 6 + [0.0] * 2)
    wrong, right = (
        {**batch, "weight": weights, **{name: batch[name].at[6:].set(to) for name in ("labels", "held_out_labels")}}
        for to in (2, 0)
    )
    step = jit(SEARCH.train_step)
    after, metrics = step(state, right, given, KEY)
    for found, expected in zip(step(state, wrong, given, KEY), (after, metrics), strict=True):
        assert is_same(getattr(found, "opt_state", found), getattr(expected, "opt_state", expected))
    assert int(metrics["held_out_loss"].weight) == int(metrics["loss"].weight) == 6
    # The architecture's optimizer, and that of the weights, have seen gradients.
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(after.opt_state))


def test_halves_share_no_example_and_lose_none() -> None:
    whole = ArrayDataset(inputs=np.arange(11.0), labels=np.arange(11))
    arrays = paired_halves(whole, 0).host()
    assert set(arrays) == {"inputs", "labels", "held_out_inputs", "held_out_labels", "weight"}
    assert len(arrays["inputs"]) == 5
    assert not set(arrays["inputs"]) & set(arrays["held_out_inputs"])
    assert len({*arrays["inputs"], *arrays["held_out_inputs"]}) == 10
    np.testing.assert_array_equal(arrays["held_out_inputs"], arrays["held_out_labels"])
    with pytest.raises(StudyError, match="paired_halves needs at least 2 examples, and all weights 1"):
        paired_halves(ArrayDataset(inputs=np.arange(4.0), weight=np.array([1.0, 1.0, 2.0, 1.0])), 0)


# What is left.


def test_a_genotype_by_hand() -> None:
    operations = ("none", "skip_connect", "max_pool_3x3")
    normal = np.log(
        [
            [0.8, 0.05, 0.15],  # 0 -> node 0: max pool, strength 0.15
            [0.1, 0.6, 0.3],  # 1 -> node 0: skip
            [0.1, 0.5, 0.4],  # 0 -> node 1: skip, 0.5
            [0.9, 0.04, 0.06],  # 1 -> node 1: the weakest, whatever none says
            [0.2, 0.1, 0.7],  # node 0 -> node 1: max pool
        ]
    )
    found = genotype({"normal": jnp.asarray(normal)}, operations)
    assert found == {
        "normal": [
            [["max_pool_3x3", 0], ["skip_connect", 1]],
            [["skip_connect", 0], ["max_pool_3x3", 2]],
        ]
    }
    assert json.loads(json.dumps(found)) == found


def test_alphas_that_are_of_no_cell_are_refused() -> None:
    assert [edges(nodes) for nodes in (1, 2, 3, 4)] == [2, 5, 9, 14]
    for shape in ((3, 8), (5, 5), (0, 8), (5,)):
        with pytest.raises(StudyError, match=r"alphas must have shape \(edges, 8\)"):
            genotype({"normal": jnp.zeros(shape)})
    with pytest.raises(StudyError, match="other than 'none'"):
        genotype({"normal": jnp.zeros((2, 1))}, ("none",))


FOUND = {"normal": [[["skip_connect", 0], ["sep_conv_3x3", 1]]], "reduce": [[["max_pool_3x3", 0], ["dil_conv_5x5", 1]]]}


SOME = ("none", "skip_connect", "max_pool_3x3", "sep_conv_3x3", "dil_conv_5x5")


@pytest.mark.slow
def test_the_discrete_network_is_the_search_network_with_all_weight_on_its_edges() -> None:
    # Logits of 40 leave e^-40 for the rest. Normalisations have scale 1 and offset 0 at the start, as without them.
    images = jax.random.normal(KEY, (2, 8, 8, 1))
    search = SearchNetwork(3, channels=2, nodes=1, operations=SOME)
    variables = variables_of(search, images)
    rows = {kind: [operation for operation, _ in nodes[0]] for kind, nodes in FOUND.items()}
    params = dict(variables["params"])
    for kind, chosen in rows.items():
        params[f"alphas_{kind}"] = jnp.array([[40.0 * (name == one) for name in SOME] for one in chosen])
    assert genotype(alphas_of(params), SOME) == FOUND
    discrete = DiscreteNetwork(3, json.dumps(FOUND), channels=2)
    mine = variables_of(discrete, images)

    def taken(path: Any, leaf: Any) -> Any:
        names = [part.key for part in path]
        at: Any = params
        if names[-1] in ("scale", "bias") and "classifier" not in names and "stem_norm" not in names:
            return leaf
        for name in names:
            if name.startswith("node_"):
                kind = names[0].split("_")[-1]
                at = at[name][rows[kind][int(name[-1])]]
            else:
                at = at[name]
        return at

    copied = jax.tree_util.tree_map_with_path(taken, mine["params"])
    found = jit(partial(discrete.apply, train=False))({**mine, "params": copied}, images)
    expected = jit(partial(search.apply, train=False))({**variables, "params": params}, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert "alphas_normal" not in mine["params"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"normal": FOUND["normal"]}, "the genotype has no 'reduce' cell"),
        ({**FOUND, "normal": [[["skip", 0]]]}, "an operation must be one of"),
        ({**FOUND, "normal": [[["none", 2]]]}, "must have different sources from 0 to 1"),
        ({**FOUND, "normal": [[["none", 0], ["none", 0]]]}, "must have different sources from 0 to 1"),
        ({**FOUND, "normal": [[]]}, "must have different sources from 0 to 1"),
    ],
)
def test_a_genotype_that_is_no_network_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        DiscreteNetwork(3, json.dumps(wrong)).init(KEY, jnp.ones((1, 8, 8, 1)), train=False)


def test_cells_of_an_unknown_kind_are_refused() -> None:
    with pytest.raises(StudyError, match="cells must list at least one of 'normal' and 'reduce': got"):
        SearchNetwork(3, ("normal", "reduction")).init(KEY, jnp.ones((1, 8, 8, 1)), train=False)


@pytest.mark.long
@pytest.mark.slow
def test_a_search_is_trained_made_discrete_and_trained_again() -> None:
    """The label is where the one bright pixel of a noisy image is brightest: something to be learnt."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 240)
    inputs = rng.normal(size=(240, 6, 6, 1))
    inputs[np.arange(240), 1 + labels, 3, 0] += 6.0
    dataset = ArrayDataset(inputs=inputs, labels=labels)
    search = Search(3, ("normal",), channels=4, nodes=1, operations=CHEAP)
    search.loop = "step"
    training = search.train_model(hparams("second"), Splits(paired_halves(dataset, 0), dataset), epochs=6, seed=0)
    reports = list(training)
    assert reports[-1].metrics["train_held_out_loss"] < reports[0].metrics["train_held_out_loss"]
    found = genotype(alphas_of(training.state.params), CHEAP)
    again = DiscreteClassifier(3, found, ("normal",), 4)
    again.loop = "step"
    *_, last = again.train_model({"learning_rate": 0.03}, Splits(dataset, dataset), epochs=20, seed=0)
    assert last.metrics["accuracy"] > 0.9


def test_the_rate_ahead_is_that_of_the_weights() -> None:
    given = hparams()
    spec, _ = SEARCH.init_optimizers(given, 20)
    weights = {"w": jnp.ones((1, 1))}
    optimizer = dataclasses.replace(spec, options={"momentum": 0.0}, decay=None).build(20)

    def step(state: Any, _: None) -> Any:
        updates, state = optimizer.update({"w": jnp.ones((1, 1))}, state, weights)
        return state, -updates["w"][0, 0]

    _, rates = jit(lambda: jax.lax.scan(step, optimizer.init(weights), None, length=20))()
    np.testing.assert_allclose(rates, SEARCH.look_ahead(given, jnp.arange(20), 20), rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_a_separable_convolution_is_one_of_each_channel_and_then_one_over_them() -> None:
    images = jax.random.normal(KEY, (2, 7, 7, 4))
    module = Operation("dil_conv_3x3", 2)
    variables = variables_of(module, images)
    kernels = variables["params"]["Separable_0"]
    names = ("NHWC", "HWIO", "NHWC")
    hidden = jax.lax.conv_general_dilated(
        nn.relu(images),
        kernels["depthwise"],
        (2, 2),
        "SAME",
        rhs_dilation=(2, 2),
        feature_group_count=4,
        dimension_numbers=names,
    )
    expected = jnp.einsum("bhwi,io->bhwo", hidden, kernels["pointwise"][0, 0]) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(run(module, images), expected, rtol=1e-4, atol=1e-5)
