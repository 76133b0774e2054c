"""Options have the names of Python arguments in the library, and those of flags on the command line."""

import ast
import contextlib
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
import typer
from typer.main import get_command

from tuner.cli import app
from tuner.cli.explain import Command, with_flags
from tuner.errors import TunerError
from tuner.storage import open_storage

TUNER = Path(__file__).parents[3] / "tuner"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launch", "no.py", "--trials", "0"], "--trials must be at least 1: got 0"),
        (
            ["launch", "no.py", "--metrics-host", "::1"],
            "--metrics-host ::1 has no effect without --metrics-port: pass both",
        ),
        (["launch", "no.py", "--wall-hours", "0"], "--wall-hours must be a number of hours above 0: got 0.0"),
        (["worker", "no.py", "--stall-minutes", "nan"], "--stall-minutes must be a number of minutes above 0: got nan"),
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trials", "s", "--format", "xml"], "'xml' is not one of 'table', 'json', 'csv'."),
        (["trials", "s", "--outcome", "done"], "'done' is not one of 'complete', 'pruned'"),
        (["importance", "s", "--of", "foo"], "'foo' is not one of 'objective', 'seconds'."),
    ],
)
def test_a_wrong_choice_is_said_without_words_of_pydantic(words: list[str], said: str) -> None:
    with pytest.raises(typer.BadParameter) as caught:
        app(words, standalone_mode=False)
    assert caught.value.message.startswith(said)


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


def test_best_says_why_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with contextlib.closing(open_storage(url)) as storage:
        study = optuna.create_study(study_name="q", storage=storage)
        study.ask()
        study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial({"x": 0.5})
    app(["best", "q", "--storage", url], standalone_mode=False)
    assert capsys.readouterr().out == "study 'q' has no complete trial yet: 1 failed, 1 running, 1 waiting\n"
    for form, printed in (("json", "[]\n"), ("csv", "")):
        app(["best", "q", "--storage", url, "--format", form], standalone_mode=False)
        assert capsys.readouterr().out.strip() == printed.strip()


def test_an_error_without_flags_is_left_alone() -> None:
    with pytest.raises(TunerError, match=r"no\.py"):
        app(["launch", "no.py"], standalone_mode=False)


def test_a_traceback_in_a_message_is_left_alone() -> None:
    (launch,) = [one for one in commands() if one.name == "launch"]
    said = "all workers failed: `seed` is wrong\n  ValueError: `devices` must be equal\n"
    assert with_flags(said, launch) == "all workers failed: --seed is wrong\n  ValueError: `devices` must be equal\n"
    assert with_flags("`learning_rate` and `fixed`", launch) == "`learning_rate` and --set"
