"""Networks of DARTS cells, with mixtures or with chosen operations (Liu et al., 2019, arXiv:1806.09055)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from numpy.typing import ArrayLike

from tuner.errors import StudyError
from tuner.methods.classification import Classifier
from tuner.methods.darts_ops import OPERATIONS, Cell, Norm, Wiring, check_operations
from tuner.training.definition import H

Genotype = Mapping[str, Any]
"""Plain JSON: kind of cell -> its nodes -> two edges each -> `[operation, source]`."""
KINDS = ("normal", "reduce")
ALPHAS = "alphas_"
"""The prefix of the names of the architecture's parameters."""


def edges(nodes: int) -> int:
    """Return the edges of a cell in which every node is connected to both inputs and all earlier nodes."""
    return sum(2 + node for node in range(nodes))


def genotype(alphas: Mapping[str, ArrayLike], operations: tuple[str, ...] = OPERATIONS) -> dict[str, Any]:
    """Return the discrete architecture: the two strongest edges of each node, with their strongest operations.

    The operation `none` is not chosen and does not count for the strength of an edge.

    Args:
        alphas: Logits by kind of cell, Float[Array, "edges operations"].
        operations: The operations of the columns.

    Raises:
        StudyError: the logits do not fit cells with these operations, or the only operation is `none`.
    """
    check_operations(operations)
    if operations == ("none",):
        raise StudyError("operations must have one other than 'none': got only 'none'")
    return {kind: _nodes(np.asarray(logits, np.float64), operations) for kind, logits in sorted(alphas.items())}


def _nodes(logits: np.ndarray, operations: tuple[str, ...]) -> list[list[list[Any]]]:
    nodes = next((count for count in range(1, len(logits) + 1) if edges(count) >= len(logits)), 0)
    if logits.ndim != 2 or not nodes or edges(nodes) != len(logits) or logits.shape[1] != len(operations):
        raise StudyError(
            f"alphas must have shape (edges, {len(operations)}) with 2, 5, 9, 14, ... edges: got {logits.shape}"
        )
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    weights[:, [operation == "none" for operation in operations]] = -1.0
    made, row = [], 0
    for node in range(nodes):
        best = weights[row : row + 2 + node]
        sources = sorted(np.argsort(-best.max(1), kind="stable")[:2].tolist())
        made.append([[operations[int(best[source].argmax())], source] for source in sources])
        row += 2 + node
    return made


def _wiring(nodes: Any) -> Wiring:
    """Convert the nodes of a genotype to the wiring of a cell.

    Raises:
        StudyError: an operation is unknown, or a node has no edge, two edges from one source or one from a later node.
    """
    for at, node in enumerate(nodes):
        sources = {source for _, source in node}
        if not node or len(sources) < len(node) or not sources <= set(range(2 + at)):
            raise StudyError(f"the edges into node {at} must have different sources from 0 to {1 + at}: got {node!r}")
        for operation, _ in node:
            check_operations([operation])
    return tuple(tuple(((operation,), source) for operation, source in node) for node in nodes)


def _run(
    cells: tuple[str, ...],
    channels: int,
    classes: int,
    wirings: Mapping[str, Wiring],
    alphas: Mapping[str, jax.Array] | None,
    images: jax.Array,
    train: bool,
) -> jax.Array:
    """Return logits [batch, classes] from a stem, cells, the global mean and a linear layer; inside a module."""
    affine = alphas is None
    stem = nn.Conv(3 * channels, (3, 3), use_bias=False, name="stem")(images)
    earlier = later = Norm(True, name="stem_norm")(stem, train=train)
    for at, kind in enumerate(cells):
        is_reduction, follows = kind == "reduce", at > 0 and cells[at - 1] == "reduce"
        channels = 2 * channels if is_reduction else channels
        cell = Cell(channels, wirings[kind], is_reduction, follows, affine, name=f"cell_{at}_{kind}")
        earlier, later = later, cell(earlier, later, None if alphas is None else alphas[kind], train=train)
    return nn.Dense(classes, name="classifier")(later.mean((1, 2)))


def _check_cells(cells: tuple[str, ...]) -> None:
    if not cells or set(cells) - set(KINDS):
        raise StudyError(f"cells must list at least one of 'normal' and 'reduce': got {cells!r}")


class SearchNetwork(nn.Module):
    """A network of cells with mixtures. All cells of a kind share the parameters `alphas_normal` or `alphas_reduce`.

    Attributes:
        classes: The number of outputs.
        cells: The kind of each cell; `reduce` halves the image and doubles the channels.
        channels: The channels of each node; the stem has three times as many.
        nodes: The number of nodes in each cell.
        operations: The operations of each edge.
    """

    classes: int
    cells: tuple[str, ...] = KINDS
    channels: int = 8
    nodes: int = 2
    operations: tuple[str, ...] = OPERATIONS

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Return logits [batch, classes] for images [batch, height, width, channels]."""
        _check_cells(self.cells)
        wiring = tuple(tuple((self.operations, source) for source in range(2 + node)) for node in range(self.nodes))
        shape, start = (edges(self.nodes), len(self.operations)), nn.initializers.normal(1e-3)
        alphas = {kind: self.param(ALPHAS + kind, start, shape) for kind in sorted(set(self.cells))}
        wirings = {kind: wiring for kind in alphas}
        return _run(self.cells, self.channels, self.classes, wirings, alphas, images, train)


class DiscreteNetwork(nn.Module):
    """The network of a genotype, with new weights.

    Attributes:
        classes: The number of outputs.
        genotype: The genotype as JSON text, so that it can be a value of a space or a setting of a trainer.
        cells: See `SearchNetwork`.
        channels: See `SearchNetwork`.
    """

    classes: int
    genotype: str
    cells: tuple[str, ...] = KINDS
    channels: int = 8

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Return logits [batch, classes] for images [batch, height, width, channels].

        Raises:
            StudyError: the genotype has no cell of a kind, or its edges are wrong.
        """
        _check_cells(self.cells)
        told = json.loads(self.genotype)
        if missing := set(self.cells) - set(told):
            raise StudyError(f"the genotype has no {missing.pop()!r} cell: {self.genotype}")
        wirings = {kind: _wiring(told[kind]) for kind in set(self.cells)}
        return _run(self.cells, self.channels, self.classes, wirings, None, images, train)


class DiscreteClassifier(Classifier[H]):
    """Trains the network of a genotype. The genotype is a setting, so checkpoints record it.

    Args:
        classes: The number of classes.
        genotype: The result of `genotype`.
        cells: See `SearchNetwork`.
        channels: See `SearchNetwork`.
    """

    def __init__(self, classes: int, genotype: Genotype, cells: tuple[str, ...] = KINDS, channels: int = 8) -> None:
        super().__init__(classes)
        self.genotype, self.cells, self.channels = json.dumps(genotype), tuple(cells), channels

    def init_model(self, hparams: H) -> DiscreteNetwork:
        return DiscreteNetwork(self.classes, self.genotype, self.cells, self.channels)
