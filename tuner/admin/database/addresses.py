"""Where a database listens, and the URL with which it is reached."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from urllib.parse import quote

from tuner.errors import UsageError
from tuner.web.address import is_address, is_loopback, is_wildcard

LOOPBACK = "127.0.0.1"
ROLE = "tuner"
DATABASE = "tuner"


@dataclass(frozen=True)
class Place:
    """Where a server listens.

    Attributes:
        addresses: The addresses to listen on.
        shown: The host in the URL.
        local: An address at which this machine reaches the server.
        is_loopback: Whether only this machine reaches it.
    """

    addresses: tuple[str, ...]
    shown: str
    local: str
    is_loopback: bool


def find_place(host: str) -> Place:
    """Return where to listen for an address or a name of this machine.

    Raises:
        UsageError: It is neither, or it is a name that means loopback only here.
    """
    only_here = is_loopback(host)
    first = host if is_address(host) else _resolve(host)
    if only_here:
        if host != "localhost" and not is_address(host):
            raise UsageError(
                f"`host` must be an address that other machines reach: got {host!r}, which is {first} on this machine; "
                "pass its address in the network, which `hostname -I` prints"
            )
        return Place((first,), first, first, True)
    if is_wildcard(host):
        addresses = (host,) if ":" not in host else (host, LOOPBACK)
        return Place(addresses, socket.gethostname(), LOOPBACK, False)
    return Place((LOOPBACK, first), host, LOOPBACK, False)


def _resolve(name: str) -> str:
    """Return the address of a name, of IPv4 if it has one."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    ordered = sorted(found, key=lambda one: one[0] != socket.AF_INET)
    return str(ordered[0][4][0])


def choose_port(place: Place, wanted: int | None, last: int | None) -> int:
    """Return the port to listen on: the wanted one, else the one of the last time if it is free, else a free one.

    Raises:
        UsageError: The wanted port is in use or not allowed, or an address is not this machine's.
    """
    if wanted is not None:
        for address in place.addresses:
            error = _listen_error(address, wanted)
            if error is not None:
                raise UsageError(f"`port` must be one that is free on {address}: got {wanted} ({error})")
        return wanted
    if last is not None and not any(_listen_error(address, last) for address in place.addresses):
        return last
    for _ in range(100):  # a port that is free on one address may be taken on another
        port = free_port(place.addresses[0])
        if not any(_listen_error(address, port) for address in place.addresses[1:]):
            return port
    raise UsageError(f"no port is free on {' and '.join(place.addresses)}: pass `port`")


def free_port(address: str = LOOPBACK) -> int:
    """Return a port that nobody listens on.

    Raises:
        UsageError: The address is not this machine's.
    """
    with _socket_for(address) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise _no_address(address, error) from None
        return int(probe.getsockname()[1])


def _listen_error(address: str, port: int) -> str | None:
    """Return why a server cannot listen, None if it can."""
    with _socket_for(address) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Postgres does
        try:
            probe.bind((address, port))
            probe.listen()
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise _no_address(address, error) from None
            return os.strerror(error.errno) if error.errno else str(error)
    return None


def _socket_for(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    if ":" in address:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as Postgres does
    return made


def _no_address(address: str, error: OSError) -> UsageError:
    return UsageError(f"`host` must be an address of this machine: got {address} ({error.strerror or error})")


def storage_url_of(place: Place, port: int, password: str) -> str:
    """Return the URL for `$TUNER_STORAGE`.

    Its options keep the password from whoever may listen on the port while the server is down: the client answers only
    a server that proves that it knows the password (SCRAM). With TLS, the proof includes the certificate (channel
    binding), so that a self-signed one is enough.
    """
    host = f"[{place.shown}]" if ":" in place.shown else place.shown
    options = "require_auth=scram-sha-256" if place.is_loopback else "sslmode=require&channel_binding=require"
    return f"postgresql+psycopg2://{ROLE}:{quote(password, safe='')}@{host}:{port}/{DATABASE}?{options}"


def tunnel_command(port: int, address: str = LOOPBACK) -> str:
    """Return the command that makes a loopback port of this machine reachable at the same port of another one."""
    there = f"[{address}]" if ":" in address else address
    return f"ssh -N -L {port}:{there}:{port} {socket.gethostname()}"
