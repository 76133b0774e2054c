"""Which user a server runs as."""

import os
import pwd
from pathlib import Path

import pytest

from tuner.admin.database import account
from tuner.admin.database.account import first_closed, server_account
from tuner.errors import UsageError


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def without_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """No user has a name or a number."""

    def find(_: object) -> pwd.struct_passwd:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwnam", find)
    monkeypatch.setattr(pwd, "getpwuid", find)


def own(monkeypatch: pytest.MonkeyPatch, user: int) -> None:
    """Pretend that every file belongs to a user."""
    found = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        return os.stat_result([*found(path, **options)[:4], user, *found(path, **options)[5:]])

    monkeypatch.setattr(Path, "stat", stat)


def test_an_ordinary_user_stays_who_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert server_account(tmp_path) is None


@pytest.mark.usefixtures("as_root")
def test_root_becomes_the_owner_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = pwd.getpwnam("nobody")
    own(monkeypatch, nobody.pw_uid)
    assert server_account(tmp_path) == nobody


@pytest.mark.usefixtures("as_root", "without_account")
def test_what_root_is_told_where_there_is_no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account.shutil, "which", lambda *_, **__: None)
    with pytest.raises(UsageError, match="no program useradd to create the account tuner-postgres: create it"):
        server_account(tmp_path / "none")
    monkeypatch.setattr(account.shutil, "which", lambda *_, **__: "/bin/false")
    with pytest.raises(UsageError, match="the account tuner-postgres cannot be created"):
        server_account(tmp_path / "none")
    own(monkeypatch, 4711)
    with pytest.raises(UsageError, match=f"{tmp_path} belongs to user 4711, who has no account here"):
        server_account(tmp_path)


def test_the_first_closed_folder_is_the_one_nearest_to_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert first_closed(below) is None
    closed = {tmp_path / "a", below}
    monkeypatch.setattr(os, "access", lambda path, _: path not in closed)
    assert first_closed(below) == tmp_path / "a"
