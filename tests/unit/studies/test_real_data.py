"""Studies on data that come with packages: what the data are, how they are split, what is measured beside."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import rounding
from sklearn.linear_model import LogisticRegression

from tuner.study.source import import_file
from tuner.training import Splits
from tuner.training.hparams import register
from tuner.training.metrics import to_floats

STUDIES = Path(__file__).parents[3] / "studies"
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def mnist() -> tuple[Any, Splits[Any]]:
    module = import_file(STUDIES / "mnist_guide.py")
    return module, module.data(0)


@pytest.fixture(scope="module")
def signals() -> tuple[Any, Splits[Any]]:
    module = import_file(STUDIES / "mnist1d_smoothing.py")
    return module, module.data(0)


@pytest.fixture(scope="module")
def text() -> tuple[Any, Splits[Any]]:
    module = import_file(STUDIES / "topics_decoder.py")
    return module, module.data(0)


def flat(dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    host = dataset.host()
    return host["inputs"].reshape(len(dataset), -1), host["labels"]


def score(splits: Splits[Any], part: str) -> float:
    model = LogisticRegression(max_iter=200, tol=1e-2)
    return model.fit(*flat(splits.train)).score(*flat(getattr(splits, part)))


# --- MNIST


@pytest.mark.slow
def test_mnists_classes_are_split_alike(mnist: Any) -> None:
    _, splits = mnist
    for part, each in (("train", 400), ("validation", 50), ("test", 50)):
        inputs, labels = flat(getattr(splits, part))
        assert np.bincount(labels).tolist() == [each] * 10, "they come sorted by class"
        assert (inputs.min(), inputs.max(), inputs.shape[1]) == (0.0, 1.0, 784)
    images = [image.tobytes() for part in ("train", "validation", "test") for image in flat(getattr(splits, part))[0]]
    assert len(set(images)) == 5000


@pytest.mark.slow
def test_mnist_is_as_hard_as_it_is_known_to_be(mnist: Any) -> None:
    assert 0.86 < score(mnist[1], "validation") < 0.93


def test_the_guides_search(mnist: Any) -> None:
    study = mnist[0].study
    pruner = study.make_pruner()
    assert (pruner._n_startup_trials, pruner._n_warmup_steps) == (5, study.epochs // 4)  # 50 of 200 in the guide
    domains = study.record()["space"]
    assert domains == {
        "dropout_rate": "uniform(0.0, 0.6)",
        "weight_decay": "log_uniform(1e-06, 0.01)",
        "learning_rate": "log_uniform(0.0001, 0.01)",
    }


def test_the_picture_is_of_what_is_taken_for_another(mnist: Any) -> None:
    module, splits = mnist
    labels = splits.validation.host()["labels"]
    logits = np.eye(10)[labels]
    logits[[3, 7]] = 0.0
    logits[3, (labels[3] + 1) % 10], logits[7, (labels[7] + 1) % 10] = 1.0, 2.0
    figure = module.picture(lambda inputs: logits, splits)
    titles = [axis.get_title() for axis in figure.axes]
    expected = [f"{labels[at]} as {(labels[at] + 1) % 10}" for at in (7, 3)]
    assert titles == [*expected, *[""] * 10], "the worst first, and no more than there are"


# --- MNIST-1D


@pytest.mark.slow
def test_the_signals_are_those_of_the_paper(signals: Any) -> None:
    _, splits = signals
    parts = [splits.train, splits.validation]
    assert [len(part) for part in (*parts, splits.test)] == [3200, 800, 1000]
    from mnist1d.data import get_dataset_args, make_dataset

    made = make_dataset(get_dataset_args())["x"].astype("<f4")
    assert hashlib.sha256(made.tobytes()).hexdigest().startswith("d53506bddd12d3b7")
    ours = sorted(signal.tobytes() for part in parts for signal in flat(part)[0])
    assert ours == sorted(signal.tobytes() for signal in made)


@pytest.mark.slow
def test_the_signals_are_as_hard_as_they_are_known_to_be(signals: Any) -> None:
    assert 0.28 < score(signals[1], "test") < 0.37


@pytest.mark.slow
def test_an_average_rate_of_one_is_no_average(signals: Any) -> None:
    module, splits = signals
    assert (
        module.study.trainer.ema_decay(module.HParams(learning_rate=0.01, label_smoothing=0.0, average_rate=1.0)) == 0
    )
    predict = lambda inputs: jnp.zeros((len(inputs), 10)).at[:, 3].set(math.log(3.0))  # noqa: E731
    titles = [axis.get_title() for axis in module.picture(predict, splits).axes]
    assert titles == [f"{label}: 3 at 25%" for label in range(10)]


# --- Text


def test_every_character_is_predicted_once_and_paragraphs_do_not_repeat(text: Any) -> None:
    module, splits = text
    hosts = [splits.train.host(), splits.validation.host()]
    windows = np.concatenate([host["targets"] for host in hosts])
    inputs = np.concatenate([host["inputs"] for host in hosts])
    np.testing.assert_array_equal(inputs[:, 1:], windows[:, :-1])
    count = (len(module.TEXT) - 1) // module.LENGTH
    whole = np.array([module.NUMBERS[character] for character in module.TEXT[1 : count * module.LENGTH + 1]])
    given, expected = (sorted(map(bytes, rows.astype("u1"))) for rows in (windows, whole.reshape(count, -1)))
    assert given == expected
    parts = module.TEXT.split("\n\n")[:-1]  # the last is cut off
    assert len(set(parts)) == len(parts)
    assert set(parts) <= {part.strip("\n") for page in topics.values() for part in page.split("\n\n")}


def test_the_table_of_pairs_by_hand(text: Any) -> None:
    module, splits = text
    host = {"inputs": np.array([[0, 1, 0]]), "targets": np.array([[1, 0, 2]])}
    table = module.bigram_bits(host)
    total = 2 + 0.1 * len(module.ALPHABET)
    np.testing.assert_allclose([table[0, 1], table[0, 3]], [-math.log2(1.1 / total), -math.log2(0.1 / total)])
    np.testing.assert_allclose((2.0**-table).sum(1), 1.0)
    train, asked = splits.train.host(), splits.validation.host()
    pairs = Counter(zip(train["inputs"].ravel().tolist(), train["targets"].ravel().tolist(), strict=True))
    firsts = Counter(train["inputs"].ravel().tolist())
    bits = [
        -math.log2((pairs[first, second] + 0.1) / (firsts[first] + 0.1 * len(module.ALPHABET)))
        for first, second in zip(asked["inputs"][0].tolist(), asked["targets"][0].tolist(), strict=True)
    ]
    assert asked["bigram_bits"][0] == pytest.approx(np.mean(bits), rel=1e-5), "counted in the training data alone"


@pytest.mark.slow
def test_at_first_a_character_takes_the_logarithm_of_the_alphabet(text: Any) -> None:
    module, splits = text
    trainer, hparams = module.study.trainer, {"learning_rate": 0.01, "dropout_rate": 0.1}
    batch = jax.tree.map(jnp.asarray, splits.validation.take(range(16)).host())
    state = jax.jit(trainer.init_state, static_argnums=3)(hparams, batch, KEY, 10)
    found = to_floats(jax.jit(trainer.eval_step)(state, batch, hparams))
    assert abs(found["loss"] - math.log(len(module.ALPHABET))) < 0.7
    # Means of 16, on both sides.
    assert found["bits"] == pytest.approx(found["loss"] / math.log(2), rel=rounding(40))
    assert found["bigram_bits"] == pytest.approx(float(batch["bigram_bits"].mean()), rel=rounding(40))
    assert 2.5 < found["bigram_bits"] < 4.5, "English, counted on what is not in the validation set"


def test_what_is_written_has_a_length_and_is_the_keys(text: Any) -> None:
    module, _ = text
    size, seen = len(module.ALPHABET), []

    def after(window: Any) -> Any:
        """Logits by which a character is followed by one of the next two."""
        seen.append(np.asarray(window))
        following = (window[..., None] + np.array([1, 2])) % size
        return np.log(np.eye(size)[following].sum(-2) + 1e-9)

    written = module.sample(after, 100, KEY, prompt="def")
    assert written[:3] == "def"
    assert len(written) == 103
    numbers = [module.NUMBERS[character] for character in written]
    steps = np.diff(numbers[2:]) % size
    assert set(steps) == {1, 2}
    assert {window.shape for window in seen} == {(1, module.LENGTH)}
    assert seen[-1][0].tolist() == numbers[-1 - module.LENGTH : -1]
    assert module.sample(after, 100, KEY, prompt="def") == written
    assert module.sample(after, 100, jax.random.key(1), prompt="def") != written


# --- Models


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mlp", 8970),
        ("cnn", 1442),
        pytest.param("linear", 650, marks=pytest.mark.long),
        pytest.param("cifar_resnet", 19762, marks=pytest.mark.long),
    ],
)
def test_each_model_of_the_comparison_learns(name: str, size: int) -> None:
    module = import_file(STUDIES / "digits_models.py")
    hparams = module.HParams(model=name, learning_rate=0.02, weight_decay=1e-4, dropout_rate=0.1)
    register(hparams)
    module.study.trainer.loop = "step"  # so that nothing is compiled to be measured
    training = module.study.trainer.train_model(hparams, module.data(0), epochs=4, seed=0)
    *_, last = training
    assert sum(leaf.size for leaf in jax.tree.leaves(training.state.params)) == size
    assert last.metrics["accuracy"] > 0.85
