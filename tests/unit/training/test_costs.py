"""What a model costs, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn

import tuner
from tuner.errors import StudyError
from tuner.study.costs import check_measure
from tuner.training import ArrayDataset, TrainerModule
from tuner.training.loop import costs as costs_
from tuner.training.loop.costs import check_costs, costs

INPUTS, CLASSES = 12, 5


class HParams(tuner.Space):
    width: int = tuner.choice(32, 64)
    learning_rate: float = tuner.log_uniform(1e-3, 1e-1)


class Layers(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(CLASSES)(nn.relu(nn.Dense(self.width)(x)))


class Trainer(TrainerModule[HParams]):
    def init_model(self, hparams: HParams) -> nn.Module:
        return Layers(hparams.width)

    def inputs(self, batch: Any) -> Any:
        return batch["x"]

    def loss(self, outputs: Any, batch: Any, hparams: HParams) -> Any:
        return ((outputs - 1.0) ** 2).mean(-1), {}


def splits() -> Any:
    x = np.random.default_rng(0).normal(size=(64, INPUTS)).astype(np.float32)
    return ArrayDataset(x=x).split(0.25, seed=0)


def by_hand(width: int) -> tuple[int, int]:
    """Return parameters and the multiplications and additions of both matrix products."""
    parameters = INPUTS * width + width + width * CLASSES + CLASSES
    return parameters, 2 * INPUTS * width + 2 * width * CLASSES


@pytest.mark.parametrize("width", [32, 64])
def test_parameters_and_operations_are_those_worked_out_by_hand(width: int) -> None:
    found = costs(Trainer(), HParams(width=width, learning_rate=0.01), splits(), ["parameters", "flops"])
    parameters, products = by_hand(width)
    assert found["parameters"] == parameters
    # Besides the products: two additions of biases and the ReLU.
    assert products <= found["flops"] <= products + 3 * (width + CLASSES)


def test_latency_is_the_median_time_and_measured_once_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    costs_._known.clear()
    runs: list[float] = []
    perf_counter = costs_.time.perf_counter
    clock = iter(range(10**6))

    def ticks() -> float:
        """Each run takes 1 ms, but every third one 9 ms."""
        at = next(clock)
        runs.append(at)
        return (at // 2) * 1.0 + (0.009 if at % 6 == 5 else 0.001) * (at % 2)

    monkeypatch.setattr(costs_, "time", type("time", (), {"perf_counter": staticmethod(ticks)}))
    assert perf_counter is not ticks
    given = HParams(width=32, learning_rate=0.01)
    found = costs(Trainer(), given, splits(), ["latency_ms"])
    assert found == {"latency_ms": pytest.approx(1.0)}
    count = len(runs)
    other = HParams(width=32, learning_rate=0.1)
    assert costs(Trainer(), other, splits(), ["latency_ms"]) == found, "a traced value changes no shape"
    assert len(runs) == count
    costs(Trainer(), HParams(width=64, learning_rate=0.1), splits(), ["latency_ms"])
    assert len(runs) == 2 * count


@pytest.mark.slow
def test_each_report_has_the_costs() -> None:
    given = HParams(width=32, learning_rate=0.01)
    measured = costs(Trainer(), given, splits(), ["parameters"])
    training = Trainer().train_model(given, splits(), epochs=2, seed=0, objective="parameters", costs=measured)
    assert [report.metrics["parameters"] for report in training] == [by_hand(32)[0]] * 2


class Pairs(Trainer):
    """Predicts only from several examples."""

    def inputs(self, batch: Any) -> Any:
        if len(batch["x"]) == 1:
            raise ValueError("two examples are needed")
        return batch["x"]


def test_a_trainer_that_cannot_predict_one_example_is_refused_before_anything_is_trained() -> None:
    given = HParams(width=32, learning_rate=0.01)
    check_costs(Trainer(), given, splits(), ["flops"])
    with pytest.raises(StudyError, match="needs a trainer that predicts one example: Pairs does not: two"):
        check_costs(Pairs(), given, splits(), ["flops"])


@pytest.mark.parametrize(
    ("measure", "found"),
    [("flops", "'flops'"), (["flop"], "'flop'; did you mean 'flops'"), (["flops", "flops"], r"\['flops', 'flops'\]")],
)
def test_only_costs_can_be_measured(measure: Any, found: str) -> None:
    with pytest.raises(StudyError, match=f"measure must be a list of parameters, flops, latency_ms: got {found}"):
        check_measure(measure, "s", has_trainer=True)


def test_only_a_trainer_is_measured() -> None:
    check_measure([], "s", has_trainer=False)
    with pytest.raises(StudyError, match="measure needs a study with `trainer`"):
        check_measure(["flops"], "s", has_trainer=False)
