"""The task for SkyPilot: what can be checked without SkyPilot and without a cloud."""

from __future__ import annotations

import itertools
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import typer.main
import yaml

from tuner.cli import app

ROOT = Path(__file__).parents[3]
TASK: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "skypilot.yaml").read_text())
PAGE = (ROOT / "docs" / "guide" / "skypilot.md").read_text()


def test_the_command_is_one_of_tuner() -> None:
    words = shlex.split(TASK["run"])
    assert words[:3] == ["exec", "~/tuner-env/bin/tuner", "launch"]
    commands: Any = typer.main.get_command(app)
    given = commands.commands["launch"].make_context("launch", words[3:]).params  # it refuses what it does not know
    assert (given["files"], given["trials"], given["live"]) == (["studies/digits_mlp.py"], 100, False)
    assert (ROOT / given["files"][0]).exists()
    assert TASK["workdir"] == "."


def test_what_is_installed_are_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (named,) = re.findall(r"-e '\.\[([\w,]+)\]'", TASK["setup"])
    assert named.split(",") == ["cuda12", "s3"]
    assert set(named.split(",")) <= set(extras)
    folders = {word.partition("/bin")[0] for word in re.findall(r"~/[\w./-]+", TASK["setup"] + TASK["run"])}
    assert folders == {"~/tuner-env"}


def test_variables_are_those_that_tuner_reads_and_none_has_a_value() -> None:
    program = "\n".join(path.read_text() for path in (ROOT / "tuner").rglob("*.py"))
    variables = {**TASK["envs"], **TASK["secrets"]}
    assert set(variables) == {"TUNER_ARTIFACTS", "TUNER_STORAGE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert set(variables.values()) == {None}, "a password would be in Git, and SkyPilot would not ask for one"
    for name in variables:
        described = (ROOT / "docs" / "guide" / "several-machines.md").read_text()
        assert f'"{name}"' in program or (name.startswith("AWS_") and f"`${name}`" in described)


def test_jobs_start_again_after_the_exit_statuses_that_the_page_on_failures_says() -> None:
    statuses = (ROOT / "docs" / "guide" / "failures.md").read_text().partition("## Exit statuses")[2]
    again = {int(status): start for status, start in re.findall(r"(?m)^\| (\d+) \| .* \| (\w+) \|$", statuses)}
    assert again == {0: "no", 1: "yes", 2: "no", 3: "no", 75: "later", 130: "yes"}
    recovered = set(TASK["resources"]["job_recovery"]["recover_on_exit_codes"])
    # A crash of the launcher would start instances without end, so it is left out. 143 is SIGTERM before a handler.
    assert recovered == {status for status, start in again.items() if start != "no"} - {1} | {143}
    assert 137 not in recovered, "SkyPilot uses it"


def test_the_page_launches_the_task_with_its_variables() -> None:
    comment = re.sub(r"(?m)^# *", "", (ROOT / "examples" / "skypilot.yaml").read_text().partition("\n\n")[0])
    texts = [text.replace("\\\n", " ") for text in (PAGE, comment)]
    words, in_file = (shlex.split(re.findall(r"(?m)^sky jobs launch .*$", text)[0]) for text in texts)
    assert words == in_file
    given = {after for option, after in itertools.pairwise(words) if option in ("--env", "--secret")}
    assert {one.partition("=")[0] for one in given} == {*TASK["envs"], *TASK["secrets"]}
    assert words[-1] == "examples/skypilot.yaml"
