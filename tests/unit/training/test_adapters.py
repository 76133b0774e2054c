"""Models of every flavour are hosted alike: Linen, NNX, pairs of pure functions, and pure models of others."""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tuner import Space, log_uniform, uniform
from tuner.errors import StudyError
from tuner.training import ArrayDataset, Dropout, Layout, Model, Splits, TrainerModule
from tuner.training.data.batches import Source
from tuner.training.hparams import register
from tuner.training.loop.programs import first_carry, many_steps
from tuner.training.model.adapters import as_model, watched
from tuner.training.nnx_layers import Dropout as NNXDropout

KEY, RNG = jax.random.key(0), np.random.default_rng(0)
DATA = ArrayDataset(inputs=RNG.normal(size=(24, 5)), labels=RNG.integers(0, 3, 24))
BATCH = DATA.arrays
X = BATCH["inputs"]
# Small programs: compiling them well takes longer than running them.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class HParams(Space):
    learning_rate: float = log_uniform(1e-4, 1.0)
    dropout_rate: float = uniform(0.0, 0.6)
    momentum: float = uniform(0.5, 0.99)


def hparams(**changes: Any) -> Any:
    made = HParams(**{"learning_rate": 0.05, "dropout_rate": 0.3, "momentum": 0.9, **changes})
    register(made)
    return jax.device_put(made)


class Classifier(TrainerModule):
    """Hosts any model; what it is made of is given."""

    loop = "step"

    def __init__(self, make: Any) -> None:
        self.make = make

    def init_model(self, hparams: Any) -> Any:
        return self.make(hparams)

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return optax.sgd(hparams.learning_rate, momentum=0.9)

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"]), {}


# One network, four times.


class LinenNet(nn.Module):
    momentum: Any = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Dense(8, name="first", use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=self.momentum, name="norm")(x)
        return nn.Dense(3, name="last")(nn.relu(x))


class NNXNet(nnx.Module):
    def __init__(self, momentum: Any = 0.9, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(5, 8, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=momentum, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(nnx.relu(self.norm(self.first(x))))


def pure_init(key: jax.Array, x: jax.Array) -> Any:
    keys = jax.random.split(key)
    return {
        "first": {"kernel": 0.4 * jax.random.normal(keys[0], (5, 8))},
        "norm": {"scale": jnp.ones(8), "bias": jnp.zeros(8)},
        "last": {"kernel": 0.4 * jax.random.normal(keys[1], (8, 3)), "bias": jnp.zeros(3)},
    }


def pure_forward(params: Any, x: jax.Array, mean: Any, var: Any) -> jax.Array:
    scale = params["norm"]["scale"] / jnp.sqrt(var + 1e-5)
    x = (x @ params["first"]["kernel"] - mean[None]) * scale[None] + params["norm"]["bias"][None]
    return jax.nn.relu(x) @ params["last"]["kernel"] + params["last"]["bias"][None]


def pure_apply(params: Any, x: jax.Array) -> jax.Array:
    hidden = x @ params["first"]["kernel"]
    return pure_forward(params, x, hidden.mean(0), hidden.var(0))


def model_init(key: jax.Array, inputs: Any) -> Any:
    return pure_init(key, *inputs), {"norm": {"mean": jnp.zeros(8), "var": jnp.ones(8)}}


def model_apply(params: Any, collections: Any, inputs: Any, *, train: bool, key: Any) -> Any:
    if not train:
        return pure_forward(params, *inputs, **collections["norm"]), collections
    hidden = inputs[0] @ params["first"]["kernel"]
    now = {"mean": hidden.mean(0), "var": hidden.var(0)}
    after = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, collections["norm"], now)
    return pure_apply(params, *inputs), {"norm": after}


FLAVOURS: dict[str, Any] = {
    "linen": lambda _: LinenNet(),
    "nnx class": lambda _: NNXNet,
    "nnx partial": lambda _: partial(NNXNet, momentum=0.9),
    "nnx function": lambda _: lambda rngs: NNXNet(0.9, rngs=rngs),
    "pair": lambda _: (pure_init, pure_apply),
    "model": lambda _: Model(model_init, model_apply),
}


def statistics(collections: Any) -> Any:
    """Return the batch statistics, which Linen keeps under a name of their own."""
    return collections.get("batch_stats", collections).get("norm")


@jit
def reference() -> Any:
    """The loss, its gradient and five steps of SGD with momentum, written out."""
    params = pure_init(KEY, X)
    trace, stats = jax.tree.map(jnp.zeros_like, params), {"norm": {"mean": jnp.zeros(8), "var": jnp.ones(8)}}

    def loss(params: Any) -> Any:
        logits = pure_apply(params, X)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), BATCH["labels"][:, None], 1))

    start, (value, first) = params, jax.value_and_grad(loss)(params)
    for _ in range(5):
        stats = model_apply(params, stats, (X,), train=True, key=None)[1]
        trace = jax.tree.map(lambda old, grad: 0.9 * old + grad, trace, jax.grad(loss)(params))
        params = jax.tree.map(lambda param, step: param - 0.05 * step, params, trace)
    return start, value, first, params, stats["norm"]


def close(found: Any, expected: Any, atol: float = 1e-6) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


@pytest.mark.parametrize(
    "name",
    [
        "linen",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("nnx class", "pair", "model")),
        *(pytest.param(name, marks=[pytest.mark.slow, pytest.mark.long]) for name in ("nnx partial", "nnx function")),
    ],
)
def test_a_network_trains_alike_in_every_flavour(name: str) -> None:
    trainer = Classifier(FLAVOURS[name])
    start, value, grads, params, stats = reference()

    @jit
    def run(hparams: Any, start: Any) -> Any:
        carry = first_carry(trainer, hparams, BATCH, jnp.uint32(0), 5)
        made = carry.state
        carry = carry._replace(state=dataclasses.replace(made, params=start))

        def loss(params: Any) -> Any:
            outputs, _ = trainer.apply_model(params, made.collections, BATCH, hparams, train=True, key=KEY)
            return trainer.loss(outputs, BATCH, hparams)[0].mean()

        after = many_steps(trainer, Layout(), hparams, Source(BATCH), carry, 5)
        return made, jax.value_and_grad(loss)(start), after.state

    made, (found_value, found_grads), after = run(hparams(), start)
    assert jax.tree.structure(made.params) == jax.tree.structure(start)
    close(found_value, value)
    close(found_grads, grads)
    close(after.params, params)
    if name != "pair":  # which carries nothing
        assert type(after.collections) is dict
        close(statistics(made.collections), {"mean": jnp.zeros(8), "var": jnp.ones(8)})
        close(dict(statistics(after.collections)), stats)
        outputs, kept = trainer.apply_model(after.params, after.collections, BATCH, hparams(), train=False)
        close(outputs, pure_forward(after.params, X, **stats), 1e-5)
        assert kept is after.collections
    else:
        assert after.collections == {}


# Dropout.


class LinenDropped(nn.Module):
    rate: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (5,))
        return Dropout(self.rate)(x * scale[None], train=train)


class NNXDropped(nnx.Module):
    def __init__(self, rate: Any, *, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(jnp.ones(5))
        self.dropout = NNXDropout(rate, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(x * self.scale[...][None])


def pure_dropped(params: Any, x: jax.Array, *, train: bool, key: Any) -> jax.Array:
    if not train:
        return x * params["scale"][None]
    kept = jax.random.bernoulli(key, 0.5, x.shape)
    return jnp.where(kept, x * params["scale"][None] / 0.5, 0.0)


DROPPED: dict[str, Any] = {
    "linen": lambda rate: LinenDropped(rate),
    "nnx": lambda rate: partial(NNXDropped, rate),
    "flax's own": lambda rate: lambda rngs: nnx.Sequential(nnx.Linear(5, 5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)),
    "pair": lambda rate: (lambda key, x: {"scale": jnp.ones(5)}, pure_dropped),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DROPPED)
def test_a_key_is_a_mask_and_evaluation_has_none(name: str) -> None:
    model, ones = as_model(DROPPED[name](0.5)), jnp.ones((64, 5))
    params, collections = model.init(KEY, (ones,))
    assert jax.tree.leaves(collections) == []
    first, again, other = (
        model.apply(params, collections, (ones,), train=True, key=jax.random.key(seed))[0] for seed in (1, 1, 2)
    )
    evaluated, _ = model.apply(params, collections, (ones,), train=False, key=KEY)
    keyless, _ = model.apply(params, collections, (ones,), train=False, key=None)
    assert (first == again).all()
    assert ((first == 0) != (other == 0)).any()
    np.testing.assert_allclose(jnp.where(first == 0, 0, first), jnp.where(first == 0, 0, 2 * evaluated), rtol=1e-6)
    assert 0.4 < float((first == 0).mean()) < 0.6
    assert (evaluated != 0).all()
    assert (evaluated == keyless).all()


@pytest.mark.parametrize("name", ["linen", "nnx"])
@pytest.mark.slow
def test_a_traced_rate_is_the_share_of_zeros_and_keeps_the_mean(name: str) -> None:
    ones, traced = jnp.ones((4000, 5)), []

    def apply(rate: Any, train: bool = True) -> Any:
        traced.append(train)
        model = as_model(DROPPED[name](rate))
        return model.apply({"scale": jnp.ones(5)}, {}, (ones,), train=train, key=KEY)[0]

    run: Any = jit(apply)
    for rate in (0.0, 0.25, 0.6):
        dropped = run(rate)
        np.testing.assert_allclose(float((dropped == 0).mean()), rate, atol=0.02)
        np.testing.assert_allclose(float(dropped.mean()), 1.0, atol=0.04)
        np.testing.assert_allclose(dropped[dropped != 0], 1 / (1 - rate), rtol=1e-6)
    assert traced == [True]


@pytest.mark.parametrize("name", ["linen", "nnx"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_small_rate_drops_at_any_precision(name: str, dtype: Any) -> None:
    layer = {"linen": Dropout(0.001), "nnx": NNXDropout(0.001, rngs=nnx.Rngs(0))}[name]
    ones = jnp.ones((200, 1000), dtype)
    if isinstance(layer, Dropout):
        dropped: Any = layer.apply({}, ones, train=True, rngs={"dropout": KEY})
    else:
        dropped = layer(ones)
    assert dropped.dtype == dtype
    assert 100 < int((dropped == 0).sum()) < 300


@pytest.mark.slow
def test_the_nnx_layer_is_flaxs_own_but_for_the_traced_rate() -> None:
    x = jnp.asarray(np.random.default_rng(1).normal(size=(16, 5)), jnp.float32)
    for rate in (0.0, 0.4):
        ours, theirs = NNXDropout(rate, rngs=nnx.Rngs(3)), nnx.Dropout(rate, rngs=nnx.Rngs(3))
        for _ in range(2):  # the stream goes on
            assert (ours(x) == theirs(x)).all()
        ours.eval()
        theirs.eval()
        assert (ours(x) == x).all()
        assert (theirs(x) == x).all()
        ours.train()
        theirs.train()
        assert (ours(x) == theirs(x)).all()
    half = NNXDropout(0.5, rngs=nnx.Rngs(dropout=1))(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    assert (NNXDropout(0.5, deterministic=True, rngs=nnx.Rngs(3))(x) == x).all()


# One program for several values.


class LinenTraced(nn.Module):
    rate: Any
    momentum: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = Dropout(self.rate)(nn.Dense(4)(x), train=train)
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(x))


class NNXTraced(nnx.Module):
    def __init__(self, rate: Any, momentum: Any, *, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(5, 4, rngs=rngs), NNXDropout(rate, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, momentum=momentum, rngs=rngs)
        self.last = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return self.last(self.norm(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda h: LinenTraced(h.dropout_rate, h.momentum), id="linen", marks=pytest.mark.long),
        pytest.param(lambda h: partial(NNXTraced, h.dropout_rate, h.momentum), id="nnx"),
    ],
)
def test_rates_and_momenta_share_a_program_and_count(make: Any) -> None:
    compiled = []

    class Counting(Classifier):
        def train_step(self, state: Any, batch: Any, hparams: Any, key: Any) -> Any:
            compiled.append(1)
            return super().train_step(state, batch, hparams, key)

    trainer, splits = Counting(make), Splits(DATA, DATA)
    found, counts = [], []
    for changes in ({}, {"dropout_rate": 0.5}, {"momentum": 0.6}, {}):
        training = trainer.train_model(hparams(**changes), splits, epochs=2, seed=0)
        *_, last = training
        found.append(last.metrics["loss"])
        counts.append(len(compiled))
    assert counts == counts[:1] * 4
    assert found[0] == found[3]
    assert len(set(found)) == 3


# What a call takes.


class LinenModes(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> Any:
        return jnp.float32(deterministic) + nn.Dense(1, kernel_init=nn.initializers.zeros)(x).sum()


class LinenPlain(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1)(x)


class NNXTrain(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.weight = nnx.Param(jnp.ones(()))

    def __call__(self, x: jax.Array, *, train: bool) -> Any:
        return jnp.float32(train)


class NNXDeterministic(NNXTrain):
    def __call__(self, x: jax.Array, *, deterministic: bool) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return jnp.float32(deterministic)


@pytest.mark.parametrize(
    ("made", "in_training", "in_evaluation"),
    [
        (LinenModes(), 0.0, 1.0),
        (NNXTrain, 1.0, 0.0),
        (NNXDeterministic, 0.0, 1.0),
        ((lambda key, x: {}, lambda params, x, train: jnp.float32(train)), 1.0, 0.0),
    ],
    ids=["linen deterministic", "nnx train", "nnx deterministic", "pair train"],
)
def test_the_mode_goes_by_the_name_that_the_call_takes(made: Any, in_training: float, in_evaluation: float) -> None:
    model = as_model(made)
    params, collections = model.init(KEY, (X,))
    assert float(model.apply(params, collections, (X,), train=True, key=KEY)[0]) == in_training
    assert float(model.apply(params, collections, (X,), train=False, key=None)[0]) == in_evaluation


def test_a_call_that_takes_no_mode_gets_none() -> None:
    model = as_model(LinenPlain())
    params, collections = model.init(KEY, (X,))
    one, other = (model.apply(params, collections, (X,), train=train, key=KEY)[0] for train in (True, False))
    assert (one == other).all()


class LinenTwo(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return nn.Dense(3)(x) - y[:, :3]


class NNXTwo(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.Dense_0 = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return self.Dense_0(x) - y[:, :3]


def pair_of_two() -> Any:
    def apply(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        dense = params["Dense_0"]
        return x @ dense["kernel"] + dense["bias"][None] - y[:, :3]

    return lambda key, x, y: LinenTwo().init(key, x, y)["params"], apply


@pytest.mark.parametrize("made", [LinenTwo(), NNXTwo, pair_of_two()], ids=["linen", "nnx", "pair"])
def test_a_tuple_is_several_arguments(made: Any) -> None:
    class Two(Classifier):
        def inputs(self, batch: Any) -> Any:
            return batch["inputs"], 2.0 * batch["inputs"]

    trainer = Two(lambda _: made)
    state = trainer.init_state(hparams(), BATCH, KEY, 3)
    dense = state.params["Dense_0"]
    outputs, _ = trainer.apply_model(state.params, state.collections, BATCH, hparams(), train=False)
    close(outputs, X @ dense["kernel"] + dense["bias"][None] - 2.0 * X[:, :3])
    found = trainer.bind_model(state, hparams())(X, X)
    close(found, outputs + X[:, :3], 1e-5)


# Nested modules.


class Block(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(width, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + nnx.relu(self.norm(self.linear(x)))


class Tower(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List([Block(5, rngs=rngs), Block(5, rngs=rngs)])
        self.last = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return self.last(x)


@pytest.mark.slow
def test_modules_in_a_list_become_nested_dicts_and_train() -> None:
    trainer = Classifier(lambda _: Tower)
    *_, last = (training := trainer.train_model(hparams(), Splits(DATA, DATA), epochs=8, seed=0))
    state = training.state
    assert set(state.params) == {"blocks", "last"}
    assert set(state.params["blocks"]) == {"0", "1"}
    assert set(state.params["blocks"]["1"]["linear"]) == {"kernel", "bias"}
    assert set(state.collections["blocks"]["0"]["norm"]) == {"mean", "var"}
    assert last.metrics["loss"] < training.reports[0].metrics["loss"]
    # What is put in is what is run: by NNX itself, with the same weights.
    module = Tower(rngs=nnx.Rngs(7))
    for tree in (state.params, state.collections):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            owner: Any = module
            *parents, name = [key.key for key in path]
            for part in parents:
                owner = owner[int(part)] if part.isdigit() else getattr(owner, part)
            getattr(owner, name).set_value(leaf)
    module.eval()
    outputs, _ = trainer.apply_model(state.params, state.collections, BATCH, hparams(), train=False)
    close(outputs, module(X), 1e-5)


# Wrong things, foreign things, watched things.


NO_MODELS = {
    "None": None,
    "number": 3,
    "name": "MLP",
    "one function": (pure_init,),
    "no function": (pure_init, 1),
    "class": LinenNet,
    "lambda": lambda x: x,
}


@pytest.mark.parametrize("made", NO_MODELS.values(), ids=NO_MODELS)
def test_what_is_no_model_is_refused(made: Any) -> None:
    with pytest.raises(StudyError, match=r"init_model must return a Linen module, .* or a pair .*\(init, apply\): got"):
        Classifier(lambda _: made).build_model(None)


def test_an_nnx_module_instead_of_its_class_is_refused_in_one_line() -> None:
    made = nnx.Sequential(nnx.Linear(5, 5, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    message = (
        r"init_model must return .*: got an instance of Sequential; return the class, or a function of rngs, instead$"
    )
    with pytest.raises(StudyError, match=message) as caught:
        as_model(made)
    assert "\n" not in str(caught.value)
    with pytest.raises(StudyError) as caught:
        as_model({"w": np.eye(9)})
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_model_of_a_foreign_library_trains() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        stax = pytest.importorskip("jax.example_libraries.stax", reason="#1: JAX has dropped it")
    init, apply = stax.serial(stax.Dense(8), stax.Relu, stax.Dense(3))
    trainer = Classifier(lambda _: (lambda key, x: init(key, x.shape)[1], lambda params, x: apply(params, x)))
    with jax.numpy_rank_promotion("allow"):  # stax adds biases without axes
        reports = list(trainer.train_model(hparams(learning_rate=0.2), Splits(DATA, DATA), epochs=30, seed=0))
    assert reports[-1].metrics["loss"] < 0.8 * reports[0].metrics["loss"]


class LinenTower(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(2):
            x = LinenPlain()(x)
        return x


def test_observers_are_told_of_every_module_by_its_path() -> None:
    expected = {
        "linen": ["LinenPlain_0/Dense_0", "LinenPlain_0", "LinenPlain_1/Dense_0", "LinenPlain_1", "LinenTower"],
        "nnx": [
            *(f"blocks/{index}{name}" for index in (0, 1) for name in ("/linear", "/norm", "")),
            "last",
            "Tower",
        ],
    }
    for name, made in (("linen", LinenTower()), ("nnx", Tower)):
        model, seen = as_model(made), []
        params, collections = model.init(KEY, (X,))

        def observe(path: str, inputs: Any, outputs: Any, seen: Any = seen) -> None:
            seen.append((path, jnp.shape(inputs[0]), outputs))

        with watched(observe):
            found, _ = model.apply(params, collections, (X,), train=False, key=None)
        assert [path for path, _, _ in seen] == expected[name]
        assert seen[0][1] == X.shape
        assert seen[-1][2] is found
        with pytest.raises(ZeroDivisionError), watched(lambda *_: 1 / 0):  # pyright: ignore[reportArgumentType]
            model.apply(params, collections, (X,), train=False, key=None)
        model.apply(params, collections, (X,), train=False, key=None)
        assert len(seen) == len(expected[name])
