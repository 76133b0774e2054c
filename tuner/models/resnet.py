"""Residual networks (He et al., 2015, https://arxiv.org/abs/1512.03385).

Convolutions before a normalisation have no bias. The last normalisation of each block starts with a scale of zero, so
that each block initially is the identity (Goyal et al., 2017, section 5.1).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from tuner.errors import StudyError, nearest
from tuner.models.precision import mixes_precisions

STAGES: dict[int, tuple[str, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
}
"""Depth -> kind of block and number of blocks per stage (table 1 of the paper)."""
STEMS = ("imagenet", "small")
_AROUND: Any = ((1, 1), (1, 1))
_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1.

    Attributes:
        kind: `basic` or `bottleneck`.
        width: Channels of its 3x3 convolution; a bottleneck returns four times as many.
        stride: The stride of its (first) 3x3 convolution.
        norm: Creates a normalisation.
        is_shortcut_normed: Whether a shortcut that changes the shape is a convolution with a normalisation, as in the
            paper's option B, or one with a bias.
        dtype: The type of the activations.
    """

    kind: str
    width: int
    stride: int
    norm: Any
    is_shortcut_normed: bool
    dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=_init)
        stride = (self.stride, self.stride)
        if self.kind == "basic":
            hidden = nn.relu(self.norm()(conv(self.width, (3, 3), stride, padding=1)(inputs)))
            hidden = conv(self.width, (3, 3), padding=1)(hidden)
        else:
            hidden = nn.relu(self.norm()(conv(self.width, (1, 1))(inputs)))
            hidden = nn.relu(self.norm()(conv(self.width, (3, 3), stride, padding=1)(hidden)))
            hidden = conv(4 * self.width, (1, 1))(hidden)
        hidden = self.norm(scale_init=nn.initializers.zeros)(hidden)
        shortcut = inputs
        if inputs.shape != hidden.shape:
            project = partial(conv, hidden.shape[-1], (1, 1), stride, name="shortcut")
            shortcut = self.norm()(project()(inputs)) if self.is_shortcut_normed else project(use_bias=True)(inputs)
        return nn.relu(hidden + shortcut)


class ResNet(nn.Module):
    """A stem, stages of residual blocks, the mean over the image, and a linear layer.

    Each stage after the first halves the image and doubles the channels.

    Attributes:
        classes: The number of outputs.
        kind: The kind of the blocks: `basic` or `bottleneck`.
        blocks: The number of blocks in each stage.
        width: Channels of the first stage.
        stem: `imagenet` (7x7 with stride 2 and pooling by two, which leaves a quarter of each side) or `small` (3x3),
            for images of up to 32x32.
        is_shortcut_normed: See `Block`.
        bn_momentum: The momentum of the running statistics.
        dtype: The type of the activations; if None that of parameters and inputs, which the trainer's `precision` sets.
            Outputs are float32.
    """

    classes: int
    kind: str
    blocks: tuple[int, ...]
    width: int = 64
    stem: str = "imagenet"
    is_shortcut_normed: bool = True
    bn_momentum: float = 0.9
    dtype: Any = None

    @nn.compact
    @mixes_precisions
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Return outputs [batch, classes] for images [batch, height, width, channels]."""
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=self.bn_momentum, dtype=self.dtype)
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=_init, name="stem")
        if self.stem == "imagenet":
            hidden = nn.relu(norm(name="stem_norm")(conv(self.width, (7, 7), (2, 2), padding=3)(images)))
            hidden = nn.max_pool(hidden, (3, 3), (2, 2), padding=_AROUND)
        else:
            hidden = nn.relu(norm(name="stem_norm")(conv(self.width, (3, 3), padding=1)(images)))
        for stage, count in enumerate(self.blocks):
            for at in range(count):
                hidden = Block(
                    self.kind,
                    self.width * 2**stage,
                    2 if stage and not at else 1,
                    norm,
                    self.is_shortcut_normed,
                    self.dtype,
                    name=f"stage_{stage}_block_{at}",
                )(hidden)
        return nn.Dense(self.classes, dtype=self.dtype)(hidden.mean((1, 2))).astype(jnp.float32)


def resnet(
    classes: int,
    depth: int = 18,
    width: int = 64,
    stem: str = "imagenet",
    bn_momentum: float = 0.9,
    dtype: DTypeLike | None = None,
) -> ResNet:
    """Return the network of depth 18, 34 or 50 (the last with its stride in the 3x3 convolutions).

    Raises:
        StudyError: the depth or the stem is unknown.
    """
    if depth not in STAGES:
        raise StudyError(f"the depth of a resnet must be one of {', '.join(map(str, STAGES))}: got {depth!r}")
    if stem not in STEMS:
        raise StudyError(f"the stem of a resnet must be one of {', '.join(STEMS)}: got {stem!r}{nearest(stem, STEMS)}")
    kind, blocks = STAGES[depth]
    return ResNet(classes, kind, blocks, width, stem, bn_momentum=bn_momentum, dtype=dtype)


def cifar_resnet(
    classes: int, blocks: int = 3, width: int = 16, bn_momentum: float = 0.9, dtype: DTypeLike | None = None
) -> ResNet:
    """Return the paper's network for 32x32 images: three stages of `blocks` basic blocks each, 3x3 stem.

    Where the shape changes, the shortcut is a 1x1 convolution with a bias, as in the UvA deep learning course.

    Raises:
        StudyError: there are no blocks.
    """
    if blocks < 1:
        raise StudyError(f"a cifar_resnet must have a block in each stage: got blocks={blocks!r}")
    return ResNet(
        classes, "basic", (blocks,) * 3, width, "small", is_shortcut_normed=False, bn_momentum=bn_momentum, dtype=dtype
    )
