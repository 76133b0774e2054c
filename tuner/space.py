"""The search space: a typed dataclass of domains. No JAX; Optuna is imported when a distribution is made.

A field is *traced* (a number inside the compiled program) or *static* (part of the program's shape): floats are
traced, integers and choices static, and `static=True` / `traced=True` changes that. Optuna sees ordinary parameters;
those of a nested space are named `optimizer.momentum`, or `optimizer.SGD.momentum` where the options give one name
different domains.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import sys
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard, dataclass_transform

from tuner.errors import MissingHParam, SpaceError, nearest

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

Stored = None | bool | int | float | str
"""What Optuna stores for a parameter: a plain JSON value."""


class Domain(metaclass=ABCMeta):
    """The values that one field may take."""

    traced: bool

    @abstractmethod
    def check(self) -> None:
        """Raise SpaceError (without the field's name) if this domain is impossible."""

    @abstractmethod
    def distribution(self) -> BaseDistribution:
        """Return the equal Optuna distribution, over stored values."""

    @abstractmethod
    def contains(self, value: Any) -> bool:
        """Return whether `value` is one of the domain's values."""

    @abstractmethod
    def suggest(self, trial: optuna.Trial, name: str) -> Stored:
        """Return the stored value that Optuna suggests for this domain."""

    @abstractmethod
    def example(self) -> Any:
        """Return some value of this domain."""

    @abstractmethod
    def parse(self, text: str) -> Any:
        """Return the value that a command-line word stands for; ValueError if there is none."""

    def encode(self, value: Any) -> Stored:
        """Return what is stored for a value of this domain."""
        return value

    def decode(self, stored: Stored) -> Any:
        """Return the value that was stored; the inverse of `encode`."""
        return stored

    @abstractmethod
    def only(self, value: Any) -> Domain:
        """Return the same domain narrowed to one value."""


@dataclass(frozen=True)
class FloatDomain(Domain):
    """The floats in [low, high], uniform or uniform in their logarithm."""

    low: float
    high: float
    log: bool = False
    traced: bool = True

    def check(self) -> None:
        for bound in (self.low, self.high):
            if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
                raise SpaceError(f"bounds must be finite numbers: got low={self.low!r}, high={self.high!r}")
        if self.log and self.low <= 0:
            raise SpaceError(f"a log scale needs low > 0: got low={self.low!r}")
        if self.low >= self.high:
            raise SpaceError(f"low must be below high: got low={self.low!r}, high={self.high!r}")

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self.log)

    def suggest(self, trial: optuna.Trial, name: str) -> float:
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def example(self) -> float:
        return float(self.low)

    def contains(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def parse(self, text: str) -> float:
        return float(text)

    def encode(self, value: Any) -> float:
        return float(value)

    def decode(self, stored: Any) -> float:
        return float(stored)

    def only(self, value: float) -> FloatDomain:
        return dataclasses.replace(self, low=float(value), high=float(value))

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

    def check(self) -> None:
        for bound in (self.low, self.high, self.step):
            if isinstance(bound, bool) or not isinstance(bound, int):
                raise SpaceError(f"low, high and step must be integers: got {self!r}")
        if self.log and self.low < 1:
            raise SpaceError(f"a log scale needs low >= 1: got low={self.low}")
        if self.low >= self.high:
            raise SpaceError(f"low must be below high: got low={self.low}, high={self.high}")
        if self.step < 1:
            raise SpaceError(f"step must be at least 1: got step={self.step}")
        if self.log and self.step != 1:
            raise SpaceError(f"a log scale takes no step: got step={self.step}")
        if (self.high - self.low) % self.step:
            reachable = self.high - (self.high - self.low) % self.step
            raise SpaceError(
                f"high must be low plus a multiple of step: got high={self.high}, step={self.step}; "
                f"use high={reachable}"
            )

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log, step=self.step)

    def suggest(self, trial: optuna.Trial, name: str) -> int:
        return trial.suggest_int(name, self.low, self.high, log=self.log, step=self.step)

    def example(self) -> int:
        return self.low

    def contains(self, value: Any) -> bool:
        is_int = isinstance(value, int) and not isinstance(value, bool)
        return is_int and self.low <= value <= self.high and (value - self.low) % self.step == 0

    def parse(self, text: str) -> int:
        return int(text)

    def decode(self, stored: Any) -> int:
        return int(stored)

    def only(self, value: int) -> IntDomain:
        return dataclasses.replace(self, low=value, high=value, step=1)

    def __repr__(self) -> str:
        marks = f", step={self.step}" * (self.step != 1) + ", log=True" * self.log + ", traced=True" * self.traced
        return f"int_uniform({self.low!r}, {self.high!r}{marks})"


@dataclass(frozen=True)
class ChoiceDomain(Domain):
    """One of several options; an option that is a `Space` class brings its own fields.

    Attributes:
        options: The values, in order.
        labels: What is stored for each: the value itself where JSON has it, else a stable label.
    """

    options: tuple[Any, ...]
    labels: tuple[Stored, ...]
    traced: bool = False

    @property
    def spaces(self) -> dict[Stored, type[Space]]:
        """The options that are spaces, by label."""
        return {label: option for label, option in zip(self.labels, self.options, strict=True) if is_space(option)}

    def check(self) -> None:
        if not self.options:
            raise SpaceError("a choice needs at least one option")
        for at, label in enumerate(self.labels):
            if isinstance(label, float) and not math.isfinite(label):
                raise SpaceError(f"options must be finite: got {label!r}; give it a label: choice({{'name': value}})")
            if any(label == other for other in self.labels[:at]):
                raise SpaceError(f"options must differ: {label!r} stands twice (equal values or equal labels)")
        for option in self.options:
            try:
                hash(option)
            except TypeError:
                raise SpaceError(f"options must be hashable: got {option!r}; use a tuple") from None
        if self.spaces and not all(option is None or is_space(option) for option in self.options):
            raise SpaceError(f"a choice of Space classes takes only Space classes and None: got {self!r}")
        if self.traced and not all(isinstance(option, int | float) for option in self.options):
            raise SpaceError(f"a traced choice needs numbers: got {self!r}")

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.labels)

    def suggest(self, trial: optuna.Trial, name: str) -> Stored:
        return trial.suggest_categorical(name, self.labels)

    def example(self) -> Any:
        return self.decode(self.labels[0])

    def contains(self, value: Any) -> bool:
        return any(type(value) is type(option) and value == option for option in self.options)

    def parse(self, text: str) -> Any:
        for label, option in zip(self.labels, self.options, strict=True):
            if text == str(label):
                return option
        raise ValueError(text)

    def encode(self, value: Any) -> Stored:
        key = type(value) if isinstance(value, Space) else value
        for label, option in zip(self.labels, self.options, strict=True):
            if key == option and type(key) is type(option):
                return label
        raise SpaceError(f"must be one of {list(self.labels)}: got {value!r}")

    def decode(self, stored: Stored) -> Any:
        for label, option in zip(self.labels, self.options, strict=True):
            if stored == label and type(stored) is type(label):
                return float(option) if self._is_float else option
        raise SpaceError(f"must be one of {list(self.labels)}: got {stored!r}")

    @property
    def _is_float(self) -> bool:
        # A traced number must keep one type over all trials: a float and an int make two programs.
        return self.traced and any(isinstance(option, float) for option in self.options)

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


def uniform(low: float, high: float, *, static: bool = False) -> Any:
    """A float between `low` and `high`; traced unless `static`."""
    return FloatDomain(low, high, traced=not static)


def log_uniform(low: float, high: float, *, static: bool = False) -> Any:
    """A float between `low` > 0 and `high`, uniform in its logarithm; traced unless `static`."""
    return FloatDomain(low, high, log=True, traced=not static)


def int_uniform(low: int, high: int, *, step: int = 1, log: bool = False, traced: bool = False) -> Any:
    """An integer among low, low + step, ..., high (or uniform in its logarithm); static unless `traced`."""
    return IntDomain(low, high, step=step, log=log, traced=traced)


def choice(*options: Any, traced: bool = False) -> Any:
    """One of the options; static unless `traced`.

    Options that JSON lacks are stored by a label: the name of a class, function or enum member, the text of a tuple.
    Anything else is given with its labels, as one mapping: `choice({"small": object_1, "large": object_2})`.
    """
    if len(options) == 1 and isinstance(options[0], Mapping):
        return ChoiceDomain(tuple(options[0].values()), tuple(options[0].keys()), traced=traced)
    return ChoiceDomain(options, tuple(_label(option) for option in options), traced=traced)


_UNLABELLED = "<no label>"


def _label(option: Any) -> Stored:
    """Return what is stored for an option, the same in every process."""
    if isinstance(option, enum.Enum):
        return f"{type(option).__name__}.{option.name}"
    if option is None or isinstance(option, bool | int | float | str):
        return option
    if isinstance(option, tuple | list):
        parts = [_label(part) for part in option]
        return _UNLABELLED if _UNLABELLED in parts else f"({', '.join(str(part) for part in parts)})"
    name = getattr(option, "__name__", None)
    return name if name and name != "<lambda>" else f"{_UNLABELLED} {type(option).__name__}"


class _Body(dict[str, Any]):
    """A class body that refuses to define one field twice."""

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(self.get(name), Domain):
            raise SpaceError(f"{self.get('__qualname__')}.{name}: a field must be defined once; it stands twice")
        super().__setitem__(name, value)


@dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(uniform, log_uniform, int_uniform, choice)
)
class SpaceMeta(type):
    """Turns a class body into a frozen dataclass and keeps its domains."""

    __domains__: dict[str, Domain]
    _own: dict[str, Domain]

    @classmethod
    def __prepare__(cls, name: str, bases: tuple[type, ...], /, **kwargs: Any) -> _Body:
        return _Body()

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any], /) -> SpaceMeta:
        domains = {field: value for field, value in body.items() if isinstance(value, Domain)}
        plain = {field: value for field, value in body.items() if field not in domains}
        made = super().__new__(cls, name, bases, plain)
        inherited = {
            field: domain for base in reversed(made.__mro__[1:]) for field, domain in vars(base).get("_own", {}).items()
        }
        dataclass(frozen=True, kw_only=True)(made)
        known = {field.name for field in dataclasses.fields(made)}  # pyright: ignore[reportArgumentType]
        for field, domain in domains.items():
            try:
                if field not in known:
                    raise SpaceError("a field needs a type annotation, as in `width: int = choice(32, 64)`")
                if field.startswith("_"):
                    raise SpaceError("a field's name must not start with an underscore")
                domain.check()
                _check_labels(domain)
            except SpaceError as error:
                raise SpaceError(f"{name}.{field}: {error}") from None
        made._own = domains
        made.__domains__ = {field: domain for field, domain in {**inherited, **domains}.items() if field not in plain}
        return made


def _check_labels(domain: Domain) -> None:
    if isinstance(domain, ChoiceDomain):
        for label, option in zip(domain.labels, domain.options, strict=True):
            if isinstance(label, str) and label.startswith(_UNLABELLED):
                raise SpaceError(
                    f"no stable label for {option!r}; give one with a mapping: choice({{'name': value, ...}})"
                )
            if not (label is None or isinstance(label, bool | int | float | str)):
                raise SpaceError(f"labels must be plain JSON values: got {label!r}")


class Space(metaclass=SpaceMeta):
    """Base of a search space; a subclass lists its fields, an instance is one set of hyperparameters.

    ```
    class HParams(Space):
        learning_rate: float = log_uniform(1e-4, 1e-1)   # traced: a number inside the compiled program
        width: int = choice(32, 64, 128)                 # static: changes the program
        optimizer: SGD | AdamW = choice(SGD, AdamW)      # nested spaces: conditional hyperparameters
    ```

    Instances are frozen, and a JAX pytree from the moment that training starts. A field without a domain is a
    constant, or (in a define-by-run space) a value that the function gives.

    Raises:
        SpaceError: at class creation, naming the field.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            # An int in a float field would be another type inside the program, and so another program.
            value = getattr(self, field.name)
            if type(value) is int and field.type in (float, "float"):
                object.__setattr__(self, field.name, float(value))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        known = [field.name for field in dataclasses.fields(self)]  # pyright: ignore[reportArgumentType]
        raise MissingHParam(
            f"the search space must have every hyperparameter that the trainer reads: {type(self).__name__} has no "
            f"{name!r}, it has {', '.join(known) or 'none'}{nearest(name, known)}"
        )


def is_space(value: object) -> TypeGuard[type[Space]]:
    """Return whether a value is a `Space` class."""
    return isinstance(value, SpaceMeta)


def domains_of(space: type[Space]) -> dict[str, Domain]:
    """Return the domains of a space's own fields, by field."""
    return space.__domains__


def is_traced(space: type[Space], field: str) -> bool:
    """Return whether a field is a number inside the compiled program (or a space with such numbers)."""
    domain = domains_of(space).get(field)
    if isinstance(domain, ChoiceDomain) and domain.spaces:
        return True
    if domain is not None:
        return domain.traced
    types = {f.name: f.type for f in dataclasses.fields(space)}  # pyright: ignore[reportArgumentType]
    kind = types[field]
    if isinstance(kind, str):  # postponed annotations
        kind = vars(sys.modules.get(space.__module__, sys)).get(kind, kind)
    return kind in (float, "float") or is_space(kind)


def parameters(space: type[Space]) -> Iterator[tuple[str, Domain, str]]:
    """Yield every Optuna parameter of a space: its name, its domain, and the condition under which it exists.

    The condition is empty, or reads like `optimizer=SGD`; of nested conditions the last is given.
    """
    yield from _parameters({field: field for field in domains_of(space)}, space, "")


def _parameters(names: Mapping[str, str], space: type[Space], when: str) -> Iterator[tuple[str, Domain, str]]:
    for field, domain in domains_of(space).items():
        name = names[field]
        yield name, domain, when
        if isinstance(domain, ChoiceDomain):
            for label, option in domain.spaces.items():
                yield from _parameters(domain.child_names(name, label), option, f"{name}={label}")


def build(space: type[Space], value_of: Callable[[str, Domain], Any]) -> Space:
    """Return an instance, asking `value_of(parameter_name, domain)` for each value that is needed.

    This is the one walk over a space: sampling, reading stored parameters and taking examples differ only in
    where the values come from.

    Raises:
        SpaceError: a field has neither a domain nor a default.
    """
    return _build({field: field for field in domains_of(space)}, space, value_of)


def _build(names: Mapping[str, str], space: type[Space], value_of: Callable[[str, Domain], Any]) -> Space:
    values = {}
    for field, domain in domains_of(space).items():
        value = value_of(names[field], domain)
        if is_space(value) and isinstance(domain, ChoiceDomain):
            label = domain.encode(value)
            value = _build(domain.child_names(names[field], label), value, value_of)
        values[field] = value
    try:
        return space(**values)
    except TypeError as error:
        raise SpaceError(f"{space.__name__}: every field must have a domain or a default: {error}") from None


def sample(space: type[Space], trial: optuna.Trial, fixed: Mapping[str, Any] | None = None) -> Space:
    """Return hyperparameters suggested by Optuna; `fixed` holds the values of parameters that are not searched."""
    fixed = fixed or {}

    def suggest(name: str, domain: Domain) -> Any:
        if name in fixed:
            domain = domain.only(fixed[name])
        return domain.decode(domain.suggest(trial, name))

    return build(space, suggest)


def from_params(space: type[Space], params: Mapping[str, Stored]) -> Space:
    """Return the hyperparameters that were stored as `params` (the `hparams` of `tuner best --format json`).

    Raises:
        SpaceError: a parameter is missing, or its value is outside its domain.
    """

    def read(name: str, domain: Domain) -> Any:
        if name not in params:
            raise SpaceError(f"every parameter of {space.__name__} must be given: {name!r} is missing")
        value = domain.decode(params[name])
        if not (domain.contains(value) or is_space(value)):
            raise SpaceError(f"{name} must lie in {domain!r}: got {value!r}")
        return value

    return build(space, read)


def to_params(hparams: Space) -> dict[str, Stored]:
    """Return what Optuna stores for these hyperparameters; the inverse of `from_params`."""
    params: dict[str, Stored] = {}

    def walk(node: Space, names: Mapping[str, str]) -> None:
        for field, domain in domains_of(type(node)).items():
            value = getattr(node, field)
            label = params[names[field]] = domain.encode(value)
            if isinstance(value, Space) and isinstance(domain, ChoiceDomain):
                walk(value, domain.child_names(names[field], label))

    walk(hparams, {field: field for field in domains_of(type(hparams))})
    return params


def examples(space: type[Space]) -> Iterator[Space]:
    """Yield instances that together visit every option that is a space; used to check a trainer before it runs."""
    pending: list[dict[str, Any]] = [{}]
    seen: set[tuple[str, Any]] = set()
    while pending:
        forced = pending.pop()
        taken: dict[str, Any] = {}

        def value_of(name: str, domain: Domain, forced: dict[str, Any] = forced, taken: dict[str, Any] = taken) -> Any:
            option = forced.get(name, domain.example())
            if isinstance(domain, ChoiceDomain) and domain.spaces:
                seen.add((name, option))
                fresh = [other for other in domain.options if (name, other) not in seen]
                seen.update((name, other) for other in fresh)
                pending.extend({**taken, name: other} for other in fresh)
                taken[name] = option
            return option

        yield build(space, value_of)


def parse_fixed(space: type[Space], words: Mapping[str, str]) -> dict[str, Any]:
    """Return parameter -> value for command-line words `name=value`.

    Raises:
        SpaceError: there is no such parameter, or the value is outside its domain.
    """
    domains = {name: domain for name, domain, _ in parameters(space)}
    fixed = {}
    for name, text in words.items():
        if name not in domains:
            known = ", ".join(domains)
            raise SpaceError(f"no hyperparameter {name!r}: the space has {known}{nearest(name, domains)}")
        try:
            value = domains[name].parse(text)
            inside = domains[name].contains(value)
        except ValueError:
            inside = False
            value = text
        if not inside:
            raise SpaceError(f"{name} must lie in {domains[name]!r}: got {value!r}")
        fixed[name] = value
    return fixed
