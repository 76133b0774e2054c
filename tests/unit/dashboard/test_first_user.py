"""The dashboard's first user from the environment."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from tuner.dashboard.first_user import add_user_of_environment
from tuner.dashboard.users import Role, add_user, hash_token, read_users
from tuner.errors import UsageError

PASSWORD = "correct horse"
SET = {"TUNER_DASHBOARD_USER": "ann", "TUNER_DASHBOARD_PASSWORD": PASSWORD}


@pytest.mark.parametrize("text", [None, "", "# people\n\n"])
@pytest.mark.slow
def test_a_file_without_users_gets_an_editor(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str | None
) -> None:
    path, environment = tmp_path / "users", dict(SET)
    if text is not None:
        path.write_text(text)
        path.chmod(0o600)

    add_user_of_environment(environment, path)

    (user,) = read_users(path).values()
    assert (user.name, user.role) == ("ann", Role.EDITOR)
    assert PasswordHasher().verify(user.secret, PASSWORD)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert PASSWORD not in path.read_text()
    assert environment == {"TUNER_DASHBOARD_USER": "ann"}, "later code does not find the password"
    printed = "".join(capfd.readouterr())
    assert "added the first user 'ann', an editor, to" in printed
    assert PASSWORD not in printed


@pytest.mark.parametrize("name", ["ann", "rob"])
def test_a_file_with_users_is_not_changed(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    path, environment = tmp_path / "users", dict(SET)
    add_user(path, name, Role.READER, hash_token("t"))
    before = path.read_bytes()

    add_user_of_environment(environment, path)

    assert path.read_bytes() == before
    assert "TUNER_DASHBOARD_PASSWORD" not in environment
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("environment", [{}, dict.fromkeys(SET, "")])
@pytest.mark.parametrize("has_file", [True, False])
def test_without_variables_nothing_is_added(tmp_path: Path, environment: dict[str, str], has_file: bool) -> None:
    add_user_of_environment(environment, tmp_path / "users" if has_file else None)

    assert not (tmp_path / "users").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"TUNER_DASHBOARD_PASSWORD": ""}, r"must be set together: \$TUNER_DASHBOARD_PASSWORD is not set"),
        ({"TUNER_DASHBOARD_USER": ""}, r"must be set together: \$TUNER_DASHBOARD_USER is not set"),
        (
            {"TUNER_DASHBOARD_PASSWORD": "1234567"},
            r"at least 8 characters: got 7 \(from \$TUNER_DASHBOARD_USER",
        ),
        ({"TUNER_DASHBOARD_USER": "a b"}, r"got 'a b' \(from .* and \$TUNER_DASHBOARD_PASSWORD\)"),
    ],
)
def test_invalid_variables_are_refused_and_nothing_is_written(
    tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        add_user_of_environment({**SET, **changed}, tmp_path / "users")

    assert not (tmp_path / "users").exists()
    assert PASSWORD not in str(raised.value)
    assert "1234567" not in str(raised.value)


def test_variables_without_a_users_file_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\$TUNER_DASHBOARD_USER needs a users file: pass `users`"):
        add_user_of_environment(dict(SET), None)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write the users file .*none/users: No such file"):
        add_user_of_environment(dict(SET), tmp_path / "none" / "users")
