"""What `tuner init` writes runs with the command that it prints."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from tuner.cli.init import Kind


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.long if kind is Kind.NNX else ()) for kind in Kind]
)
def test_what_is_written_runs_with_the_command_that_is_printed(kind: Kind, tuner_on_sqlite: Any) -> None:
    tuner = tuner_on_sqlite
    written = tuner.run_here("init", "first.py", "--kind", kind)
    assert written.returncode == 0, written.stderr
    command = re.fullmatch(r"tuner: wrote first\.py: run it with `tuner (.+)`\n", written.stderr)
    assert command is not None, written.stderr
    words = [word for word in shlex.split(command[1]) if word not in ("--trials", "20")]
    words += ["--set", "width=32"] if kind in (Kind.FLAX, Kind.NNX, Kind.FUNCTION) else []
    done = tuner.run(*words, "--trials", "2", "--workers", "1", "--seed", "1")
    assert done.returncode == 0, done.stderr
    rows = tuner.rows("trials", "first")
    assert [row["number"] for row in rows] == list(range(2))
    assert {row["outcome"] for row in rows} <= {"complete", "pruned"}
    (best,) = tuner.rows("best", "first")
    assert best["value"] < 0.5 if kind is Kind.COMMAND else best["value"] > 0.5
