"""Clients that hold connections of an HTTP server, from an address of their own (127.0.0.2)."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

ADDRESS = "127.0.0.2"
_BEGIN = b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\n"


def connect(port: int, address: str = ADDRESS) -> socket.socket:
    """Return a connection from an address of loopback."""
    made = socket.create_connection(("127.0.0.1", port), timeout=300, source_address=(address, 0))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closed ones leave no port behind
    return made


def send_nothing(made: socket.socket) -> None:
    """Half-open TLS, or a request that never begins."""


def send_a_line(made: socket.socket) -> None:
    made.sendall(b"GET /login HTTP/1.1\r\n")


def send_half_the_headers(made: socket.socket) -> None:
    made.sendall(_BEGIN + b"X-Wait: ")


def send_half_a_body(made: socket.socket) -> None:
    made.sendall(_BEGIN + b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 4000\r\n\r\nname=x&")


def send_half_a_hello(made: socket.socket) -> None:
    """The begin of a TLS handshake."""
    made.sendall(bytes([0x16, 0x03, 0x01, 0x02, 0x00, 0x01]))


def stay_idle(made: socket.socket) -> None:
    """Ask, read the answer, and keep the connection."""
    made.sendall(b"GET /login HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    with contextlib.suppress(OSError):
        made.recv(65536)


def ask_and_not_read(made: socket.socket) -> None:
    """Ask for much, again and again, and read nothing."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    made.settimeout(0.2)
    with contextlib.suppress(OSError):
        made.sendall(b"GET /login HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 2000)


PLAIN = (send_nothing, send_a_line, send_half_the_headers, send_half_a_body, stay_idle, ask_and_not_read)
ON_TLS = (send_nothing, send_half_a_hello)


class Attack:
    """Holds `count` connections, and opens another for each that is ended, until it is closed."""

    def __init__(self, port: int, begin: Callable[[socket.socket], None], count: int) -> None:
        self._port, self._begin, self._count = port, begin, count
        self._held: list[socket.socket] = []
        self._ends = threading.Event()
        self.has_begun = threading.Event()
        self.opened = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ends.is_set():
            while len(self._held) < self._count and not self._ends.is_set():
                with contextlib.suppress(OSError):
                    made = connect(self._port)
                    self._held.append(made)
                    self.opened += 1
                    self._begin(made)
            self.has_begun.set()
            ended = [one for one in self._held if _is_ended(one)]
            for one in ended:
                one.close()
            self._held = [one for one in self._held if one not in ended]
            self._ends.wait(0.02)

    def close(self) -> None:
        self._ends.set()
        self._thread.join()
        for one in self._held:
            one.close()


def _is_ended(made: socket.socket) -> bool:
    ready, _, _ = select.select([made], [], [], 0)
    if not ready:
        return False
    try:
        return not made.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


@contextlib.contextmanager
def attacked(port: int, begin: Callable[[socket.socket], None], count: int) -> Iterator[Attack]:
    """Attack a server while the body runs; the body begins once all connections were opened."""
    attack = Attack(port, begin, count)
    try:
        assert attack.has_begun.wait(300)
        yield attack
    finally:
        attack.close()


def talk(port: int, raw: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    """Send bytes as an honest client, and return all that comes until the server ends the connection."""
    made: socket.socket = socket.create_connection(("127.0.0.1", port), timeout=300)
    if tls is not None:
        made = tls.wrap_socket(made, server_hostname="127.0.0.1")
    with made:
        made.sendall(raw)
        told = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := made.recv(65536):
                told += piece
        return told
