"""What a program is given and gives back: datasets and their batches, hyperparameters as pytrees, means."""

import math
import os
import re
import subprocess
import sys
import warnings
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from tuner import Space, choice, int_uniform, uniform
from tuner.errors import StudyError
from tuner.training import Mean
from tuner.training.data.arrays import ArrayDataset, Splits, batch_order, gather, steps_per_epoch
from tuner.training.hparams import register
from tuner.training.metrics import to_floats

INPUTS = np.arange(12.0).reshape(6, 2)
LABELS = np.arange(6)


def dataset(length: int = 6) -> ArrayDataset:
    return ArrayDataset(id=np.arange(length), inputs=np.arange(2.0 * length).reshape(length, 2))


def ids(data: ArrayDataset) -> list[int]:
    return data.host()["id"].tolist()


# ArrayDataset


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({}, "got no array"),
        ({"x": []}, r"got \{'x': 0\}"),
        ({"x": [], "y": []}, r"got \{'x': 0, 'y': 0\}"),
        ({"x": [1, 2], "y": [1]}, r"got \{'x': 2, 'y': 1\}"),
        ({"x": np.zeros((3, 2)), "weight": np.ones(2)}, r"got \{'x': 3, 'weight': 2\}"),
    ],
)
def test_arrays_must_have_one_length_of_at_least_one(arrays: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match=f"arrays of a dataset must have the same length, at least 1: {found}"):
        ArrayDataset(**arrays)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (["a", "b"], "'names' has dtype <U1"),
        ([b"a", b"b"], r"'names' has dtype \|S1"),
        ([{}, None], "'names' has dtype object"),
        (np.array(["2024-01-01", "2024-01-02"], "M8[D]"), r"'names' has dtype datetime64\[D\]"),
        (np.ones(2, "m8[s]"), r"'names' has dtype timedelta64\[s\]"),
    ],
)
def test_arrays_must_be_of_numbers_or_booleans(array: Any, found: str) -> None:
    with pytest.raises(ValueError, match=f"must hold numbers or booleans: {found}; encode it as numbers$"):
        ArrayDataset(inputs=[1.0, 2.0], names=array)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float8_e4m3fn, np.complex64, np.bool_, np.int8])
def test_arrays_may_be_of_any_number_that_jax_has(dtype: Any) -> None:
    assert ArrayDataset(x=np.ones(2, dtype)).arrays["x"].dtype == dtype


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones((4, 1)), r"weight must have one real number per example: got shape \(4, 1\), dtype float64"),
        (np.ones(4, complex), "weight must have one real number per example: got .* dtype complex128"),
        ([1.0, 1.0, -0.5, 1.0], "weights must be finite and at least 0: got -0.5 for example 2"),
        ([1.0, np.nan, -1.0, 1.0], "weights must be finite and at least 0: got nan for example 1"),
        ([1.0, 1.0, 1.0, np.inf], "weights must be finite and at least 0: got inf for example 3"),
        ([1e300, 1.0, 1.0, 1.0], r"weights must be finite and at least 0: got 1e\+300 for example 0"),
    ],
)
def test_a_weight_is_one_finite_number_of_at_least_zero(weight: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArrayDataset(inputs=np.ones((4, 2)), weight=weight)


def test_a_weight_may_be_a_truth_value() -> None:
    data = ArrayDataset(inputs=np.ones((2, 2)), weight=[True, False])
    assert data.arrays["weight"].tolist() == [1.0, 0.0]


def test_length_is_the_number_of_examples() -> None:
    assert len(ArrayDataset(inputs=INPUTS, labels=LABELS)) == 6
    assert len(ArrayDataset(inputs=[[1.0], [2.0]])) == 2  # lists are arrays too


def test_arrays_hold_the_values_and_a_weight_of_one_each() -> None:
    arrays = ArrayDataset(inputs=INPUTS, labels=LABELS).arrays
    assert sorted(arrays) == ["inputs", "labels", "weight"]
    np.testing.assert_array_equal(arrays["inputs"], INPUTS)
    np.testing.assert_array_equal(arrays["labels"], LABELS)
    np.testing.assert_array_equal(arrays["weight"], np.ones(6))
    assert arrays["weight"].dtype == jnp.float32


def test_weights_given_are_kept() -> None:
    arrays = ArrayDataset(inputs=INPUTS, weight=[1.0, 2.0, 0.5, 0.0, 1.0, 3.0]).arrays
    np.testing.assert_array_equal(arrays["weight"], [1.0, 2.0, 0.5, 0.0, 1.0, 3.0])
    assert arrays["weight"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("float64", "float32"),
        ("int64", "int32"),
        ("uint64", "uint32"),
        ("float32", "float32"),
        ("float16", "float16"),
        ("int32", "int32"),
        ("uint8", "uint8"),
        ("bool", "bool"),
    ],
)
def test_numbers_of_64_bits_become_32_bits_and_others_stay(given: str, stored: str) -> None:
    with jax.enable_x64(True):  # else JAX itself would narrow them
        array = ArrayDataset(x=np.array([0, 1], given)).arrays["x"]
    assert array.dtype == stored
    assert np.asarray(array).tolist() == [0, 1]


def test_arrays_are_put_on_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[Any] = []
    device_put = jax.device_put

    def counting(value: Any) -> Any:
        put.append(value)
        return device_put(value)

    monkeypatch.setattr(jax, "device_put", counting)
    data = dataset()
    views = [data, data.take([0, 2]), *(fold.train for fold in data.folds(2, 0))]
    assert len(data.host()["id"]) == 6
    assert put == []  # a launcher that only counts examples needs no device
    assert all(view._shared.on_device is data.arrays for view in views)  # training takes rows of what all share
    assert len(put) == 1
    rows = [view.rows for view in views]
    assert len(put) == 1 + len(views)
    assert all(view.rows is row for view, row in zip(views, rows, strict=True))
    assert len(put) == 1 + len(views)
    assert all(isinstance(array, jax.Array) for array in [*data.arrays.values(), *rows])


def test_take_keeps_order_repeats_and_weights() -> None:
    taken = ArrayDataset(id=np.arange(4), weight=[1.0, 2.0, 3.0, 4.0]).take([3, 1, 1])
    assert len(taken) == 3
    assert ids(taken) == [3, 1, 1]
    np.testing.assert_array_equal(taken.host()["weight"], [4.0, 2.0, 2.0])


def test_a_view_is_rows_of_all_arrays() -> None:
    data = dataset()
    view = data.take([4, 1, 5, 0]).take(np.array([2, 0, -1]))
    assert view.rows.tolist() == [5, 4, 0]
    assert view.rows.dtype == jnp.int32
    assert (len(view), len(data)) == (3, 6)
    assert data.rows.tolist() == [0, 1, 2, 3, 4, 5]
    host = view.host()
    assert sorted(host) == sorted(data.arrays)
    for name, array in data.arrays.items():
        assert host[name].dtype == array.dtype
        np.testing.assert_array_equal(host[name], array[view.rows])


def test_the_arrays_of_a_view_are_its_own_examples_and_no_others() -> None:
    data = ArrayDataset(id=np.arange(10), weight=np.arange(10.0))
    splits = data.split(0.2, 0, test=0.3)
    assert splits.test is not None
    parts = [splits.train, splits.validation, splits.test]
    assert [len(part.arrays["id"]) for part in parts] == [5, 2, 3]
    seen = np.concatenate([part.arrays["id"] for part in parts])
    assert sorted(seen.tolist()) == list(range(10))
    assert data.take([7, 7, 1]).arrays["id"].tolist() == [7, 7, 1]
    assert data.take([8, 3]).take([1]).arrays["id"].tolist() == [3]
    assert data.take(range(9, -1, -1)).arrays["id"].tolist() == list(range(9, -1, -1))
    for part in [*parts, data]:
        assert part.arrays["weight"].tolist() == part.arrays["id"].tolist()
        assert part.arrays is part.arrays  # put on the device once
        assert all(isinstance(array, jax.Array) for array in part.arrays.values())


@pytest.mark.parametrize(("indices", "shape"), [([], r"\(0,\)"), (3, r"\(\)"), ([[1, 2]], r"\(1, 2\)")])
def test_a_view_needs_a_list_of_indices(indices: Any, shape: str) -> None:
    with pytest.raises(ValueError, match=f"indices must be a non-empty list: got an array of shape {shape}"):
        dataset().take(indices)


def test_a_view_of_what_is_not_there_is_refused() -> None:
    with pytest.raises(IndexError, match="index 2 is out of bounds"):
        dataset().take([4, 5]).take([2])


# Splits


@given(length=st.integers(2, 60), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=50)
def test_a_split_covers_every_example_once(length: int, fraction: float, seed: int) -> None:
    count = round(fraction * length)
    if not 0 < count < length:
        with pytest.raises(ValueError, match="both parts of a split must have at least 1 example"):
            dataset(length).split(fraction, seed)
        return
    splits = dataset(length).split(fraction, seed)
    assert len(splits.validation) == count
    assert sorted(ids(splits.train) + ids(splits.validation)) == list(range(length))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 1.5, 0.05, 0.95, np.nan, np.inf])
def test_a_split_with_an_empty_side_is_refused(fraction: float) -> None:
    with pytest.raises(
        ValueError, match=f"both parts of a split must have at least 1 example: got fraction={fraction} for 6"
    ):
        dataset().split(fraction, 0)


@pytest.mark.parametrize("seed", [-1, 1.5, None, True, "7"])
def test_a_seed_is_a_whole_number_of_at_least_zero(seed: Any) -> None:
    for divide in (lambda: dataset().split(0.5, seed), lambda: dataset().folds(2, seed)):
        with pytest.raises(ValueError, match=f"seed must be a whole number of at least 0: got {seed!r}"):
            divide()


def test_a_split_keeps_the_arrays_of_an_example_together() -> None:
    splits = dataset(20).split(0.3, 1)
    for side in (splits.train, splits.validation):
        np.testing.assert_array_equal(side.host()["inputs"][:, 0], 2 * side.host()["id"])


def test_a_split_is_random_and_depends_on_its_seed_only() -> None:
    one, again, other = (dataset(40).split(0.25, seed) for seed in (7, 7, 8))
    assert isinstance(one, Splits)
    assert ids(one.validation) == ids(again.validation)
    assert ids(one.train) == ids(again.train)
    assert ids(one.validation) != ids(other.validation)
    assert ids(one.validation) not in (list(range(10)), list(range(30, 40)))


@pytest.mark.slow
def test_a_split_is_the_same_in_a_new_process() -> None:
    code = (
        "import numpy as np; from tuner.training import ArrayDataset; "
        "s = ArrayDataset(id=np.arange(40)).split(0.25, 7); "
        "print(s.validation.host()['id'].tolist(), s.train.host()['id'].tolist())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "123"}
    printed = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    here = dataset(40).split(0.25, 7)
    assert printed.stdout.strip() == f"{ids(here.validation)} {ids(here.train)}"


def test_a_split_with_a_seed_stays_what_it_was() -> None:
    # Studies go on for weeks: change these numbers only with a note in the changelog.
    splits = dataset(10).split(0.3, 5)
    assert (ids(splits.validation), ids(splits.train)) == ([7, 6, 1], [3, 2, 4, 0, 9, 5, 8])
    assert splits.test is None


def test_a_test_set_is_taken_from_what_would_be_for_training() -> None:
    two, three = dataset(40).split(0.25, 7), dataset(40).split(0.25, 7, test=0.1)
    assert three.test is not None
    assert ids(three.validation) == ids(two.validation)
    assert ids(three.test) + ids(three.train) == ids(two.train)
    assert len(three.test) == 4


@pytest.mark.parametrize(("fraction", "test"), [(0.5, 0.5), (0.5, 0.05), (0.9, 0.2), (0.05, 0.5), (0.5, -0.2)])
def test_three_parts_need_examples_each(fraction: float, test: float) -> None:
    with pytest.raises(ValueError, match=f"all three parts .* got fraction={fraction} and test={test} for 6"):
        dataset().split(fraction, 0, test=test)


@given(count=st.integers(2, 12), length=st.integers(12, 60), seed=st.integers(0, 2**31 - 1), by_class=st.booleans())
@settings(deadline=None, max_examples=50)
def test_folds_are_those_of_scikit_learn_but_for_the_order(count: int, length: int, seed: int, by_class: bool) -> None:
    folds = dataset(length).folds(count, seed, stratify="id" if by_class else None)
    peer = KFold(count, shuffle=True, random_state=seed % 2**32).split(np.arange(length))
    sizes = [(len(fold.train), len(fold.validation)) for fold in folds]
    assert sorted(sizes) == sorted((len(train), len(held)) for train, held in peer)
    assert all(sorted(ids(fold.train) + ids(fold.validation)) == list(range(length)) for fold in folds)
    assert sorted(chain.from_iterable(ids(fold.validation) for fold in folds)) == list(range(length))
    assert all(fold.test is None for fold in folds)


def test_folds_are_random_and_depend_on_their_seed_only() -> None:
    one, again, other = ([ids(fold.validation) for fold in dataset(40).folds(4, seed)] for seed in (7, 7, 8))
    assert one == again
    assert one != other
    assert one[0] not in (list(range(10)), list(range(0, 40, 4)))


def test_folds_of_a_view_stay_within_it() -> None:
    view = dataset(20).take([3, 1, 4, 15, 9])
    assert sorted(chain.from_iterable(ids(fold.validation) for fold in view.folds(5, 0))) == [1, 3, 4, 9, 15]


@pytest.mark.parametrize("count", [1, 0, -2, 7])
def test_folds_must_number_at_least_two_and_have_examples(count: int) -> None:
    with pytest.raises(ValueError, match=f"from 2 to the number of examples, 6: got {count}"):
        dataset().folds(count, 0)


CLASSES = st.lists(st.sampled_from("abcd"), min_size=8, max_size=60)


def counts_by_class(data: ArrayDataset | None, labels: np.ndarray) -> np.ndarray:
    assert data is not None
    return np.array([(labels[ids(data)] == label).sum() for label in "abcd"])


@given(labels=CLASSES, fraction=st.floats(0.2, 0.45), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_a_stratified_split_keeps_the_proportions_of_the_classes(labels: Any, fraction: float, seed: int) -> None:
    labels = np.array(labels)
    data = ArrayDataset(id=np.arange(len(labels)), labels=np.unique(labels, return_inverse=True)[1])
    two, three = (data.split(fraction, seed, stratify="labels", test=test) for test in (None, 0.3))
    assert len(two.validation) == round(fraction * len(labels))
    assert sorted(ids(two.train) + ids(two.validation)) == list(range(len(labels)))
    share = counts_by_class(data, labels) / len(labels)
    for part in (two.train, two.validation, three.validation):
        assert (abs(counts_by_class(part, labels) - share * len(part)) < 1).all()
    for part in (three.train, three.test):
        assert part is not None
        assert (abs(counts_by_class(part, labels) - share * len(part)) < 2).all()
    given_as_array = data.split(fraction, seed, stratify=labels)
    assert ids(given_as_array.train) == ids(two.train)


@given(labels=CLASSES, count=st.integers(2, 8), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_stratified_folds_keep_the_proportions_of_the_classes(labels: Any, count: int, seed: int) -> None:
    labels = np.array(labels)
    data = ArrayDataset(id=np.arange(len(labels)), labels=np.unique(labels, return_inverse=True)[1])
    held = [counts_by_class(fold.validation, labels) for fold in data.folds(count, seed, stratify="labels")]
    assert np.ptp(held, axis=0).max() <= 1


def test_stratified_parts_are_in_random_order() -> None:
    data = ArrayDataset(id=np.arange(90), labels=np.repeat([0, 1, 2], 30))
    parts = data.split(0.3, 1, stratify="labels"), data.folds(3, 1, stratify="labels")[0]
    for part in (side for splits in parts for side in (splits.train, splits.validation)):
        labels = part.host()["labels"]
        assert (np.diff(labels) != 0).sum() > len(labels) / 4


def test_classes_of_a_view_are_those_of_its_examples() -> None:
    data = ArrayDataset(id=np.arange(12), labels=[0, 1] * 6).take([1, 3, 5, 7, 0, 2, 4, 6])
    for fold in data.folds(2, 3, stratify="labels"):
        assert sorted(fold.validation.host()["labels"]) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("stratify", "found"),
    [
        ("labelz", "has no array 'labelz' .stratify.: it has inputs, labels; did you mean 'labels'"),
        ("inputs", r"one class for each of the 6 examples: got shape \(6, 2\)"),
        ([1, 2, 3], r"one class for each of the 6 examples: got shape \(3,\)"),
    ],
)
def test_stratify_needs_one_class_for_each_example(stratify: Any, found: str) -> None:
    data = ArrayDataset(inputs=INPUTS, labels=LABELS)
    with pytest.raises(ValueError, match=found):
        data.split(0.5, 0, stratify=stratify)
    with pytest.raises(ValueError, match=found):
        data.folds(2, 0, stratify=stratify)


# Batches


@pytest.mark.parametrize(
    ("length", "batch_size", "steps"), [(1, 1, 1), (6, 2, 3), (7, 2, 4), (23, 7, 4), (21, 7, 3), (5, 5, 1), (6, 5, 2)]
)
def test_steps_per_epoch_counts_a_short_last_batch(length: int, batch_size: int, steps: int) -> None:
    assert steps_per_epoch(length, batch_size) == steps


def test_batch_order_by_hand() -> None:
    indices, weights = batch_order(jnp.array([4, 2, 0, 3, 1]), 2)
    assert indices.tolist() == [[4, 2], [0, 3], [1, 4]]  # filled up with the first of the order
    assert weights.tolist() == [[1, 1], [1, 1], [1, 0]]
    assert weights.dtype == jnp.float32


def test_a_batch_larger_than_the_data_goes_through_the_order_again() -> None:
    indices, weights = batch_order(jnp.array([2, 0, 1]), 8)
    assert indices.tolist() == [[2, 0, 1, 2, 0, 1, 2, 0]]
    assert weights.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]


def test_batch_order_without_padding() -> None:
    indices, weights = batch_order(jnp.array([3, 1, 2, 0]), 2)
    assert indices.tolist() == [[3, 1], [2, 0]]
    assert weights.tolist() == [[1, 1], [1, 1]]


@given(data=st.data(), length=st.integers(1, 50))
@settings(deadline=None, max_examples=200)
def test_every_example_stands_once_with_weight_one(data: st.DataObject, length: int) -> None:
    batch_size = data.draw(st.integers(1, 3 * length))
    order = data.draw(st.permutations(range(length)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tuner.training.data.arrays.jnp", np)  # JAX would compile anew for each shape
        indices, weights = batch_order(np.array(order), batch_size)  # pyright: ignore[reportArgumentType]
    assert indices.shape == weights.shape == (steps_per_epoch(length, batch_size), batch_size)
    flat, weight = np.asarray(indices).ravel(), np.asarray(weights).ravel()
    assert set(weight) <= {0.0, 1.0}
    assert flat[weight == 1].tolist() == order
    assert flat.tolist() == (order * 6)[: len(flat)]  # padding is made of real examples
    assert np.asarray(weights)[:-1].all()  # and only in the last batch
    assert weights[-1, 0] == 1


def test_gather_by_hand() -> None:
    arrays = ArrayDataset(id=np.array([10, 11, 12, 13]), weight=[1.0, 2.0, 3.0, 4.0]).arrays
    batch = gather(arrays, jnp.array([2, 0, 2]), jnp.array([1.0, 1.0, 0.0]))
    assert batch["id"].tolist() == [12, 10, 12]
    assert batch["weight"].tolist() == [3, 1, 0]
    assert sorted(arrays) == sorted(batch)
    assert arrays["weight"].tolist() == [1, 2, 3, 4]  # the dataset's own are untouched


def test_gather_keeps_shapes_and_types() -> None:
    arrays = ArrayDataset(images=np.zeros((5, 3, 2), np.uint8), labels=np.arange(5)).arrays
    batch = gather(arrays, jnp.array([4, 0]), jnp.ones(2))
    assert (batch["images"].shape, batch["images"].dtype) == ((2, 3, 2), jnp.uint8)
    assert batch["labels"].tolist() == [4, 0]


# Means


@pytest.mark.slow
def test_a_mean_does_not_depend_on_the_batch_size() -> None:
    values = np.random.default_rng(0).normal(size=23).astype(np.float32)
    indices, weights = batch_order(jnp.arange(23), 7)
    parts = [Mean.of(jnp.asarray(values)[at], weight) for at, weight in zip(indices, weights, strict=True)]
    total = parts[0] + parts[1] + parts[2] + parts[3]
    assert float(total.weight) == 23
    assert float(total.value) == pytest.approx(values.mean(), rel=1e-6)
    assert float(Mean.of(jnp.asarray(values), jnp.ones(23)).value) == pytest.approx(values.mean(), rel=1e-6)


def test_nan_in_padding_reaches_neither_the_mean_nor_its_gradient() -> None:
    values, weights = jnp.array([1.0, jnp.nan, 3.0, jnp.inf]), jnp.array([1.0, 0.0, 3.0, 0.0])
    assert float(Mean.of(values, weights).value) == 2.5
    np.testing.assert_allclose(jax.grad(lambda x: Mean.of(x, weights).value)(values), [0.25, 0, 0.75, 0])


def test_a_mean_without_weight_is_nan_in_reports_and_nothing_to_gradients() -> None:
    values = jnp.array([1.0, jnp.nan])
    mean, gradient = jax.value_and_grad(lambda x: Mean.of(x, jnp.zeros(2)).value)(values)
    assert float(mean) == 0.0
    np.testing.assert_array_equal(gradient, [0.0, 0.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(to_floats({"loss": Mean.of(values, jnp.zeros(2))})["loss"])


@pytest.mark.parametrize("shape", [(4, 1), (1, 4), (4, 3), (), (1,)])
def test_a_mean_needs_one_value_for_each_example(shape: tuple[int, ...]) -> None:
    with jax.numpy_rank_promotion("allow"), pytest.raises(StudyError, match=rf"{re.escape(str(shape))}.* 4 examples"):
        Mean.of(jnp.ones(shape), jnp.ones(4))


def test_means_are_fetched_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched, device_get = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda values: fetched.append(values) or device_get(values))
    means = {"loss": Mean.of(jnp.array([1.0, 2.0]), jnp.ones(2)), "hits": Mean.of(jnp.ones(2), jnp.ones(2))}
    assert to_floats(means, "train_") == {"train_loss": 1.5, "train_hits": 1.0}
    assert len(fetched) == 1  # each wait for the device costs


def test_means_of_truth_values_and_integers() -> None:
    hits = Mean.of(jnp.array([True, False, True, True]), jnp.array([1.0, 1.0, 1.0, 0.0]))
    assert float(hits.value) == pytest.approx(2 / 3)
    assert float(Mean.of(jnp.array([1, 2, 6], jnp.int32), jnp.ones(3)).value) == 3


# Hyperparameters as pytrees


class Inner(Space):
    momentum: float = uniform(0.0, 0.9)


class Other(Space):
    beta: float = uniform(0.0, 0.9)
    power: int = choice(1, 2)


class Outer(Space):
    rate: float = uniform(0.0, 1.0)
    pinned: float = uniform(0.0, 1.0, static=True)
    count: int = int_uniform(1, 9, traced=True)
    width: int = choice(4, 8)
    optimizer: Inner | Other | None = choice(None, Inner, Other)


def outer(**changes: Any) -> Outer:
    made = Outer(**{"rate": 0.5, "pinned": 0.5, "count": 3, "width": 4, "optimizer": Inner(momentum=0.25), **changes})
    register(made)
    return made


def test_traced_fields_are_leaves_and_static_ones_structure() -> None:
    assert jax.tree.leaves(outer()) == [0.5, 3, 0.25]
    assert jax.tree.leaves(outer(optimizer=Other(beta=0.75, power=2))) == [0.5, 3, 0.75]
    assert jax.tree.map(lambda leaf: leaf * 2, outer()) == outer(rate=1.0, count=6, optimizer=Inner(momentum=0.5))
    structure = jax.tree.structure(outer())
    for traced in ({"rate": 0.1}, {"count": 9}, {"optimizer": Inner(momentum=0.0)}):
        assert jax.tree.structure(outer(**traced)) == structure
    others = [
        jax.tree.structure(outer(optimizer=branch)) for branch in (Other(beta=0, power=1), Other(beta=0, power=2))
    ]
    others += [jax.tree.structure(outer(**static)) for static in ({"width": 8}, {"pinned": 0.1}, {"optimizer": None})]
    assert len({structure, *others}) == 6
    register("not a space")


def test_arrays_first_touched_inside_a_program_are_arrays_after_it() -> None:
    data = ArrayDataset(inputs=np.arange(3.0))
    assert jax.jit(lambda: (data.arrays["inputs"].sum(), data.rows.sum()))() == (3, 3)
    assert [float(number) for number in data.arrays["inputs"]] == [0, 1, 2]
    assert data.rows.tolist() == [0, 1, 2]
