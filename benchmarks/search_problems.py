"""The problems of `search_quality.py`: analytic functions, and the table that `digits_table.py` has recorded."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tuner import Space, int_uniform, uniform

TABLE = Path(__file__).parent / "digits_table.csv"
Point = Mapping[str, float]


class Branin(Space):
    """The space of `branin`, with priors near one of its minima."""

    x0: float = uniform(-5.0, 10.0, prior=3.0)
    x1: float = uniform(0.0, 15.0, prior=2.5)


class Hartmann(Space):
    """The space of `hartmann`, with priors near its minimum."""

    x0: float = uniform(0.0, 1.0, prior=0.2)
    x1: float = uniform(0.0, 1.0, prior=0.15)
    x2: float = uniform(0.0, 1.0, prior=0.5)
    x3: float = uniform(0.0, 1.0, prior=0.3)
    x4: float = uniform(0.0, 1.0, prior=0.3)
    x5: float = uniform(0.0, 1.0, prior=0.65)


class Rastrigin(Space):
    """The space of `rastrigin`, with priors near its minimum."""

    x0: float = uniform(-4.0, 6.0, prior=0.5)
    x1: float = uniform(-4.0, 6.0, prior=0.5)
    x2: float = uniform(-4.0, 6.0, prior=0.5)
    x3: float = uniform(-4.0, 6.0, prior=0.5)


class Unit(Space):
    """Four numbers between 0 and 1."""

    x0: float = uniform(0.0, 1.0)
    x1: float = uniform(0.0, 1.0)
    x2: float = uniform(0.0, 1.0)
    x3: float = uniform(0.0, 1.0)


class Digits(Space):
    """The positions in the grid of the recorded table, in the order of its values; priors are usual values."""

    learning_rate: int = int_uniform(0, 7, prior=2)
    weight_decay: int = int_uniform(0, 1)
    dropout_rate: int = int_uniform(0, 2, prior=1)
    width: int = int_uniform(0, 3, prior=2)
    depth: int = int_uniform(0, 1)


def branin(point: Point) -> float:
    """Return Branin's function, minus its minimum."""
    x, y = point["x0"], point["x1"]
    b, c, r, t = 5.1 / (4 * math.pi**2), 5 / math.pi, 6.0, 1 / (8 * math.pi)
    return (y - b * x**2 + c * x - r) ** 2 + 10 * (1 - t) * math.cos(x) + 10 - 0.397887357729738


ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann(point: Point) -> float:
    """Return Hartmann's function of six numbers, minus its minimum."""
    x = np.array([point[f"x{i}"] for i in range(6)])
    return float(-(ALPHA * np.exp(-(A * (x - P) ** 2).sum(axis=1))).sum()) + 3.322368011415515


def rastrigin(point: Point) -> float:
    """Return Rastrigin's function of four numbers; its minimum is 0."""
    x = np.array([point[f"x{i}"] for i in range(4)])
    return float(10 * len(x) + (x**2 - 10 * np.cos(2 * math.pi * x)).sum())


def sphere(point: Point) -> float:
    """Return a bowl with its minimum, 0, at 0.3 in each dimension."""
    return sum((value - 0.3) ** 2 for value in point.values())


def zdt1(point: Point) -> tuple[float, float]:
    """Return the first problem of Zitzler, Deb and Thiele (2000) with four numbers."""
    first, *rest = (point[f"x{i}"] for i in range(4))
    g = 1 + 9 * sum(rest) / len(rest)
    return first, g * (1 - math.sqrt(first / g))


def disc(point: Point) -> float:
    """Return what constrains Branin's function in Gramacy et al.: points in a disc are feasible, with one minimum."""
    return (point["x0"] - 2.5) ** 2 + (point["x1"] - 7.5) ** 2 - 50


def simplex(point: Point) -> float:
    """Return the constraint that the numbers add up to at most 3; the minimum of Hartmann's function is feasible."""
    return sum(point.values()) - 3


@dataclass(frozen=True)
class Problem:
    """A function to minimize.

    Attributes:
        space: Its space.
        values: The values of its objectives.
        best: The minimum; with two objectives, the area that the front dominates.
        constraint: Feasible points have at most 0; None without a constraint.
        reference: With two objectives: the corner of that area.
        floor: The least regret that counts, so that logarithms are finite.
        trials: The numbers of trials after which the regret is noted.
    """

    space: type[Space]
    values: Callable[[Point], tuple[float, ...]]
    best: float = 0.0
    constraint: Callable[[Point], float] | None = None
    reference: tuple[float, float] = (math.inf, math.inf)
    floor: float = 1e-12
    trials: Sequence[int] = (50, 200)

    def regret(self, found: Sequence[tuple[float, ...]]) -> float:
        """Return the regret of the values of feasible points."""
        if not found:
            return math.inf
        if len(found[0]) == 1:
            return max(min(values[0] for values in found) - self.best, self.floor)
        return max(self.best - dominated_area(found, self.reference), self.floor)


def dominated_area(points: Sequence[tuple[float, ...]], corner: tuple[float, float]) -> float:
    """Return the area between a front of two objectives to minimize and a corner (the hypervolume)."""
    area, height = 0.0, corner[1]
    for x, y in sorted(points):
        if x < corner[0] and y < height:
            area += (corner[0] - x) * (height - y)
            height = y
    return area


@dataclass
class Table:
    """The recorded table.

    Attributes:
        rows: The metrics by position in the grid.
    """

    rows: dict[tuple[int, ...], Mapping[str, float]] = field(default_factory=dict[tuple[int, ...], Mapping[str, float]])

    @classmethod
    def read(cls, path: Path = TABLE) -> Table:
        """Return the table of a file."""
        with path.open() as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        names = list(Digits.__annotations__)
        axes = {name: sorted({row[name] for row in rows}) for name in names}
        return cls({tuple(axes[name].index(row[name]) for name in names): row for row in rows})

    def at(self, point: Point) -> Mapping[str, float]:
        """Return the metrics at a point of the grid."""
        return self.rows[tuple(int(point[name]) for name in Digits.__annotations__)]


LARGEST = 4000
"""The most parameters of a feasible model of the table."""


def digits_problems(table: Table) -> dict[str, Problem]:
    """Return the problems of a table: its loss, the loss of small models, and loss and size."""

    def loss(point: Point) -> tuple[float]:
        return (table.at(point)["loss"],)

    def loss_and_size(point: Point) -> tuple[float, float]:
        row = table.at(point)
        return math.log10(row["loss"]), math.log10(row["parameters"])

    def is_large(point: Point) -> float:
        return table.at(point)["parameters"] / LARGEST - 1

    losses = sorted(row["loss"] for row in table.rows.values())
    small = sorted(row["loss"] for row in table.rows.values() if row["parameters"] <= LARGEST)
    both = [(math.log10(row["loss"]), math.log10(row["parameters"])) for row in table.rows.values()]
    corner = (0.0, 4.0)
    return {
        "digits": Problem(Digits, loss, losses[0], floor=(losses[1] - losses[0]) / 2),
        "digits, small": Problem(Digits, loss, small[0], is_large, floor=(small[1] - small[0]) / 2),
        "digits, loss and size": Problem(
            Digits, loss_and_size, dominated_area(both, corner), reference=corner, floor=1e-4
        ),
    }


def one(function: Callable[[Point], float]) -> Callable[[Point], tuple[float]]:
    """Return a function of one objective as one of several."""
    return lambda point: (function(point),)


PLAIN: Mapping[str, Problem] = {
    "branin": Problem(Branin, one(branin), trials=(50, 200, 1000)),
    "hartmann6": Problem(Hartmann, one(hartmann), trials=(50, 200, 1000)),
    "rastrigin4": Problem(Rastrigin, one(rastrigin), trials=(50, 200, 1000)),
}
CONSTRAINED: Mapping[str, Problem] = {
    "branin, disc": Problem(Branin, one(branin), constraint=disc),
    "hartmann6, simplex": Problem(Hartmann, one(hartmann), constraint=simplex),
}
# The area under the front 1 - sqrt(x) up to the corner (1, 5): 5 less the integral, 1/3.
SEVERAL: Mapping[str, Problem] = {"zdt1": Problem(Unit, zdt1, 5 - 1 / 3, reference=(1.0, 5.0))}


def without_priors(space: type[Space]) -> type[Space]:
    """Return the same space without priors."""
    made: Any = space
    domains: dict[str, Any] = {}
    for name, known in made.__domains__.items():
        make = int_uniform if isinstance(known.low, int) else uniform
        domains[name] = make(known.low, known.high)
    kinds = {name: type(known.low) for name, known in made.__domains__.items()}
    return type(Space)(space.__name__, (Space,), {"__annotations__": kinds, **domains})  # pyright: ignore
