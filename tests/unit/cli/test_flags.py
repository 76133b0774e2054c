"""Options have the names of Python arguments in the library, and those of flags on the command line."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from tuner.cli import app
from tuner.cli.explain import Command, with_flags
from tuner.errors import TunerError

TUNER = Path(__file__).parents[3] / "tuner"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launch", "no.py", "--trials", "0"], "--trials must be at least 1: got 0"),
        (
            ["launch", "no.py", "--metrics-host", "::1"],
            "--metrics-host ::1 has no effect without --metrics-port: pass both",
        ),
        (["worker", "no.py", "--seed=-1"], "--seed must be at least 0: got -1"),
        (["dashboard", "--port", "70000"], "--port must be 1 to 65535, or 0 for a free one: got 70000"),
        (["dashboard", "--tls-cert", "a.pem"], "--tls-cert and --tls-key must be passed together"),
        (["trials", "none", "--storage", "sqlite:///none.db"], "the storage does not exist"),
        (["user", "add", "me", "--users", "/none/users", "--role", "king"], "king"),
    ],
)
def test_errors_name_the_flags_of_the_command(words: list[str], said: str) -> None:
    with pytest.raises(Exception, match=re.escape(said)) as caught:
        app(words, standalone_mode=False)
    assert "`" not in re.sub(r"`tuner [^`]*`", "", str(caught.value)), "no name in backticks is left"


def commands() -> list[Any]:
    group: Any = get_command(app)
    below = [list(getattr(one, "commands", {"": one}).values()) for one in group.commands.values()]
    return [command for several in below for command in several]


def test_every_command_names_its_flags() -> None:
    assert {type(command) for command in commands()} == {Command}


def test_only_the_command_line_names_flags() -> None:
    """Outside of it a message names arguments, or gives a whole command in backticks."""
    own = {one.opts[0] for command in commands() for one in command.params if one.opts[0].startswith("--")}
    assert "--devices-per-worker" in own
    found = []
    for path in TUNER.rglob("*.py"):
        if path.is_relative_to(TUNER / "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = re.sub(r"`tuner [^`]*`?", "", node.value)  # an f-string may end before the backtick does
                flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) & own
                found += [f"{path.name}: {flag}" for flag in flags]
    # Of nvidia-smi, of a worker's command line, and of squeue.
    assert sorted(found) == [
        "compile_process.py: --compile-only",
        "devices.py: --format",
        "kubernetes.py: --artifacts",
        "slurm.py: --coordinator",
        "slurm.py: --format",
        "slurm.py: --hosts",
    ]


def test_an_error_without_flags_is_left_alone() -> None:
    with pytest.raises(TunerError, match=r"no\.py"):
        app(["launch", "no.py"], standalone_mode=False)


def test_a_traceback_in_a_message_is_left_alone() -> None:
    (launch,) = [one for one in commands() if one.name == "launch"]
    said = "all workers failed: `seed` is wrong\n  ValueError: `devices` must be equal\n"
    assert with_flags(said, launch) == "all workers failed: --seed is wrong\n  ValueError: `devices` must be equal\n"
    assert with_flags("`learning_rate` and `fixed`", launch) == "`learning_rate` and --set"
