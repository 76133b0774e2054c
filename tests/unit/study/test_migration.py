"""How a recorded space becomes another one: the conditions under which hyperparameters exist."""

import pytest

from tuner import Space, Study, Trial, choice, uniform
from tuner.errors import UsageError
from tuner.study.migration import plan_space


class Adam(Space):
    beta: float = uniform(0.8, 0.99)


class SGD(Space):
    momentum: float = uniform(0.0, 0.9)


class SGDM(Space):
    momentum: float = uniform(0.0, 0.9)


class HParams(Space):
    optimizer: Adam | SGD | SGDM = choice(Adam, SGD, SGDM)


def train(hparams: HParams, trial: Trial) -> float:
    return 0.0


STUDY = Study(name="one", space=HParams, train=train, objective="loss", direction="minimize", trials=1)
OPTIONS = {
    "optimizer": "choice('Adam', 'SGD')",
    "optimizer.beta": "uniform(0.8, 0.99) if optimizer=Adam",
    "optimizer.momentum": "uniform(0.0, 0.9) if optimizer=SGD",
}


def test_a_condition_is_added_after_the_others() -> None:
    changes = plan_space(OPTIONS, STUDY, {}).changes
    assert [(change.name, change.what) for change in changes] == [
        ("optimizer", "added choices 'SGDM'"),
        ("optimizer.momentum", "condition"),
    ]


@pytest.mark.parametrize(
    "condition", ["", " if optimizer=S", " if optimizer=SGD or optimizer=SGD", " if optimizer=SGDM"]
)
def test_conditions_are_compared_as_a_whole(condition: str) -> None:
    recorded = {**OPTIONS, "optimizer.momentum": f"uniform(0.0, 0.9){condition}"}
    with pytest.raises(UsageError, match=r"it must exist under the same conditions$"):
        plan_space(recorded, STUDY, {})
