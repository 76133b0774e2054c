"""Serves a database from a folder until a signal arrives."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from tuner.admin.database import server
from tuner.admin.database.account import become, first_closed, server_account
from tuner.admin.database.addresses import (
    DATABASE,
    LOOPBACK,
    ROLE,
    Place,
    choose_port,
    find_place,
    free_port,
    storage_url_of,
    tunnel_command,
)
from tuner.admin.database.binaries import Binaries, find_binaries
from tuner.admin.database.certificate import check_library, ensure_certificate
from tuner.admin.database.folder import (
    DatabaseFolder,
    Lock,
    Record,
    check_folder,
    check_other_servers,
    create_folder,
    prepare_files,
    read_password,
    take_lock,
    write_private,
)
from tuner.admin.database.mounts import network_mount
from tuner.admin.database.signals import StopAsked, StopSignals
from tuner.errors import TunerError, UsageError
from tuner.output.log import say, tell
from tuner.storage.sql.owner import ensure_owned_database


@dataclass(frozen=True)
class DatabaseOptions:
    """Options of `serve_database`.

    Args:
        folder: The folder of the database; created if it does not exist.
        host: The address to listen on. Any other than loopback requires a Postgres with TLS.
        port: The port; None takes the one of the last start, or a free one.
        postgres: The folder with the programs of an installed Postgres; None for the one from pip.
        max_connections: The number of connections; each worker takes at most two.
    """

    folder: Path
    host: str = LOOPBACK
    port: int | None = None
    postgres: Path | None = None
    max_connections: int = 200


def serve_database(options: DatabaseOptions) -> None:
    """Start a Postgres server, and stop it at SIGINT, SIGTERM or SIGHUP.

    Prints the shell command that makes the database the default storage. Root becomes another user for good, because
    Postgres cannot run as root: call this only as the last act of a process.

    Raises:
        UsageError: An option is wrong, or the folder cannot be used or is in use.
        TunerError: The server does not start, or ends unexpectedly.
    """
    _check_numbers(options)
    folder = DatabaseFolder(Path(os.path.abspath(options.folder)))
    check_folder(folder)
    place = find_place(options.host)
    binaries = find_binaries(options.postgres, folder.data_major())
    if not place.is_loopback and not binaries.has_tls():
        raise _refusal(options, binaries, _tunnel_port(options, folder))
    if not place.is_loopback:
        check_library()
    _enter(folder, binaries)
    with StopSignals() as signals, contextlib.suppress(StopAsked):
        lock = take_lock(folder, signals)
        try:
            _warn_of_network(folder, lock)
            _serve(options, place, server.Runtime(binaries, folder, lock.descriptor, signals))
        finally:
            os.close(lock.descriptor)


def _check_numbers(options: DatabaseOptions) -> None:
    if options.port is not None and not 0 < options.port < 65536:
        raise UsageError(f"`port` must be 1 to 65535: got {options.port}")
    if not 10 <= options.max_connections <= 10_000:
        raise UsageError(f"`max_connections` must be 10 to 10000: got {options.max_connections}")


def _tunnel_port(options: DatabaseOptions, folder: DatabaseFolder) -> int:
    record = folder.read_record()
    return options.port or (record.port if record is not None else free_port())


def _refusal(options: DatabaseOptions, binaries: Binaries, port: int) -> UsageError:
    what = "the Postgres from pip" if options.postgres is None else f"the Postgres in {binaries.folder}"
    return UsageError(
        f"`host` must be a loopback address, because {what} was built without TLS and would send all data unencrypted: "
        f"got {options.host!r}; either pass `postgres`, the folder with the programs of a Postgres that has TLS, or "
        f"serve on this machine only, at `port` {port}, and run `{tunnel_command(port)}` on each other machine"
    )


def _enter(folder: DatabaseFolder, binaries: Binaries) -> None:
    """Create the folder, and become the user that the server runs as."""
    account = server_account(folder.path)
    create_folder(folder, None if account is None else (account.pw_uid, account.pw_gid))
    if account is None:
        return
    become(account)
    for path in (folder.path, binaries.folder):
        closed = first_closed(path)
        if closed is not None:
            raise UsageError(
                f"Postgres cannot run as root, so it runs as {account.pw_name}, but {account.pw_name} cannot enter "
                f"{closed}: use another place for {path}, run `chmod a+x {closed}`, or run this as another user"
            )


def _warn_of_network(folder: DatabaseFolder, lock: Lock) -> None:
    mount = network_mount(folder.path)
    check_other_servers(folder, lock, mount is not None)
    if mount is not None:
        tell(
            f"{folder.path} is on a network file system ({mount.kind} at {mount.point}), where Postgres is slow and "
            "can lose data if the network fails: use a folder on a local disk, and back it up with pg_dump",
            "network_file_system",
            "warning",
        )


def _serve(options: DatabaseOptions, place: Place, runtime: server.Runtime) -> None:
    folder, last = runtime.folder, runtime.folder.read_record()
    port = choose_port(place, options.port, None if last is None else last.port)
    if last is not None and options.port is None and port != last.port:
        tell(f"port {last.port} is in use, so the database has a new one: {port}", "port_changed", "warning")
    prepare_files(folder)
    folder.write_record(Record(socket.gethostname(), os.getpid(), place.shown, port))
    server.trim_log(folder.log)
    server.ensure_data(runtime)
    process = server.start(runtime, _settings(options, place, port, folder), has_tls=not place.is_loopback)
    try:
        _publish(folder, place, port)
        _announce(folder, place, port, runtime.binaries)
        server.wait_for_end(runtime, process)
    finally:
        folder.url.unlink(missing_ok=True)
        server.stop(runtime, process)
    say(f"Postgres has stopped; the data remain in {folder.path}")


def _settings(options: DatabaseOptions, place: Place, port: int, folder: DatabaseFolder) -> dict[str, str]:
    settings = {
        "listen_addresses": ",".join(place.addresses),
        "port": str(port),
        "unix_socket_directories": "",  # a socket's path has at most 107 bytes, and network file systems may have none
        "max_connections": str(options.max_connections),
        "password_encryption": "scram-sha-256",
        "log_checkpoints": "off",
    }
    if place.is_loopback:
        return settings
    ensure_certificate(folder.certificate, folder.key, tuple(dict.fromkeys([place.shown, socket.gethostname()])))
    return {**settings, "ssl": "on", "ssl_cert_file": str(folder.certificate), "ssl_key_file": str(folder.key)}


def _publish(folder: DatabaseFolder, place: Place, port: int) -> None:
    """Create the database if it does not exist, and write its URL."""
    password = read_password(folder.password)
    try:
        ensure_owned_database(
            host=place.local,
            port=port,
            superuser=server.SUPERUSER,
            superuser_password=read_password(folder.superuser_password),
            role=ROLE,
            password=password,
            database=DATABASE,
        )
    except psycopg2.Error as error:
        reason = str(error).strip().rpartition("FATAL:")[2].strip().partition("\n")[0]
        raise TunerError(
            f"cannot create the database as the user {server.SUPERUSER!r} with the password in "
            f"{folder.superuser_password}: {reason}; the log is {folder.log}"
        ) from None
    write_private(folder.url, storage_url_of(place, port, password) + "\n")


def _announce(folder: DatabaseFolder, place: Place, port: int, binaries: Binaries) -> None:
    say(f"Postgres {binaries.version} of {binaries.folder} listens on {place.shown}, port {port}")
    if place.is_loopback:
        say(f"other machines reach it through a tunnel: {tunnel_command(port, place.local)}")
    say("use it with the command below; press Ctrl-C to stop")
    print(folder.export_line(), flush=True)
