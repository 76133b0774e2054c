"""A Transformer for tokens (Vaswani et al., 2017), with pre-normalisation (Xiong et al., 2020)."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tuner.errors import StudyError, nearest
from tuner.models.kernels import RMSNorm
from tuner.models.precision import mixes_precisions
from tuner.training import Dropout, Stack

POSITIONS = ("learned", "rotary")
NORMS: dict[str, Any] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "rms_kernel": RMSNorm}


class Attention(nn.Module):
    """Self-attention.

    Attributes:
        heads: The number of heads, which share the width.
        is_causal: Whether a position attends only to itself and earlier ones.
        is_rotary: Whether queries and keys are rotated by their positions.
        dtype: The type of the activations.
    """

    heads: int
    is_causal: bool
    is_rotary: bool
    dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array, is_there: jax.Array) -> jax.Array:
        """Return outputs [batch, length, width]; keys with False in `is_there` [batch, length] are ignored."""
        width = hidden.shape[-1]
        project = partial(nn.DenseGeneral, (self.heads, width // self.heads), dtype=self.dtype)
        query, key, value = (project(name=name)(hidden) for name in ("query", "key", "value"))
        if self.is_rotary:
            query, key = rotate(query), rotate(key)
        mask = is_there[:, None, None, :]
        seen = jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=self.is_causal)
        return nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, name="out")(seen)


def rotate(heads: jax.Array) -> jax.Array:
    """Rotate [batch, length, heads, size] by position: rotary positions (Su et al., 2021, equation 34).

    Numbers i and i + size / 2 at position m are rotated by the angle m * 10000 ** (-2 i / size).
    """
    size = heads.shape[-1]
    turns = 10_000.0 ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    places = jnp.arange(heads.shape[1], dtype=jnp.float32)
    angles = places[None, :, None, None] * turns[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(heads.dtype)


class Layer(nn.Module):
    """Attention and a network of two dense layers, each after a normalisation and with a residual connection."""

    heads: int
    is_causal: bool
    is_rotary: bool
    norm: Any
    dropout_rate: float | jax.Array
    dtype: Any

    @nn.compact
    def __call__(self, carry: tuple[jax.Array, jax.Array], *, train: bool) -> tuple[jax.Array, jax.Array]:
        hidden, is_there = carry
        dense = partial(nn.Dense, dtype=self.dtype)
        seen = Attention(self.heads, self.is_causal, self.is_rotary, self.dtype)(self.norm()(hidden), is_there)
        hidden = hidden + Dropout(self.dropout_rate)(seen, train=train)
        wide = nn.gelu(dense(4 * hidden.shape[-1])(self.norm()(hidden)))
        hidden = hidden + Dropout(self.dropout_rate)(dense(hidden.shape[-1])(wide), train=train)
        return hidden, is_there


class Transformer(nn.Module):
    """An encoder of tokens, or with `is_causal` a decoder.

    Attributes:
        vocabulary: Tokens are numbers in [0, vocabulary).
        width: The width of the activations; a multiple of `heads`.
        heads: The number of attention heads.
        depth: The number of layers.
        longest: The length of the longest sequence.
        is_causal: Whether a position attends only to itself and earlier ones.
        positions: `learned` (a vector for each position) or `rotary`.
        norm: `layer`, `rms` (Zhang & Sennrich, 2019), or `rms_kernel`: the same with the same parameters, in a kernel
            (`tuner.models.kernels`) that has run only on CPUs.
        outputs: The number of outputs per position; `vocabulary` if None.
        padding: The token that pads sequences, which attention ignores; None if there is none.
        dropout_rate: The dropout rate of embeddings and at the end of each sublayer; may be traced.
        is_scanned: Whether layers are a loop inside the program (`Stack`), which compiles as fast as one layer.
        remat: See `Stack`; needs `is_scanned`.
        dtype: The type of the activations; if None that of the parameters, which the trainer's `precision` sets.
            Outputs are float32.
    """

    vocabulary: int
    width: int = 64
    heads: int = 4
    depth: int = 2
    longest: int = 256
    is_causal: bool = False
    positions: str = "learned"
    norm: str = "layer"
    outputs: int | None = None
    padding: int | None = None
    dropout_rate: float | jax.Array = 0.0
    is_scanned: bool = True
    remat: bool = False
    dtype: Any = None

    @nn.compact
    @mixes_precisions
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Return outputs [batch, length, outputs] for tokens [batch, length].

        Raises:
            StudyError: attributes contradict each other, or a sequence is too long.
        """
        self._check(tokens)
        # The trainer may pass the tokens as floats.
        tokens = tokens.astype(jnp.int32)
        is_there = jnp.ones(tokens.shape, bool) if self.padding is None else tokens != self.padding
        hidden = nn.Embed(self.vocabulary, self.width, dtype=self.dtype)(tokens)
        if self.positions == "learned":
            table = self.param("positions", nn.initializers.normal(0.02), (self.longest, self.width))
            hidden = hidden + table[None, : tokens.shape[1]].astype(hidden.dtype)
        hidden = Dropout(self.dropout_rate)(hidden, train=train)
        norm, is_rotary = partial(NORMS[self.norm], dtype=self.dtype), self.positions == "rotary"
        layer = partial(Layer, self.heads, self.is_causal, is_rotary, norm, self.dropout_rate, self.dtype)
        if self.is_scanned:
            hidden, _ = Stack(layer, self.depth, self.remat, name="stack")((hidden, is_there), train=train)
        else:
            for at in range(self.depth):
                hidden, _ = layer(name=f"layer_{at}")((hidden, is_there), train=train)
        hidden = norm()(hidden)
        return nn.Dense(self.outputs or self.vocabulary, dtype=self.dtype, name="head")(hidden).astype(jnp.float32)

    def _check(self, tokens: jax.Array) -> None:
        for name, known in (("positions", POSITIONS), ("norm", NORMS)):
            given = getattr(self, name)
            if given not in known:
                raise StudyError(f"{name} must be one of {', '.join(known)}: got {given!r}{nearest(given, known)}")
        if self.width % self.heads:
            raise StudyError(f"width must be a multiple of heads: got width={self.width}, heads={self.heads}")
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise StudyError(f"rotary positions need an even width / heads: got width={self.width}, heads={self.heads}")
        if self.remat and not self.is_scanned:
            raise StudyError("remat saves no memory without is_scanned: set is_scanned=True")
        if jnp.issubdtype(tokens.dtype, jnp.floating) and tokens.dtype.itemsize < 4:
            raise StudyError(
                f"tokens must be integers, because half precision rounds other numbers: got {tokens.dtype}"
            )
        if tokens.ndim != 2:
            raise StudyError(f"tokens must have shape [batch, length]: got {tokens.shape}")
        if tokens.shape[1] > self.longest:
            raise StudyError(
                f"a sequence must have at most longest={self.longest} tokens: got {tokens.shape[1]}; raise longest"
            )
