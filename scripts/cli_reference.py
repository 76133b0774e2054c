"""Write docs/cli.md from the help of the commands; with --check, fail if the page is out of date."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TARGET = Path(__file__).parent.parent / "docs" / "cli.md"
HEADER = "# Command line\n\nMade by `python scripts/cli_reference.py` from the commands' help; do not edit.\n"


def help_of(*words: str) -> str:
    """Return a command's help, formatted for a terminal with 100 columns."""
    env = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "tuner", *words, "--help"], capture_output=True, text=True, check=True, env=env
    )
    lines = [line.rstrip() for line in run.stdout.strip().splitlines()]
    return "\n".join(lines).replace("python -m tuner", "tuner").replace("__main__.py", "tuner")


def commands(text: str, *group: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the words and the help of each command in a help text; after a group such as `user`, its subcommands."""
    listed = text.partition("\nCommands:\n")[2]
    for name in re.findall(r"^  (\w+)  ", listed, re.MULTILINE):
        inner = help_of(*group, name)
        yield (*group, name), inner
        yield from commands(inner, *group, name)


def reference() -> str:
    """Return the text of docs/cli.md."""
    whole = help_of()
    parts = [HEADER, f"```\n{whole}\n```\n"]
    parts += [f"## tuner {' '.join(words)}\n\n```\n{text}\n```\n" for words, text in commands(whole)]
    return "\n".join(parts)


if __name__ == "__main__":
    text = reference()
    if "--check" not in sys.argv:
        TARGET.write_text(text)
    elif TARGET.read_text() != text:
        sys.exit("docs/cli.md is out of date: run python scripts/cli_reference.py")
