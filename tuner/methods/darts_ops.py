"""The operations of DARTS cells, mixtures of them, and the cells (Liu et al., 2019, arXiv:1806.09055).

Images are [batch, height, width, channels]. The order is ReLU, convolution, batch normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from tuner.errors import StudyError, nearest

OPERATIONS = (
    "none",
    "skip_connect",
    "max_pool_3x3",
    "avg_pool_3x3",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""The eight operations of the paper, with the names of its code."""

Wiring = tuple[tuple[tuple[tuple[str, ...], int], ...], ...]
"""The edges of each node: the edge's operations and its source, where 0 and 1 are the inputs and node i is i + 2."""


def check_operations(operations: Sequence[str]) -> None:
    """Raise StudyError unless these are different names of operations."""
    for operation in operations:
        if operation not in OPERATIONS:
            known, meant = ", ".join(OPERATIONS), nearest(operation, OPERATIONS)
            raise StudyError(f"an operation must be one of {known}: got {operation!r}{meant}")
    if len(set(operations)) != len(operations) or not operations:
        raise StudyError(f"operations must be at least one, without duplicates: got {', '.join(operations) or 'none'}")


class Norm(nn.Module):
    """Batch normalisation; without scale and offset during a search, because weights would rescale it."""

    affine: bool

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, use_scale=self.affine, use_bias=self.affine)
        return norm(images)


class Pointwise(nn.Module):
    """ReLU, 1x1 convolution, normalisation; with stride 2, half of the channels use pixels shifted by one."""

    channels: int
    stride: int
    affine: bool

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        hidden = nn.relu(images)
        if self.stride == 1:
            hidden = nn.Conv(self.channels, (1, 1), use_bias=False)(hidden)
        else:
            shifted = jnp.pad(hidden[:, 1:, 1:], ((0, 0), (0, 1), (0, 1), (0, 0)))
            half = self.channels // 2
            left = nn.Conv(half, (1, 1), (2, 2), use_bias=False)(hidden)
            right = nn.Conv(self.channels - half, (1, 1), (2, 2), use_bias=False)(shifted)
            hidden = jnp.concatenate([left, right], axis=-1)
        return Norm(self.affine)(hidden, train=train)


class Separable(nn.Module):
    """ReLU, a depthwise convolution, a 1x1 convolution, normalisation.

    It is computed as one convolution with the product of both kernels, which is equivalent: on CPUs, depthwise
    convolutions take several times as long, in particular in the backward pass.
    """

    size: int
    stride: int
    dilation: int
    affine: bool

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        channels, draw = images.shape[-1], nn.initializers.lecun_normal()
        depthwise = self.param("depthwise", draw, (self.size, self.size, 1, channels))
        pointwise = self.param("pointwise", draw, (1, 1, channels, channels))
        images, kernel = promote_dtype(nn.relu(images), jnp.swapaxes(depthwise, 2, 3) * pointwise)
        hidden = jax.lax.conv_general_dilated(
            images,
            kernel,
            (self.stride, self.stride),
            "SAME",
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return Norm(self.affine)(hidden, train=train)


class Operation(nn.Module):
    """One of `OPERATIONS`; keeps the number of channels.

    Attributes:
        kind: The name of the operation.
        stride: 2 halves the image, rounded up.
        affine: Whether normalisations have scale and offset.
    """

    kind: str
    stride: int = 1
    affine: bool = True

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        check_operations([self.kind])
        if self.kind == "none":
            return jnp.zeros_like(images[:, :: self.stride, :: self.stride])
        if self.kind == "skip_connect":
            if self.stride == 1:
                return images
            return Pointwise(images.shape[-1], self.stride, self.affine)(images, train=train)
        strides = (self.stride, self.stride)
        if self.kind == "max_pool_3x3":
            return nn.max_pool(images, (3, 3), strides, "SAME")
        if self.kind == "avg_pool_3x3":
            return nn.avg_pool(images, (3, 3), strides, "SAME", count_include_pad=False)
        kind, _, size = self.kind.split("_")
        if kind == "dil":
            return Separable(int(size[0]), self.stride, 2, self.affine)(images, train=train)
        hidden = Separable(int(size[0]), self.stride, 1, self.affine)(images, train=train)
        return Separable(int(size[0]), 1, 1, self.affine)(hidden, train=train)


class Mixed(nn.Module):
    """The mixture of operations, sum_o softmax(logits)_o o(x): equation 2 of the paper.

    Attributes:
        operations: The names of the operations.
        stride: The stride of each.
        affine: See `Operation`.
    """

    operations: tuple[str, ...] = OPERATIONS
    stride: int = 1
    affine: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, logits: jax.Array, *, train: bool) -> jax.Array:
        """Return the mixture; `logits` is Float[Array, "operations"].

        Raises:
            StudyError: there is not one logit for each operation.
        """
        check_operations(self.operations)
        if logits.shape != (len(self.operations),):
            raise StudyError(
                f"logits must have one number for each operation: got shape {logits.shape} for "
                f"{len(self.operations)} operations"
            )
        outputs = [
            Operation(kind, self.stride, self.affine, name=kind)(images, train=train) for kind in self.operations
        ]
        return jax.tree.reduce(
            jnp.add, [one * output for one, output in zip(jax.nn.softmax(logits), outputs, strict=True)]
        )


class Cell(nn.Module):
    """A directed graph: two inputs, and nodes that sum their edges. Returns the channels of all nodes.

    Attributes:
        channels: The channels of each node.
        wiring: The edges of each node.
        is_reduction: Whether edges from the inputs halve the image.
        follows_reduction: Whether the earlier input is twice as large as the later one.
        affine: See `Operation`.
    """

    channels: int
    wiring: Wiring
    is_reduction: bool
    follows_reduction: bool
    affine: bool

    @nn.compact
    def __call__(self, earlier: jax.Array, later: jax.Array, logits: jax.Array | None, *, train: bool) -> jax.Array:
        """Return the nodes, [batch, height, width, nodes * channels].

        Args:
            earlier: The output of the cell before the last one.
            later: The output of the last cell.
            logits: The logits of the mixtures, Float[Array, "edges operations"]; None if each edge has one operation.
            train: Training mode.
        """
        halving = 2 if self.follows_reduction else 1
        states: list[Any] = [
            Pointwise(self.channels, halving, self.affine, name="earlier")(earlier, train=train),
            Pointwise(self.channels, 1, self.affine, name="later")(later, train=train),
        ]
        row = 0
        for node, edges in enumerate(self.wiring):
            incoming = []
            for operations, source in edges:
                stride = 2 if self.is_reduction and source < 2 else 1
                name = f"node_{node}_from_{source}"
                if logits is None:
                    edge = Operation(operations[0], stride, self.affine, name=name)(states[source], train=train)
                else:
                    edge = Mixed(operations, stride, self.affine, name=name)(states[source], logits[row], train=train)
                incoming.append(edge)
                row += 1
            states.append(sum(incoming))
        return jnp.concatenate(states[2:], axis=-1)
