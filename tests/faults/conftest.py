"""What tests of faults share: a Postgres server of their own, and empty databases on it."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import ROLE, Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))  # else its package warns
    folder = Path(tempfile.mkdtemp(prefix="tuner-database-"))  # pytest's folders are shut to the server's user
    server = Server(folder)
    yield server
    server.stop("immediate")
    shutil.rmtree(folder)


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """The name of an empty database of the role's own."""
    name = f"tuner_{uuid.uuid4().hex[:12]}"
    server.ask(f"CREATE DATABASE {name} OWNER {ROLE}")
    yield name
    server.ask(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def url(server: Server, database: str) -> str:
    return server.url(database)
