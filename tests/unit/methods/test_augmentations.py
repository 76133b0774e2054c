"""Transforms of images against SciPy's, and what every one of them must leave."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from tuner.errors import StudyError
from tuner.methods import augment, brightness, contrast, crop, flip, noise, rotate, scaled, shift

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
KEY = jax.random.key(3)
TRANSFORMS = [shift, crop, rotate, flip, brightness, contrast, noise]
IMAGES = np.random.default_rng(0).uniform(0.0, 1.0, (16, 6, 9, 2)).astype(np.float32)


def changed(transform: Any, strength: float, key: Any = KEY, images: Any = IMAGES, **more: Any) -> np.ndarray:
    made = jit(lambda key, images, strength: augment(key, images, strength, (transform,), **more))
    return np.asarray(made(key, jnp.asarray(images), strength))


@pytest.mark.slow
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_what_holds_for_every_transform(transform: Any) -> None:
    made = jit(lambda key, images, strength: augment(key, images, strength, (transform,)))
    images = jnp.asarray(IMAGES)
    np.testing.assert_array_equal(made(KEY, images, 0.0), IMAGES)  # to the bit
    full = made(KEY, images, 1.0)
    assert full.shape == images.shape
    assert full.dtype == images.dtype
    assert 0.0 <= full.min() <= full.max() <= 1.0
    np.testing.assert_array_equal(full, made(KEY, images, 1.0))
    assert not np.array_equal(full, made(jax.random.key(4), images, 1.0))
    # Of equal images, each is changed in its own way: a mirror has only two of them.
    equal = np.asarray(made(KEY, jnp.tile(images[:1], (16, 1, 1, 1)), 1.0))
    assert len(np.unique(equal, axis=0)) == (2 if transform is flip else 16)


@pytest.mark.parametrize("transform", [shift, rotate, noise])
def test_draws_do_not_depend_on_how_many_images_follow(transform: Any) -> None:
    np.testing.assert_array_equal(changed(transform, 0.5)[:5], changed(transform, 0.5, images=IMAGES[:5]))


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_a_shift_is_scipys(strength: float) -> None:
    down, right = strength * jax.random.uniform(KEY, (2,), minval=-1.0)
    expected = ndimage.shift(IMAGES[0], (6 * down, 9 * right, 0), order=1, mode="nearest")
    np.testing.assert_allclose(shift(KEY, jnp.asarray(IMAGES[0]), strength), expected, atol=1e-5)


def test_a_turn_is_scipys() -> None:
    angle = 0.3 * float(jax.random.uniform(KEY, (), minval=-180.0, maxval=180.0))
    expected = ndimage.rotate(IMAGES[0], -angle, reshape=False, order=1, mode="nearest")
    np.testing.assert_allclose(rotate(KEY, jnp.asarray(IMAGES[0]), 0.3), expected, atol=1e-5)
    assert abs(angle) > 5


def test_a_crop_is_a_window_inside_the_image() -> None:
    down = np.broadcast_to(np.linspace(0.0, 1.0, 9)[:, None], (9, 7))
    right = np.broadcast_to(np.linspace(0.0, 1.0, 7)[None], (9, 7))
    places = np.broadcast_to(np.stack([down, right], -1), (64, 9, 7, 2)).astype(np.float32)
    found = changed(crop, 0.6, images=places)
    rows, columns = found[:, :, 0, 0], found[:, 0, :, 1]
    for line in (rows, columns):
        sides = line[:, -1] - line[:, 0]
        # Each side is drawn alone and between 0.4 and 1; the window is inside, its places at equal distances.
        assert 0.4 <= sides.min() < 0.5
        assert 0.9 < sides.max() <= 1.0
        assert 0.0 <= line[:, 0].min() < 0.1
        assert line[:, 0].max() > 0.3
        assert line[:, -1].max() <= 1.0 + 1e-6
        steps = np.diff(line) * (line.shape[1] - 1)
        np.testing.assert_allclose(steps, np.broadcast_to(sides[:, None], steps.shape), atol=1e-5)
    assert abs(np.corrcoef(rows[:, -1] - rows[:, 0], columns[:, -1] - columns[:, 0])[0, 1]) < 0.5


def test_a_mirror_is_a_coin_of_half_the_strength() -> None:
    images = np.broadcast_to(IMAGES[:1], (2000, 6, 9, 2))
    is_flipped = (changed(flip, 0.5, images=images) == IMAGES[0, :, ::-1]).all((1, 2, 3))
    assert abs(is_flipped.mean() - 0.25) < 0.05  # 5 standard deviations: sqrt(0.25 * 0.75 / 2000) is 0.0097
    assert (changed(flip, 0.5, images=images)[~is_flipped] == IMAGES[0]).all()


@pytest.mark.slow
def test_brightness_contrast_and_noise_by_their_definitions() -> None:
    free = {"bounds": (-9.0, 9.0)}
    added = changed(brightness, 0.3, **free) - IMAGES
    assert (np.ptp(added, axis=(1, 2, 3)) < 1e-6).all()
    assert 0.2 < np.abs(added).max() <= 0.3
    found = changed(contrast, 0.3, **free)
    means = IMAGES.mean((1, 2, 3))
    np.testing.assert_allclose(found.mean((1, 2, 3)), means, atol=1e-6)
    factors = (found - means[:, None, None, None]).std((1, 2, 3)) / IMAGES.std((1, 2, 3))
    assert 0.7 <= factors.min() < 0.9 < 1.1 < factors.max() <= 1.3
    # Of 1728 numbers, the standard deviation is off by 0.3 / sqrt(2 * 1728) = 0.005 on average.
    assert abs((changed(noise, 0.3, **free) - IMAGES).std() - 0.3) < 0.02


def test_bounds_may_differ_between_channels() -> None:
    low, high = (-1.0, 0.0), (1.0, 5.0)
    found = changed(noise, 10.0, images=IMAGES, bounds=(low, high))
    for channel in range(2):
        assert found[..., channel].min() == low[channel]
        assert found[..., channel].max() == high[channel]


def test_scaled_is_another_unit_of_strength() -> None:
    np.testing.assert_array_equal(changed(scaled(noise, 0.5), 0.4), changed(noise, 0.2))


@pytest.mark.slow
def test_transforms_follow_each_other() -> None:
    def double(key: Any, image: Any, strength: Any) -> Any:
        return 2.0 * image

    def plus(key: Any, image: Any, strength: Any) -> Any:
        return image + 1.0

    made = augment(KEY, jnp.asarray(IMAGES), 1.0, (plus, double), (0.0, 9.0))
    np.testing.assert_allclose(made, 2 * (IMAGES + 1), rtol=1e-6)


@pytest.mark.parametrize("images", [np.zeros((2, 8, 8, 1), np.uint8), np.zeros((2, 8, 8), np.float32)])
def test_images_must_be_floats_of_four_axes(images: Any) -> None:
    with pytest.raises(StudyError, match=r"images must be floats \[batch, height, width, channels\]: got"):
        augment(KEY, jnp.asarray(images), 1.0, (noise,))
