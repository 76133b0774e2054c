"""`tuner dashboard`."""

from __future__ import annotations

from typing import Annotated

import typer

from tuner.cli.options import DebugOption, StorageOption
from tuner.errors import UsageError


def dashboard(
    storage: StorageOption = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Listen here; there is no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="Port to listen on.")] = 8080,
    debug: DebugOption = False,
) -> None:
    """Serve Optuna's dashboard of a storage."""
    import sys

    from tuner.storage import connect, hide_password, storage_url

    if not 0 < port < 65536:
        raise UsageError(f"--port must be 1 to 65535: got {port}")
    url = storage_url(storage)
    connect(url).dispose()
    print(f"tuner: dashboard of {hide_password(url)} on http://{host}:{port}, Ctrl-C ends it", file=sys.stderr)
    from tuner.dashboard import serve

    serve(url, host, port)
