"""`tuner init`."""

from __future__ import annotations

import enum
import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.arguments import DebugOption
from tuner.errors import UsageError
from tuner.output.log import say

_TEMPLATES = Path(__file__).parent / "templates"


class Kind(enum.StrEnum):
    """What trains a trial of a new study; each is a file in `templates/`."""

    FLAX = "flax"
    NNX = "nnx"
    FUNCTION = "function"
    OPTUNA = "optuna"
    COMMAND = "command"


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Python file to write.")],
    kind: Annotated[
        Kind,
        typer.Option(
            help="What trains a trial: a Flax Linen model, a Flax NNX model, a function, an Optuna objective, or a"
            " command."
        ),
    ] = Kind.FLAX,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
    debug: DebugOption = False,
) -> None:
    """Write a study file to start from. It runs as it is.

    For example: tuner init study.py, or tuner init study.py --kind function
    """
    from tuner.results.export import in_place

    if file.suffix != ".py":
        raise UsageError(f"the file of a study must end in .py: got {str(file)!r}")
    if not str(file).isprintable() or set(str(file)) & set('"\\'):
        raise UsageError(
            f"the file's name must not contain quotes, backslashes or control characters: got {str(file)!r}"
        )
    path, name = shlex.quote(str(file)), file.stem
    text = (_TEMPLATES / f"{kind}.py").read_text(encoding="utf-8")
    changes = {
        "study.py": path,
        "--name study": f"--name {shlex.quote(name)}",
        'name="study"': f"name={json.dumps(name, ensure_ascii=False)}",
    }
    for before, after in changes.items():
        text = text.replace(before, after)
    with in_place(file, force) as scratch:
        scratch.write_text(text, encoding="utf-8")
    command = next(line.strip() for line in text.splitlines() if line.strip().startswith("tuner launch "))
    say(f"wrote {file}: run it with `{command}`")
