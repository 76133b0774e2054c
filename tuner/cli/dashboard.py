"""`tuner dashboard`, and `tuner user` for its users."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.arguments import DebugOption, NotifyOption, StorageOption
from tuner.cli.explain import Command
from tuner.dashboard.users import Role
from tuner.errors import UsageError

user = typer.Typer(name="user", help="Manage the users of the dashboard.", no_args_is_help=True, rich_markup_mode=None)

_FileOption = Annotated[
    Path, typer.Option("--users", metavar="FILE", help="The users file; created if it does not exist.")
]
_RoleOption = Annotated[Role, typer.Option("--role", help="Readers cannot make changes; editors can.")]
_NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The user's name.")]


def dashboard(
    storage: StorageOption = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; any other than loopback requires --users.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="Port to listen on; 0 picks a free port.")] = 8080,
    users: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Users file, made by `tuner user`; only these users can log in.", show_default=False
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TLS certificate (PEM); enables HTTPS.", show_default=False)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Private key of the certificate (PEM).", show_default=False)
    ] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="Trust X-Forwarded-For and X-Forwarded-Proto, which your proxy sets.")
    ] = False,
    prefix: Annotated[
        str, typer.Option(metavar="PATH", help="URL path to serve under, such as /tuner.", show_default=False)
    ] = "",
    audit_log: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to append audit lines to, instead of stderr.", show_default=False),
    ] = None,
    notify: NotifyOption = None,
    notify_study: Annotated[
        list[str] | None,
        typer.Option(
            "--notify-study",
            metavar="STUDY",
            help="Notify of this study only; may be repeated.",
            show_default=False,
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Serve Optuna's dashboard, with extra pages on workers and checkpoints.

    With --notify, it tells you what happens to the studies of the storage, whoever launches them.
    If the users file has no users yet, the dashboard adds an editor: $TUNER_DASHBOARD_USER, with the password
    $TUNER_DASHBOARD_PASSWORD.
    """
    import os

    from tuner.dashboard import Notifying, Serving, add_user_of_environment, check_serving, serve
    from tuner.notify.receivers import read_receivers, warn_of_secrets
    from tuner.storage import connect, storage_url

    serving = check_serving(Serving(host, port, users, tls_cert, tls_key, behind_proxy, prefix, audit_log))
    receivers = read_receivers(notify or (), os.environ)
    warn_of_secrets(receivers)
    if notify_study and not receivers:
        raise UsageError("`notify_study` has no effect without receivers: pass `notify`, or set $TUNER_NOTIFY")
    add_user_of_environment(os.environ, users)
    url = storage_url(storage)
    connect(url).dispose()
    serve(url, serving, Notifying(receivers, notify_study or ()))


@user.command(cls=Command)
def add(name: _NameArgument, users: _FileOption, role: _RoleOption, debug: DebugOption = False) -> None:
    """Add a user with a password, which is asked for twice, or read as one line from standard input."""
    from tuner.dashboard import add_user, hash_password

    add_user(users, name, role, hash_password(_password(name)))


@user.command(cls=Command)
def token(name: _NameArgument, users: _FileOption, role: _RoleOption, debug: DebugOption = False) -> None:
    """Add a user with a bearer token for scripts, and print the token; it cannot be shown again."""
    from tuner.dashboard import add_user, hash_token, new_token

    made = new_token()
    add_user(users, name, role, hash_token(made))
    print(made)


def _password(name: str) -> str:
    import getpass
    import sys

    if not sys.stdin.isatty():
        return sys.stdin.readline().removesuffix("\n")
    first = getpass.getpass(f"password of {name}: ")
    if getpass.getpass("repeat the password: ") != first:
        raise UsageError("the two passwords differ: run the command again")
    return first
