"""Settings of an engine: pairs of a name and a value, both given as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tuner.errors import UsageError, nearest


@dataclass(frozen=True)
class Form:
    """What a setting must look like.

    Attributes:
        pattern: What its text must match.
        what: The same in words, for the message.
        parse: Converts the text.
    """

    pattern: re.Pattern[str]
    what: str
    parse: Callable[[str], Any] = str


def parse_options(engine: str, options: Mapping[str, str], forms: Mapping[str, Form]) -> dict[str, Any]:
    """Return settings by their names, with `_` for `-`.

    Raises:
        UsageError: a setting is unknown or wrong.
    """
    for name in options:
        if name not in forms:
            known = sorted(forms)
            raise UsageError(
                f"an option for {engine} must be one of {', '.join(known)}: got {name!r}{nearest(name, known)}"
            )
    return {
        name.replace("-", "_"): parse(f"the option {name!r}", value, forms[name]) for name, value in options.items()
    }


def parse(what: str, value: str, form: Form) -> Any:
    """Return a setting from its text.

    Args:
        what: What the setting is called in the message.
        value: Its text.
        form: What it must look like.

    Raises:
        UsageError: it looks otherwise.
    """
    if form.pattern.fullmatch(value) is None:
        raise UsageError(f"{what} must be {form.what}: got {value!r}")
    return form.parse(value)
