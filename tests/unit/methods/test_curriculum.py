"""Examples from easy to hard: which a step allows, what is drawn of them, and what makes them hard."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from tuner.errors import StudyError
from tuner.methods import Classifier, Curriculum, easiest_first, held_out_losses
from tuner.methods.curriculum import allowed, difficulty, staged_order
from tuner.models import linear
from tuner.training import ArrayDataset, Checkpoints, Splits

KEY = jax.random.key(3)


@pytest.mark.parametrize(
    ("step", "share"),
    [(0, 0.25), (9, 0.25), (10, 0.5), (19, 0.5), (20, 0.75), (29, 0.75), (30, 1.0), (39, 1.0), (40, 1.0), (10**6, 1.0)],
)
def test_difficulty_at_the_boundaries_of_the_stages(step: int, share: float) -> None:
    assert float(difficulty(jnp.int32(step), 10, 4)) == share
    assert float(jax.jit(difficulty)(jnp.int32(step), jnp.int32(10), jnp.int32(4))) == share


@pytest.mark.slow
def test_at_least_one_example_is_allowed_and_in_the_end_all() -> None:
    steps = jnp.arange(60)
    found = np.asarray(allowed(steps, 10, 4, 10))
    assert found.tolist() == [3] * 10 + [5] * 10 + [8] * 10 + [10] * 30  # 2.5 and 7.5 rounded up
    assert np.asarray(allowed(steps, 10, 5, 3)).tolist() == [1] * 10 + [2] * 20 + [3] * 30
    assert int(allowed(jnp.int32(0), 10, 8, 2)) == 1  # a quarter of an example
    assert set(np.asarray(allowed(steps, 10, 1, 7)).tolist()) == {7}


@pytest.mark.parametrize("examples", [7, 1000, 3_000_000, 2**31 - 1])
def test_what_is_allowed_is_exact_where_the_product_needs_more_than_32_bits(examples: int) -> None:
    rng = np.random.default_rng(examples)
    stages = np.concatenate([[1, 3, 1000, 46_341, 2**30 + 1, 2**31 - 1], rng.integers(1, 2**31, 60)])
    steps = np.concatenate([[0, 2, 999, 46_000, 2**30, 2**31 - 2], rng.integers(0, stages[6:])])
    found = jax.jit(jax.vmap(lambda step, stages: allowed(step, 1, stages, examples)))(
        jnp.asarray(steps, jnp.int32), jnp.asarray(stages, jnp.int32)
    )
    expected = [-(-(int(step) + 1) * examples // int(whole)) for step, whole in zip(steps, stages, strict=True)]
    assert found.tolist() == expected  # by Python's integers, which have no end


@pytest.mark.slow
def test_a_stage_of_billions_of_steps_is_one() -> None:
    rows = jnp.arange(8, dtype=jnp.int32)
    drawn = {int(row) for step in range(0, 400, 4) for row in order(step, rows, 2, 1e9, 2)[0].reshape(-1)}
    assert drawn == {0, 1, 2, 3}


def order(step: int, rows: Any, stages: int, stage_epochs: float, batch_size: int, key: Any = KEY) -> Any:
    made = staged_order(key, jnp.int32(step), rows, stages, stage_epochs, batch_size=batch_size)
    return tuple(np.asarray(part) for part in made)


def test_batches_are_of_the_allowed_beginning_uniform_and_different() -> None:
    rows = jnp.array([7, 3, 9, 1, 0, 2, 8, 5], jnp.int32)  # the data's order, which is that of difficulty
    indices, weights = order(0, rows, 4, 500.0, 2)  # epochs of four steps
    assert indices.shape == weights.shape == (4, 2)
    assert (weights == 1).all()
    # The second of four stages: four examples.
    drawn = np.concatenate([order(step, rows, 4, 500.0, 2)[0] for step in range(2000, 4000, 4)])
    assert len(drawn) == 2000
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == sorted([7, 3, 9, 1])
    assert chisquare(counts).pvalue > 0.01
    pairs = np.unique(drawn[:, 0] * 10 + drawn[:, 1], return_counts=True)[1]
    assert len(pairs) == 16  # one step's draws do not follow from each other
    assert chisquare(pairs).pvalue > 0.01
    assert len(np.unique(drawn.reshape(-1, 40), axis=0)) == 100  # nor one step from another


@pytest.mark.slow
def test_a_stage_may_end_in_mid_epoch_and_a_batch_may_be_larger_than_what_is_allowed() -> None:
    rows = jnp.arange(12, dtype=jnp.int32)
    indices, _ = order(0, rows, 12, 0.5, 6)  # two steps an epoch, a stage for each
    assert indices.shape == (2, 6)
    assert set(indices[0].tolist()) == {0}
    assert set(indices[1].tolist()) == {0, 1}
    assert order(0, rows, 4, 1e-6, 6)[0].max() < 6  # a stage lasts at least a step


@pytest.mark.slow
def test_a_step_draws_the_same_whatever_epoch_it_was_asked_for_in() -> None:
    rows = jnp.arange(64, dtype=jnp.int32)
    whole = np.concatenate([order(step, rows, 4, 1.0, 16)[0] for step in (0, 4, 8)])
    np.testing.assert_array_equal(order(6, rows, 4, 1.0, 16)[0], whole[6:10])
    assert (order(0, rows, 4, 1.0, 16, jax.random.key(4))[0] != whole[:4]).any()


class Trainer(Curriculum, Classifier):
    loop = "step"

    def init_model(self, hparams: Any) -> Any:
        return linear(self.classes)

    def batch_size(self, hparams: Any) -> int:
        return 8


HPARAMS = {"learning_rate": 0.1, "stages": 3, "stage_epochs": 1.0}


def splits(rows: int = 60) -> Splits[Any]:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(rows, 4))
    labels = (inputs @ rng.normal(size=(4, 3))).argmax(1)
    dataset = ArrayDataset(inputs=inputs, labels=labels, place=np.arange(rows))
    return Splits(dataset, dataset)


@pytest.mark.slow
def test_the_loop_trains_on_what_is_allowed_and_the_program_does_not_know_of_it() -> None:
    class Watching(Trainer):
        def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
            losses, metrics = super().loss(outputs, batch, hparams)
            return losses, {**metrics, "place": batch["place"]}

    trainer, data = Watching(3), splits()
    easy = easiest_first(data.train, -data.train.host()["place"])  # the last are the easiest
    means = {}
    for stages in (1, 3):
        training = trainer.train_model({**HPARAMS, "stages": stages}, Splits(easy, data.train), epochs=3, seed=0)
        means[stages] = [report.metrics["train_place"] for report in training]
    assert means[3][0] > 40  # of 40 to 59
    assert 20 < means[3][1] < means[3][0]
    assert means[3][2] == means[1][2]  # all are allowed: the same draws
    assert 20 < means[1][0] < 40


@pytest.mark.slow
def test_a_training_that_is_resumed_in_mid_epoch_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    trainer, data = Trainer(3), splits()
    whole = [report.metrics for report in trainer.train_model(HPARAMS, data, epochs=3, seed=0)]
    asked = itertools.count()
    with Checkpoints(tmp_path, every_s=3600) as checkpoints:
        training = trainer.train_model(
            HPARAMS, data, epochs=3, seed=0, checkpoints=checkpoints, stop=lambda: next(asked) >= 10
        )
        list(training)
        assert training.step % 8 != 0
    with Checkpoints(tmp_path) as checkpoints:
        resumed = trainer.train_model(HPARAMS, data, epochs=3, seed=0, checkpoints=checkpoints)
        list(resumed)
    assert [report.metrics for report in resumed.reports] == whole


@pytest.mark.slow
def test_wrong_labels_are_the_hardest() -> None:
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(300, 4))
    labels = (inputs @ rng.normal(size=(4, 3))).argmax(1)
    is_wrong = np.arange(300) % 5 == 0
    given = np.where(is_wrong, (labels + 1) % 3, labels)
    dataset = ArrayDataset(inputs=inputs, labels=given)

    class Teacher(Classifier):
        loop = "scan"

        def init_model(self, hparams: Any) -> Any:
            return linear(3)

    score = partial(held_out_losses, Teacher(3), {"learning_rate": 0.3}, epochs=20, seed=0, folds=3)
    losses = score(dataset)
    assert losses.shape == (300,)
    sorted_rows = easiest_first(dataset, losses).rows
    # By chance a fifth. Over 12 seeds of data and training the shares were 0.020 and 0.747, with standard deviations of
    # 0.015 and 0.062.
    assert is_wrong[np.asarray(sorted_rows[:150])].mean() < 0.08
    assert is_wrong[np.asarray(sorted_rows[-60:])].mean() > 0.5
    # Each by a model that has not seen it: what it says of one example does not depend on that one's label.
    changed = ArrayDataset(inputs=inputs, labels=np.where(np.arange(300) == 7, (given + 1) % 3, given))
    others = score(changed)
    fold = next(part for part in np.array_split(np.random.default_rng(0).permutation(300), 3) if 7 in part)
    same = [at for at in fold if at != 7]
    np.testing.assert_array_equal(others[same], losses[same])
    assert others[7] != losses[7]
    outside = np.setdiff1d(np.arange(300), fold)
    assert (others[outside] != losses[outside]).any()


@pytest.mark.parametrize("scores", [np.zeros(3), np.zeros((60, 1)), np.full(60, np.nan)])
def test_scores_that_are_none_are_refused(scores: Any) -> None:
    with pytest.raises(StudyError, match="one finite number for each of the 60 examples"):
        easiest_first(splits().train, scores)


def test_equal_scores_keep_the_datas_order() -> None:
    view = easiest_first(splits().train, np.where(np.arange(60) % 2, 1.0, 0.0))
    assert np.asarray(view.rows).tolist() == [*range(0, 60, 2), *range(1, 60, 2)]


@pytest.mark.slow
def test_an_order_of_the_wrong_shape_is_refused() -> None:
    class Short(Trainer):
        def order(self, hparams: Any, key: Any, step: Any, rows: Any, *, batch_size: int) -> Any:
            return tuple(part[:-1] for part in super().order(hparams, key, step, rows, batch_size=batch_size))

    with pytest.raises(StudyError, match=r"order\(\.\.\.\) must return indices and weights of shape \(8, 8\)"):
        list(Short(3).train_model(HPARAMS, splits(), epochs=1, seed=0))
