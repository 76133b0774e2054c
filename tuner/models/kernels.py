"""Custom kernels in Pallas. They are compiled on accelerators, and run in interpret mode on CPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

_ROWS = 64
"""Rows per block; each program of the grid handles one block."""


class RMSNorm(nn.Module):
    """Normalisation by the root of the mean square, in one kernel; same parameters as `flax.linen.RMSNorm`.

    Attributes:
        epsilon: A number added to the mean square.
        dtype: The type of the outputs; that of the inputs if None.
    """

    epsilon: float = 1e-6
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Return the normalised inputs, [..., width]."""
        scale = self.param("scale", nn.initializers.ones, (inputs.shape[-1],))
        return rms_norm(inputs if self.dtype is None else inputs.astype(self.dtype), scale, self.epsilon)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(inputs: jax.Array, scale: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Return scale * x / sqrt(mean(x^2) + epsilon) over the last axis (Zhang & Sennrich, 2019, equation 4).

    The forward and the backward pass each read and write the activations once. Sums are float32 for any inputs.

    Args:
        inputs: x, Float[Array, "... width"].
        scale: Float[Array, "width"].
        epsilon: Static.

    Returns:
        Shape and type of the inputs.
    """
    return _forward(inputs, scale, epsilon)[0]


def _forward(inputs: jax.Array, scale: jax.Array, epsilon: float) -> tuple[jax.Array, Any]:
    rows, weights = _padded(inputs, scale)
    row, column, whole = _blocks(rows.shape[1])
    outputs, inverse = _call(
        partial(_forward_kernel, epsilon=epsilon, width=inputs.shape[-1]),
        rows.shape[0],
        [row, whole],
        [row, column],
        [jax.ShapeDtypeStruct(rows.shape, inputs.dtype), jax.ShapeDtypeStruct((rows.shape[0], 1), jnp.float32)],
    )(rows, weights)
    return _unpadded(outputs, inputs), (inputs, scale, inverse)


def _backward(epsilon: float, kept: tuple[jax.Array, ...], grads: jax.Array) -> tuple[jax.Array, jax.Array]:
    inputs, scale, inverse = kept
    rows, weights = _padded(inputs, scale)
    row, column, whole = _blocks(rows.shape[1])
    blocks = rows.shape[0] // _ROWS
    of_inputs, of_scale = _call(
        partial(_backward_kernel, width=inputs.shape[-1]),
        rows.shape[0],
        [row, whole, column, row],
        [row, pl.BlockSpec((1, rows.shape[1]), lambda at: (at, 0))],
        [jax.ShapeDtypeStruct(rows.shape, inputs.dtype), jax.ShapeDtypeStruct((blocks, rows.shape[1]), jnp.float32)],
    )(rows, weights, inverse, _padded(grads, scale)[0])
    of_scale = jnp.sum(of_scale, axis=0)[: scale.shape[0]].astype(scale.dtype)
    return _unpadded(of_inputs, inputs), of_scale


rms_norm.defvjp(_forward, _backward)


def _forward_kernel(x_ref: Any, scale_ref: Any, out_ref: Any, inverse_ref: Any, *, epsilon: float, width: int) -> None:
    x = x_ref[...].astype(jnp.float32)  # [rows, padded width]; zeros in the padding add nothing to the sum
    inverse = jax.lax.rsqrt(jnp.sum(x * x, axis=1, keepdims=True) / width + epsilon)
    inverse_ref[...] = inverse
    out_ref[...] = (x * inverse * scale_ref[...]).astype(out_ref.dtype)


def _backward_kernel(
    x_ref: Any, scale_ref: Any, inverse_ref: Any, grads_ref: Any, of_x_ref: Any, of_scale_ref: Any, *, width: int
) -> None:
    # With n = x / rms: dx = (g s - n mean(g s n)) / rms, and ds is the sum of g n over the rows.
    grads, inverse = grads_ref[...].astype(jnp.float32), inverse_ref[...]
    normed = x_ref[...].astype(jnp.float32) * inverse
    scaled = grads * scale_ref[...]
    mean = jnp.sum(scaled * normed, axis=1, keepdims=True) / width
    of_x_ref[...] = ((scaled - normed * mean) * inverse).astype(of_x_ref.dtype)
    of_scale_ref[...] = jnp.sum(grads * normed, axis=0, keepdims=True)


def _call(
    kernel: Callable[..., None],
    rows: int,
    in_specs: Sequence[pl.BlockSpec],
    out_specs: Sequence[pl.BlockSpec],
    out_shape: Sequence[jax.ShapeDtypeStruct],
) -> Any:
    return pl.pallas_call(
        kernel,
        grid=(rows // _ROWS,),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        interpret=jax.default_backend() == "cpu",
    )


def _blocks(width: int) -> tuple[pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    """Return the block specs of rows, of one number per row, and of the scale."""
    return (
        pl.BlockSpec((_ROWS, width), lambda at: (at, 0)),
        pl.BlockSpec((_ROWS, 1), lambda at: (at, 0)),
        pl.BlockSpec((1, width), lambda at: (0, 0)),
    )


def _padded(inputs: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return rows and scale, padded with zeros, because GPUs need blocks whose sides are powers of two."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    more = pl.next_power_of_2(rows.shape[1]) - rows.shape[1]
    rows = jnp.pad(rows, ((0, -rows.shape[0] % _ROWS), (0, more)))
    return rows, jnp.pad(scale.astype(jnp.float32), (0, more))[None]


def _unpadded(rows: jax.Array, like: jax.Array) -> jax.Array:
    width = like.shape[-1]
    return rows[: like.size // width, :width].reshape(like.shape)
