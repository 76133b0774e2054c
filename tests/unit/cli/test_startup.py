"""A command starts without what other commands need."""

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from typer.main import get_command

from tuner import cli


def shape(command: Any) -> Any:
    """Return all that the help of a command shows."""
    about = [(one.name, one.opts, one.secondary_opts, one.required) for one in command.params]
    return type(command), command.name, command.help, about


def test_the_command_that_is_asked_for_is_the_same_alone() -> None:
    complete = cast("Any", get_command(cli.app)).commands
    names = [name for name in complete if name != "user"]
    assert len(names) == len(cli.app.registered_commands) > 30
    for name in names:
        alone = cast("Any", get_command(cli._app_for([name, "--help"])))  # pyright: ignore[reportPrivateUsage]
        assert list(alone.commands) == [name]
        assert shape(alone.commands[name]) == shape(complete[name])
        assert shape(alone) == shape(get_command(cli.app))


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["user", "add"], ["none"], ["", "best"]])
def test_otherwise_all_are_there(words: list[str]) -> None:
    assert cli._app_for(words) is cli.app  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(("module", "is_kept"), [("other", True), ("torch", False)])
def test_a_command_collects_no_garbage_at_its_end_unless_pytorch_would_warn(module: str, is_kept: bool) -> None:
    code = f"""
import atexit, gc, sys, types
sys.modules.setdefault({module!r}, types.ModuleType({module!r}))
atexit.register(lambda: print(gc.get_freeze_count() > 10_000))  # runs after what the command registers
sys.argv = ["tuner", "--version"]
from tuner.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[1:] == [str(is_kept)], done.stderr


@pytest.mark.parametrize("mode", ["w", "wb", "w+b"])
def test_files_that_a_study_does_not_close_are_written_at_the_end(tmp_path: Path, mode: str) -> None:
    code = f"""
import sys
text = "one line" if {mode!r} == "w" else b"one line"
class Log:
    def __init__(self):
        self.file, self.cycle = open({str(tmp_path / "log")!r}, {mode!r}), self
        self.file.write(text)
log = Log()
closed = open({str(tmp_path / "closed")!r}, "w")
closed.close()
sys.argv = ["tuner", "--version"]
from tuner.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "log").read_text() == "one line"
