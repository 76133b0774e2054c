"""Write docs/cli.md from the commands' own help; with --check, fail if it is out of date."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import typer

from tuner.cli import app

TARGET = Path(__file__).parent.parent / "docs" / "cli.md"
HEADER = "# Command line\n\nMade by `python scripts/cli_reference.py` from the commands' help; do not edit.\n"


def commands(group: typer.Typer) -> Iterator[str]:
    """Yield the names of all commands, such as `launch` and `user add`, in the order of the help."""
    for command in group.registered_commands:
        assert command.callback is not None
        yield command.name or command.callback.__name__
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        name = inner.name or inner.typer_instance.info.name
        yield from (f"{name} {command}" for command in commands(inner.typer_instance))


def help_of(*words: str) -> str:
    """Return a command's help as it appears on a terminal of 100 columns."""
    env = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "tuner", *words, "--help"], capture_output=True, text=True, check=True, env=env
    )
    lines = [line.rstrip() for line in run.stdout.strip().splitlines()]
    return "\n".join(lines).replace("python -m tuner", "tuner").replace("__main__.py", "tuner")


def reference() -> str:
    """Return the text of docs/cli.md."""
    parts = [HEADER, f"```\n{help_of()}\n```\n"]
    parts += [f"## tuner {command}\n\n```\n{help_of(*command.split())}\n```\n" for command in commands(app)]
    return "\n".join(parts)


if __name__ == "__main__":
    text = reference()
    if "--check" not in sys.argv:
        TARGET.write_text(text)
    elif TARGET.read_text() != text:
        sys.exit("docs/cli.md is out of date: run python scripts/cli_reference.py")
