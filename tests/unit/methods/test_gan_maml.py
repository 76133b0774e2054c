"""The studies whose training step is their own: the game of two networks, and a gradient through gradient steps."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rounding import rounding
from scipy.stats import wasserstein_distance

from tuner.errors import StudyError
from tuner.methods import GANTrainer, MetaLearner, adapt
from tuner.methods.gan import squared_slopes, value
from tuner.study.source import import_file
from tuner.training import ArrayDataset, OptimizerSpec
from tuner.training.data.arrays import Splits
from tuner.training.data.batches import Source
from tuner.training.hparams import register
from tuner.training.loop.programs import Carry, first_carry, one_step
from tuner.training.mesh import Layout
from tuner.training.metrics import to_floats
from tuner.training.state import Average

STUDIES = Path(__file__).parents[3] / "studies"
GAN: Any = import_file(STUDIES / "gan_gaussian.py")
MAML: Any = import_file(STUDIES / "maml_sinusoid.py")
for study in (GAN.study, MAML.study):
    study.trainer.loop = "scan"  # so that nothing is compiled to be measured
KEY = jax.random.key(0)
# Small programs: compiling them well takes longer than running them.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

PLAYERS = {
    "learning_rate": 0.005,
    "discriminator_speed": 4.0,
    "momentum": 0.0,
    "gradient_penalty": 0.1,
    "discriminator_steps": 1,
}
LEARNER = {"learning_rate": 3e-3, "inner_rate": 1e-2, "inner_steps": 1, "first_order": False}


def gan_hparams(**changes: Any) -> Any:
    made = GAN.HParams(**{**PLAYERS, **changes})
    register(made)
    return made


def maml_hparams(**changes: Any) -> Any:
    made = MAML.HParams(**{**LEARNER, **changes})
    register(made)
    return made


def small(module: Any, train: int = 80, validation: int = 40) -> Splits[Any]:
    splits = module.data(0)
    return Splits(splits.train.take(range(train)), splits.validation.take(range(validation)))


def batch_of(module: Any, rows: int = 32) -> Any:
    return {name: jnp.asarray(array) for name, array in small(module, rows).train.host().items()}


def gan_state(batch: Any, hparams: Any, steps: int = 100) -> Any:
    return INIT_GAN(hparams, batch, KEY, steps)


INIT_GAN = jit(GAN.study.trainer.init_state, static_argnums=3)
INIT_MAML = jit(MAML.study.trainer.init_state, static_argnums=3)


def is_same(left: Any, right: Any) -> bool:
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in pairs)


# The game.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moves", "rests"),
    [("generator", "discriminator"), ("discriminator", "generator")],
)
def test_a_step_of_one_network_leaves_the_other_as_it_is(moves: str, rests: str) -> None:
    trainer, batch, hparams = GAN.study.trainer, batch_of(GAN), gan_hparams()
    before = gan_state(batch, hparams)
    step = jit(getattr(trainer, f"{moves}_step"))
    after, _ = step(step(before, batch, hparams, KEY)[0], batch, hparams, KEY)
    for tree in ("params", "opt_state"):
        assert is_same(getattr(before, tree)[rests], getattr(after, tree)[rests])
        assert not is_same(getattr(before, tree)[moves], getattr(after, tree)[moves])


@pytest.mark.slow
def test_each_network_has_its_rate_and_the_discriminator_its_steps() -> None:
    batch, step = batch_of(GAN), jit(GAN.study.trainer.train_step)

    def moved(**changes: Any) -> dict[str, float]:
        hparams = gan_hparams(momentum=0.0, learning_rate=1e-4, **changes)
        state = gan_state(batch, hparams)
        after, _ = step(step(state, batch, hparams, KEY)[0], batch, hparams, KEY)
        assert int(after.step) == 2
        counts = [
            int(leaf)
            for leaf in jax.tree.leaves(after.opt_state["discriminator"])
            if jnp.issubdtype(leaf.dtype, jnp.integer)
        ]
        assert set(counts) == {2 * hparams.discriminator_steps}
        change = jax.tree.map(jnp.subtract, after.params, state.params)
        return {name: float(optax.tree.norm(change[name])) for name in change}

    base, faster = moved(discriminator_steps=2), moved(discriminator_steps=2, discriminator_speed=8.0)
    assert 1.8 < faster["discriminator"] / base["discriminator"] < 2.2
    assert 0.9 < faster["generator"] / base["generator"] < 1.1


@pytest.mark.slow
def test_the_value_of_equal_distributions_is_at_most_minus_log_4_which_a_half_attains() -> None:
    trainer, batch, hparams = GAN.study.trainer, batch_of(GAN), gan_hparams(gradient_penalty=0.01)
    state = gan_state(batch, hparams, 2000)
    generator = state.params["generator"]
    # The step draws this noise, so what is real is what will be generated.
    noise = jax.random.normal(jax.random.split(KEY, 4)[0], batch["noise"].shape)
    batch = {**batch, "inputs": GAN.MLP().apply({"params": generator}, noise), "noise": noise}

    def step(state: Any, _: None) -> Any:
        state, metrics = trainer.discriminator_step(state, batch, hparams, KEY)
        return state, metrics["value"].value

    state, values = jit(lambda state: jax.lax.scan(step, state, None, length=600))(state)
    best = -np.log(4.0)
    assert values[0] < best - 1e-3
    rtol = rounding(64)  # a mean of 32, each of two logarithms of sigmoids
    assert float(values.max()) <= best * (1 - rtol)
    np.testing.assert_allclose(values[-1], best, atol=1e-4)
    judged = jax.nn.sigmoid(GAN.Discriminator().apply({"params": state.params["discriminator"]}, batch["inputs"]))
    np.testing.assert_allclose(judged, 0.5, atol=0.02)
    # By the metric that validation reports, of a discriminator that says exactly a half.
    blind = jax.tree.map(jnp.zeros_like, state.params["discriminator"])
    average = Average({"generator": generator, "discriminator": blind}, state.collections)
    found = to_floats(trainer.eval_step(dataclasses.replace(state, average=average), batch, hparams))
    np.testing.assert_allclose(found["value"], best, rtol=rtol)
    assert found["distance"] == 0.0


def test_the_value_by_hand() -> None:
    real, fake = np.array([0.9, 0.3]), np.array([0.2, 0.6])
    found = value(jnp.log(real / (1 - real)), jnp.log(fake / (1 - fake)))
    np.testing.assert_allclose(found, np.log(real) + np.log(1 - fake), rtol=1e-5)


@pytest.mark.slow
def test_the_distance_is_that_of_scipy_and_adds_up_over_batches() -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.normal(4.0, 1.25, 300).astype("f"), rng.normal(3.0, 2.0, 300).astype("f")
    ones = np.ones(300, np.float32)
    whole = GAN.Distance.of(*map(jnp.asarray, (real, fake, ones)))
    parts = [
        GAN.Distance.of(*(jnp.asarray(array[cut]) for array in (real, fake, ones)))
        for cut in (slice(0, 100), slice(100, 300))
    ]
    np.testing.assert_allclose(whole.compute(), wasserstein_distance(real, fake), rtol=2e-3)
    np.testing.assert_allclose((parts[0] + parts[1]).compute(), whole.compute(), rtol=1e-6)
    # Padding counts for nothing.
    padded = GAN.Distance.of(jnp.append(real, 99.0), jnp.append(fake, -99.0), jnp.append(ones, 0.0))
    np.testing.assert_allclose(padded.compute(), whole.compute(), rtol=1e-6)


def test_the_penalty_is_the_squared_slope_at_each_sample() -> None:
    weights, samples = jnp.array([[3.0, -4.0]]), jnp.ones((3, 1, 2))
    # Of w x the slope is w; of (w x)^2 it is 2 (w x) w, and w x = -1.
    linear = squared_slopes(lambda samples: (samples * weights[None]).sum((1, 2)), samples)
    square = squared_slopes(lambda samples: (samples * weights[None]).sum((1, 2)) ** 2, samples)
    np.testing.assert_allclose(linear, [25.0] * 3)
    np.testing.assert_allclose(square, [100.0] * 3)


@pytest.mark.slow
def test_half_the_penalty_goes_into_the_discriminators_gradient() -> None:
    trainer, batch = GAN.study.trainer, batch_of(GAN)
    batch["weight"] = batch["weight"].at[20:].set(0.0)

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, samples: Any) -> Any:
            return nn.Dense(1)(samples)[:, 0]

    class Plain(type(trainer)):
        def init_networks(self, hparams: Any) -> Any:
            return Linear(), Linear()

        def init_optimizers(self, hparams: Any, total_steps: int) -> Any:
            return optax.sgd(1.0), optax.sgd(1.0)

    # D(x) = w x + b has the slope w, so gamma / 2 w^2 adds gamma w to the gradient of w alone.
    class Samples(Plain):
        def init_networks(self, hparams: Any) -> Any:
            return GAN.MLP(), Linear()

    moved, init, step = {}, jit(Samples().init_state, static_argnums=3), jit(Samples().discriminator_step)
    slope = None
    for gamma in (0.001, 1.0):
        hparams = gan_hparams(gradient_penalty=gamma)
        state = init(hparams, batch, KEY, 10)
        after, _ = step(state, batch, hparams, KEY)
        before, after = (one.params["discriminator"]["Dense_0"] for one in (state, after))
        moved[gamma] = jax.tree.map(jnp.subtract, before, after)
        slope = before["kernel"]
    np.testing.assert_allclose(moved[1.0]["kernel"] - moved[0.001]["kernel"], 0.999 * slope, rtol=1e-4)
    np.testing.assert_allclose(moved[1.0]["bias"], moved[0.001]["bias"], rtol=1e-5)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        return nn.Dense(1)(nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(3)(x)))[:, 0]


class NormedSamples(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        return Normed()(x, train=train)[:, None]


class NormedGame(GANTrainer):
    def init_networks(self, hparams: Any) -> Any:
        return NormedSamples(), Normed()


@pytest.mark.slow
@pytest.mark.parametrize(("moves", "rests"), [("generator", "discriminator"), ("discriminator", "generator")])
def test_batch_statistics_move_with_their_network_only(moves: str, rests: str) -> None:
    trainer, batch, hparams = NormedGame(), batch_of(GAN), {"learning_rate": 0.1, "gradient_penalty": 0.1}
    before = jit(trainer.init_state, static_argnums=3)(hparams, batch, KEY, 10)
    after, _ = jit(getattr(trainer, f"{moves}_step"))(before, batch, hparams, KEY)
    for tree in ("params", "opt_state", "collections"):
        assert is_same(getattr(before, tree)[rests], getattr(after, tree)[rests])
        assert not is_same(getattr(before, tree)[moves], getattr(after, tree)[moves])
    assert set(jit(trainer.eval_step)(after, batch, hparams)) == {"value"}


@pytest.mark.slow
def test_padding_changes_no_step_of_the_game() -> None:
    trainer, batch, hparams = GAN.study.trainer, batch_of(GAN), gan_hparams()
    batch["weight"] = batch["weight"].at[20:].set(0.0)
    other = {**batch, "inputs": batch["inputs"].at[20:].set(99.0)}
    step, state = jit(trainer.train_step), gan_state(batch, hparams)
    one, two = step(state, batch, hparams, KEY), step(state, other, hparams, KEY)
    keyless = [(dataclasses.replace(after, key=None), metrics) for after, metrics in (one, two)]
    assert is_same(*keyless)
    assert {name: float(metric.weight) for name, metric in one[1].items()} == {
        "value": 20.0,
        "squared_slope": 20.0,
        "generator_loss": 20.0,
    }


@pytest.mark.parametrize(
    ("trainer", "message"),
    [(GANTrainer(), "must define init_networks"), (GAN.study.trainer, "needs precision='float32': got ")],
)
def test_a_game_that_cannot_be_is_refused(trainer: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if trainer is GAN.study.trainer:
        monkeypatch.setattr(trainer, "precision", "bfloat16", raising=False)
    with pytest.raises(StudyError, match=message):
        trainer.init_state(gan_hparams(), batch_of(GAN), KEY, 10)


@pytest.mark.long
@pytest.mark.slow
def test_the_generator_learns_the_gaussian() -> None:
    splits, hparams = GAN.data(0), gan_hparams()
    noise = splits.validation.host()["noise"]
    for seed in range(3):
        training = GAN.study.trainer.train_model(hparams, splits, epochs=40, seed=seed)
        reports = list(training)
        samples = GAN.study.trainer.bind_model(training.state, hparams)(noise)
        assert abs(float(samples.mean()) - GAN.MEAN) < 0.1
        assert abs(float(samples.std()) - GAN.STD) < 0.15
        assert reports[-1].metrics["distance"] < 0.2 < 1.0 < reports[0].metrics["distance"]


# Learning to learn.


@pytest.mark.parametrize(("first_order", "expected"), [(False, 3.59049 * 0.59049), (True, 3.59049)])
@pytest.mark.parametrize("is_traced", [False, True])
def test_the_gradient_through_the_inner_loop_by_hand(first_order: bool, expected: float, is_traced: bool) -> None:
    target, other, start = 2.0, -1.0, 3.0

    def outer(params: Any, rate: Any) -> Any:
        def inner(params: Any, carried: Any, step: int) -> Any:
            return 0.5 * (params["theta"] - target) ** 2, [*carried, step]

        adapted, carried = adapt(inner, params, [], rate, 5, first_order=first_order)
        assert carried == [0, 1, 2, 3, 4]
        return 0.5 * (adapted["theta"] - other) ** 2

    gradient = jax.grad(outer)
    found = (jit(gradient) if is_traced else gradient)({"theta": jnp.float32(start)}, 0.1)
    # Five steps and the loss forth and back: less than forty roundings of numbers of one size.
    np.testing.assert_allclose(found["theta"], expected, rtol=rounding(40))


def losses_after(params: Any, batch: Any, hparams: Any, steps: int) -> Any:
    trainer = MAML.study.trainer
    outputs, _ = trainer.adapted_outputs(params, {}, batch, hparams, steps)
    return trainer.loss(outputs, batch, hparams)[0]


def test_no_inner_steps_are_no_adaptation() -> None:
    assert adapt(None, {"theta": 3.0}, "carried", 0.1, 0) == ({"theta": 3.0}, "carried")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_batch_of_tasks_is_each_task_alone() -> None:
    batch, hparams = batch_of(MAML, 6), maml_hparams(inner_rate=0.05)
    params = INIT_MAML(hparams, batch, KEY, 10).params
    task_losses = jit(losses_after, static_argnums=3)

    def error(params: Any, x: Any, y: Any) -> Any:
        return jnp.mean((MAML.MLP().apply({"params": params}, x) - y) ** 2)

    judge, slope = jit(error), jit(jax.grad(error))
    for steps in (0, 2):
        found = task_losses(params, batch, hparams, steps)
        for task, loss in enumerate(found):
            row: Any = SimpleNamespace(**{name: array[task] for name, array in batch.items()})
            theta = params
            for _ in range(steps):
                grads = slope(theta, row.support_x, row.support_y)
                theta = jax.tree.map(lambda one, grad: one - 0.05 * grad, theta, grads)
            np.testing.assert_allclose(loss, judge(theta, row.query_x, row.query_y), rtol=1e-5)


class Regressor(nn.Module):
    """Batch statistics and dropout."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(16)(x))))


class NormedLearner(MetaLearner):
    def init_model(self, hparams: Any) -> Any:
        return Regressor()


@pytest.mark.slow
def test_statistics_pass_through_a_tasks_steps_and_their_mean_over_real_tasks_is_kept() -> None:
    trainer, batch = NormedLearner(), batch_of(MAML, 3)
    batch["weight"] = jnp.array([1.0, 1.0, 0.0])
    hparams = {"inner_rate": 0.01, "inner_steps": 2, "learning_rate": 0.1}
    static = {name: value for name, value in hparams.items() if name != "inner_rate"}
    init = jit(lambda rate: trainer.init_state({**static, "inner_rate": rate}, batch, KEY, 10))
    state = init(0.01)
    before = state.collections["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_array_equal(before, [0.0])
    step = jit(lambda state, rate, key: trainer.train_step(state, batch, {**static, "inner_rate": rate}, key))
    after, metrics = step(state, 0.01, KEY)
    # Half of the old and half of the new each time: twice the support points, then the query points.
    expected = []
    for task in range(2):
        support, query = (float(batch[name][task].mean()) for name in ("support_x", "query_x"))
        expected.append(((0.0 + support) / 2 + support) / 4 + query / 2)
    found = after.collections["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(found, [np.mean(expected)], rtol=1e-5)
    # Dropout draws by the step's key.
    assert float(metrics["loss"].value) == float(step(state, 0.01, KEY)[1]["loss"].value)
    assert float(metrics["loss"].value) != float(step(state, 0.01, jax.random.key(1))[1]["loss"].value)
    judged = jit(lambda state, rate: trainer.eval_step(state, batch, {**static, "inner_rate": rate}))
    assert set(judged(after, 0.01)) == {"loss_0_steps", "loss_1_step", "loss"}
    assert is_same(judged(after, 0.01), judged(after, 0.01))


@pytest.mark.slow
def test_without_inner_steps_it_is_ordinary_training_on_the_query_points() -> None:
    trainer, batch, hparams = MAML.study.trainer, batch_of(MAML, 6), maml_hparams(inner_steps=0)
    state = INIT_MAML(hparams, batch, KEY, 10)

    def joint(params: Any) -> Any:
        return jnp.mean((MAML.MLP().apply({"params": params}, batch["query_x"]) - batch["query_y"]) ** 2)

    _, metrics = jit(trainer.train_step)(state, batch, hparams, KEY)
    loss, grads = jit(jax.value_and_grad(joint))(state.params)
    np.testing.assert_allclose(metrics["loss"].compute(), loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"].compute(), optax.tree.norm(grads), rtol=1e-5)


def test_a_meta_learner_refuses_what_would_be_broadcast_and_steps_that_are_none() -> None:
    with pytest.raises(StudyError, match=r"outputs and targets must have the same shape: got \(10,\) and \(10, 1\)"):
        MetaLearner().task_loss(jnp.zeros(10), jnp.zeros((10, 1)), {})
    for steps in ((), (1, 1), (5, 0), (-1, 0)):
        with pytest.raises(StudyError, match="judged_after must be increasing numbers of steps"):
            MetaLearner(steps)


@pytest.mark.slow
def test_the_trainer_descends_the_mean_over_the_tasks() -> None:
    trainer, batch = MAML.study.trainer, batch_of(MAML, 6)
    batch = {**batch, "weight": jnp.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])}
    hparams = maml_hparams(inner_rate=0.05)
    state = INIT_MAML(hparams, batch, KEY, 10)
    real = jax.tree.map(lambda array: array[:4], batch)
    mean = jax.value_and_grad(lambda params: losses_after(params, real, hparams, 1).mean())
    loss, grads = jit(mean)(state.params)
    after, metrics = jit(trainer.train_step)(state, batch, hparams, KEY)
    np.testing.assert_allclose(metrics["grad_norm"].compute(), optax.tree.norm(grads), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"].compute(), loss, rtol=1e-5)
    expected = state.apply_gradients(trainer.build_optimizer(hparams, 10), grads)
    for one, other in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
def test_first_order_is_another_program_with_another_gradient_and_the_rate_is_not() -> None:
    trainer, batch, compiled = MAML.study.trainer, batch_of(MAML, 6), []

    def norm(state: Any, hparams: Any) -> Any:
        compiled.append(hparams.first_order)
        return trainer.train_step(state, batch, hparams, KEY)[1]["grad_norm"].value

    step: Any = jit(norm)
    norms = set()
    for first_order in (False, True):
        for rate in (0.02, 0.05):
            hparams = maml_hparams(first_order=first_order, inner_rate=rate)
            norms.add(round(float(step(INIT_MAML(hparams, batch, KEY, 10), hparams)), 4))
    assert compiled == [False, True]
    assert len(norms) == 4


@pytest.mark.long
@pytest.mark.slow
def test_error_falls_with_the_steps_of_adaptation() -> None:
    splits, hparams = MAML.data(0), maml_hparams()
    for seed in range(2):
        training = MAML.study.trainer.train_model(hparams, splits, epochs=15, seed=seed)
        *_, last = training
        zero, one, five = (last.metrics[name] for name in ("loss_0_steps", "loss_1_step", "loss"))
        assert zero > 1.5 * one > 1.5 * 1.2 * five
        assert five < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("module", [GAN, MAML], ids=["gan", "maml"])
def test_two_steps_on_tiny_data_are_pure(module: Any) -> None:
    trainer, batch = module.study.trainer, batch_of(module, 8)
    hparams = gan_hparams() if module is GAN else maml_hparams()
    carry = jit(lambda seed: first_carry(trainer, hparams, batch, seed, 4))(jnp.uint32(0))
    step: Any = jit(lambda carry: one_step(trainer, Layout(), hparams, Source(batch), carry))
    before: Carry = jax.tree.map(jnp.copy, carry)
    first, again = step(step(carry)), step(step(carry))
    keyless = [dataclasses.replace(one.state, key=None) for one in (before, carry, first, again)]
    assert is_same(keyless[0], keyless[1])
    assert is_same(keyless[2], keyless[3])
    assert not is_same(keyless[0], keyless[2])
    assert all(np.isfinite(value) for value in to_floats(first.totals).values())


class WithStatistics(nn.Module):
    """A network with batch statistics."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(1)(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x))


class Flat(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(1)(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x))[:, 0]


class Skipping(GANTrainer):
    loop = "step"

    def init_networks(self, hparams: Any) -> tuple[Any, Any]:
        return WithStatistics(), Flat()

    def init_optimizers(self, hparams: Any, total_steps: int) -> tuple[Any, Any]:
        return OptimizerSpec("adam", 0.01, skip_nonfinite=True), OptimizerSpec("adam", 0.01, skip_nonfinite=True)

    def ema_decay(self, hparams: Any) -> float:
        return 0.5


SKIPPING = Skipping()


@pytest.mark.slow
@pytest.mark.parametrize("is_bad", [False, True])
def test_an_adversarial_step_that_is_not_finite_changes_nothing(is_bad: bool) -> None:
    real = np.random.default_rng(0).normal(size=(8, 1))
    real[3] = np.nan if is_bad else real[3]
    dataset = ArrayDataset(inputs=real, noise=np.random.default_rng(1).normal(size=(8, 2)))
    training = SKIPPING.train_model({}, Splits(dataset, dataset), epochs=2, seed=0, objective="value")
    report = list(training)[-1]
    state: Any = training.state
    # The generator never sees real samples; only the discriminator that judged them would have spread the NaN.
    assert report.metrics["train_skipped_steps"] == (2.0 if is_bad else 0.0)
    kept = (state.params, state.collections, state.average)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))
    first = SKIPPING.train_model({}, Splits(dataset, dataset), epochs=1, seed=0, objective="value")
    first._begin()
    start: Any = first.state
    for name in ("generator", "discriminator"):
        moved = [
            not np.array_equal(new, old)
            for new, old in zip(
                jax.tree.leaves((state.params[name], state.average.params[name], state.collections[name])),
                jax.tree.leaves((start.params[name], start.average.params[name], start.collections[name])),
                strict=True,
            )
        ]
        assert any(moved) == (name == "generator" or not is_bad)
