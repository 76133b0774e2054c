"""Corners of domains: options that are equal, unlabelled or spaces, two number types, bounds beyond exact floats."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest

from tuner.errors import SpaceError
from tuner.study.domains import FLOAT_MAX, FLOAT_TINY, domains_of, parameters
from tuner.study.space import (
    Space,
    SpaceMeta,
    build,
    choice,
    from_params,
    int_uniform,
    is_traced,
    log_uniform,
    parse_fixed,
    sample,
    to_params,
    uniform,
)


def make(body: dict[str, Any], name: str = "Made", **annotations: Any) -> Any:
    given = {field: annotations.get(field, object) for field in body}
    return SpaceMeta(name, (Space,), {"__annotations__": given, **body})


class One(Space):
    lr: float = uniform(0, 1)


@pytest.mark.parametrize(
    "space",
    [
        make({"x": choice(0, 0.5, 1, traced=True)}),
        make({"x": choice(0, 0.1, 1)}, x=float),
        make({"x": choice({"slow": One(lr=0.1), "fast": One(lr=0.9)})}),
        make({"x": choice(*np.linspace(0, 1, 3))}),
    ],
    ids=["traced ints and floats", "ints in a float field", "instances", "numpy"],
)
def test_round_trip(space: Any) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        hparams = sample(space, trial)
        assert to_params(hparams) == trial.params
        assert from_params(space, json.loads(json.dumps(trial.params))) == hparams


@pytest.mark.parametrize(
    ("make_domain", "message"),
    [
        (lambda: choice({"a": 1, "b": 1}), "options must differ"),
        (lambda: choice((1, 2), (1.0, 2)), "options must differ"),
        (lambda: choice({"a": One, "b": One}), "options must differ"),
        (lambda: choice({"a": math.nan}), "an option must be equal to itself"),
        (lambda: choice((object(),), 1), "no stable label"),
        (lambda: choice((lambda: 1,), 1), "no stable label"),
        (lambda: choice(object(), object()), "no stable label"),
        (lambda: int_uniform(0, 2**60), "bounds must"),
        (lambda: uniform(0, 10**400), "bounds must"),
        (lambda: uniform(-1e308, 1e308), "bounds must"),
    ],
)
def test_refused(make_domain: Callable[[], Any], message: str) -> None:
    with pytest.raises(SpaceError, match=rf"^Bad\.x: {message}"):
        make({"x": make_domain()}, "Bad")


@pytest.mark.parametrize(
    ("domain", "stored"),
    [
        *((int_uniform(1, 4), stored) for stored in (2.7, "3", True, None)),
        *((uniform(0, 4), stored) for stored in ("abc", "0.5", True, None)),
    ],
)
def test_a_stored_value_of_another_type_is_refused(domain: Any, stored: Any) -> None:
    with pytest.raises(SpaceError, match=r"^x must be in (int_)?uniform"):
        from_params(make({"x": domain}), {"x": stored})


def test_errors_of_a_choice_name_the_parameter() -> None:
    space = make({"x": choice(1, 2)})
    with pytest.raises(SpaceError, match=r"^x must be one of"):
        from_params(space, {"x": 3})
    with pytest.raises(SpaceError, match=r"^x must be one of"):
        to_params(space(x=3))


def test_inheritance_of_constants_and_domains() -> None:
    class Fixed(One):
        lr: float = 0.5

    class More(Fixed):
        pass

    assert domains_of(More) == {}
    with pytest.raises(SpaceError, match=r"^Bare\.lr: .*annotation"):
        SpaceMeta("Bare", (One,), {"lr": 0.5})

    class Searched(Fixed):
        lr: float = uniform(0, 2)

    with pytest.raises(TypeError, match="'lr'"):
        Searched()  # pyright: ignore[reportCallIssue]


def test_a_users_own_error_is_not_renamed() -> None:
    class Checked(Space):
        x: int = int_uniform(1, 4)

        def __post_init__(self) -> None:
            raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine$"):
        build(Checked, lambda name, domain: domain.example())


def test_one_name_for_two_hyperparameters_is_refused() -> None:
    class A(Space):
        lr: float = uniform(0, 1)

    B = make({"A": choice(make({"lr": uniform(0, 2)}, "C")), "lr": uniform(0, 3)}, "B", lr=float)
    with pytest.raises(SpaceError, match=r"^Both: two hyperparameters are called 'opt\.A\.lr'"):
        make({"opt": choice(A, B)}, "Both")


def test_a_union_with_a_float_or_a_space_is_traced() -> None:
    class Given(Space):
        rate: float | None
        inner: One | None
        size: int | None

    assert [is_traced(Given, field) for field in ("rate", "inner", "size")] == [True, True, False]


def test_words_of_choices() -> None:
    space = make({"flag": choice(True, False), "mixed": choice(1, "one")})
    assert parse_fixed(space, {"flag": "true", "mixed": "one"}) == {"flag": True, "mixed": "one"}
    assert [name for name, _, _ in parameters(space)] == ["flag", "mixed"]


@pytest.mark.parametrize(
    ("make_domain", "message"),
    [
        (lambda: log_uniform(1e-50, 1e-3), r"a traced number is a float32 and must be 0, or between .*: got 1e-50"),
        (lambda: uniform(0.0, 1e-46), "got 1e-46; make it static"),
        (lambda: uniform(-1e-39, 1.0), "got -1e-39"),  # a subnormal, which a device may take for 0
        (lambda: uniform(0, 5e39), r"got 5e\+39"),
        (lambda: uniform(1.0, 1.0 + 1e-9), "low and high are equal as float32"),
        (lambda: int_uniform(0, 2**31, traced=True), r"must be in \[-2\*\*31, 2\*\*31\), as int32: got 2147483648"),
        (lambda: int_uniform(-(2**31) - 1, 0, traced=True), "got -2147483649"),
        (lambda: int_uniform(1, 2**40, log=True, traced=True), "got 1099511627776"),
        (lambda: choice(1, 2**31, traced=True), "got 2147483648"),
        (lambda: choice(0.5, 1e-46, traced=True), "got 1e-46"),
        (lambda: choice(0.5, 5e39, traced=True), r"got 5e\+39"),
        (lambda: choice(0.1, 0.1 + 1e-12, traced=True), "two options are equal as float32"),
    ],
)
def test_traced_numbers_that_a_program_cannot_hold_are_refused(make_domain: Callable[[], Any], message: str) -> None:
    with pytest.raises(SpaceError, match=f"Made.x: .*{message}"):
        make({"x": make_domain()})


def test_static_numbers_and_what_a_program_can_hold_are_taken() -> None:
    tiny, largest = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    make({"x": uniform(0.0, 5e39, static=True), "y": log_uniform(1e-50, 1.0, static=True), "z": int_uniform(0, 2**40)})
    make({"x": uniform(-largest, largest), "y": log_uniform(tiny, largest), "z": uniform(0.0, tiny)})
    make({"x": int_uniform(-(2**31), 2**31 - 1, traced=True), "y": choice(1e-50, 2**40)})
    assert (tiny, largest) == (FLOAT_TINY, FLOAT_MAX)


def test_a_constant_float_is_a_number_inside_the_program_too() -> None:
    with pytest.raises(SpaceError, match=r"Made.eps: a traced number is a float32 .*: got 1e-46"):
        make({"eps": 1e-46}, eps=float)
    assert make({"eps": math.inf, "steps": 2**40}, eps=float, steps=int)().steps == 2**40
