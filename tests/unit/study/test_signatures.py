"""Which functions take the hyperparameters, and which take too much."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tuner import Space, Study, uniform
from tuner.errors import StudyError
from tuner.study.signatures import takes_hparams


class HParams(Space):
    rate: float = uniform(0.0, 1.0)


def three(a: Any, b: Any, c: Any) -> None: ...


def with_option(seed: int, fraction: float = 0.2) -> None: ...


def with_default(seed: int, hparams: Any = None) -> None: ...


def by_keyword(seed: int, *, hparams: Any) -> None: ...


def by_keyword_or_not(seed: int, *, fraction: float = 0.2) -> None: ...


class Both:
    def __call__(self, seed: int, hparams: Any) -> None: ...

    def alone(self, seed: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda seed: None, False),
        (lambda seed, hparams: None, True),
        (lambda seed, anything: None, True),
        (lambda *all: None, False),
        (with_option, False),
        (with_default, True),
        (by_keyword_or_not, False),
        (functools.partial(three, 1), True),
        (functools.partial(three, 1, 2), False),
        (functools.partial(three, c=3), True),
        (Both(), True),
        (Both().alone, False),
        (dict.fromkeys, False),  # written in C, without a signature or with one
    ],
)
def test_the_second_parameter_decides(function: Callable[..., Any], expected: bool) -> None:
    assert takes_hparams(function, "data", "seed") is expected


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (three, "(a, b, c)"),
        (lambda: None, "()"),
        (by_keyword, "(seed, *, hparams)"),
        (functools.partial(three, 1, 2, 3), "()"),
    ],
)
def test_other_parameters_are_refused_when_the_study_is_defined(function: Callable[..., Any], found: str) -> None:
    with pytest.raises(StudyError) as caught:
        Study(
            name="wrong", space=HParams, trainer=SimpleNamespace(train_model=None),
            data=function, objective="loss", direction="minimize",
            epochs=1, trials=1,
        )  # fmt: skip
    assert str(caught.value) == f"data must take (seed) or (seed, hparams): got {found}"
