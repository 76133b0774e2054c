"""How the recorded space of a study becomes another one: what changes for its trials, and what cannot be changed."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuner.errors import SpaceError, UsageError, nearest
from tuner.study.domains import (
    ChoiceDomain,
    Domain,
    FloatDomain,
    IntDomain,
    Stored,
    int_uniform,
    log_uniform,
    parameters,
    uniform,
)
from tuner.study.launch_record import describe_space
from tuner.study.space import build, is_space
from tuner.study.spec import StudySpec

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_FIXED = " fixed at "
_CONSTANT = "constant "


@dataclass(frozen=True)
class Described:
    """A hyperparameter as a study's record describes it.

    Attributes:
        domain: Its domain, of a choice with the labels as options; None for a constant.
        constant: The value of a constant.
        rest: Whether it is fixed, and the conditions under which it exists, as text.
    """

    domain: Domain | None
    constant: Any
    rest: str


@dataclass(frozen=True)
class Change:
    """A change of one hyperparameter: its name, what changes, and its domain before and after as text."""

    name: str
    what: str
    before: str
    after: str


@dataclass(frozen=True)
class SpacePlan:
    """How the recorded space of a study becomes that of another study file.

    Attributes:
        study: The study with the new space.
        changes: The changes; empty if there are none.
        defaults: The stored values that earlier trials get for new hyperparameters, by name.
        domains: The domains of the hyperparameters that are searched, by name; a fixed one has only its value.
        rewritten: The names of the hyperparameters whose distributions in earlier trials may change.
    """

    study: StudySpec
    changes: tuple[Change, ...]
    defaults: Mapping[str, Stored]
    domains: Mapping[str, Domain]
    rewritten: frozenset[str]

    def distribution(self, name: str, old: BaseDistribution) -> BaseDistribution:
        """Return the distribution that earlier trials get instead of an old one.

        It has all values of the old one, and Optuna accepts it together with that of new trials. A narrower range
        keeps the old distribution.

        Raises:
            UsageError: there is none.
        """
        return _migrated(name, old, self.domains[name].distribution())

    def added(self, params: Mapping[str, Stored]) -> dict[str, Stored] | None:
        """Return the new hyperparameters of an earlier trial; None if it lacks others, and cannot get any.

        Args:
            params: Its stored hyperparameters.

        Raises:
            UsageError: it needs one without a default.
        """
        found: dict[str, Stored] = {}
        known = {change.name for change in self.changes if change.what == ADDED}

        def value_of(name: str, domain: Domain) -> Any:
            if name in params:
                return domain.decode(params[name])
            if name not in known:
                raise _Incomplete
            if name not in self.defaults:
                raise UsageError(
                    f"earlier trials have no value for the new hyperparameter {name!r}: pass the value with which they "
                    f"were trained as `default` {name}=VALUE"
                )
            found[name] = self.defaults[name]
            return domain.decode(found[name])

        assert is_space(self.study.space)
        try:
            build(self.study.space, value_of)
        except (_Incomplete, SpaceError):
            return None
        return found

    def new_distribution(self, name: str) -> BaseDistribution:
        """Return the distribution of a hyperparameter in new trials."""
        return self.domains[name].distribution()

    def contains(self, params: Mapping[str, Stored]) -> bool:
        """Return whether the stored hyperparameters of a trial are all in the new space."""
        return all(is_inside(domain, params[name]) for name, domain in self.domains.items() if name in params)


class _Incomplete(Exception):
    """A trial lacks a hyperparameter that is not new."""


ADDED = "added"


def is_inside(domain: Domain, stored: Stored) -> bool:
    """Return whether a stored value is in a domain."""
    if isinstance(domain, ChoiceDomain):
        return any(stored == label and type(stored) is type(label) for label in domain.labels)
    return domain.contains(stored)


def plan_space(recorded: Mapping[str, str], study: StudySpec, defaults: Mapping[str, str]) -> SpacePlan:
    """Compare the recorded space of a study with that of a study file.

    Args:
        recorded: The recorded space: domains as text, by name.
        study: The study with the new space.
        defaults: The values of earlier trials for new hyperparameters, as text, by name.

    Raises:
        UsageError: a change is not possible; the message has a reason for each.
    """
    if not is_space(study.space):
        raise UsageError(
            f"only a Space class can be migrated: the space of study {study.name!r} is "
            + ("that of an Optuna objective" if study.space is None else "a function, whose domains are not known")
        )
    wanted = describe_space(study.space, study.fixed)
    found = {name: domain for name, domain, _ in parameters(study.space)}
    domains = {
        name: domain.only(study.fixed[name]) if name in study.fixed else domain for name, domain in found.items()
    }
    changes: list[Change] = []
    problems: list[str] = []
    given: dict[str, Stored] = {}
    known: list[str] = []
    for name in [*recorded, *(name for name in wanted if name not in recorded)]:
        before, after = recorded.get(name), wanted.get(name)
        if before == after:
            continue
        try:
            change = _compare(name, before, after)
            if change.what == ADDED and name in domains:
                known.append(name)
                given |= _default(name, before, domains[name], study, defaults.get(name))
        except (UsageError, SpaceError) as error:
            problems.append(str(error))
            continue
        changes.append(change)
    for name in defaults.keys() - set(known):
        problems.append(f"`default` has {name!r}, which is not a new hyperparameter{nearest(name, known)}")
    if problems:
        raise UsageError(f"cannot migrate study {study.name!r}: {'; '.join(problems)}")
    rewritten = {
        change.name for change in changes if change.what != ADDED and change.name in domains.keys() - study.fixed.keys()
    }
    return SpacePlan(study, tuple(changes), given, domains, frozenset(rewritten))


def recorded_domains(recorded: Mapping[str, str]) -> dict[str, Domain]:
    """Return the domains in the recorded space of a study, without constants; a fixed one has only its value.

    Args:
        recorded: Domains as text, by name. Choices have their labels as options.

    Raises:
        UsageError: it is not the space of a Space class.
    """
    found: dict[str, Domain] = {}
    for name, text in recorded.items():
        described = _parse(text)
        if described.domain is None:
            continue
        value = _fixed_part(described.rest)
        found[name] = described.domain.only(ast.literal_eval(value)) if value else described.domain
    return found


def _default(name: str, before: str | None, domain: Domain, study: StudySpec, given: str | None) -> dict[str, Stored]:
    """Return the value of earlier trials for a new hyperparameter, if it is known.

    Raises:
        UsageError: the value is not in the domain, or contradicts the constant or the fixed value.
    """
    known = _NOTHING
    if before is not None:
        known = _parse(before).constant
    elif name in study.fixed:
        known = study.fixed[name]
    value = known
    if given is not None:
        try:
            value = domain.parse(given)
        except ValueError:
            raise UsageError(f"the default of {name} must be in {domain!r}: got {given!r}") from None
        if known is not _NOTHING and value != known:
            raise UsageError(f"earlier trials have {name}={known!r}: `default` says {given}")
    if value is _NOTHING:
        return {}
    if isinstance(domain, FloatDomain) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not domain.contains(value):
        raise UsageError(f"earlier trials have {name}={value!r}, which must be in {domain!r}: widen it")
    return {name: domain.encode(value)}


_NOTHING: Any = object()


def _compare(name: str, before: str | None, after: str | None) -> Change:
    """Return how a hyperparameter changes.

    Raises:
        UsageError: it cannot change so.
    """
    if after is None:
        raise UsageError(f"{name} was removed: keep the field, or give the study a new name")
    if before is None:
        new = _parse(after)
        return Change(name, "constant" if new.domain is None else ADDED, "absent", after)
    old, new = _parse(before), _parse(after)
    if new.domain is None:
        raise UsageError(
            f"{name} was {before} and is now {after}: trials with other values would count as trials with this one"
        )
    if old.domain is None:
        return Change(name, ADDED, before, after)
    earlier, later = _conditions(old.rest), _conditions(new.rest)
    may_exist = later[: len(earlier)] == earlier and bool(later) == bool(earlier)
    if _fixed_part(old.rest) != _fixed_part(new.rest):
        raise UsageError(
            f"{name} was {before} and is now {after}: it must stay fixed at the same value, or searched; pass the same "
            "values with `fixed` as at the launch"
        )
    if not may_exist:
        raise UsageError(f"{name} was {before} and is now {after}: it must exist under the same conditions")
    what = _changed_domain(name, old.domain, new.domain)
    return Change(name, what or "condition", before, after)


def _fixed_part(rest: str) -> str:
    """Return the text of the value at which a hyperparameter is fixed; empty if it is searched."""
    if not rest.startswith(_FIXED):
        return ""
    text = rest.removeprefix(_FIXED)
    for end in (*(found.start() for found in re.finditer(" if ", text)), len(text)):
        try:
            ast.literal_eval(text[:end])
        except (SyntaxError, ValueError):
            continue  # the word is part of a label
        return text[:end]
    return text


def _conditions(rest: str) -> list[str]:
    """Return the conditions under which a hyperparameter exists, one of which is enough; empty if it always does."""
    text = rest.removeprefix(f"{_FIXED}{_fixed_part(rest)}") if rest.startswith(_FIXED) else rest
    return text.removeprefix(" if ").split(" or ") if text else []


def _changed_domain(name: str, old: Domain, new: Domain) -> str:
    """Return in words how a domain changes; empty if it does not."""
    if old == new:
        return ""
    about = f"{name} was {old!r} and is now {new!r}"
    if type(old) is not type(new):
        raise UsageError(f"{about}: the kind of a hyperparameter cannot change")
    if old.traced != new.traced:
        raise UsageError(f"{about}: whether it is traced cannot change")
    if isinstance(old, ChoiceDomain) and isinstance(new, ChoiceDomain):
        return _changed_choice(about, old, new)
    assert isinstance(old, FloatDomain | IntDomain)
    assert isinstance(new, FloatDomain | IntDomain)
    words: list[str] = []
    if (new.low, new.high) != (old.low, old.high):
        is_wider = new.low <= old.low and old.high <= new.high
        words.append(f"{'wider' if is_wider else 'narrower' if _is_within(new, old) else 'moved'} range")
    if isinstance(old, IntDomain) and isinstance(new, IntDomain) and old.step != new.step:
        words.append("other step")
    if old.log != new.log:
        if new.log and min(old.low, new.low) <= 0:
            raise UsageError(f"{about}: a log scale needs all earlier values above 0")
        words.append("log scale" if new.log else "linear scale")
    return ", ".join(words)


def _is_within(inner: FloatDomain | IntDomain, outer: FloatDomain | IntDomain) -> bool:
    return outer.low <= inner.low and inner.high <= outer.high


def _changed_choice(about: str, old: ChoiceDomain, new: ChoiceDomain) -> str:
    def same(one: Stored, other: Stored) -> bool:
        return one == other and type(one) is type(other)

    missing = [label for label in old.labels if not any(same(label, one) for one in new.labels)]
    if missing:
        raise UsageError(f"{about}: choices cannot be removed, and {', '.join(map(repr, missing))} is missing")
    if not all(same(one, other) for one, other in zip(old.labels, new.labels, strict=False)):
        raise UsageError(f"{about}: choices must keep their order, with new ones at the end")
    added = new.labels[len(old.labels) :]
    return f"added choices {', '.join(map(repr, added))}" if added else ""


# --- Distributions


_ELSE = "give the study a new name in its file; its `warm_start` can show these trials to the sampler"


def _migrated(name: str, old: BaseDistribution, new: BaseDistribution) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(old, CategoricalDistribution) and isinstance(new, CategoricalDistribution):
        if old.choices != new.choices[: len(old.choices)]:
            raise UsageError(
                f"{name} has trials with other choices than its record, {old.choices!r}, so it cannot be migrated: "
                f"{_ELSE}"
            )
        return new
    if isinstance(old, FloatDistribution) and isinstance(new, FloatDistribution):
        if new.low <= old.low and old.high <= new.high:
            return new
        if old.log == new.log:
            return old
        return FloatDistribution(min(old.low, new.low), max(old.high, new.high), log=new.log)
    if isinstance(old, IntDistribution) and isinstance(new, IntDistribution):
        is_on_grid = (old.low - new.low) % new.step == 0 and old.step % new.step == 0
        if new.low <= old.low and old.high <= new.high and is_on_grid:
            return new
        if old.log == new.log:
            return old
        return IntDistribution(min(old.low, new.low), max(old.high, new.high), log=new.log)
    raise UsageError(f"{name} has trials of another kind than its record, {old!r}, so it cannot be migrated: {_ELSE}")


# --- The record


def _parse(text: str) -> Described:
    """Parse the text of a hyperparameter in a record, which `describe_space` has made.

    Raises:
        UsageError: it is not such a text.
    """
    if text.startswith(_CONSTANT):
        return Described(None, ast.literal_eval(text.removeprefix(_CONSTANT)), "")
    for at, letter in enumerate(text):
        if letter != ")":
            continue
        try:
            call = ast.parse(text[: at + 1], mode="eval").body
        except SyntaxError:
            continue  # the bracket is part of a label
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            return Described(_domain(call.func.id, call), None, text[at + 1 :])
    raise UsageError(f"the recorded domain {text!r} is not one of a Space class, so it cannot be migrated: {_ELSE}")


def _domain(kind: str, call: ast.Call) -> Domain:
    args = [ast.literal_eval(one) for one in call.args]
    options = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
    if kind == "choice":
        return ChoiceDomain(tuple(args), tuple(args), **options)
    made: Any = {"uniform": uniform, "log_uniform": log_uniform, "int_uniform": int_uniform}.get(kind)
    if made is None:
        raise UsageError(f"the recorded domain {ast.unparse(call)!r} is unknown to this version, so upgrade tuner")
    return made(*args, **options)
