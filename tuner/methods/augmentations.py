"""Random changes to images that keep their content: transforms of one image, and `augment` for a batch.

A transform is a function (key, image, strength) of an image [height, width, channels] of floats. Strength 0 changes
nothing. A strength may be traced, so it can be a hyperparameter. Pixels from outside an image repeat its edge, because
zero would be black in some data and grey in others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike

from tuner.errors import StudyError

Transform = Callable[[jax.Array, jax.Array, Any], jax.Array]
Bounds = tuple[Any, Any]
"""The smallest and the largest value of an input; each a number, or one number for each channel."""


def augment(
    key: jax.Array,
    images: jax.Array,
    strength: float | jax.Array,
    transforms: Sequence[Transform],
    bounds: Bounds = (0.0, 1.0),
) -> jax.Array:
    """Return each image changed by all transforms in order, with its own random numbers.

    The random numbers of an image depend on the key and its position in the batch, not on the size of the batch.

    Args:
        key: The key of the batch.
        images: Images within the bounds. Float[Array, "batch height width channels"].
        strength: The strength of the transforms. Float[Array, ""].
        transforms: Applied from first to last; static.
        bounds: Bounds to which values are clipped after the last transform.

    Returns:
        Float[Array, "batch height width channels"].

    Raises:
        StudyError: the images are not floats of that shape.
    """
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise StudyError(
            f"images must be floats [batch, height, width, channels]: got {images.dtype} {list(images.shape)}; scale "
            "and reshape them in the study's data function"
        )

    def changed(key: jax.Array, image: jax.Array) -> jax.Array:
        for transform, own in zip(transforms, jax.random.split(key, len(transforms)), strict=True):
            image = transform(own, image, strength)
        return image

    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(images)))
    return within(jax.vmap(changed)(keys, images), bounds)


def within(inputs: jax.Array, bounds: Bounds) -> jax.Array:
    """Return the inputs, Float[Array, "... channels"], clipped to the bounds."""
    low, high = (spread(bound, inputs) for bound in bounds)
    return jnp.clip(inputs, low, high)


def spread(value: ArrayLike, inputs: jax.Array) -> jax.Array:
    """Broadcast a number, or one for each channel, to the inputs: Float[Array, "... channels"]."""
    return jnp.broadcast_to(jnp.asarray(value, inputs.dtype), inputs.shape)


def scaled(transform: Transform, factor: float) -> Transform:
    """Return a transform with `factor` times the strength, because transforms have different units."""
    return lambda key, image, strength: transform(key, image, factor * strength)


# Geometry.


def shift(key: jax.Array, image: jax.Array, strength: float | jax.Array) -> jax.Array:
    """Shift by up to `strength` of height and width, including fractions of a pixel."""
    height, width = image.shape[:2]
    down, right = strength * jax.random.uniform(key, (2,), image.dtype, -1.0, 1.0)
    return _sampled(image, _places(height) - down * height, _places(width) - right * width)


def crop(key: jax.Array, image: jax.Array, strength: float | jax.Array) -> jax.Array:
    """Enlarge a window whose sides are 1 - `strength` to 1 of the image's, each drawn independently.

    Like the random crop of SimCLR (Chen et al., 2020, appendix A).
    """
    sides_key, place_key = jax.random.split(key)
    sides = 1.0 - strength * jax.random.uniform(sides_key, (2,), image.dtype)
    corners = (1.0 - sides) * jax.random.uniform(place_key, (2,), image.dtype)
    rows, columns = (
        corner * (size - 1) + side * _places(size)
        for corner, side, size in zip(corners, sides, image.shape[:2], strict=True)
    )
    return _sampled(image, rows, columns)


def rotate(key: jax.Array, image: jax.Array, strength: float | jax.Array) -> jax.Array:
    """Rotate around the centre by up to `strength` times 180 degrees in either direction."""
    angle = strength * jax.random.uniform(key, (), image.dtype, -jnp.pi, jnp.pi)
    middles = [(size - 1) / 2 for size in image.shape[:2]]
    rows, columns = jnp.meshgrid(*(_places(size) for size in image.shape[:2]), indexing="ij")
    down, right = rows - middles[0], columns - middles[1]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return _interpolated(image, middles[0] + cos * down - sin * right, middles[1] + sin * down + cos * right)


def flip(key: jax.Array, image: jax.Array, strength: float | jax.Array) -> jax.Array:
    """Flip left and right with a probability of half the strength."""
    return jnp.where(jax.random.uniform(key) < 0.5 * strength, image[:, ::-1], image)


# Brightness and noise.


def brightness(key: jax.Array, image: jax.Array, strength: float | jax.Array) -> jax.Array:
    """Add a number between -`strength` and `strength` to the whole image."""
    return image + strength * jax.random.uniform(key, (), image.dtype, -1.0, 1.0)


def contrast(key: jax.Array, image: jax.Array, strength: float | jax.Array) -> jax.Array:
    """Multiply differences from the image's mean by a number in [1 - `strength`, 1 + `strength`]."""
    more = strength * jax.random.uniform(key, (), image.dtype, -1.0, 1.0)
    return image + more * (image - jnp.mean(image))


def noise(key: jax.Array, image: jax.Array, strength: float | jax.Array) -> jax.Array:
    """Add Gaussian noise with standard deviation `strength` to every element."""
    return image + strength * jax.random.normal(key, image.shape, image.dtype)


def _places(size: int) -> jax.Array:
    return jnp.arange(size, dtype=jnp.float32)


def _sampled(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Sample the image on a grid of rows, Float[Array, "height"], and columns, Float[Array, "width"]."""
    return _interpolated(image, *jnp.meshgrid(rows, columns, indexing="ij"))


def _interpolated(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Interpolate the image at positions between its pixels, two arrays Float[Array, "height width"]."""
    channel = partial(map_coordinates, coordinates=[rows, columns], order=1, mode="nearest")
    return jax.vmap(channel, in_axes=2, out_axes=2)(image)
