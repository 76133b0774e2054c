"""The search space: a typed dataclass of domains. Does not import JAX, and imports Optuna only when needed.

A field is *traced* (a number inside the compiled program) or *static* (part of the program's shape). Floats are traced,
integers and choices static; `static=True` and `traced=True` change that. Optuna stores ordinary parameters. Those of a
nested space are named `optimizer.momentum`, or `optimizer.SGD.momentum` if the options define the name with different
domains.
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard, dataclass_transform

from tuner.errors import MissingHParam, SpaceError, nearest
from tuner.study.domains import (
    ChoiceDomain,
    Domain,
    IntDomain,
    Stored,
    as_traced,
    choice,
    domains_of,
    has_domains,
    int_uniform,
    log_uniform,
    parameters,
    uniform,
)

if TYPE_CHECKING:
    import optuna


class _Body(dict[str, Any]):
    """A class body that does not allow a field to be defined twice."""

    def __setitem__(self, name: str, value: object) -> None:
        if name in self and isinstance(value, Domain) | isinstance(self[name], Domain):
            raise SpaceError(f"{self.get('__qualname__')}.{name}: the field is defined twice; remove one")
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
        for field, domain in domains.items():
            is_float = body.get("__annotations__", {}).get(field) in (float, "float")
            if is_float and isinstance(domain, ChoiceDomain):
                domains[field] = domain.as_floats()
            elif is_float and isinstance(domain, IntDomain):
                raise SpaceError(f"{name}.{field}: a float field cannot use int_uniform; annotate it with int")
        plain = {field: value for field, value in body.items() if field not in domains}
        annotated = domains.keys() & body.get("__annotations__", {}).keys()
        # `dataclasses.field()` says that there is no default, also where a base class has one.
        made = super().__new__(cls, name, bases, {**plain, **{field: dataclasses.field() for field in annotated}})
        inherited: dict[str, Domain] = {}
        for base in reversed(made.__mro__[1:]):
            inherited = {field: domain for field, domain in inherited.items() if field not in vars(base)}
            inherited |= vars(base).get("_own", {})
        dataclass(frozen=True, kw_only=True)(made)
        known = {field.name for field in dataclasses.fields(made)}  # pyright: ignore[reportArgumentType]
        for field in inherited.keys() & plain.keys() - vars(made).get("__annotations__", {}).keys():
            raise SpaceError(f"{name}.{field}: a field with a constant needs a type annotation")
        for field, domain in domains.items():
            try:
                if field not in known:
                    raise SpaceError("a field needs a type annotation, as in `width: int = choice(32, 64)`")
                if field.startswith("_"):
                    raise SpaceError("a field's name must not start with an underscore")
                domain.check()
            except SpaceError as error:
                raise SpaceError(f"{name}.{field}: {error}") from None
        for field in dataclasses.fields(made):  # pyright: ignore[reportArgumentType]
            # A constant float is a number inside the program as well.
            if field.name not in domains and type(field.default) is float:
                try:
                    as_traced(field.default)
                except SpaceError as error:
                    raise SpaceError(f"{name}.{field.name}: {error}") from None
        made._own = domains
        made.__domains__ = {field: domain for field, domain in {**inherited, **domains}.items() if field not in plain}
        _check_names(made)
        return made


def _check_names(space: Any) -> None:
    """Raise SpaceError if two parameters with different domains have the same name."""
    met: dict[str, Domain] = {}
    for name, domain, _ in parameters(space):
        if met.setdefault(name, domain) != domain:
            raise SpaceError(f"{space.__name__}: two hyperparameters are called {name!r}; rename a field or an option")


class Space(metaclass=SpaceMeta):
    """Base class of search spaces. A subclass defines the fields; an instance is one set of hyperparameters.

    ```
    class HParams(Space):
        learning_rate: float = log_uniform(1e-4, 1e-1)   # traced: a number inside the compiled program
        width: int = choice(32, 64, 128)                 # static: changes the program
        optimizer: SGD | AdamW = choice(SGD, AdamW)      # nested spaces: conditional hyperparameters
    ```

    Instances are frozen, and are registered as JAX pytrees when training starts. A field without a domain is a
    constant or, in a define-by-run space, a value that the function sets.

    Raises:
        SpaceError: at class creation, naming the field.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            # An int in a float field would have another type inside the program, which needs another compilation.
            value = getattr(self, field.name)
            if type(value) is int and field.type in (float, "float"):
                object.__setattr__(self, field.name, float(value))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        known = [field.name for field in dataclasses.fields(self)]  # pyright: ignore[reportArgumentType]
        raise MissingHParam(
            f"{type(self).__name__} has no hyperparameter {name!r} (it has {', '.join(known) or 'none'}): add it to "
            f"the space, or correct the name in the training code{nearest(name, known)}"
        )


def is_space(value: object) -> TypeGuard[type[Space]]:
    """Return whether a value is a `Space` class."""
    return has_domains(value)


def is_traced(space: type[Space], field: str) -> bool:
    """Return whether a field is a number inside the compiled program (or a space with such numbers)."""
    domain = domains_of(space).get(field)
    if isinstance(domain, ChoiceDomain) and domain.spaces:
        return True
    if domain is not None:
        return domain.traced
    try:
        kind = typing.get_type_hints(space)[field]
    except NameError:  # a postponed annotation that names something local
        kind = {each.name: each.type for each in dataclasses.fields(space)}[field]  # pyright: ignore[reportArgumentType]
    return any(part in (float, "float") or is_space(part) for part in typing.get_args(kind) or (kind,))


def build(space: type[Space], value_of: Callable[[str, Domain], object]) -> Space:
    """Return an instance, asking `value_of(parameter_name, domain)` for each value that is needed.

    Sampling, reading stored parameters and creating examples all use this function; they differ only in where the
    values come from.

    Raises:
        SpaceError: a field has neither a domain nor a default.
    """
    return _build({field: field for field in domains_of(space)}, space, value_of)


def _build(names: Mapping[str, str], space: type[Space], value_of: Callable[[str, Domain], object]) -> Space:
    values = {}
    for field, domain in domains_of(space).items():
        value = value_of(names[field], domain)
        if is_space(value) and isinstance(domain, ChoiceDomain):
            label = domain.encode(value)
            value = _build(domain.child_names(names[field], label), value, value_of)
        values[field] = value
    for field in dataclasses.fields(space):  # pyright: ignore[reportArgumentType]
        if field.name not in values and field.default is field.default_factory:  # both are MISSING
            missing = f"the field {field.name!r} needs a domain or a default"
            raise SpaceError(f"{space.__name__}: {missing}")
    return space(**values)


def sample(space: type[Space], trial: optuna.Trial, fixed: Mapping[str, object] | None = None) -> Space:
    """Return hyperparameters suggested by Optuna; `fixed` has the values of parameters that are not searched."""
    fixed = fixed or {}

    def suggest(name: str, domain: Domain) -> Any:
        if name in fixed:
            domain = domain.only(fixed[name])
        return domain.decode(domain.suggest(trial, name))

    return build(space, suggest)


def from_params(space: type[Space], params: Mapping[str, Stored]) -> Space:
    """Return the instance for stored `params` (the `hparams` of `tuner best --format json`).

    Raises:
        SpaceError: a parameter is missing, or its value is outside its domain.
    """

    def read(name: str, domain: Domain) -> Any:
        if name not in params:
            raise SpaceError(f"the parameter {name!r} of {space.__name__} is missing")
        stored = params[name]
        if not (isinstance(domain, ChoiceDomain) or domain.contains(stored)):
            raise SpaceError(f"{name} must be in {domain!r}: got {stored!r}")
        try:
            return domain.decode(stored)
        except SpaceError as error:
            raise SpaceError(f"{name} {error}") from None

    return build(space, read)


def to_params(hparams: Space) -> dict[str, Stored]:
    """Return what Optuna stores for these hyperparameters; the inverse of `from_params`."""
    params: dict[str, Stored] = {}

    def walk(node: Space, names: Mapping[str, str]) -> None:
        for field, domain in domains_of(type(node)).items():
            value = getattr(node, field)
            try:
                label = params[names[field]] = domain.encode(value)
            except SpaceError as error:
                raise SpaceError(f"{names[field]} {error}") from None
            if isinstance(domain, ChoiceDomain) and label in domain.spaces:
                walk(value, domain.child_names(names[field], label))

    walk(hparams, {field: field for field in domains_of(type(hparams))})
    return params


def examples(space: type[Space]) -> Iterator[Space]:
    """Yield instances that together cover every option that is a space, to check a trainer before it runs."""
    pending: list[dict[str, Any]] = [{}]
    seen: set[tuple[str, Any]] = set()
    while pending:
        forced = pending.pop()
        taken: dict[str, Any] = {}

        def value_of(
            name: str, domain: Domain, forced: dict[str, object] = forced, taken: dict[str, object] = taken
        ) -> Any:
            option = forced.get(name, domain.example())
            if isinstance(domain, ChoiceDomain) and domain.spaces:
                seen.add((name, option))
                fresh = [other for other in domain.options if (name, other) not in seen]
                seen.update((name, other) for other in fresh)
                pending.extend({**taken, name: other} for other in fresh)
                taken[name] = option
            return option

        yield build(space, value_of)


def static_names(space: type[Space]) -> frozenset[str]:
    """Return the names of the parameters that change the program."""
    return frozenset(name for name, domain, _ in parameters(space) if not domain.traced)


def static_combinations(space: type[Space], most: int, fixed: Mapping[str, object] | None = None) -> list[Space]:
    """Return one instance for each combination of static values; none if there are more than `most`.

    A combination that the space itself refuses, for example in `__post_init__`, is skipped.

    Args:
        space: The space.
        most: The limit.
        fixed: The values of parameters that are not searched.
    """
    fixed = fixed or {}
    pending: list[dict[str, Any]] = [{}]
    found: list[Space] = []
    while pending:
        forced = pending.pop()
        taken: dict[str, Any] = {}

        def value_of(name: str, domain: Domain, forced: dict[str, Any] = forced, taken: dict[str, Any] = taken) -> Any:
            if name in fixed:
                return domain.only(fixed[name]).example()
            if name in forced:
                taken[name] = forced[name]
                return forced[name]
            values = [domain.example()] if domain.traced else domain.values()
            if values is None or len(values) > most:
                raise _TooMany
            pending.extend({**taken, name: value} for value in reversed(values[1:]))
            taken[name] = values[0]
            return values[0]

        try:
            found.append(build(space, value_of))
        except _TooMany:
            return []
        except Exception:  # the author's
            pass
        if len(found) + len(pending) > most:
            return []
    return found


class _TooMany(Exception):
    """There are too many static values."""


def check_fixed(space: type[Space], fixed: Mapping[str, object]) -> None:
    """Check the values of fixed hyperparameters, given by parameter name.

    Raises:
        SpaceError: there is no such parameter, or the value is outside its domain.
    """
    domains = {name: domain for name, domain, _ in parameters(space)}
    for name, value in fixed.items():
        if name not in domains:
            raise SpaceError(f"no hyperparameter {name!r}: the space has {', '.join(domains)}{nearest(name, domains)}")
        if not domains[name].contains(value):
            raise SpaceError(f"{name} must be in {domains[name]!r}: got {value!r}")


def parse_fixed(space: type[Space], words: Mapping[str, str]) -> dict[str, Any]:
    """Return parameter -> value for command-line words `name=value`.

    Raises:
        SpaceError: there is no such parameter, or the value is outside its domain.
    """
    domains = {name: domain for name, domain, _ in parameters(space)}
    fixed: dict[str, Any] = dict(words)
    for name in domains.keys() & words.keys():
        with contextlib.suppress(ValueError):
            fixed[name] = domains[name].parse(words[name])
    check_fixed(space, fixed)
    return fixed
