"""Optuna's dashboard over our storage, on loopback unless told otherwise."""

from __future__ import annotations

from tuner.errors import UsageError
from tuner.storage import open_storage


def serve(url: str, host: str, port: int) -> None:
    """Serve the dashboard until interrupted.

    Args:
        url: The storage's URL.
        host: The address to listen on. There is no login: keep it on loopback, or behind something that has one.
        port: The port, 1 to 65535.

    Raises:
        StorageLost: the database cannot be reached.
        UsageError: the address cannot be listened on.
    """
    from optuna_dashboard import run_server

    try:
        run_server(open_storage(url), host=host, port=port)
    except OSError as error:
        raise UsageError(f"the dashboard must be able to listen on {host}:{port}: {error.strerror}") from None
