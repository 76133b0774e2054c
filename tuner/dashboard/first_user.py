"""The dashboard's first user from the environment: a container has no terminal on which to type a password."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

from tuner.dashboard.users import add_first_user
from tuner.errors import UsageError
from tuner.output.log import say

NAME_VARIABLE = "TUNER_DASHBOARD_USER"
PASSWORD_VARIABLE = "TUNER_DASHBOARD_PASSWORD"


def add_user_of_environment(environment: MutableMapping[str, str], users: Path | None) -> None:
    """Add the user that the environment names, an editor, if the users file has no users.

    Args:
        environment: The environment, from which the password is removed. Empty variables count as not set.
        users: The users file.

    Raises:
        UsageError: Only one of the variables is set, there is no users file, or as for `add_first_user`.
    """
    name, password = environment.get(NAME_VARIABLE), environment.pop(PASSWORD_VARIABLE, "")
    if not name and not password:
        return
    if not name or not password:
        missing = PASSWORD_VARIABLE if name else NAME_VARIABLE
        raise UsageError(f"${NAME_VARIABLE} and ${PASSWORD_VARIABLE} must be set together: ${missing} is not set")
    if users is None:
        raise UsageError(
            f"${NAME_VARIABLE} needs a users file: pass `users`, or unset the variable to serve without a login"
        )
    try:
        is_added = add_first_user(users, name, password)
    except UsageError as error:
        raise UsageError(f"{error} (from ${NAME_VARIABLE} and ${PASSWORD_VARIABLE})") from None
    if is_added:
        say(f"added the first user {name!r}, an editor, to {users}")
