"""The settings that are recorded at a study's first launch, and how they have changed since."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from tuner.study.domains import ChoiceDomain, HasDomains, domains_of, parameters
from tuner.study.space import Space, is_space

OPTIMIZER_RULES = 2
"""The rules by which optimizers treat parameters. A record without this number keeps using rules 1.

1: arrays of two or more axes decay; a `Stack` of layers is one array.
2: biases and scales never decay, and each layer of a `Stack` is treated as the same layer outside of one.
"""


def optimizer_rules_of(record: Mapping[str, Any]) -> int:
    """Return the optimizer rules with which a study or a training was started, from its record."""
    return record.get("optimizer_rules", 1)


def with_rules(record: Mapping[str, object]) -> dict[str, Any]:
    """Return a record with its optimizer rules, also if it was written by a version that had only one set of rules."""
    return {**record, "optimizer_rules": optimizer_rules_of(record)}


def value_epoch_of(record: Mapping[str, Any]) -> Literal["last", "best"]:
    """Return which epoch's value ranks the trials of a study, from its record."""
    return record.get("value", "last")


def kept_epoch_of(record: Mapping[str, Any]) -> Literal["last", "best"]:
    """Return which epoch's model a study keeps, from its record.

    Studies of version 0.2 and earlier are ranked by the last epoch, but keep the model of the best one.
    """
    return record.get("value", "best")


def describe_space(space: type[Space] | Callable[..., Space] | None, fixed: Mapping[str, object]) -> dict[str, str]:
    """Return each hyperparameter's domain as text, by name; for a define-by-run space a digest of its function.

    An Optuna objective, which may suggest anything, has none.
    """
    if space is None:
        return {}
    if not is_space(space):
        return {space.__name__: f"function, sha256 {_digest(space)}"}
    described = dict(_constants(space))
    for name, domain, when in parameters(space):
        if name in described:  # several options of a choice share a parameter
            described[name] += f" or {when}"
            continue
        is_fixed = f" fixed at {domain.encode(fixed[name])!r}" if name in fixed else ""
        described[name] = f"{domain!r}{is_fixed}{f' if {when}' if when else ''}"
    return described


def _constants(space: HasDomains, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield name and value of the fields with a plain value, in a space and its nested spaces."""
    domains = domains_of(space)
    for field in dataclasses.fields(space):  # pyright: ignore[reportArgumentType]
        if field.name not in domains and isinstance(field.default, bool | int | float | str | tuple | None):
            yield f"{prefix}{field.name}", f"constant {field.default!r}"
    for name, domain in domains.items():
        for label, inner in domain.spaces.items() if isinstance(domain, ChoiceDomain) else ():
            yield from _constants(inner, f"{prefix}{name}.{label}.")


def _digest(function: Any) -> str:
    """Return a digest of a function that does not depend on its comments and its layout."""
    try:
        text = ast.dump(ast.parse(textwrap.dedent(inspect.getsource(function))))
    except (OSError, SyntaxError):  # made by exec, or part of a longer line
        text = f"{function.__code__.co_code!r} {function.__code__.co_consts!r} {function.__code__.co_names!r}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(old: Mapping[str, object], new: Mapping[str, object], prefix: str = "") -> list[str]:
    """Describe each difference between two records."""
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key, "absent"), new.get(key, "absent")
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key} was {_show(before)} and is now {_show(after)}")
    return found


def _show(value: object) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
