"""Checks that commands in documents exist, with their options."""

from __future__ import annotations

from functools import cache
from typing import Any

import typer.main

from tuner.cli import app


def check_words(page: str, words: list[str]) -> None:
    """Check that a command and its options exist; arguments may be left out."""
    command = _all_commands()
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{page} names a command `{' '.join(words)}` that is not there"
        command = command.commands[words.pop(0)]
    known = {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}
    for word in words:
        option = word.partition("=")[0]
        assert not option.startswith("-") or option in known, f"{page}: {command.name} has no option {option}"


@cache
def _all_commands() -> Any:
    return typer.main.get_command(app)
