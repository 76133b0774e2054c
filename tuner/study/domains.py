"""Domains of the fields of a search space: floats, integers, choices. Does not import JAX.

Optuna is imported when a distribution is made.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import struct
import typing
from abc import ABCMeta, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tuner.errors import SpaceError, is_int, is_number

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution


Stored = None | bool | int | float | str
"""What Optuna stores for a parameter: a plain JSON value."""


FLOAT_MAX, FLOAT_TINY = 3.4028234663852886e38, 1.1754943508222875e-38
"""The largest and the smallest positive normal float32. A program may round smaller numbers to 0."""


def as_traced(value: float) -> float:
    """Return the value of a traced number inside a program: an int32, or a float32 as a float.

    Raises:
        SpaceError: it is neither.
    """
    if isinstance(value, bool) or not math.isfinite(value):
        return value
    if isinstance(value, int):
        if not -(2**31) <= value < 2**31:
            raise SpaceError(
                f"a traced integer must be in [-2**31, 2**31), as int32: got {value!r}; make it static, or a float"
            )
        return value
    if not (value == 0 or FLOAT_TINY <= abs(value) <= FLOAT_MAX):
        raise SpaceError(
            f"a traced number is a float32 and must be 0, or between {FLOAT_TINY:.3g} and {FLOAT_MAX:.3g} in size: got "
            f"{value!r}; make it static, or search its logarithm"
        )
    return struct.unpack("f", struct.pack("f", value))[0]


Confidence = Literal["low", "medium", "high"]
"""How certain a prior is: low, medium or high."""


def check_prior(prior: object, confidence: object, domain: Domain) -> None:
    """Raise SpaceError if a prior is outside its domain, or its confidence is unknown."""
    if confidence not in typing.get_args(Confidence):
        raise SpaceError(f"the confidence of a prior must be 'low', 'medium' or 'high': got {confidence!r}")
    if prior is None and confidence != "medium":
        raise SpaceError(
            f"the confidence of a prior needs a prior: got confidence={confidence!r} in {domain!r}; add prior"
        )
    if prior is not None and not domain.contains(prior):
        raise SpaceError(f"the prior must be in {domain!r}: got {prior!r}")


class HasDomains(Protocol):
    """The part of a `Space` class that domains use."""

    __name__: str
    __domains__: dict[str, Domain]


def has_domains(value: object) -> bool:
    """Return whether a value is a `Space` class."""
    return isinstance(value, type) and hasattr(value, "__domains__")


def domains_of(space: HasDomains) -> dict[str, Domain]:
    """Return the domains of a space's own fields, by field name."""
    return space.__domains__


class Domain(metaclass=ABCMeta):
    """The values that a field may have."""

    traced: bool

    @abstractmethod
    def check(self) -> None:
        """Raise SpaceError (without the field's name) if this domain is impossible."""

    @abstractmethod
    def distribution(self) -> BaseDistribution:
        """Return the corresponding Optuna distribution of stored values."""

    @abstractmethod
    def contains(self, value: object) -> bool:
        """Return whether `value` is one of the domain's values."""

    @abstractmethod
    def suggest(self, trial: optuna.Trial, name: str) -> Stored:
        """Return the stored value that Optuna suggests for this domain."""

    @abstractmethod
    def example(self) -> Any:
        """Return an arbitrary value of this domain."""

    def values(self) -> Sequence[Any] | None:
        """Return all values of this domain; None if it is a range of floats."""
        return None

    @abstractmethod
    def parse(self, text: str) -> Any:
        """Return the value for a word of the command line; raise ValueError if there is none."""

    def encode(self, value: Any) -> Stored:
        """Return the stored form of a value of this domain."""
        return value

    def decode(self, stored: Stored) -> Any:
        """Return the value for its stored form; the inverse of `encode`."""
        return stored

    @abstractmethod
    def only(self, value: Any) -> Domain:
        """Return the same domain narrowed to one value."""


@dataclass(frozen=True)
class FloatDomain(Domain):
    """Floats in [low, high], uniform or uniform in their logarithm.

    A prior is no part of the definition: domains with different priors are equal.
    """

    low: float
    high: float
    log: bool = False
    traced: bool = True
    prior: float | None = dataclasses.field(default=None, compare=False)
    confidence: Confidence = dataclasses.field(default="medium", compare=False)

    def check(self) -> None:
        for bound in (self.low, self.high):
            if not is_number(bound) or not abs(bound) <= 1e300:
                raise SpaceError(f"bounds must be finite numbers: got low={self.low!r}, high={self.high!r}")
        if self.log and self.low <= 0:
            raise SpaceError(f"a log scale needs low > 0: got low={self.low!r}")
        if self.low >= self.high:
            raise SpaceError(f"low must be below high: got low={self.low!r}, high={self.high!r}")
        if self.traced and as_traced(float(self.low)) == as_traced(float(self.high)):
            raise SpaceError(
                f"low and high are equal as float32, the type of traced numbers: got low={self.low!r}, "
                f"high={self.high!r}; make it static"
            )
        check_prior(self.prior, self.confidence, self)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self.log)

    def suggest(self, trial: optuna.Trial, name: str) -> float:
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def example(self) -> float:
        return float(self.low)

    def contains(self, value: object) -> bool:
        return is_number(value) and self.low <= value <= self.high

    def parse(self, text: str) -> float:
        return float(text)

    def encode(self, value: Any) -> float:
        return float(value)

    def decode(self, stored: Any) -> float:
        return float(stored)

    def only(self, value: float) -> FloatDomain:
        return dataclasses.replace(self, low=float(value), high=float(value), prior=None, confidence="medium")

    def __repr__(self) -> str:
        name = "log_uniform" if self.log else "uniform"
        return f"{name}({float(self.low)!r}, {float(self.high)!r}{'' if self.traced else ', static=True'})"


@dataclass(frozen=True)
class IntDomain(Domain):
    """The integers low, low + step, ..., high."""

    low: int
    high: int
    step: int = 1
    log: bool = False
    traced: bool = False
    prior: int | None = dataclasses.field(default=None, compare=False)
    confidence: Confidence = dataclasses.field(default="medium", compare=False)

    def check(self) -> None:
        for bound in (self.low, self.high, self.step):
            if not is_int(bound):
                raise SpaceError(f"low, high and step must be integers: got {self!r}")
        if max(abs(self.low), abs(self.high)) > 2**53:
            raise SpaceError(f"bounds must be within ±2**53, where Optuna's floats are exact: got {self!r}")
        if self.traced:
            as_traced(self.low)
            as_traced(self.high)
        if self.log and self.low < 1:
            raise SpaceError(f"a log scale needs low >= 1: got low={self.low}")
        if self.low >= self.high:
            raise SpaceError(f"low must be below high: got low={self.low}, high={self.high}")
        if self.step < 1:
            raise SpaceError(f"step must be at least 1: got step={self.step}")
        if self.log and self.step != 1:
            raise SpaceError(f"a log scale cannot have a step: got step={self.step}")
        if (self.high - self.low) % self.step:
            reachable = self.high - (self.high - self.low) % self.step
            raise SpaceError(
                f"high must be low plus a multiple of step: got high={self.high}, step={self.step}; "
                f"use high={reachable}"
            )
        check_prior(self.prior, self.confidence, self)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log, step=self.step)

    def suggest(self, trial: optuna.Trial, name: str) -> int:
        return trial.suggest_int(name, self.low, self.high, log=self.log, step=self.step)

    def example(self) -> int:
        return self.low

    def values(self) -> Sequence[int]:
        return range(self.low, self.high + 1, self.step)

    def contains(self, value: object) -> bool:
        return is_int(value) and self.low <= value <= self.high and (value - self.low) % self.step == 0

    def parse(self, text: str) -> int:
        return int(text)

    def decode(self, stored: Any) -> int:
        return int(stored)

    def only(self, value: int) -> IntDomain:
        return dataclasses.replace(self, low=value, high=value, step=1, prior=None, confidence="medium")

    def __repr__(self) -> str:
        marks = f", step={self.step}" * (self.step != 1) + ", log=True" * self.log + ", traced=True" * self.traced
        return f"int_uniform({self.low!r}, {self.high!r}{marks})"


@dataclass(frozen=True)
class ChoiceDomain(Domain):
    """One of several options. An option that is a `Space` class adds its own fields.

    Attributes:
        options: The values, in order.
        labels: The stored form of each: the value itself if JSON supports it, else a stable label.
    """

    options: tuple[Any, ...]
    labels: tuple[Stored, ...]
    traced: bool = False

    @property
    def spaces(self) -> dict[Stored, HasDomains]:
        """The options that are spaces, by label."""
        return {label: option for label, option in zip(self.labels, self.options, strict=True) if has_domains(option)}

    def check(self) -> None:
        if not self.options:
            raise SpaceError("a choice needs at least one option")
        for label, option in zip(self.labels, self.options, strict=True):
            if isinstance(label, str) and label.startswith(_UNLABELLED):
                raise SpaceError(
                    f"no stable label for {option!r}; give one with a mapping: choice({{'name': value, ...}})"
                )
            if not (label is None or isinstance(label, bool | int | float | str)):
                raise SpaceError(f"labels must be plain JSON values: got {label!r}")
        for at, label in enumerate(self.labels):
            if isinstance(label, float) and not math.isfinite(label):
                raise SpaceError(f"options must be finite: got {label!r}; use labels: choice({{'name': value}})")
            if any(label == other for other in self.labels[:at]):
                raise SpaceError(f"options must differ: {label!r} is given twice (equal values or equal labels)")
        for option in self.options:
            try:
                hash(option)
            except TypeError:
                raise SpaceError(
                    f"options must be hashable: got {option!r}; use a tuple, or pass the options as separate arguments"
                ) from None
        for at, option in enumerate(self.options):
            if any(option == other and type(option) is type(other) for other in self.options[:at]):
                raise SpaceError(f"options must differ: {option!r} is given twice (equal values or equal labels)")
            if option != option:
                raise SpaceError(f"an option must be equal to itself: got {option!r}")
        if self.spaces and not all(option is None or has_domains(option) for option in self.options):
            raise SpaceError(f"a choice cannot mix Space classes with other options than None: got {self!r}")
        if self.traced and not all(isinstance(option, int | float) for option in self.options):
            raise SpaceError(f"a traced choice needs numbers: got {self!r}")
        if self.traced and len({as_traced(option) for option in self.options}) < len(self.options):
            raise SpaceError(f"two options are equal as float32, the type of traced numbers: got {self!r}")

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.labels)

    def suggest(self, trial: optuna.Trial, name: str) -> Stored:
        return trial.suggest_categorical(name, self.labels)

    def example(self) -> Any:
        return self.decode(self.labels[0])

    def values(self) -> Sequence[Any]:
        return self.options

    def contains(self, value: object) -> bool:
        return any(type(value) is type(option) and value == option for option in self.options)

    def parse(self, text: str) -> Any:
        for spelling in (str, lambda word: str(word).lower()):
            for label, option in zip(self.labels, self.options, strict=True):
                if spelling(text) == spelling(label):
                    return option
        raise ValueError(text)

    def encode(self, value: Any) -> Stored:
        for key in (value, type(value)) if has_domains(type(value)) else (value,):
            for label, option in zip(self.labels, self.options, strict=True):
                if key == option and type(key) is type(option):
                    return label
        raise SpaceError(f"must be one of {list(self.labels)}: got {value!r}")

    def decode(self, stored: Stored) -> Any:
        for label, option in zip(self.labels, self.options, strict=True):
            if stored == label and type(stored) is type(label):
                return option
        raise SpaceError(f"must be one of {list(self.labels)}: got {stored!r}")

    def as_floats(self) -> ChoiceDomain:
        """Return the same choice with its numbers converted to floats; the labels do not change."""
        return dataclasses.replace(
            self, options=tuple(float(each) if isinstance(each, int | float) else each for each in self.options)
        )

    def only(self, value: Any) -> ChoiceDomain:
        return dataclasses.replace(self, options=(value,), labels=(self.encode(value),))

    def child_names(self, name: str, label: Stored) -> dict[str, str]:
        """Return field -> parameter name for the fields of the option `label` of the choice called `name`."""
        children = {key: domains_of(space) for key, space in self.spaces.items()}
        names = {}
        for field, domain in children[label].items():
            clash = any(others.get(field, domain) != domain for others in children.values())
            names[field] = f"{name}.{label}.{field}" if clash else f"{name}.{field}"
        return names

    def __repr__(self) -> str:
        mark = ", traced=True" if self.traced else ""
        return f"choice({', '.join(repr(label) for label in self.labels)}{mark})"


def uniform(
    low: float, high: float, *, static: bool = False, prior: float | None = None, confidence: Confidence = "medium"
) -> Any:
    """A float between `low` and `high`; traced unless `static`.

    Args:
        low: The least value.
        high: The greatest value.
        static: Whether it changes the program.
        prior: A value that is expected to be good, for the sampler `tpe`; None if nothing is known.
        confidence: How certain that is: `low`, `medium` or `high`.
    """
    return FloatDomain(low, high, traced=not static, prior=prior, confidence=confidence)


def log_uniform(
    low: float, high: float, *, static: bool = False, prior: float | None = None, confidence: Confidence = "medium"
) -> Any:
    """A float between `low` > 0 and `high`, uniform in its logarithm; traced unless `static`.

    For a prior see `uniform`.
    """
    return FloatDomain(low, high, log=True, traced=not static, prior=prior, confidence=confidence)


def int_uniform(
    low: int,
    high: int,
    *,
    step: int = 1,
    log: bool = False,
    traced: bool = False,
    prior: int | None = None,
    confidence: Confidence = "medium",
) -> Any:
    """An integer among low, low + step, ..., high (or uniform in its logarithm); static unless `traced`.

    For a prior see `uniform`.
    """
    return IntDomain(low, high, step=step, log=log, traced=traced, prior=prior, confidence=confidence)


def choice(*options: object, traced: bool = False) -> Any:
    """One of the options; static unless `traced`.

    Options that JSON does not support are stored under a label: the name of a class, function or enum member, or the
    text of a tuple. Pass other options with labels, in one mapping: `choice({"small": object_1, "large": object_2})`.
    """
    if len(options) == 1 and isinstance(options[0], Mapping):
        made = ChoiceDomain(tuple(options[0].values()), tuple(options[0].keys()), traced=traced)
    else:
        made = ChoiceDomain(options, tuple(_label(option) for option in options), traced=traced)
    # A traced number must have the same type in all trials: a float and an int need two programs.
    return made.as_floats() if traced and any(isinstance(option, float) for option in made.options) else made


_UNLABELLED = "<no label>"


def _label(option: object) -> Stored:
    """Return the stored form of an option, which is the same in every process."""
    if isinstance(option, enum.Enum):
        return f"{type(option).__name__}.{option.name}"
    if option is None or isinstance(option, bool):
        return option
    for plain in (int, float, str):
        if isinstance(option, plain):  # np.float64 is a float, and comes back from JSON as one
            return plain(option)
    if isinstance(option, tuple | list):
        parts = [_label(part) for part in option]
        unlabelled = any(str(part).startswith(_UNLABELLED) for part in parts)
        return _UNLABELLED if unlabelled else f"({', '.join(str(part) for part in parts)})"
    name = getattr(option, "__name__", None)
    return name if name and name != "<lambda>" else f"{_UNLABELLED} {type(option).__name__}"


def parameters(space: HasDomains) -> Iterator[tuple[str, Domain, str]]:
    """Yield every Optuna parameter of a space: its name, its domain, and the condition under which it exists.

    The condition is empty, or a text like `optimizer=SGD`; for nested conditions it is the innermost one.
    """
    yield from _parameters({field: field for field in domains_of(space)}, space, "")


def _parameters(names: Mapping[str, str], space: HasDomains, when: str) -> Iterator[tuple[str, Domain, str]]:
    for field, domain in domains_of(space).items():
        name = names[field]
        yield name, domain, when
        if isinstance(domain, ChoiceDomain):
            for label, option in domain.spaces.items():
                yield from _parameters(domain.child_names(name, label), option, f"{name}={label}")
