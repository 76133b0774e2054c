"""What an optimizer's settings must be: each mistake is one line that says what to do."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from tuner.errors import StudyError
from tuner.training.optim.build import OptimizerSpec, as_optimizer
from tuner.training.optim.named import REFUSED
from tuner.training.optim.rules import decay_all
from tuner.training.optim.schedules import Constant, WarmupCosine
from tuner.training.optim.transforms import GradientNoise


def spec(name: str = "sgd", rate: Any = 0.01, **settings: Any) -> OptimizerSpec:
    return OptimizerSpec(name, rate, **settings)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_another_interface_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(StudyError, match=f"'{name}' cannot be used as the optimizer: {REFUSED[name][:9]}"):
        spec(name).check(10)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (spec("lyon"), "must name an optimizer of optax: got 'lyon'; did you mean 'lion'"),
        (spec(options={"momentun": 0.9}), "sgd has no option 'momentun'; did you mean 'momentum'"),
        (spec("adamw", options={"weight_decay": 0.1}), "'weight_decay' is not an option: got 0.1 .adamw.; set decay"),
        (spec("adafactor", options={"weight_decay_rate": 0.1}), "'weight_decay_rate' is not an option.*set decay"),
        (spec("muon", options={"adam_weight_decay": 0.1}), "'adam_weight_decay' is not an option.*set decay"),
        (spec("adamw", options={"mask": None}), "'mask' is not an option.*set decay_mask"),
        (spec("noisy_sgd", options={"key": 1}), "'key' is not an option.*pass the trial's key"),
        (spec(options={"learning_rate": 1.0}), "'learning_rate' is not an option"),
        (spec("adam", options={"b1": 1.0}), "adam's b1 must be at least 0 and below 1: got adam's b1=1.0"),
        (
            spec("schedule_free_sgd", options={"b1": 0.0}),
            "schedule_free_sgd's b1 must be above 0 and below 1: got .*b1=0.0; evaluation divides by it",
        ),
        (spec("schedule_free_adamw", options={"b1": None}), "schedule_free_adamw's b1 must be above 0 and below 1"),
        (spec("adam", options={"eps": "small"}), "adam's eps must be a finite number: got adam's eps='small'"),
        (
            spec("muon", options={"ns_coeffs": "odd"}),
            "optax's muon does not accept the options .*'odd'.*: Unknown ns_coeff",
        ),
        (spec(rate=None), "sgd needs a learning_rate: got None"),
        (spec(rate=-0.1), "learning_rate must be above 0: got learning_rate=-0.1"),
        (spec(rate=float("inf")), "learning_rate must be above 0: got learning_rate=inf"),
        (spec(rate=True), "learning_rate must be above 0: got learning_rate=True"),
        (spec(rate=jnp.ones(3)), "learning_rate must be above 0"),
        (spec("polyak_sgd", 0.1), "polyak_sgd has no learning_rate: got 0.1; see its options"),
        (spec("polyak_sgd", None, schedule=WarmupCosine()), "a schedule needs a learning_rate: got None"),
        (spec("rprop", schedule=WarmupCosine()), "rprop cannot have a schedule.*only the size of the first step"),
        (
            spec("schedule_free_sgd", schedule=Constant(warmup_steps=2)),
            "cannot have a schedule.*set the option warmup_steps",
        ),
        (spec(schedule=optax.constant_schedule(1)), "schedule must be a Schedule: got .*; use Constant"),
        (spec(decay=-0.1), "decay must be at least 0: got decay=-0.1"),
        (spec(decay=0.1, decay_kind="L2"), "decay_kind must be 'decoupled' or 'l2': got 'L2'"),
        (spec("adamw", decay=0.1, decay_kind="l2"), "adamw always decays weights decoupled.*; use 'adam'"),
        (spec("schedule_free_sgd", decay_kind="l2"), "always decays weights decoupled.*; use 'sgd'"),
        (spec("lion", decay_kind="l2"), "lion always decays weights decoupled.*; use 'adam'"),
        (spec(decay_mask=decay_all), "decay_mask has no effect without decay: got decay=None"),
        (spec(decay=0.1, decay_mask={"a": True}), "decay_mask must be a function of the parameters"),
        (spec("novograd", decay=0.1), "novograd decays every array, so decay_mask must be decay_all: got None"),
        (spec("madgrad", decay=0.1), "madgrad would undo decoupled decay in its next step: got decay_kind='decoupled'"),
        (spec("polyak_sgd", None, decay=0.1), "decoupled decay needs a learning_rate.*set learning_rate or"),
        (spec(clip_norm=0), "clip_norm must be above 0: got clip_norm=0; None disables clipping"),
        (spec(skip_nonfinite="yes"), "skip_nonfinite must be True or False: got 'yes'"),
        (spec(skip_nonfinite=1), "skip_nonfinite must be True or False: got 1"),
        (spec(noise=0.1), "noise must be a GradientNoise or None: got 0.1"),
        (spec(noise=GradientNoise(-1.0)), "noise.eta must be at least 0"),
        (spec(noise=GradientNoise(1.0, -1.0)), "noise.gamma must be at least 0"),
        (spec("noisy_sgd", noise=GradientNoise(1.0)), "noise is set twice"),
        (spec(accumulate_steps=0), "from 1 to total_steps: got accumulate_steps=0, total_steps=10"),
        (spec(accumulate_steps=11), "from 1 to total_steps: got accumulate_steps=11, total_steps=10"),
        (spec(accumulate_steps=5, schedule=Constant(warmup_steps=2)), "got warmup_steps=2, total_steps=2"),
        (
            spec("lbfgs", None, clip_norm=1.0, accumulate_steps=2),
            "lbfgs cannot be used with clip_norm, accumulate_steps",
        ),
        (spec(plateau={"patients": 1}), "reduce_on_plateau has no argument 'patients' .*; did you mean 'patience'"),
        (spec(plateau={"patience": -1}), "plateau's patience must be at least 0"),
        (spec(plateau={"factor": 2.0}), "reduce_on_plateau does not accept plateau=.*Factor must be"),
        (spec("cocob", 1.0, plateau={}), "plateau cannot be used with cocob"),
    ],
)
def test_what_cannot_work_is_refused_before_training(made: Any, message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        made.check(10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("marks", "found"),
    [
        ({"a": True}, "got no boolean for 'b/kernel'"),
        ({"a": True, "b": {}}, "got no boolean for 'b/kernel'"),
        ({"a": True, "b": {"kernal": True}}, "got no boolean for 'b/kernel'"),  # codespell:ignore kernal
        ({"a": True, "b": True, "c": True}, "got a boolean for 'c', which is not a parameter"),
        ({"a": {"x": True}, "b": True}, "got no boolean for 'a'"),
        ([True, True], "got no boolean for 'a'"),
        (None, "got no boolean for 'a'"),
    ],
)
@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_a_mask_of_another_tree_is_refused_in_one_line(name: str, marks: Any, found: str) -> None:
    params = {"a": jnp.ones(2), "b": {"kernel": jnp.ones((2, 2))}}
    for kind in ("decoupled", "l2") if name == "sgd" else ("decoupled",):
        made = spec(name, decay=0.1, decay_kind=kind, decay_mask=lambda _: marks).build(10)
        with pytest.raises(StudyError, match=f"a tree of booleans like the parameters: {found}") as e:
            made.init(params)
        assert "\n" not in str(e.value)


def test_a_mark_may_stand_for_all_below_it() -> None:
    params = {"a": jnp.ones(2), "b": {"kernel": jnp.ones((2, 2))}}
    optimizer: Any = spec(decay=0.1, decay_mask=lambda _: {"a": False, "b": True}).build(10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert (updates["a"] == 0).all()
    assert (updates["b"]["kernel"] < 0).all()


def test_refusals_that_are_not_in_a_spec() -> None:
    for made in (spec(noise=GradientNoise(1.0)), spec("sophia"), spec("noisy_sgd")):
        with pytest.raises(StudyError, match="needs the trial's key: got key=None"):
            made.build(10)
    with pytest.raises(StudyError, match=r"an optimizer must be .* GradientTransformation: got 'adam'"):
        as_optimizer("adam", 10)
    with pytest.raises(StudyError, match="plateau's factor must be a plain number"):
        jax.jit(lambda factor: spec(plateau={"factor": factor}).check(10))(0.5)
