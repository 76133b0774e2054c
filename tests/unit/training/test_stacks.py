"""Optimizers of models with a `Stack`: each layer is treated as the same layer outside of one."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from storage_tools import opened

from tuner import Space, Study, log_uniform
from tuner.errors import CheckpointError, StudyError
from tuner.models.transformer import Transformer
from tuner.storage.read.queries import find_study
from tuner.storage.worker.studies import mode_of, register
from tuner.training import (
    ArrayDataset,
    Checkpoints,
    OptimizerGroups,
    OptimizerSpec,
    Splits,
    Stack,
    TrainerModule,
    decay_all,
    decay_matrices,
    load_from_checkpoint,
    load_run,
)
from tuner.training.loop.programs import first_carry
from tuner.training.optim.named import OPTIMIZERS, OWN_DECAY, POSITIONS, arguments_of
from tuner.training.optim.stacks import Layers, collect_stacks, declare_stack
from tuner.trial import Report
from tuner.worker import run_worker
from tuner.worker.rerun import Rerunner
from tuner.worker.runtime import make_runtime
from tuner.worker.trainables.choose import make_trainable

DEPTH = 3
OLD = Path(__file__).parents[2] / "data" / "optimizer-rules-1.zip"


def names_of(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


# The transformation alone: a stacked tree against its layers one by one.


def stacked(key: int) -> Any:
    kernel, bias, other = jax.random.split(jax.random.key(key), 3)
    layers = {"kernel": jax.random.normal(kernel, (DEPTH, 8, 6)), "bias": jax.random.normal(bias, (DEPTH, 6))}
    return {"stack": {"layers": layers}, "other": {"kernel": jax.random.normal(other, (5, 4))}}


def apart(tree: Any) -> Any:
    layers = tree["stack"]["layers"]
    return {**{f"{at}": {name: layers[name][at] for name in layers} for at in range(DEPTH)}, "other": tree["other"]}


def made_of(name: str) -> OptimizerSpec:
    """The optimizer with decay, where it takes any, and without chance: draws differ with the tree."""
    arguments = arguments_of(name)
    rate = 0.01 if "learning_rate" in arguments else None
    settings: dict[str, Any] = {"decay": 0.5} if name != "lbfgs" and (rate or name in OWN_DECAY) else {}
    if settings and name in OWN_DECAY and not {"mask", "weight_decay_mask"} & set(arguments):
        settings["decay_mask"] = decay_all
    elif settings and name in POSITIONS and name not in OWN_DECAY:
        settings["decay_kind"] = "l2"
    options: dict[str, Any] = {"noisy_sgd": {"eta": 0.0}, "sophia": {"hessian_diagonal_fn": squares()}}.get(name, {})
    return OptimizerSpec(name, rate, options=options, clip_norm=None if name == "lbfgs" else 10.0, **settings)


def squares() -> Any:
    """In place of Sophia's random estimate of the Hessian's diagonal."""
    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None, **_: (jax.tree.map(jnp.square, updates), state),
    )


def after_steps(made: Any, params: Any, targets: Any) -> Any:
    optimizer = made.build(10, jax.random.key(1))

    def loss(params: Any) -> jax.Array:
        squared = jax.tree.map(lambda one, other: jnp.sum((one - other) ** 2), params, targets)
        return jnp.sum(jnp.stack(jax.tree.leaves(squared)))

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(3):
        params, state = step(params, state)
    return params


_QUICK = ("adamw", "adafactor", "lamb", "muon")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in _QUICK else [pytest.mark.long]) for name in OPTIMIZERS]
)
def test_each_layer_of_a_stack_is_updated_as_the_same_layer_alone(name: str) -> None:
    params, targets = stacked(0), stacked(1)
    with collect_stacks(2):
        declare_stack(("stack", "layers"), DEPTH)
        found = apart(after_steps(made_of(name), params, targets))
    expected = after_steps(made_of(name), apart(params), apart(targets))
    steps = jax.tree.map(lambda after, before: float(jnp.abs(after - before).max()), expected, apart(params))
    assert min(jax.tree.leaves(steps)) > 0
    for where, one in names_of(found).items():
        np.testing.assert_allclose(one, names_of(expected)[where], atol=1e-3 * names_of(steps)[where], err_msg=where)


@pytest.mark.slow
def test_groups_with_a_stack_are_updated_as_its_layers_alone() -> None:
    def by_name(path: str) -> str:
        return "vectors" if path.endswith("bias") else "matrices"

    made = OptimizerGroups({"matrices": OptimizerSpec("muon", 0.01), "vectors": OptimizerSpec("lamb", 0.01)}, by_name)
    params, targets = stacked(0), stacked(1)
    with collect_stacks(2):
        declare_stack(("stack", "layers"), DEPTH)
        found = apart(after_steps(made, params, targets))
    expected = names_of(after_steps(made, apart(params), apart(targets)))
    for where, one in names_of(found).items():
        np.testing.assert_allclose(one, expected[where], atol=1e-5, err_msg=where)


# What decays.


class Gained(nn.Module):
    """A layer with a vector that is not called `bias` or `scale`."""

    inner: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.inner:
            x = Stack(Gained, 4)(x, train=train)
        return nn.Dense(x.shape[-1])(x) * self.param("gain", nn.initializers.ones, (x.shape[-1],))[None]


class Tokens(TrainerModule):
    """A Transformer or another module, trained by any optimizer."""

    loop = "step"

    def __init__(self, module: nn.Module, spec: OptimizerSpec) -> None:
        self._module, self._spec = module, spec

    def init_model(self, hparams: Any) -> nn.Module:
        return self._module

    def init_optimizer(self, hparams: Any, total_steps: int) -> OptimizerSpec:
        return self._spec

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return jnp.square(outputs).reshape(len(outputs), -1).mean(1), {}


def first_state(trainer: TrainerModule, batch: Any) -> Any:
    return jax.jit(lambda: first_carry(trainer, {}, batch, jnp.uint32(0), 10).state)()


def decayed(module: nn.Module, inputs: jax.Array, **settings: Any) -> set[str]:
    """Return which parameters a step with a gradient of zero changes, in a training's own state."""
    trainer = Tokens(module, OptimizerSpec("adamw", 1.0, decay=0.5, **settings))
    state = first_state(trainer, {"inputs": inputs, "weight": jnp.ones(len(inputs))})
    params = jax.tree.map(jnp.ones_like, state.params)
    optimizer = trainer.build_optimizer({}, 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(zeros, state.opt_state, params, value=jnp.float32(0))
    return {name for name, update in names_of(updates).items() if np.asarray(update).any()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("is_scanned", "mask"),
    [
        (True, None),
        (False, decay_matrices),
        pytest.param(True, decay_matrices, marks=pytest.mark.long),
        pytest.param(False, None, marks=pytest.mark.long),
    ],
)
def test_of_a_transformer_matrices_decay_and_neither_biases_nor_scales(is_scanned: bool, mask: Any) -> None:
    model = Transformer(vocabulary=5, width=8, heads=2, depth=3, is_scanned=is_scanned)
    layers = ["stack/layers"] if is_scanned else ["layer_0", "layer_1", "layer_2"]
    matrices = [*(f"Attention_0/{name}" for name in ("query", "key", "value", "out")), "Dense_0", "Dense_1"]
    expected = {f"{layer}/{name}/kernel" for layer in layers for name in matrices}
    found = decayed(model, jnp.zeros((1, 4), jnp.int32), decay_mask=mask)
    assert found == {*expected, "Embed_0/embedding", "positions", "head/kernel"}


@pytest.mark.slow
def test_a_vector_of_any_name_does_not_decay_in_a_stack_nor_in_a_stack_of_stacks() -> None:
    inputs = jnp.ones((2, 3))
    assert decayed(Stack(Gained, 2), inputs) == {"layers/Dense_0/kernel"}
    nested = Stack(lambda **names: Gained(inner=True, **names), 2)
    assert decayed(nested, inputs) == {"layers/Dense_0/kernel", "layers/Stack_0/layers/Dense_0/kernel"}


def test_an_axis_counts_layers_only_below_the_stack_and_at_its_length() -> None:
    layers = Layers(stacks=(("layers", 2), ("layers/Stack_0/layers", 4)))
    assert layers.axes("layers/Stack_0/layers/gain", (2, 4, 3)) == 2
    assert layers.axes("net/layers/gain", (2, 3)) == 1
    assert layers.axes("layers/gain", (3, 2)) == 0
    assert layers.axes("layers_0/gain", (2, 3)) == 0


# A whole training.


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_scanned_transformer_trains_as_an_unrolled_one(name: str) -> None:
    model = Transformer(vocabulary=5, width=8, heads=2, depth=2)
    batch = {"inputs": jax.random.randint(jax.random.key(3), (4, 6), 0, 5), "weight": jnp.ones(4)}
    spec = OptimizerSpec(name, 0.02, decay=0.1, clip_norm=1.0)
    both = {is_scanned: Tokens(model.clone(is_scanned=is_scanned), spec) for is_scanned in (True, False)}
    scanned, unrolled = (first_state(trainer, batch) for trainer in both.values())
    steps = [jax.jit(trainer.train_step) for trainer in both.values()]

    def unstacked(params: Any) -> Any:
        rest = {name: part for name, part in params.items() if name != "stack"}
        layers = params["stack"]["layers"]
        return {**rest, **{f"layer_{at}": jax.tree.map(lambda leaf, at=at: leaf[at], layers) for at in range(2)}}

    unrolled = dataclasses.replace(unrolled, params=unstacked(scanned.params))
    first = names_of(unrolled.params)
    for at in range(4):
        key = jax.random.key(at)
        scanned, _ = steps[0](scanned, batch, {}, key)
        unrolled, _ = steps[1](unrolled, batch, {}, key)
    found = names_of(unstacked(scanned.params))
    for where, expected in names_of(unrolled.params).items():
        # A key's bias has no gradient: Adam's step along rounding errors is of any sign.
        if not where.endswith("key/bias"):
            moved = float(jnp.abs(expected - first[where]).max())
            assert moved > 0
            np.testing.assert_allclose(found[where], expected, atol=1e-3 * moved, err_msg=where)


# Trainings of the version before, which decayed biases and scales in a stack and took it as one array.


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return x + nn.Dense(3)(nn.LayerNorm()(x))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(1)(Stack(Layer, 2)(x, train=train))[:, 0]


class Trainer(TrainerModule):
    """As those checkpoints were made."""

    loop = "step"

    def __init__(self, optimizer: str) -> None:
        self.optimizer = optimizer

    def init_model(self, hparams: Any) -> nn.Module:
        return Net()

    def init_optimizer(self, hparams: Any, total_steps: int) -> OptimizerSpec:
        return OptimizerSpec(self.optimizer, 0.05, decay=None if self.optimizer == "schedule_free_sgd" else 0.5)

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (outputs - batch["targets"]) ** 2, {}

    def batch_size(self, hparams: Any) -> int:
        return 8


def same_splits() -> Splits:
    x = np.linspace(-1, 1, 48).reshape(16, 3) ** 3
    data = ArrayDataset(inputs=x, targets=x @ [1.0, 2.0, 3.0])
    return Splits(data, data)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with zipfile.ZipFile(OLD) as file:
        file.extractall(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "lamb", "schedule_free_sgd"])
def test_a_training_of_before_resumes_to_the_numbers_of_before(name: str, old: Path) -> None:
    expected = json.loads((old / name / "expected.json").read_text())
    trainer = Trainer(name)
    loaded = load_from_checkpoint(old / name, trainer=trainer, hparams={})
    assert int(loaded.state.step) == 3  # pyright: ignore[reportArgumentType]
    with Checkpoints(old / name, every_s=1e9) as checkpoints:
        training = trainer.train_model({}, same_splits(), epochs=4, seed=0, checkpoints=checkpoints)
        assert [report.epoch for report in training] == [2, 3, 4]
    assert training.optimizer_rules == 1
    np.testing.assert_allclose([report.metrics["loss"] for report in training.reports], expected["losses"], rtol=1e-4)
    for where, leaf in names_of(training.state.params).items():
        np.testing.assert_allclose(leaf, expected["params"][where], atol=1e-4, err_msg=where)
    best = load_from_checkpoint(old / name, trainer=trainer, hparams={})
    assert best.record["optimizer_rules"] == 1
    assert best.record["kind"] == "best"


@pytest.mark.slow
def test_rules_of_another_training_or_version_are_refused(old: Path) -> None:
    def train(**options: Any) -> Any:
        with Checkpoints(old / "adamw", every_s=1e9) as checkpoints:
            return list(Trainer("adamw").train_model({}, same_splits(), **settings, checkpoints=checkpoints, **options))

    settings: dict[str, Any] = {"epochs": 4, "seed": 0}
    with pytest.raises(CheckpointError, match="have optimizer_rules=1, this training has optimizer_rules=2"):
        train(optimizer_rules=2)
    with pytest.raises(StudyError, match="optimizer_rules must be a whole number from 1 to 2: got 3"):
        train(optimizer_rules=3)


@pytest.mark.slow
def test_a_run_is_trained_again_by_the_rules_in_its_log(tmp_path: Path) -> None:
    def losses(training: Any) -> list[float]:
        return [report.metrics["loss"] for report in training]

    trainer, found = Trainer("adamw"), {}
    for rules in (1, 2):
        folder = tmp_path / str(rules)
        options: Any = {"epochs": 3, "seed": 0, "log": folder, "optimizer_rules": rules}
        found[rules] = losses(trainer.train_model({}, same_splits(), **options))
        log = json.loads((folder / "run.json").read_text())
        if rules == 1:  # as a version that had no others wrote it
            del log["optimizer_rules"]
            (folder / "run.json").write_text(json.dumps(log))
        assert losses(load_run(folder, trainer=trainer).train(same_splits())) == found[rules]
        assert losses(trainer.train_model({}, same_splits(), epochs=3, seed=0, log=folder)) == found[rules]
    assert found[1] != found[2]


# Studies.


class Rate(Space):
    learning_rate: float = log_uniform(1e-3, 1e-1)


class Noting(TrainerModule):
    """Trains nothing, and notes by which rules it was to."""

    def __init__(self) -> None:
        self._rules: list[int] = []

    def init_model(self, hparams: Any) -> nn.Module:
        return Net()

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (outputs - batch["targets"]) ** 2, {}

    def train_model(self, hparams: Any, splits: Any, *, epochs: int, **options: Any) -> Any:
        self._rules.append(options["optimizer_rules"])
        yield Report(1, 1, {"loss": 1.0})


@pytest.mark.parametrize("rules", [1, 2])
@pytest.mark.slow
def test_all_trials_of_a_study_are_trained_by_the_rules_it_was_begun_with(
    rules: int, tmp_path: Path, sqlite_url: str
) -> None:
    study = Study(
        name="old",
        space=Rate,
        trainer=Noting(),
        data=lambda seed: same_splits(),
        objective="loss",
        direction="minimize",
        epochs=1,
        trials=2,
        sampler="random",
        keep_best=0,
    )
    record = study.record()
    if rules == 1:  # as a version that had no others wrote it
        del record["optimizer_rules"]
    with opened(sqlite_url) as storage:
        register(storage, storage.engine, study.name, study.all_directions, record)
        run_worker(study, sqlite_url, artifacts=str(tmp_path))
        row, runtime = find_study(storage.engine, "old"), make_runtime("", needs_jax=True)
        mode = partial(mode_of, storage.engine, row.study_id)
        trainable = make_trainable(study, lambda hparams: same_splits(), runtime, {}, row.record, mode)
        rerunner = Rerunner(storage.engine, row, study, Path(__file__), trainable, runtime)
        assert len(rerunner.train(0, 0, lambda report: False)) == 1
        assert find_study(storage.engine, "old").record == record
    assert study.trainer._rules == [rules] * 3
