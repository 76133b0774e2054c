"""Which Postgres is used: pip's, or the one in a given folder."""

import importlib.util
from pathlib import Path

import pytest

from tuner.admin.database import binaries
from tuner.admin.database.binaries import find_binaries
from tuner.errors import UsageError


@pytest.fixture
def pretended(tmp_path: Path) -> Path:
    """A folder with programs that say that they are of Postgres 15."""
    for name in ("initdb", "postgres"):
        program = tmp_path / name
        program.write_text('#!/bin/sh\necho "postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)"\n')
        program.chmod(0o755)
    return tmp_path


def test_new_data_get_the_newest_from_pip_and_old_ones_their_own() -> None:
    newest = find_binaries(None, None)
    assert newest.major >= 16
    assert newest.version.startswith(f"{newest.major}.")
    assert find_binaries(None, newest.major) == newest
    with pytest.raises(UsageError, match=r"need Postgres 9, but this is Postgres .*: pass `postgres`, the folder"):
        find_binaries(None, 9)


def test_pips_has_no_tls() -> None:
    assert not find_binaries(None, None).has_tls()


def test_a_given_one_is_used(pretended: Path) -> None:
    found = find_binaries(pretended, 15)
    assert (found.major, found.version) == (15, "15.20")
    assert found.program("initdb") == str(pretended / "initdb")
    with pytest.raises(UsageError, match=f"need Postgres 18, but this is Postgres 15 .{pretended}.: pass `postgres`"):
        find_binaries(pretended, 18)


def test_what_a_folder_must_have(pretended: Path) -> None:
    (pretended / "initdb").chmod(0o644)
    with pytest.raises(UsageError, match=f"{pretended} has no program 'initdb' that can be run"):
        find_binaries(pretended, None)
    (pretended / "initdb").chmod(0o755)
    (pretended / "postgres").write_text("#!/bin/sh\necho 'a library is missing' >&2; exit 127\n")
    with pytest.raises(UsageError, match="postgres does not run, so it cannot serve a database: 'a library is missing"):
        find_binaries(pretended, None)


def test_without_the_extra_the_line_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == binaries.PACKAGE else found(name))
    with pytest.raises(UsageError, match=r"`pip install -e '.\[database\]'`.* or pass `postgres`"):
        find_binaries(None, None)
