"""Vectors are ranked as in NSGA-II: against fronts worked out by hand, a sort by definition, and Optuna's own."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from optuna.samplers.nsgaii._elite_population_selection_strategy import _calc_crowding_distance
from optuna.study._multi_objective import _fast_non_domination_rank
from optuna.trial import create_trial

from tuner.search.fronts import count_better, crowding_distances, is_in_front

Vector = tuple[float, ...]

# Both are minimised. Fronts: {A, B, C, D}, {E, F}, {G}.
A, B, C, D, E, F, G = (1.0, 9.0), (2.0, 5.0), (4.0, 4.0), (9.0, 1.0), (3.0, 6.0), (5.0, 5.0), (9.0, 9.0)
ALL = [A, B, C, D, E, F, G]


def dominates(one: Vector, other: Vector) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def ranks_of(vectors: Sequence[Vector]) -> list[int]:
    """Return the number of the front of each vector, by definition: peel off what nothing dominates."""
    found, left = {}, set(range(len(vectors)))
    for front in range(len(vectors)):
        best = {at for at in left if not any(dominates(vectors[other], vectors[at]) for other in left)}
        found |= dict.fromkeys(best, front)
        left -= best
    return [found[at] for at in range(len(vectors))]


def random_vectors(seed: int, count: int, size: int, *, has_ties: bool) -> list[Vector]:
    chance = random.Random(seed)
    return [
        tuple(float(chance.randint(0, 3)) if has_ties else chance.random() for _ in range(size)) for _ in range(count)
    ]


def test_fronts_by_hand() -> None:
    assert ranks_of(ALL) == [0, 0, 0, 0, 1, 1, 2]
    assert is_in_front(np.array([A, B, E, C, F, D, G])).tolist() == [True, True, False, True, False, True, False]
    # Extents are 8 in both: B lies between A and C (3 / 8 + 5 / 8), C between B and D (7 / 8 + 4 / 8).
    assert crowding_distances(np.array([A, B, C, D])).tolist() == [math.inf, 1.0, 1.375, math.inf]


@pytest.mark.parametrize(
    ("own", "better"),
    [(A, 0), (D, 0), (C, 2), (B, 3), (E, 4), (F, 4), (G, 6)],
    ids=["A", "D", "C", "B", "E", "F", "G"],
)
def test_how_many_rank_before_a_vector_by_hand(own: Vector, better: int) -> None:
    others = [vector for vector in ALL if vector != own]
    assert count_better(own, others, [False, False]) == better
    assert count_better(own, others[::-1], [False, False]) == better
    flipped = [(first, -second) for first, second in others]
    assert count_better((own[0], -own[1]), flipped, [False, True]) == better


def test_equal_vectors_rank_alike() -> None:
    for own in ALL:
        others = [vector for vector in ALL if vector != own]
        alone = count_better(own, others, [False, False])
        assert count_better(own, [*others, own, own], [False, False]) == alone, own
    assert count_better(A, [], [True, True]) == count_better(A, [A, A], [True, True]) == 0
    # What is better counts as often as it is there.
    assert count_better(E, [B, B, B, A], [False, False]) == 4


def test_units_do_not_matter() -> None:
    vectors = random_vectors(0, 30, 3, has_ties=False)
    scaled = [(1e6 * first, second, third / 1e6) for first, second, third in vectors]
    counts = [count_better(own, vectors, [False] * 3) for own in vectors]
    assert [count_better(own, scaled, [False] * 3) for own in scaled] == counts
    assert len(set(counts)) > 10


def test_an_objective_in_which_all_are_equal_decides_nothing() -> None:
    vectors = random_vectors(1, 20, 2, has_ties=False)
    for own in vectors:
        others = [vector for vector in vectors if vector != own]
        with_constant = [(*vector, 7.0) for vector in others]
        expected = count_better(own, others, [False, True])
        assert count_better((*own, 7.0), with_constant, [False, True, True]) == expected


@pytest.mark.parametrize("has_ties", [False, True])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_any_front_is_that_of_the_definition_and_of_optuna(size: int, has_ties: bool) -> None:
    for seed in range(8):
        vectors = random_vectors(seed, 25, size, has_ties=has_ties)
        ranks = ranks_of(vectors)
        assert ranks == _fast_non_domination_rank(np.array(vectors)).tolist()
        ordered = sorted({*vectors})
        assert is_in_front(np.array(ordered)).tolist() == [rank == 0 for rank in ranks_of(ordered)]
        for at, own in enumerate(vectors):
            others = [*vectors[:at], *vectors[at + 1 :]]
            front = sorted({vector for vector, rank in zip(vectors, ranks, strict=True) if rank == ranks[at]})
            distances = dict(zip(front, crowding_distances(np.array(front)), strict=True))
            before = sum(
                rank < ranks[at] or (rank == ranks[at] and distances[vector] > distances[own])
                for vector, rank in zip(vectors, ranks, strict=True)
            )
            assert count_better(own, others, [False] * size) == before
            for most in (0, before - 1, before, before + 3):
                assert (count_better(own, others, [False] * size, most) <= most) == (before <= most)


@pytest.mark.parametrize("size", [2, 3])
def test_crowding_distances_are_those_of_optuna(size: int) -> None:
    for seed in range(5):
        vectors = sorted(random_vectors(seed, 12, size, has_ties=False))
        trials = [create_trial(values=vector) for vector in vectors]
        for number, trial in enumerate(trials):
            trial.number = number
        theirs = _calc_crowding_distance(trials)
        assert crowding_distances(np.array(vectors)) == pytest.approx([theirs[at] for at in range(len(vectors))])
