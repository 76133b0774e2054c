"""The real command line, as tests run it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

OURS = ("JAX_NUMPY", "XLA_", "JAX_COMPILATION", "JAX_PERSISTENT")
"""What the tests set for their own code, by the first letters: strict types, eight devices, the cache of programs."""


def users_environment() -> dict[str, str]:
    """Return the environment as a user's shell has it: without what the tests set for their own code.

    The flags in TUNER_TEST_XLA_FLAGS stay, because they are for the programs of commands as well.
    """
    env = {key: value for key, value in os.environ.items() if not key.startswith(OURS)}
    flags = os.environ.get("TUNER_TEST_XLA_FLAGS")
    return {**env, "XLA_FLAGS": flags} if flags else env


def kept_programs() -> dict[str, str]:
    """Return where commands store compiled programs, so that later tests need not compile them again.

    Without it they would store them with the artifacts, which each test has in a folder of its own.
    """
    cache = os.environ["TUNER_TESTS_CACHE"]
    return {"XDG_CACHE_HOME": cache, "JAX_COMPILATION_CACHE_DIR": str(Path(cache) / "tuner" / "xla")}


class Tuner:
    """Runs the real command line in a folder, and ends whatever it started."""

    def __init__(self, folder: Path, storage: str) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        self.env = {
            **users_environment(),
            "TUNER_STORAGE": storage,
            **kept_programs(),
            "COLUMNS": "200",
            "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(Path(__file__).parent)])),
        }

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """Start a command and return at once; its stderr goes to the same pipe as its stdout."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tuner", *words],
            cwd=self.folder,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "tuner", *words],
            cwd=self.folder,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def run_here(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in this process, without seconds of imports: for queries, and for what is refused."""
        from tuner.cli import main

        output, errors, status = io.StringIO(), io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
            for module in (sys, threading):
                patch.setattr(module, "excepthook", module.excepthook)  # which the command replaces
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["tuner", *words])
            for name in ("TUNER_STORAGE", "COLUMNS"):
                patch.setenv(name, self.env[name])
            try:
                main()
            except SystemExit as ended:
                status = ended.code or 0
        assert isinstance(status, int)
        return subprocess.CompletedProcess(words, status, output.getvalue(), errors.getvalue())

    def rows(self, *words: str) -> Any:
        """Run a query in this process and return its JSON."""
        done = self.run_here(*words, "--format", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def end(self) -> None:
        """Kill what still runs."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()
