"""`tuner mcp`."""

from __future__ import annotations

from typing import Annotated

import typer

from tuner.cli.arguments import DebugOption, StorageOption
from tuner.storage import connected, storage_url


def mcp(
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Offer only queries, without enqueue and stop.")
    ] = False,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Serve studies to agents over the Model Context Protocol, on standard input and output.

    Configure your agent to start this command. It offers queries of studies, and tools to enqueue trials and to stop
    studies.
    For example: tuner mcp --storage sqlite:////home/me/tuner.db --read-only
    """
    from tuner.admin.agent_server import make_server
    from tuner.storage.read.queries import read_studies

    url = storage_url(storage)
    server = make_server(url, may_change=not read_only)
    with connected(url) as engine:
        read_studies(engine)  # a storage that cannot be read is said now, and not to the agent later
    server.run()
