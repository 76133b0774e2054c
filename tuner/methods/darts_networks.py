"""Networks of DARTS cells, with mixtures or with chosen operations (Liu et al., 2019, arXiv:1806.09055)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from tuner.errors import StudyError
from tuner.methods.classification import Classifier
from tuner.methods.darts_ops import OPERATIONS, Cell, Norm, Wiring, check_operations

Genotype = Mapping[str, Any]
"""Plain JSON: kind of cell -> its nodes -> two edges each -> `[operation, source]`."""
KINDS = ("normal", "reduce")
ALPHAS = "alphas_"
"""How the names of the architecture's parameters begin."""


def edges(nodes: int) -> int:
    """Return the edges of a cell in which every node is joined to both inputs and all nodes before it."""
    return sum(2 + node for node in range(nodes))


def genotype(alphas: Mapping[str, Any], operations: tuple[str, ...] = OPERATIONS) -> dict[str, Any]:
    """Return what is left of the mixtures: of each node the two strongest edges, with their strongest operations.

    The operation `none` is not chosen, and does not count for an edge's strength.

    Args:
        alphas: Logits by kind of cell, Float[Array, "edges operations"].
        operations: What the columns are.

    Raises:
        StudyError: the logits are not those of whole cells over these operations, or there is only `none`.
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
    """Return a genotype's nodes as the wiring of a cell.

    Raises:
        StudyError: an operation is unknown, a node has no edge, or two from one place, or one from no earlier place.
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
    """Return logits [batch, classes] of a stem, cells, the mean over the image and a linear layer; inside a module."""
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
    """Cells of mixtures. The parameters `alphas_normal` and `alphas_reduce` are common to all cells of a kind.

    Attributes:
        classes: Outputs.
        cells: Their kinds; a `reduce` halves the image and doubles the channels.
        channels: Of each node; of the stem three times as many.
        nodes: In each cell.
        operations: On each edge.
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
    """The network of a genotype, in the same order of cells; its weights are its own.

    Attributes:
        classes: Outputs.
        genotype: As JSON text, which is what a space or a trainer's settings can hold.
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
            StudyError: the genotype lacks a kind of cell, or its edges are wrong.
        """
        _check_cells(self.cells)
        told = json.loads(self.genotype)
        if missing := set(self.cells) - set(told):
            raise StudyError(f"the genotype has no {missing.pop()!r} cell: {self.genotype}")
        wirings = {kind: _wiring(told[kind]) for kind in set(self.cells)}
        return _run(self.cells, self.channels, self.classes, wirings, None, images, train)


class DiscreteClassifier(Classifier):
    """Trains the network of a genotype, which is a setting: a checkpoint has it in its record.

    Args:
        classes: How many there are.
        genotype: As `genotype` returns it.
        cells: See `SearchNetwork`.
        channels: See `SearchNetwork`.
    """

    def __init__(self, classes: int, genotype: Genotype, cells: tuple[str, ...] = KINDS, channels: int = 8) -> None:
        super().__init__(classes)
        self.genotype, self.cells, self.channels = json.dumps(genotype), tuple(cells), channels

    def init_model(self, hparams: Any) -> DiscreteNetwork:
        return DiscreteNetwork(self.classes, self.genotype, self.cells, self.channels)
