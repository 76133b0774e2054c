"""`tuner database`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.arguments import DebugOption


def database(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder of the database; created if it does not exist.", readable=False),
    ],
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; any other than loopback requires --postgres.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Port to listen on.  [default: the port of the last start, or a free one]",
            show_default=False,
        ),
    ] = None,
    postgres: Annotated[
        Path | None,
        typer.Option(
            metavar="BINDIR",
            help="Folder with the programs of an installed Postgres, such as /usr/lib/postgresql/17/bin.  "
            "[default: the Postgres from pip]",
            show_default=False,
        ),
    ] = None,
    max_connections: Annotated[
        int, typer.Option(metavar="N", help="Maximum number of connections; each worker uses at most two.")
    ] = 200,
    debug: DebugOption = False,
) -> None:
    """Start a Postgres for workers on several machines, with its data in a folder, until Ctrl-C.

    Does not need root. Prints the command that sets $TUNER_STORAGE.
    For example: tuner database /scratch/me/tuner-db
    """
    from tuner.admin.database import DatabaseOptions, serve_database

    serve_database(DatabaseOptions(folder, host, port, postgres, max_connections))
