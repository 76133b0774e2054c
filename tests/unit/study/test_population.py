"""The rules of population-based training: who copies whom, with which hyperparameters, and where a state came from."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest

from tuner import choice, int_uniform, log_uniform, uniform
from tuner.search.population import PopulationPruner
from tuner.study.population import (
    Copy,
    Member,
    Stretch,
    copied_domains,
    explored,
    leaders_of,
    lineage,
    ranked,
    truncated,
)


def members(*values: float) -> list[Member]:
    return [Member(number, value) for number, value in enumerate(values)]


def test_the_best_come_first_and_nan_last() -> None:
    given = members(0.3, math.nan, 0.1, 0.3, -math.inf)
    assert ranked(given, maximize=False) == [4, 2, 0, 3, 1]
    assert ranked(given, maximize=True) == [0, 3, 2, 4, 1]


@pytest.mark.parametrize(("count", "copying"), [(1, 0), (3, 0), (4, 1), (7, 1), (8, 2), (20, 5)])
def test_a_quarter_copies_a_quarter(count: int, copying: int) -> None:
    order = list(range(count))
    leaders = {number: list(leaders_of(number, order, 0.25)) for number in order}
    expected = {number: list(range(copying)) if number >= count - copying else [] for number in order}
    assert leaders == expected
    assert truncated(0.25, count) == copying


def test_at_most_half_copy_so_that_none_copies_itself() -> None:
    assert [list(leaders_of(number, [2, 0, 1], 0.5)) for number in (0, 1, 2)] == [[], [2], []]


DOMAINS: dict[str, Any] = {
    "rate": log_uniform(1e-4, 1e-1), "share": uniform(0.0, 1.0), "count": int_uniform(2, 20, step=2, traced=True),
    "power": int_uniform(1, 64, log=True, traced=True), "option": choice(1.0, 2.0, 4.0, traced=True),
    "width": choice(8, 16), "depth": int_uniform(1, 4), "fixed": uniform(0.0, 1.0, static=True),
}  # fmt: skip
PARAMS: dict[str, Any] = {
    "rate": 1e-3, "share": 0.5, "count": 10, "power": 8, "option": 2.0, "width": 8, "depth": 2, "fixed": 0.5,
}  # fmt: skip


def test_only_traced_hyperparameters_change_and_others_are_those_of_the_copied_trial() -> None:
    changing = copied_domains(DOMAINS)
    assert sorted(changing) == ["count", "option", "power", "rate", "share"]
    found = explored(changing, PARAMS, PopulationPruner(every=1, resample=1.0), random.Random(0))
    assert [found[name] for name in ("width", "depth", "fixed")] == [8, 2, 0.5]
    conditional = explored(changing, {"rate": 1e-3}, PopulationPruner(every=1), random.Random(0))
    assert conditional.keys() == {"rate"}  # what the copied trial does not have, it does not get


def test_perturbing_multiplies_by_one_of_the_factors_and_stays_in_the_domain() -> None:
    settings, changing = PopulationPruner(every=1, resample=0.0), copied_domains(DOMAINS)
    seen: dict[str, Counter[Any]] = {name: Counter() for name in changing}
    for seed in range(400):
        for name, value in explored(changing, PARAMS, settings, random.Random(seed)).items():
            if name in seen:
                seen[name][round(value, 9) if isinstance(value, float) else value] += 1
    assert seen["rate"].keys() == {0.0008, 0.00125}
    assert seen["share"].keys() == {0.4, 0.625}
    assert seen["count"].keys() == {8, 12}  # 12.5 is nearest to 12
    assert seen["power"].keys() == {6, 10}  # 6.4 and 10
    assert seen["option"].keys() == {1.0, 4.0}
    # 400 draws of a fair coin: 5 standard deviations.
    assert all(150 < count < 250 for counts in seen.values() for count in counts.values())
    edges = {**PARAMS, "rate": 0.09, "share": 1.0, "count": 20, "power": 64, "option": 4.0}
    for seed in range(40):
        found = explored(changing, edges, settings, random.Random(seed))
        assert all(DOMAINS[name].contains(found[name]) for name in changing)
        assert found["rate"] in (pytest.approx(0.072), 0.1)


def test_resampling_draws_from_the_domain() -> None:
    settings, changing = PopulationPruner(every=1, resample=1.0), copied_domains(DOMAINS)
    drawn: list[Any] = [explored(changing, PARAMS, settings, random.Random(seed)) for seed in range(1000)]
    for name, domain in changing.items():
        assert all(domain.contains(one[name]) for one in drawn)
    # The mean of a uniform number on [0, 1] is 1/2, with a standard deviation of sqrt(1/12); 5 standard errors.
    rates = [(math.log10(one["rate"]) + 4) / 3 for one in drawn]
    shares = [one["share"] for one in drawn]
    for uniforms in (rates, shares):
        assert sum(uniforms) / 1000 == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / 1000))
    counts, powers = Counter(one["count"] for one in drawn), Counter(one["power"] for one in drawn)
    assert counts.keys() == set(range(2, 21, 2))
    # The integer 1 has the interval from 0.5 to 1.5 of the logarithm of [0.5, 64.5].
    share = math.log(3) / math.log(129)
    assert powers[1] / 1000 == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 1000))


def test_the_chance_to_resample_holds_for_each_hyperparameter_by_itself() -> None:
    settings, changing = PopulationPruner(every=1, resample=0.25), copied_domains(DOMAINS)
    drawn = [explored(changing, PARAMS, settings, random.Random(seed)) for seed in range(1000)]
    kept = [[one["rate"] in (8e-4, 1.25e-3), one["share"] in (0.4, 0.625)] for one in drawn]
    spread = 5 * math.sqrt(0.25 * 0.75 / 1000)
    assert sum(rate for rate, _ in kept) / 1000 == pytest.approx(0.75, abs=spread)
    assert sum(rate and share for rate, share in kept) / 1000 == pytest.approx(0.75**2, abs=spread)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every must be a number of epochs, at least 1: got 0"),
        ({"every": 1.5}, "every must be a number of epochs"),
        ({"every": 1, "quantile": 0.6}, "quantile must be above 0 and at most 0.5: got 0.6"),
        ({"every": 1, "quantile": 0}, "quantile must be above 0"),
        ({"every": 1, "resample": 1.5}, "resample must be a probability: got 1.5"),
        ({"every": 1, "perturb": ()}, "perturb must be factors above 0"),
        ({"every": 1, "perturb": (0.8, -1)}, "perturb must be factors above 0"),
        ({"every": 1, "perturb": "0.8"}, "perturb must be factors above 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PopulationPruner(**settings)


def test_the_lineage_follows_copies_back_to_a_trial_that_began() -> None:
    initial: Any = {number: {"rate": float(number)} for number in range(4)}
    copies = {
        0: [Copy(2, 1, {"rate": 0.2}), Copy(6, 2, {"rate": 0.6})],
        1: [Copy(2, 3, {"rate": 1.2}), Copy(4, 3, {"rate": 1.4})],
        2: [Copy(4, 1, {"rate": 2.4}), Copy(6, 0, {"rate": 2.6})],
    }
    # At epoch 6 trial 0 took the state that trial 2 had reported, before that copied trial 0 itself; and at epoch 4
    # trial 2 took that of trial 1, before it copied trial 3.
    assert lineage(0, copies, initial) == [
        Stretch(3, 1, 2, {"rate": 3.0}),
        Stretch(1, 3, 4, {"rate": 1.2}),
        Stretch(2, 5, 6, {"rate": 2.4}),
        Stretch(0, 7, None, {"rate": 0.6}),
    ]
    assert lineage(3, copies, initial) == [Stretch(3, 1, None, {"rate": 3.0})]
