"""Optimizers, schedules and the learned optimizer: by hand, and against optax itself."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from optax._src import alias

from tuner.errors import StudyError
from tuner.training.optim.build import (
    OptimizerGroups,
    OptimizerSpec,
    adamw,
    as_optimizer,
    clipped_norm,
    evaluated_params,
    skipped_steps,
    warmup_cosine,
)
from tuner.training.optim.learned import init_weights, learned
from tuner.training.optim.named import OPTIMIZERS, OWN_DECAY, REFUSED, SCHEDULE_FREE, WHOLE_ARRAY, arguments_of
from tuner.training.optim.rules import decay_all
from tuner.training.optim.schedules import Constant, Exponential, OneCycle, Piecewise, WarmupCosine
from tuner.training.optim.transforms import GradientNoise

W, G = jnp.array([1.0, -2.0]), jnp.array([0.3, 0.1])
KEY = jax.random.key(0)


def spec(name: str = "sgd", rate: Any = 0.01, **settings: Any) -> OptimizerSpec:
    return OptimizerSpec(name, rate, **settings)


def lenient_call(function: Any, *arguments: Any) -> Any:
    """Call optax's own, which strict promotion would refuse."""
    with jax.numpy_dtype_promotion("standard"):
        return function(*arguments)


def run(made: Any, steps: int = 1, params: Any = W, grads: Any = G, extra: Any = None, total: int = 100) -> Any:
    """Return the parameters after some steps along one gradient, and the state."""
    optimizer: Any = as_optimizer(made, total, KEY)
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, params, **(extra or {}))
        params = optax.apply_updates(params, updates)
    return params, state


def close(found: Any, expected: Any, rtol: float = 1e-5, atol: float = 0.0) -> None:
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


def programs(traced: Any) -> int:
    """Return how often a function was compiled."""
    return traced._cache_size()


# Schedules


SHAPES = [
    (Constant(warmup_steps=7), optax.warmup_constant_schedule(0, 1, 7)),
    (WarmupCosine(warmup_steps=10), optax.warmup_cosine_decay_schedule(0, 1, 10, 100, 0.01)),
    (WarmupCosine(), optax.warmup_cosine_decay_schedule(0, 1, 10, 100, 0.01)),
    (WarmupCosine(warmup_steps=0, end_factor=0.5), optax.cosine_decay_schedule(1, 100, 0.5)),
    (OneCycle(), optax.cosine_onecycle_schedule(100, 1)),
    (
        OneCycle(peak_fraction=0.5, start_factor=0.1, end_factor=0.01),
        optax.cosine_onecycle_schedule(100, 1, 0.5, 10, 10),
    ),
    (Exponential(decay_rate=0.5, transition_steps=20), optax.exponential_decay(1, 20, 0.5)),
    (
        Exponential(decay_rate=0.5, transition_steps=20, is_staircase=True, end_factor=0.1, warmup_steps=5),
        optax.warmup_exponential_decay_schedule(0, 1, 5, 20, 0.5, staircase=True, end_value=0.1),
    ),
    (Piecewise(boundaries=(30, 60), multipliers=(0.1, 0.5)), optax.piecewise_constant_schedule(1, {30: 0.1, 60: 0.5})),
]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "peer"), SHAPES)
def test_schedules_are_those_of_optax(shape: Any, peer: Any) -> None:
    shape.check(100)
    steps = jnp.arange(101, dtype=jnp.int32)
    close(shape.factor(steps, 100), lenient_call(jax.vmap(peer), steps), atol=2e-6, rtol=1e-4)
    assert shape.factor(jnp.int32(100), 100) == shape.factor(jnp.int32(10_000), 100)


@pytest.mark.slow
def test_numbers_of_a_schedule_are_traced_and_share_one_program() -> None:
    def trace(warmup: Any, end: Any, rate: Any, boundary: Any) -> Any:
        shapes = [
            WarmupCosine(warmup_steps=warmup, end_factor=end),
            OneCycle(peak_fraction=end),
            Exponential(decay_rate=rate, transition_steps=warmup),
            Piecewise(boundaries=(boundary, 90), multipliers=(rate, rate), warmup_steps=warmup),
        ]
        for shape in shapes:
            shape.check(100)
        return jnp.stack([shape.factor(jnp.arange(100), 100) for shape in shapes])

    traced, numbers = jax.jit(trace), [(10, 0.25, 0.5, 50), (20, 0.5, 0.25, 60)]
    for row in numbers:
        close(traced(*(jnp.float32(number) for number in row)), trace(*row), atol=1e-6)
    assert programs(traced) == 1


@pytest.mark.slow
def test_a_peak_times_a_shape_moves_the_parameters() -> None:
    shape = spec(rate=1e-3, schedule=WarmupCosine(warmup_steps=10))
    moved = [0.0]
    optimizer: Any = shape.build(100)
    state, update = optimizer.init(W), jax.jit(optimizer.update)
    for _ in range(102):
        updates, state = update(jnp.array([-1.0, 0.0]), state, W)
        moved.append(float(updates[0]))
    close([moved[1 + step] for step in (0, 5, 10, 55, 100, 101)], [0, 5e-4, 1e-3, 5.05e-4, 1e-5, 1e-5], atol=1e-9)
    # Accumulated gradients count once: four gradients are one step of a schedule of 25.
    shape = WarmupCosine(warmup_steps=2)
    slow = run(spec(rate=1.0, schedule=shape, accumulate_steps=4), 40, total=40, grads=jnp.array([-1.0, 0.0]))[0]
    close(slow[0] - W[0], shape.factor(jnp.arange(10), 10).sum())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            WarmupCosine(warmup_steps=100),
            "must end before training does: got warmup_steps=100, total_steps=100; shorten",
        ),
        (Constant(warmup_steps=-1), "must end before training does: got warmup_steps=-1, total_steps=100"),
        (Constant(warmup_steps="5"), "warmup_steps must be a number of updates: got warmup_steps='5'"),  # pyright: ignore[reportArgumentType]
        (WarmupCosine(end_factor=1.5), "end_factor must be from 0 to 1: got end_factor=1.5"),
        (OneCycle(peak_fraction=1.0), "peak_fraction must be between 0 and 1"),
        (OneCycle(start_factor=float("nan")), "start_factor must be from 0 to 1: got start_factor=nan"),
        (OneCycle(warmup_steps=3), "takes no warm-up, .*: got warmup_steps=3; set peak_fraction"),
        (Exponential(decay_rate=0), "decay_rate must be above 0 and at most 1: got decay_rate=0"),
        (Exponential(decay_rate=0.5, transition_steps=0), "transition_steps must be above 0"),
        (Exponential(decay_rate=0.5, end_factor=-1), "end_factor must be from 0 to 1"),
        (
            Piecewise(boundaries=(1, 2), multipliers=(0.1,)),
            r"one multiplier for each boundary: got boundaries=\(1, 2\)",
        ),
        (Piecewise(boundaries=(2, 1), multipliers=(0.1, 0.1)), "boundaries must increase and be less than"),
        (Piecewise(boundaries=(100,), multipliers=(0.1,)), "boundaries must increase and be less .*total_steps=100"),
        (Piecewise(boundaries=(1,), multipliers=(-0.1,)), r"multipliers\[0\] must be at least 0"),
    ],
)
def test_schedules_that_cannot_be(shape: Any, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        shape.check(100)
    with pytest.raises(StudyError, match=message):
        spec(schedule=shape).check(100)


@pytest.mark.parametrize("total", [0, -3, 2.5, True, None])
def test_the_length_of_training_is_known(total: Any) -> None:
    for check in (Constant().check, spec().check, lambda n: learned(init_weights(KEY), total_steps=n)):
        with pytest.raises(StudyError, match=rf"total_steps .* must be a whole number .* got total_steps={total}"):
            check(total)


@pytest.mark.slow
def test_the_old_functions_are_the_new_ones() -> None:
    assert float(warmup_cosine(100)(jnp.int32(5))) == 0.5
    with pytest.raises(ValueError, match="got warmup_steps=100, total_steps=100"):
        warmup_cosine(100, warmup_steps=100)
    kernel = W[None]
    new = spec("adamw", 0.1, schedule=WarmupCosine(), decay=0.5)
    close(run(adamw(0.1, 0.5, 100), 5, kernel, G[None])[0], run(new, 5, kernel, G[None])[0])


# Decay and the order of things


@pytest.mark.parametrize(
    ("name", "kind", "options", "expected"),
    [
        ("sgd", "l2", {}, (0.98004, -1.99501)),
        ("sgd", "l2", {"momentum": 0.9}, (0.94755, -1.98689)),
        ("adam", "l2", {}, (0.95001, -1.95005)),
        ("adamw", "decoupled", {}, (0.94511, -2.03992)),
        ("adam", "decoupled", {}, (0.94511, -2.03992)),
    ],
)
def test_decay_after_five_steps(name: str, kind: Any, options: Any, expected: Any) -> None:
    made = spec(name, decay=0.1, decay_kind=kind, decay_mask=decay_all, options=options)
    close(run(made, 5)[0], expected, atol=1.1e-5)
    # Matrices decay, biases and scales do not, unless told to.
    default = spec(name, decay=0.1, decay_kind=kind, options=options)
    without = spec(name, options=options)
    found = run(default, 5, {"kernel": W[None], "bias": W}, {"kernel": G[None], "bias": G})[0]
    close(found["kernel"][0], expected, atol=1.1e-5)
    close(found["bias"], run(without, 5)[0])


@pytest.mark.slow
def test_first_step_of_adamw() -> None:
    close(run(spec("adamw", decay=0.1, decay_mask=decay_all))[0], (0.989, -2.008))
    # A decay of 0 is a value like others, whatever stands beside it.
    for name in ("adamw", "sgd", "novograd"):
        close(run(spec(name, decay=0.0, decay_mask=decay_all), 3)[0], run(spec(name), 3)[0])
    # With no decay given there is none, whatever optax's default.
    for name in ("adamw", "lion", "adamaxw", "sophia"):
        grads = jnp.zeros(2)
        close(run(spec(name), 3, W, grads, {"value_fn": lambda w: jnp.sum(w**2)})[0], W, rtol=0)


@pytest.mark.slow
def test_decoupled_decay_follows_the_schedule() -> None:
    shape = Piecewise(boundaries=(1,), multipliers=(0.5,))
    for name in ("sgd", "adamw", "muon", "adafactor"):
        made = spec(name, 0.1, decay=0.1, schedule=shape)
        found = run(made, 2, W[None], jnp.zeros((1, 2)))[0]
        close(found[0], W * (1 - 0.01) * (1 - 0.005))


@pytest.mark.slow
def test_clip_keeps_the_direction_and_comes_before_decay() -> None:
    grads = jnp.array([3.0, 4.0])
    close(W - run(spec(rate=1.0, clip_norm=1.0), grads=grads)[0], (0.6, 0.8))
    close(W - run(spec(rate=1.0, clip_norm=2.5), grads=grads)[0], (1.5, 2.0))
    assert (run(spec(clip_norm=5.1), grads=grads)[0] == run(spec(), grads=grads)[0]).all()
    # One parameter at 1 with gradient 10: clip then decay .98951..., decay then clip would be .99049...
    one, ten = jnp.array([[1.0, 0.0]]), jnp.array([[10.0, 0.0]])
    for kind in ("l2", "decoupled"):
        found = run(spec(decay=0.1, decay_kind=kind, clip_norm=1.0), 1, one, ten)[0]
        close(found[0, 0], 1 - 0.01 * (1 + 0.1))


@pytest.mark.slow
def test_noise_has_its_variance_and_its_key() -> None:
    made = spec(rate=1.0, noise=GradientNoise(0.25, 0.5))
    zeros = {"a": jnp.zeros(20_000), "b": jnp.zeros(20_000)}
    optimizer: Any = made.build(10, KEY)
    other: Any = made.build(10, jax.random.key(1))
    state, drawn = optimizer.init(zeros), []
    for step in range(3):
        updates, state = optimizer.update(zeros, state, zeros)
        drawn.append(updates)
        assert float(updates["a"].var()) == pytest.approx(0.25 / (1 + step) ** 0.5, rel=0.05)
        assert float(updates["a"].mean()) == pytest.approx(0, abs=0.02)
    again = optimizer.update(zeros, optimizer.init(zeros), zeros)[0]
    assert (again["a"] == drawn[0]["a"]).all()
    for different in (drawn[0]["b"], drawn[1]["a"], other.update(zeros, other.init(zeros), zeros)[0]["a"]):
        assert abs(np.corrcoef(again["a"], different)[0, 1]) < 0.05
    # The optimizer that is noise has the trial's key as well.
    noisy: list[Any] = [spec("noisy_sgd").build(10, key) for key in (KEY, KEY, jax.random.key(1))]
    first, same, another = (optimizer.update(W, optimizer.init(W), W)[0] for optimizer in noisy)
    close(first, same, rtol=0)
    assert not np.allclose(first, another)


@pytest.mark.slow
def test_noise_is_neither_clipped_nor_shared_by_groups() -> None:
    one = spec(rate=1.0, noise=GradientNoise(1.0), clip_norm=0.001)
    zeros = {"a": jnp.zeros(1000), "b": jnp.zeros(1000)}
    found = run(OptimizerGroups({"a": one, "b": one}, lambda path: path), 1, zeros, zeros)[0]
    assert float(found["a"].std()) == pytest.approx(1, rel=0.1)
    assert abs(np.corrcoef(found["a"], found["b"])[0, 1]) < 0.1


@pytest.mark.slow
def test_accumulated_gradients_are_one_large_batch() -> None:
    grads = jax.random.normal(KEY, (6, 2))
    made = spec("sgd", 0.1, decay=0.1, decay_mask=decay_all, clip_norm=0.9, accumulate_steps=3)
    optimizer, params = made.build(6), W
    large: Any = spec("sgd", 0.1, decay=0.1, decay_mask=decay_all, clip_norm=0.9).build(2)
    state = optimizer.init(W)
    expected, expected_state = W, large.init(W)
    for step, grad in enumerate(grads):
        before = params
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        if step % 3 == 2:
            updates, expected_state = large.update(grads[step - 2 : step + 1].mean(0), expected_state, expected)
            expected = optax.apply_updates(expected, updates)
            close(params, expected)
        else:
            close(params, before, rtol=0)


@pytest.mark.slow
def test_accumulated_gradients_are_weighted_by_their_examples() -> None:
    # Ten examples in batches of 8 and 2: the gradient of the whole is 8/10 of one and 2/10 of the other.
    grads, weights = jnp.array([[1.0, -2.0], [3.0, 0.5]]), jnp.array([8.0, 2.0])
    made: Any = spec("sgd", 0.1, accumulate_steps=2).build(4)
    polyak: Any = OptimizerSpec("polyak_sgd", options={"max_learning_rate": 2.0}, accumulate_steps=2).build(4)
    state, its_state = made.init(W), polyak.init(W)
    updates, its_updates = W, W
    for _ in range(2):  # also the second time: nothing is left of the first
        for grad, weight, value in zip(grads, weights, (6.0, 1.0), strict=True):
            updates, state = made.update(grad, state, W, weight=weight)
            extra = {"value": jnp.float32(value), "weight": weight}
            its_updates, its_state = polyak.update(grad, its_state, W, **extra)
        mean = np.array([0.8 * 1 + 0.2 * 3, 0.8 * -2 + 0.2 * 0.5])
        close(updates, -0.1 * mean)
        # Polyak's step is the loss over the squared norm, here of the mean loss 5: min(5 / (1.96 + 2.25), 2).
        close(its_updates, -5.0 / (mean**2).sum() * mean)
    updates, state = made.update(grads[0], made.init(W), W, weight=jnp.float32(0))
    updates, state = made.update(grads[1], state, W, weight=jnp.float32(2))
    close(updates, -0.1 * grads[1])
    updates, _ = made.update(grads[0], made.update(grads[0], made.init(W), W, weight=jnp.float32(0))[1], W, weight=0.0)
    close(updates, 0.0)


@pytest.mark.slow
def test_gradients_accumulated_by_an_earlier_version_count_as_they_did() -> None:
    made: Any = spec("sgd", 0.1, accumulate_steps=4).build(8)
    grads = jax.random.normal(KEY, (4, 2))
    state, updates = made.init(W), W
    # Two gradients of four, as means, beside a weight that they did not have.
    old = state._replace(made=jnp.int32(2), grads=(grads[0] + grads[1]) / 4, accumulated_weight=jnp.float32(-1))
    for grad in grads[2:]:
        updates, old = made.update(grad, old, W, weight=jnp.float32(16))
    close(updates, -0.1 * grads.mean(0))
    assert float(old.accumulated_weight) == 0


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (spec(clip_norm=2.0), (2.0, 1.0)),
        (spec(clip_norm=9.0), (5.0, 1.0)),
        (spec(), None),
        (optax.sgd(0.1), None),
        (spec(clip_norm=2.0, accumulate_steps=2), (0.0, 0.0)),  # only the mean of two is clipped
        (OptimizerGroups({"a": spec(clip_norm=2.0), "b": spec()}, lambda path: path), (math.sqrt(4 + 16), 1.0)),
        (OptimizerGroups({"a": spec(clip_norm=2.0), "b": None}, lambda path: path), (2.0, 1.0)),
        (OptimizerGroups({"a": spec(clip_norm=2.0, accumulate_steps=2), "b": spec()}, lambda path: path), None),
    ],
)
def test_the_norm_after_clipping(made: Any, expected: Any) -> None:
    grads = {"a": jnp.array([0.0, 3.0]), "b": jnp.array([4.0])}
    state = as_optimizer(made, 8).init(grads)
    found = clipped_norm(made, grads, state, jnp.float32(1))
    assert (None if found is None else tuple(map(float, found))) == (expected and pytest.approx(expected))


def test_the_norm_after_clipping_is_that_of_the_step() -> None:
    made, one, two = spec(rate=1.0, clip_norm=2.0, accumulate_steps=2), jnp.array([0.0, 3.0]), jnp.array([8.0, 3.0])
    optimizer: Any = made.build(8)
    _, state = optimizer.update(one, optimizer.init(W), W, weight=jnp.float32(3))
    norm, count = map(float, clipped_norm(made, two, state, jnp.float32(1)) or ())
    updates, _ = optimizer.update(two, state, W, weight=jnp.float32(1))
    assert (norm, count) == (pytest.approx(2.0), 1.0)
    assert float(optax.tree.norm(updates)) == pytest.approx(norm)
    small = spec(rate=1.0, clip_norm=50.0, accumulate_steps=2)
    assert float((clipped_norm(small, two, state, jnp.float32(1)) or (0,))[0]) == pytest.approx(math.hypot(2.0, 3.0))


# What uses the loss


@pytest.mark.slow
def test_the_loss_reaches_what_uses_it() -> None:
    grads, extra = jnp.array([1.0, -2.0]), {"value": jnp.float32(6)}
    options: Any = {"max_learning_rate": 2.0}
    settings: Any
    for settings in ({}, {"clip_norm": 10.0}, {"skip_nonfinite": True}, {"accumulate_steps": 1, "clip_norm": 9.0}):
        made = OptimizerSpec("polyak_sgd", options=options, **settings)
        close(run(made, 1, jnp.zeros(2), grads, extra)[0], (-1.2, 2.4))
    # Over two gradients the loss is their mean, not the last.
    twice: Any = OptimizerSpec("polyak_sgd", options=options, accumulate_steps=2, clip_norm=10.0).build(2)
    state = twice.init(W)
    _, state = twice.update(grads, state, W, value=jnp.float32(8))
    close(twice.update(grads, state, W, value=jnp.float32(4))[0], (-1.2, 2.4))
    chained = optax.chain(optax.clip_by_global_norm(10.0), optax.polyak_sgd(**options))
    close(run(chained, 1, jnp.zeros(2), grads, extra)[0], (-1.2, 2.4))
    grouped = OptimizerGroups({"a": OptimizerSpec("polyak_sgd", options=options)}, lambda path: "a")
    close(run(grouped, 1, jnp.zeros(2), grads, extra)[0], (-1.2, 2.4))


def test_plateau_scales_the_whole_step() -> None:
    made = spec(rate=1.0, plateau={"patience": 2, "factor": 0.5}, decay=0.1, decay_mask=decay_all)
    optimizer: Any = made.build(10)
    state, found = optimizer.init(W), []
    for _ in range(5):
        updates, state = optimizer.update(G, state, W, value=jnp.float32(1))
        found.append(updates)
    full = -(G + 0.1 * W)
    close(jnp.stack(found), jnp.array([1, 1, 0.5, 0.5, 0.25])[:, None] * full[None])


@pytest.mark.slow
def test_lbfgs_searches_along_its_line() -> None:
    def loss(w: Any) -> Any:
        return jnp.sum(jnp.array([1.0, 30.0]) * (w - 1.0) ** 2)

    optimizer: Any = OptimizerSpec("lbfgs", skip_nonfinite=True).build(9)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return optax.apply_updates(params, updates), state

    params, state = W, optimizer.init(W)
    for _ in range(6):
        params, state = step(params, state)
    assert float(loss(params)) < 1e-6
    assert skipped_steps(state) == 0


@pytest.mark.parametrize("name", ["schedule_free_sgd", "schedule_free_adamw"])
def test_schedule_free_is_evaluated_at_its_average(name: str) -> None:
    params, state = run(spec(name, 0.1, skip_nonfinite=True), 5)
    found = evaluated_params(state, params)
    inner: Any = state.inner[0]
    close(found, lenient_call(optax.contrib.schedule_free_eval_params, inner, params))
    assert not np.allclose(found, params)
    # Of several optimizers each has the parameters of its name, and what has none stays as it is.
    several = evaluated_params({"one": state, "other": run(spec(), 5)[1]}, {"one": params, "other": W, "free": W})
    close(several["one"], found)
    assert (several["other"] is W, several["free"] is W) == (True, True)
    params, state = run(spec(), 5)
    assert evaluated_params(state, params) is params


# Every optimizer


def test_the_table_is_what_optax_exports() -> None:
    aliases = {name for name in dir(alias) if not name.startswith("_") and hasattr(optax, name)}
    aliases = {name for name in aliases if callable(getattr(optax, name)) and "learning_rate" in str(_signature(name))}
    contrib = {name for name, made in inspect.getmembers(optax.contrib, inspect.isfunction)}
    contrib = {name for name in contrib if not name.startswith("scale_by_")}
    assert aliases | contrib == set(OPTIMIZERS) | set(REFUSED)
    assert not set(OPTIMIZERS) & set(REFUSED)
    # Where decay is added here, optax adds none.
    for name in set(OPTIMIZERS) - set(OWN_DECAY):
        found = [made.default for made in arguments_of(name).values() if "weight_decay" in made.name]
        assert not any(value for value in found if value is not True), name  # the mask of lars is True
    assert len(set(OPTIMIZERS)) == len(OPTIMIZERS)


def _signature(name: str) -> Any:
    return inspect.signature(getattr(optax, name))


TARGET = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([1.0, -1.0])}


def distance(params: Any) -> Any:
    return optax.tree.norm(optax.tree.sub(params, TARGET), squared=True)


_QUICK = ("adam", "adamw", "lion", "muon", "sgd")  # those used most; the others are in the slow part
_OF_A_KIND = ("lbfgs", *WHOLE_ARRAY, *SCHEDULE_FREE)  # along a line, by whole arrays, and evaluated at an average


def marks_of(name: str) -> list[Any]:
    return [] if name in _QUICK else [pytest.mark.slow] + [pytest.mark.long] * (name not in _OF_A_KIND)


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in OPTIMIZERS])
def test_every_optimizer_lowers_a_quadratic_with_its_numbers_traced(name: str) -> None:
    rate = arguments_of(name).get("learning_rate")
    peak = None if rate is None or name == "lbfgs" else rate.default if rate.default not in (None, rate.empty) else 0.05
    hidden = ("learning_rate", "weight_decay", "adam_weight_decay")
    options = {
        key: jnp.full(2, argument.default)
        for key, argument in arguments_of(name).items()
        if isinstance(argument.default, float) and key not in hidden
    }

    @jax.jit
    @jax.vmap
    def train(scale: Any, options: Any) -> Any:
        optimizer: Any = spec(name, None if peak is None else peak * scale, options=options).build(3, KEY)

        def step(carry: Any, _: None) -> Any:
            value, grads = jax.value_and_grad(distance)(carry[0])
            extra = {"value": value, "grad": grads, "value_fn": distance}
            updates, state = optimizer.update(grads, carry[1], carry[0], **extra)
            return (optax.apply_updates(carry[0], updates), state), value

        first = jax.tree.map(jnp.zeros_like, TARGET)
        return distance(jax.lax.scan(step, (first, optimizer.init(first)), None, length=3)[0][0])

    losses = train(jnp.array([1.0, 0.5]), options)
    # The distance of zeros is 1 + 4 + 0.25 + 9 + 1 + 1. Arrays of zeros have no norm, the length of fromage's step.
    assert (losses <= 16.25).all() if name == "fromage" else (losses < 16.25).all()
    train(jnp.array([0.7, 0.3]), options)
    assert programs(train) == 1


@pytest.mark.slow
def test_every_setting_is_traced_in_one_program() -> None:
    def build(rate: Any, decay: Any, norm: Any, eta: Any, momentum: Any) -> OptimizerSpec:
        settings: Any = {"decay": decay, "decay_mask": decay_all, "clip_norm": norm, "noise": GradientNoise(eta, eta)}
        options = {"momentum": momentum}
        return spec("sgd", rate, options=options, accumulate_steps=2, skip_nonfinite=True, **settings)

    def train(dtype: Any, *numbers: Any) -> Any:
        # A carry keeps its type though a traced number is not weak.
        optimizer: Any = build(*numbers).build(8, KEY)

        def step(carry: Any, _: None) -> Any:
            updates, state = optimizer.update(G.astype(dtype), carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        params = W.astype(dtype)
        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=8)[0][0]

    traced = jax.jit(train, static_argnums=0)
    rows = [(0.1, 0.1, 0.2, 0.01, 0.9), (0.2, 0.0, 5.0, 0.5, 0.5)]
    for row in rows:
        close(traced(jnp.float32, *map(jnp.float32, row)), run(build(*row), 8, total=8)[0])
    assert programs(traced) == 1
    lanes = jax.vmap(lambda *row: train(jnp.float32, *row))(*map(jnp.array, zip(*rows, strict=True)))
    close(lanes, jnp.stack([run(build(*row), 8, total=8)[0] for row in rows]))
    half = traced(jnp.bfloat16, *map(jnp.float32, rows[0]))
    assert half.dtype == jnp.bfloat16
    close(half.astype(jnp.float32), run(build(*rows[0]), 8, total=8)[0], atol=0.1)


# What is not finite


@pytest.mark.parametrize("bad", ["gradient", "loss", "result"])
def test_a_lane_that_is_not_finite_is_skipped_and_counted(bad: str) -> None:
    made = spec("adam", 0.1, skip_nonfinite=True, decay=0.1, decay_mask=decay_all)
    made = spec("sgd", 1e38, skip_nonfinite=True, options={"momentum": 0.5}) if bad == "result" else made
    optimizer: Any = made.build(9)

    @jax.jit
    @jax.vmap
    def step(params: Any, state: Any, grads: Any, value: Any) -> Any:
        updates, state = optimizer.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    params = jnp.stack([W, 2 * W])
    state, grads, values = jax.vmap(optimizer.init)(params), jnp.stack([G, G]), jnp.ones(2)
    params, state = step(params, state, grads * (1e-38 if bad == "result" else 1), values)
    spoiled = {"gradient": jnp.array([1.0, jnp.nan]), "loss": jnp.ones(2), "result": jnp.array([1e-38, 100.0])}[bad]
    bad_values = jnp.array([1, jnp.inf]) if bad == "loss" else values
    healthy = step(params, state, grads * (1e-38 if bad == "result" else 1), values)
    after = step(params, state, grads * spoiled[:, None], bad_values)
    assert (after[0][0] == healthy[0][0]).all()
    for new, good, old in zip(*map(jax.tree.leaves, (after[1].inner, healthy[1].inner, state.inner)), strict=True):
        assert (new[0] == good[0]).all()
        assert (new[1] == old[1]).all()
    assert (after[0][1] == params[1]).all()
    assert skipped_steps(after[1]).tolist() == [0, 1]  # pyright: ignore[reportOptionalMemberAccess]
    assert skipped_steps(run(spec())[1]) is None


def test_a_gradient_that_is_not_finite_counts_though_its_sign_is() -> None:
    params, state = run(spec("sign_sgd", skip_nonfinite=True), 2, grads=G * jnp.inf)
    close(params, W, rtol=0)
    assert skipped_steps(state) == 2


def test_a_traced_number_does_not_widen_what_it_touches() -> None:
    half, momentum = W.astype(jnp.bfloat16), jnp.float32(0.9)
    made = spec(rate=jnp.float32(0.1), options={"momentum": momentum}).build(9)
    state = made.init(half)
    updates, after = made.update(half, state, half)
    dtypes = [[leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in ((half, state), (updates, after))]
    assert dtypes[0] == dtypes[1]


# Groups


PARAMS = {"encoder": {"Dense_0": {"kernel": W[None], "bias": W}}, "head": {"kernel": W[None]}, "embed": W}


def label(path: str) -> str:
    return {"encoder/Dense_0/kernel": "slow", "encoder/Dense_0/bias": "slow", "head/kernel": "fast"}.get(path, "still")


def test_each_group_is_its_solo_optimizer() -> None:
    slow, fast = spec("adamw", 0.01, decay=0.1, clip_norm=0.2), spec("sgd", 0.5, options={"momentum": 0.9})
    grads = jax.tree.map(lambda leaf: jnp.broadcast_to(G, leaf.shape), PARAMS)
    groups = OptimizerGroups({"slow": slow, "fast": fast, "still": None}, label)
    groups.check(100)
    found = run(groups, 4, PARAMS, grads)[0]
    close(found["embed"], W, rtol=0)
    close(found["head"]["kernel"], run(fast, 4, PARAMS["head"], grads["head"])[0]["kernel"])
    solo = run(slow, 4, PARAMS["encoder"], grads["encoder"])[0]
    jax.tree.map(close, found["encoder"], solo)


def test_groups_skip_a_step_as_a_whole() -> None:
    one = spec(skip_nonfinite=True)
    grads = {"a": G * jnp.nan, "b": G}
    found, state = run(OptimizerGroups({"a": one, "b": one}, lambda path: path), 2, {"a": W, "b": W}, grads)
    assert (found["b"] == W).all()
    assert skipped_steps(state) == 2


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "groups of OptimizerGroups train nothing"),
        ({"a": None}, "groups of OptimizerGroups train nothing"),
        ({"a": spec(), "b": spec(skip_nonfinite=True)}, "must all have the same skip_nonfinite"),
        ({"a": "sgd"}, "the group 'a' must be an OptimizerSpec, or None to freeze it: got 'sgd'"),
        ({"a": spec("lbfgs", None)}, "lbfgs cannot be used for a group of parameters: got it for group 'a'"),
        ({"a": spec("sdg")}, "must name an optimizer of optax: got 'sdg'; did you mean 'sgd'"),
    ],
)
def test_groups_that_cannot_be(groups: Any, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        OptimizerGroups(groups, lambda path: "a").check(10)


def test_a_label_names_a_group() -> None:
    made = OptimizerGroups({"slow": spec(), "still": None}, label).build(10)
    with pytest.raises(
        StudyError, match=r"one of the groups \['slow', 'still'\]: got 'fast' for the array 'head/kernel'"
    ):
        made.init(PARAMS)


def test_a_group_that_is_not_frozen_has_an_array() -> None:
    def misspelled(path: str) -> str:
        return "encodr" if path.startswith("encodr") else "rest"

    message = (
        "label returns the group 'encodr' for no array: remove the group, or set it to None; did you mean 'encoder'?"
    )
    with pytest.raises(StudyError, match=f"^{re.escape(message)}$"):
        OptimizerGroups({"encodr": spec(), "rest": spec()}, misspelled).build(10).init(PARAMS)
    with pytest.raises(StudyError, match=r"the group 'xyz' for no array: remove the group, or set it to None$"):
        OptimizerGroups({"xyz": spec(), "rest": spec()}, lambda path: "rest").build(10).init(PARAMS)
    OptimizerGroups({"encodr": None, "rest": spec()}, misspelled).build(10).init(PARAMS)
