"""Ranks vectors of several objectives: non-dominated sorting, then crowding distance.

Both are those of NSGA-II (Deb et al. 2002, https://doi.org/10.1109/4235.996017). To rank the trials of a rung with them
is multi-objective ASHA (Schmucker et al. 2021, https://arxiv.org/abs/2106.12639).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def count_better(
    own: Sequence[float], others: Sequence[Sequence[float]], maximize: Sequence[bool], most: float = math.inf
) -> int:
    """Return how many of the other vectors rank before a vector.

    These are the vectors of better fronts, and those of its own front with a greater crowding distance. The order of
    `others` does not matter.

    Args:
        own: The vector, a finite number per objective.
        others: The other vectors.
        maximize: For each objective, whether larger is better.
        most: Beyond this number, counting may stop.
    """
    costs = np.array([own, *others], dtype=float) * np.where(maximize, -1.0, 1.0)
    unique, places, counts = np.unique(costs, axis=0, return_inverse=True, return_counts=True)
    mine, left, better = places.reshape(-1)[0], np.arange(len(unique)), 0
    while better <= most:
        in_front = is_in_front(unique[left])
        front = left[in_front]
        if mine in front:
            distances = crowding_distances(unique[front])
            return better + int(counts[front][distances > distances[front == mine]].sum())
        better += int(counts[front].sum())
        left = left[~in_front]
    return better


def is_in_front(costs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which vectors no other one dominates.

    Args:
        costs: Different vectors to minimize, in lexicographic order. Float[Array, "vectors objectives"].

    Returns:
        Bool[Array, "vectors"].
    """
    found = np.zeros(len(costs), dtype=bool)
    if costs.shape[1] == 2:
        found[0] = True
        found[1:] = costs[1:, 1] < np.minimum.accumulate(costs[:-1, 1])
        return found
    left = np.arange(len(costs))
    while left.size:  # no vector dominates one that comes before it
        found[left[0]] = True
        rest = left[1:]
        left = rest[np.any(costs[rest] < costs[left[0]], axis=1)]
    return found


def crowding_distances(front: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each vector of a front is from its neighbours, in units of the front's extent.

    Args:
        front: Different vectors, in lexicographic order. Float[Array, "vectors objectives"].

    Returns:
        Float[Array, "vectors"]: infinite for the best and the worst in an objective.
    """
    distances = np.zeros(len(front))
    for column in front.T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        extent = ordered[-1] - ordered[0]
        if extent > 0:
            distances[order[1:-1]] += (ordered[2:] - ordered[:-2]) / extent
            distances[order[[0, -1]]] = np.inf
    return distances
