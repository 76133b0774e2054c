"""Commands: their words, their placeholders, and what is refused when a study is defined."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tuner import Command, Space, Study, choice, log_uniform, uniform
from tuner.errors import StudyError


class SGD(Space):
    momentum: float = uniform(0.0, 0.9)


class Adam(Space):
    pass


class HParams(Space):
    learning_rate: float = log_uniform(1e-4, 1e-1)
    activation: str = choice("relu", "two words", "$(touch hacked)")
    optimizer: SGD | Adam = choice(SGD, Adam)


VALUES = {"learning_rate": 0.001, "activation": "it's; $HOME", "width": 32, "bias": True, "folder": "/a b", "seed": 7}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("python train.py --lr {learning_rate}", ["python", "train.py", "--lr", "0.001"]),
        ("run --name={activation} '{folder}/x y'", ["run", "--name=it's; $HOME", "/a b/x y"]),
        (["run", "{width} {bias}", "a b"], ["run", "32 True", "a b"]),
        ("echo '{{}}' {{seed}} {seed}", ["echo", "{}", "{seed}", "7"]),
        ("echo 'a  b' \"c\"", ["echo", "a  b", "c"]),
    ],
)
def test_a_line_is_split_first_and_filled_afterwards(line: Any, words: list[str]) -> None:
    assert Command(line).words(VALUES) == words


def test_a_shell_gets_quoted_values() -> None:
    words = Command("printf '%s|' {activation} {folder}; echo {seed}", shell=True).words(VALUES)
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert said == "it's; $HOME|/a b|7\n"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"line": ""}, "a command must have at least one word: got none"),
        ({"line": []}, "a command must have at least one word: got none"),
        ({"line": 3}, "a command must be a text, or a list of words: got 3"),
        ({"line": ["a", 3]}, "a command must be a text, or a list of words"),
        ({"line": "a 'b"}, r"the command cannot be split into words \(No closing quotation\)"),
        ({"line": "a {b"}, "the command has a single '{' in '{b': write {{ and }} for braces"),
        ({"line": "a b}"}, "the command has a single '}' in 'b}'"),
        ({"line": ["a"], "shell": True}, "a command for a shell must be a text"),
        ({"line": "a", "grace_s": -1}, "grace_s must be a number of seconds, at least 0: got -1"),
    ],
)
def test_a_command_that_cannot_be_run_is_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(StudyError, match=f"^{reason}"):
        Command(**given)


@pytest.mark.parametrize(
    ("name", "hint"), [("learning_rat", "did you mean 'learning_rate'"), ("optimizer.SGD.momentum", "conditional")]
)
def test_a_name_that_not_every_trial_has_is_refused_with_the_study(name: str, hint: str) -> None:
    with pytest.raises(StudyError, match=rf"^the command uses {{{name}}}, which is not a hyperparameter.*{hint}"):
        Study(
            name="one",
            space=HParams,
            train=Command(f"run {{{name}}} {{seed}} {{folder}} {{number}} {{optimizer}}"),
            objective="loss",
            direction="minimize",
            trials=1,
        )


def test_a_name_that_a_trial_lacks_is_refused() -> None:
    with pytest.raises(StudyError, match=r"^the command uses {momentum}, which this trial does not have: it has learn"):
        Command("run {momentum}").words(VALUES)
