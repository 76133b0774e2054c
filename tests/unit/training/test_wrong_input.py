"""What a user may get wrong about a single run: one line that says what must hold, what was found, what to do."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tuner.errors import StudyError
from tuner.training import ArrayDataset, Splits, TrainerModule

ALL = ArrayDataset(inputs=np.eye(8, 2, dtype=np.float32), labels=np.arange(8, dtype=np.float32))
SPLITS = ALL.split(0.25, 0)
H = {"learning_rate": 0.1}


class Line(TrainerModule):
    def init_model(self, hparams: Any) -> Any:
        return lambda key, x: jnp.zeros(x.shape[-1]), lambda params, x: x @ params

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (outputs - batch["labels"]) ** 2, {}

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return optax.sgd(0.1)


LINE = Line()


def changed(**attributes: Any) -> Line:
    """A trainer with other attributes or methods."""
    return type("Changed", (Line,), attributes)()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1: got 0"),
        ({"epochs": 2.5}, "epochs must be a whole number of at least 1: got 2.5"),
        ({"epochs": True}, "epochs must be a whole number of at least 1: got True"),
        ({"epochs": "3"}, "epochs must be a whole number of at least 1: got '3'"),
        ({"seed": -1}, r"seed must be a whole number in \[0, 2\^31\): got -1"),
        ({"seed": 2**31}, r"seed must be a whole number in \[0, 2\^31\): got 2147483648"),
        ({"seed": 1.5}, "seed must be .*: got 1.5"),
        ({"seed": True}, "seed must be .*: got True"),
        ({"direction": "max"}, "direction must be 'minimize' or 'maximize': got 'max'"),
        ({"checkpoints": "folder"}, "checkpoints must be a tuner.training.Checkpoints or None: got 'folder'"),
        ({"layout": []}, r"layout must be a tuner.training.Layout or None: got \[\]"),
        ({"profile": True}, "profile must be a tuner.training.Profile or None: got True"),
        ({"stop": True}, "stop must be a function that returns whether to stop: got True"),
        ({"splits": ALL}, "data must be a tuner.training.Splits .*: got ArrayDataset; see ArrayDataset.split"),
        ({"splits": (ALL, ALL)}, "data must be a tuner.training.Splits .*: got tuple"),
        ({"hparams": {"optimizer": "adam"}}, r"must be a Space or a pytree of numbers: got 'adam' \(optimizer\); use"),
        (
            {"hparams": SimpleNamespace(rate=1)},
            r"a pytree of numbers: got namespace\(rate=1\); use",
        ),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    given = {"hparams": H, "splits": SPLITS, "epochs": 2, "seed": 0, **options}
    with pytest.raises(StudyError, match=message) as caught:
        LINE.train_model(given.pop("hparams"), given.pop("splits"), **given)
    assert "\n" not in str(caught.value)


def noted(values: Any) -> Any:
    return lambda self, outputs, batch, hparams: (outputs, values(outputs))


@dataclass
class Equal(Line):
    size: int = 1


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (Equal(), r"must be hashable, but Equal is not: .*@dataclass\(eq=False\)"),
        (changed(loop="scna"), "loop must be 'auto', 'scan' or 'step': got 'scna'"),
        (changed(precision="bf16"), "precision must be 'float32', 'bfloat16' or 'float16': got 'bf16'"),
        (changed(validate_every=0), "validate_every must be a whole number of at least 1: got 0"),
        (changed(validate_every=1.5), "validate_every must be a whole number of at least 1: got 1.5"),
        (changed(ema_decay=lambda self, hparams: 1.5), "ema_decay must be at least 0 and at most 1: got ema_decay=1.5"),
        (changed(loss=lambda self, outputs, batch, hparams: outputs), "loss must return the losses and a dict of"),
        (changed(loss=lambda self, outputs, batch, hparams: None), "a dict of metrics: got NoneType"),
        (
            changed(loss=noted(lambda outputs: [outputs])),
            "must return the losses and a dict of metrics: got tuple",
        ),
        (changed(loss=noted(lambda outputs: {"mean": outputs.mean()})), r"not a mean: 'mean' has shape \(\) for 6"),
        (
            changed(augment=lambda self, batch, hparams, key: {"inputs": batch["inputs"]}),
            "augment must return all",
        ),
        (
            changed(augment=lambda self, batch, hparams, key: jax.tree.map(lambda leaf: leaf[:2], batch)),
            r"augment must not change the number of examples: got \(2,\) for \(6,\)",
        ),
    ],
)
def test_trainers_that_cannot_be(trainer: Line, message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        next(trainer.train_model(H, SPLITS, epochs=2, seed=0))
    assert "\n" not in str(caught.value)


def test_arrays_of_other_names_are_told() -> None:
    other = ArrayDataset(x=np.eye(4), y=np.arange(4)).split(0.25, 0)
    with pytest.raises(StudyError, match=r"no array 'inputs', only weight, x, y: .* define inputs\(batch\) in Line"):
        next(LINE.train_model(H, other, epochs=1, seed=0))


class Default(Line):
    init_optimizer = TrainerModule.init_optimizer


@pytest.mark.slow
def test_the_default_optimizer_takes_a_dict_and_misses_a_rate() -> None:
    assert len(list(Default().train_model(H, SPLITS, epochs=10, seed=0))) == 10
    with pytest.raises(StudyError, match="needs a hyperparameter 'learning_rate': dict has none; add it, or"):
        Default().train_model({"rate": 0.1}, SPLITS, epochs=10, seed=0)


@pytest.mark.slow
def test_a_penalty_may_be_a_number() -> None:
    trainer = changed(penalty=lambda self, params, hparams: 2)
    assert next(trainer.train_model(H, SPLITS, epochs=1, seed=0)).metrics["train_penalty"] == 2


def test_views_share_their_arrays_on_the_devices() -> None:
    from tuner.training import Layout
    from tuner.training.data.feed import Feed

    layout = Layout(jax.devices()[:2])
    feeds = [Feed(fold.train, layout, 2).resident(None).arrays["inputs"] for fold in ALL.folds(3, 0)]  # pyright: ignore[reportArgumentType]
    assert feeds[0] is feeds[1] is feeds[2]
    assert Splits(ALL.take([0, 1]), ALL.take([2])).train.rows.shape == (2,)
