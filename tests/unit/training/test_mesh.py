"""Eight devices against one: the same numbers, and arrays that lie where they were asked to."""

import re
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec, SingleDeviceSharding

from tuner import Space, uniform
from tuner.errors import StudyError
from tuner.training import ArrayDataset, Dropout, Layout, OptimizerSpec, Splits, TrainerModule, Training
from tuner.training.data.feed import Feed
from tuner.training.hparams import register
from tuner.training.loop.programs import programs
from tuner.training.loop.runtime import worker_layout
from tuner.training.mesh import local
from tuner.training.state import Stream

RNG = np.random.default_rng(0)
EIGHT = jax.devices()
COPIED = Layout(EIGHT)
DIVIDED = Layout(EIGHT, shard_params=True, min_size=1)
RULED = Layout(EIGHT, rules=[("Dense_0/kernel", PartitionSpec(None, "data")), ("nothing", PartitionSpec("data"))])


class HParams(Space):
    learning_rate: float = uniform(0.0, 1.0)


H = HParams(learning_rate=0.05)
register(H)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = Dropout(0.3)(nn.tanh(nn.Dense(16)(x)), train=train)
        return nn.Dense(3)(x)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        # A bias before the normalisation has a gradient of rounding errors only.
        x = nn.Conv(8, (2, 2), use_bias=False)(x.reshape(-1, 4, 2, 1))
        return nn.Dense(3)(nn.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)).mean((1, 2)))


class Classifier(TrainerModule):
    loop = "step"

    def __init__(self, model: nn.Module, optimizer: str, **options: Any) -> None:
        self.model, self.optimizer, self.options = model, optimizer, options

    def init_model(self, hparams: Any) -> nn.Module:
        return self.model

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"])
        return losses, {"accuracy": outputs.argmax(-1) == batch["labels"]}

    def batch_size(self, hparams: Any) -> int:
        return 16

    def init_optimizer(self, hparams: Any, total_steps: int) -> OptimizerSpec:
        return OptimizerSpec(self.optimizer, hparams.learning_rate, **self.options)


MLP_ADAMW = Classifier(MLP(), "adamw", decay=0.01)
CNN_MOMENTUM = Classifier(CNN(), "sgd", options={"momentum": 0.9})
ALL = ArrayDataset(inputs=RNG.normal(size=(110, 8)), labels=RNG.integers(0, 3, 110))
SPLITS = Splits(ALL.take(np.arange(80)), ALL.take(np.arange(80, 110)))  # 5 steps an epoch


def train(trainer: TrainerModule, layout: Layout | None = None, splits: Any = SPLITS) -> Training:
    training = trainer.train_model(H, splits, epochs=4, seed=1, layout=layout)
    for _ in training:
        pass
    return training


@cache
def alone(trainer: TrainerModule) -> Training:
    """Return the same training on one device; tests share it."""
    return train(trainer)


def assert_same(one: Training, other: Training) -> None:
    for left, right in zip(one.reports, other.reports, strict=True):
        assert left.metrics == pytest.approx(right.metrics, rel=1e-5, abs=1e-5)
    for name in ("params", "opt_state", "collections"):
        ours, theirs = jax.device_get((getattr(one.state, name), getattr(other.state, name)))
        jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5), ours, theirs)


def pieces(tree: Any) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The shape of each array and of its pieces on the devices, by path."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        shapes = {shard.data.shape for shard in leaf.addressable_shards}
        assert len(leaf.addressable_shards) == 8
        assert len(shapes) == 1
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = (leaf.shape, shapes.pop())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "trainer"),
    [
        pytest.param(COPIED, CNN_MOMENTUM, id="copied-cnn momentum"),
        pytest.param(DIVIDED, MLP_ADAMW, id="divided-mlp adamw"),
        pytest.param(COPIED, MLP_ADAMW, id="copied-mlp adamw", marks=pytest.mark.long),
        pytest.param(DIVIDED, CNN_MOMENTUM, id="divided-cnn momentum", marks=pytest.mark.long),
    ],
)
def test_training_on_eight_devices_equals_one(layout: Layout, trainer: TrainerModule) -> None:
    training = train(trainer, layout)
    assert_same(training, alone(trainer))
    assert training.step == 20
    state = training.state
    found = {**pieces(state.params), **pieces(state.opt_state), **pieces(state.collections)}
    for name, (whole, piece) in found.items():
        lengths = [length for length in whole if length % 8 == 0]
        if layout is COPIED or not lengths:
            assert piece == whole, name
        else:  # the longest axis that divides
            at = whole.index(max(lengths))
            assert piece == (*whole[:at], whole[at] // 8, *whole[at + 1 :]), name
    if layout is DIVIDED:
        kernels = [shape for name, shape in found.items() if name.endswith("kernel")]
        assert len(kernels) > len(jax.tree.leaves(state.params)) / 2  # those of the optimizer as well
        assert all(piece != whole for whole, piece in kernels)


@pytest.mark.slow
def test_a_rule_says_where_an_array_lies() -> None:
    training = train(MLP_ADAMW, RULED)
    assert_same(training, alone(MLP_ADAMW))
    found = pieces(training.state.params)
    assert found["Dense_0/kernel"] == ((8, 16), (8, 2))
    assert found["Dense_1/kernel"] == ((16, 3), (16, 3))
    moments = [shape for name, shape in pieces(training.state.opt_state).items() if "Dense_0/kernel" in name]
    assert moments == [((8, 16), (8, 2))] * 2


@pytest.mark.slow
def test_a_gradient_on_eight_devices_is_that_of_one() -> None:
    made = programs(CNN_MOMENTUM, jax.device_put(H), Layout())
    feed = Feed(SPLITS.train, Layout(), 16)
    state = made.init(feed.first(), jax.device_put(H), np.uint32(0), total_steps=20).state
    batch = {name: array[:16] for name, array in SPLITS.train.arrays.items()}

    @jax.jit
    def gradient(params: Any, collections: Any, batch: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            key = Stream.STEP.key(jax.random.key(0))
            outputs, _ = CNN_MOMENTUM.apply_model(params, collections, batch, H, train=True, key=key)
            return CNN_MOMENTUM.loss(outputs, batch, H)[0].mean()

        return jax.grad(loss)(params)

    one = gradient(state.params, state.collections, batch)
    divided = jax.jit(COPIED.divide)(COPIED.put(batch))
    assert divided["inputs"].sharding.spec == PartitionSpec("data")
    eight = gradient(*COPIED.put((state.params, state.collections)), divided)
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, atol=1e-6), eight, jax.device_get(one))


def test_steps_on_the_way_leave_the_state_where_it_was() -> None:
    state = {"kernel": jnp.ones((16, 3)), "count": jnp.int32(0)}
    kept = jax.jit(DIVIDED.keep)(COPIED.put(state))
    assert pieces(kept) == {"kernel": ((16, 3), (2, 3)), "count": ((), ())}
    large = Layout(EIGHT, shard_params=True, min_size=49)
    assert large.shardings(state)["kernel"].spec == PartitionSpec()  # 48 elements
    assert Layout(EIGHT, shard_params=True, min_size=48).shardings(state)["kernel"].spec == PartitionSpec("data", None)
    rule = Layout(EIGHT, shard_params=True, min_size=1, rules=[("kernel", PartitionSpec())])
    assert rule.shardings(state)["kernel"].spec == PartitionSpec()  # rules come first


def test_a_batch_size_that_does_not_divide_is_refused() -> None:
    message = "batch_size must be a multiple of the number of devices: got batch_size=16 on 3 devices"
    with pytest.raises(StudyError, match=re.escape(message)):
        MLP_ADAMW.train_model(H, SPLITS, epochs=1, seed=0, layout=Layout(EIGHT[:3]))


@pytest.mark.parametrize(
    "spec", [PartitionSpec("data"), PartitionSpec(None, "model"), PartitionSpec(None, None, "data")], ids=str
)
def test_a_rule_that_does_not_fit_is_refused(spec: PartitionSpec) -> None:
    layout = Layout(EIGHT, rules=[("Dense_0/kernel", spec)])
    state = {"params": {"Dense_0": {"kernel": jnp.ones((9, 16))}}}
    with pytest.raises(StudyError, match=r"'Dense_0/kernel' with .* does not fit params/Dense_0/kernel of shape \(9"):
        layout.shardings(state)
    elsewhere = {"opt_state": state["params"]}  # may keep something of another shape: copied
    assert layout.shardings(elsewhere)["opt_state"]["Dense_0"]["kernel"].spec == PartitionSpec()


class Line(TrainerModule):
    loop = "step"

    def init_model(self, hparams: Any) -> Any:
        return lambda key, x: jnp.zeros(8), lambda params, x: x @ params

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (outputs - batch["labels"].astype(jnp.float32)) ** 2, {}

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return optax.sgd(hparams.learning_rate)


@pytest.mark.slow
def test_fewer_examples_than_a_batch() -> None:
    few = Splits(ALL.take(np.arange(5)), ALL.take(np.arange(5, 16)))
    trainer = Line()
    one, eight = train(trainer, splits=few), train(trainer, COPIED, few)
    assert_same(eight, one)
    assert eight.step == 4  # one an epoch
    sizes = [layout.batch_size(64, length) for layout, length in ((Layout(), 5), (COPIED, 5), (COPIED, 9))]
    assert sizes == [5, 8, 16]
    # The last weights by hand.
    x, y = ALL.host()["inputs"][:5], ALL.host()["labels"][:5]
    w = np.zeros(8)
    for _ in range(4):
        w = w - 0.05 * 2 * x.T @ (x @ w - y) / 5
    np.testing.assert_allclose(jax.device_get(eight.state.params), w, rtol=1e-4, atol=1e-6)


def test_data_are_put_on_the_devices_once() -> None:
    first = Feed(SPLITS.train, COPIED, 16).first().arrays["inputs"]
    again = Feed(SPLITS.train, Layout(EIGHT), 32).first().arrays["inputs"]
    assert first is again
    assert first.sharding.is_fully_replicated
    assert first.sharding.device_set == set(EIGHT)


def test_a_layout_of_one_device_is_that_device() -> None:
    chosen = Layout(EIGHT[3:4])
    assert chosen.size == Layout().size == 1
    array = jnp.ones(3)
    assert chosen.put(array).devices() == {EIGHT[3]}
    assert chosen.divide(array) is chosen.keep(array) is array
    assert chosen.shardings({"a": array}) == {"a": SingleDeviceSharding(EIGHT[3])}
    assert Layout().shardings({"a": array}) == {"a": SingleDeviceSharding(EIGHT[0])}
    assert hash(Layout(EIGHT)) == hash(COPIED)
    assert Layout(EIGHT) == COPIED != DIVIDED


def test_a_worker_uses_virtual_devices_only_if_given() -> None:
    assert worker_layout("") == Layout(EIGHT[:1])
    assert worker_layout("cpu 0-7") == COPIED


def test_each_process_reads_its_share_of_a_batch() -> None:
    layout = Layout(EIGHT[:4])
    assert not layout.spans_hosts
    assert layout.share(12).tolist() == list(range(12)), "this process has all devices"
    batch = {"inputs": np.arange(24, dtype=np.float32).reshape(12, 2), "weight": np.ones(12, np.float32)}
    put = layout.put_share(batch, 12)
    assert np.array_equal(put["inputs"], batch["inputs"])
    assert [shard.data.shape for shard in put["inputs"].addressable_shards] == [(3, 2)] * 4


def test_a_share_is_that_of_the_devices_that_a_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the second and the third of four devices were those of this process."""
    layout, parts = Layout(EIGHT[:4]), [slice(6, 9), slice(3, 6)]
    monkeypatch.setattr(Layout, "_parts", lambda self, size: sorted(parts, key=lambda part: part.start))
    assert layout.share(12).tolist() == [3, 4, 5, 6, 7, 8]


def test_arrays_of_one_process_are_read_as_they_are() -> None:
    tree = {"a": jnp.ones(3), "b": np.ones(2), "c": jax.random.key(0)}
    own = local(tree)
    assert all(own[name] is tree[name] for name in tree)
