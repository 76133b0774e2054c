"""An HTTP server for WSGI on cheroot, which slow, idle and greedy clients cannot block.

cheroot does the TLS handshake in the thread that accepts connections, and has a fixed number of threads that wait for
slow clients. Here each connection that has a request under way has its own thread, which does the handshake as well;
how long a client may take and how many connections it may have is limited. docs/decisions/0030 has the reasons.
"""

from __future__ import annotations

import enum
import socket
import ssl
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from cheroot import errors
from cheroot.makefile import MakeFile
from cheroot.server import HTTPConnection, HTTPRequest, KnownLengthRFile
from cheroot.ssl.builtin import BuiltinSSLAdapter
from cheroot.wsgi import Gateway_10
from cheroot.wsgi import Server as CherootServer

from tuner.output.log import say
from tuner.web.address import network_of
from tuner.web.headers import StrictHeaders

WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_BACKLOG = 128
_PIECE = 64 * 1024
_TICK_S = 0.5
_ERROR = 40  # the level of `logging`
_NOT_TLS = b"this server speaks HTTPS only\n"


@dataclass(frozen=True)
class Limits:
    """The limits for clients.

    Attributes:
        connections: Open connections in total.
        per_address: Open connections from one IPv4 address or IPv6 /64 network; None for no such limit, as behind a
            proxy, whose address all clients share.
        reading_s: Seconds in which the TLS handshake and a whole request must have arrived.
        writing_s: Seconds in which an answer must have been received.
        least_bytes_s: Bytes per additional second for a body or an answer: the slowest rate.
        header_bytes: Bytes of a request's first line and headers.
        body_bytes: Bytes of a request's body.
    """

    connections: int = 256
    per_address: int | None = 32
    reading_s: float = 20.0
    writing_s: float = 30.0
    least_bytes_s: int = 16 * 1024
    header_bytes: int = 64 * 1024
    body_bytes: int = 64 * 1024


class _Phase(enum.Enum):
    """What a connection waits for: the client, except in ANSWERING."""

    READING = enum.auto()
    ANSWERING = enum.auto()
    WRITING = enum.auto()
    IDLE = enum.auto()


class _Since(NamedTuple):
    phase: _Phase
    began_s: float
    moved_bytes: int


class TLS(BuiltinSSLAdapter):
    """A certificate. The handshake runs on the connection's own thread."""

    def wrap(self, sock: socket.socket) -> tuple[ssl.SSLSocket, dict[str, str]]:
        """Return the socket before its handshake, and the WSGI environment."""
        try:
            sock.getpeername()  # if the client is gone, `wrap_socket` loses the socket without closing it
            wrapped = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except OSError as error:  # the client is gone
            sock.close()
            raise errors.FatalSSLAlert(*error.args) from None
        return wrapped, {"wsgi.url_scheme": "https", "HTTPS": "on"}


class _Body(KnownLengthRFile):
    """The body of a request. Once it has been read, the connection no longer waits for the client."""

    def __init__(self, connection: _Connection, length: int) -> None:
        super().__init__(connection.rfile, length)
        self._connection = connection
        if length == 0:
            connection.enter(_Phase.ANSWERING)

    def read(self, size: int | None = None) -> bytes:
        data: bytes = super().read(None if size is not None and size < 0 else size)
        if self.remaining == 0:
            self._connection.enter(_Phase.ANSWERING)
        return data

    def drain(self) -> bool:
        """Read and discard the rest; return whether it was complete."""
        while self.remaining:
            if not self.read(_PIECE):
                return False
        return True


class _Request(HTTPRequest):
    header_reader = StrictHeaders()
    rfile: Any
    scheme: bytes

    def read_request_line(self) -> bool:
        try:
            return super().read_request_line()
        except ValueError:  # from `urlsplit`
            self.simple_response("400 Bad Request", "Malformed Request-URI")
            return False

    def parse_request(self) -> None:
        super().parse_request()
        # A client may send a complete URL with any scheme.
        self.scheme = b"http" if self.server.ssl_adapter is None else b"https"

    def respond(self) -> None:
        self.rfile = _Body(self.conn, int(self.inheaders.get(b"Content-Length", b"0")))
        self.server.gateway(self).respond()
        self.ensure_headers_sent()
        if self.chunked_write:
            self.conn.wfile.write(b"0\r\n\r\n")

    def ensure_headers_sent(self) -> None:
        if not self.sent_headers:
            # The rest of the body would be parsed as the next request.
            if not self.rfile.drain():
                self.close_connection = True
            self.conn.enter(_Phase.WRITING)
        super().ensure_headers_sent()

    def write(self, chunk: bytes) -> None:
        # In pieces, to measure how much the client receives.
        for at in range(0, len(chunk), _PIECE):
            super().write(chunk[at : at + _PIECE])


class _Connection(HTTPConnection):
    RequestHandlerClass = _Request
    remote_addr: str | None
    socket: Any
    rfile: Any
    wfile: Any

    def __init__(self, server: Server, sock: object, makefile: object = MakeFile) -> None:
        super().__init__(server, sock, makefile)
        self.server = server
        self.is_cut = False
        self._is_shaken = not isinstance(sock, ssl.SSLSocket)
        self.enter(_Phase.READING)

    @property
    def network(self) -> str:
        return network_of(self.remote_addr or "")

    def enter(self, phase: _Phase) -> None:
        self.since = _Since(phase, time.monotonic(), self._moved_bytes())

    def _moved_bytes(self) -> int:
        return self.rfile.bytes_read + self.wfile.bytes_written

    def is_overdue(self, now_s: float, limits: Limits) -> bool:
        """Return whether the client has taken too long for one request or one answer."""
        phase, began_s, moved_bytes = self.since
        allowed_s = {_Phase.READING: limits.reading_s, _Phase.WRITING: limits.writing_s}.get(phase)
        if allowed_s is None:  # cheroot ends idle connections
            return False
        return now_s - began_s > allowed_s + (self._moved_bytes() - moved_bytes) / limits.least_bytes_s

    def communicate(self) -> bool:
        self.enter(_Phase.READING)
        if not self._is_shaken and not self._shake_hands():
            return False
        is_kept = bool(super().communicate())
        if is_kept:
            self.enter(_Phase.IDLE)
        return is_kept

    def _shake_hands(self) -> bool:
        try:
            self.socket.do_handshake()
        except OSError as error:
            if getattr(error, "reason", None) == "HTTP_REQUEST":
                head = f"HTTP/1.1 400 Bad Request\r\nContent-Length: {len(_NOT_TLS)}\r\nConnection: close\r\n\r\n"
                with suppress(OSError):
                    socket.socket.send(self.socket, head.encode() + _NOT_TLS)  # below TLS
            return False
        self._is_shaken = True
        return True

    def cut(self) -> None:
        """End what its thread is waiting for; the thread then closes the connection."""
        self.is_cut = True
        with suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)  # below TLS, which only its thread uses

    def close(self) -> None:
        with self.server.open.lock:  # the number of a closed socket may soon belong to another one
            super().close()
            if not self.linger:
                # Fails if the client has not taken the whole answer. Otherwise the garbage collector would try to send
                # the rest, and Python 3.13 would print a traceback.
                with suppress(OSError, ValueError):
                    self.wfile.close()
            self.server.open.connections.discard(self)


class _Open:
    """The open connections.

    Concurrency: safe from many threads.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.lock = threading.RLock()
        self.connections: set[_Connection] = set()

    def admit(self, connection: _Connection) -> bool:
        """Return whether a connection may be served.

        If there are too many, it replaces a connection that waits for its client: one from its own address if that has
        too many, else from the address with the most connections; the one that has waited longest.
        """
        with self.lock:
            if connection.is_cut:
                return False
            if connection in self.connections:
                return True
            mine = [other for other in self.connections if other.network == connection.network]
            most = self.limits.per_address
            if most is not None and len(mine) >= most and not self._make_room(mine):
                return False
            if len(self.connections) >= self.limits.connections and not self._make_room(self.connections):
                return False
            self.connections.add(connection)
            return True

    def _make_room(self, among: Iterable[_Connection]) -> bool:
        waiting = [one for one in among if one.since.phase is not _Phase.ANSWERING]
        if not waiting:
            return False
        counts = Counter(one.network for one in self.connections)
        last = min(waiting, key=lambda one: (-counts[one.network], one.since.began_s))
        last.cut()
        self.connections.discard(last)
        return True

    def cut_overdue(self) -> None:
        """Close the connections whose client has taken too long."""
        now_s = time.monotonic()
        with self.lock:
            for one in self.connections:
                if one.is_overdue(now_s, self.limits):
                    one.cut()

    def cut_waiting(self) -> None:
        """Close the connections that wait for their client."""
        with self.lock:
            for one in self.connections:
                if one.since.phase is not _Phase.ANSWERING:
                    one.cut()


class _Threads:
    """A thread for each connection with a current request, instead of cheroot's pool of fixed size."""

    min = 1

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._has_ended = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._watch, name="web watch", daemon=True).start()

    def put(self, connection: _Connection) -> None:
        thread = threading.Thread(target=self._serve, args=(connection,), name="web", daemon=True)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # the system cannot create more threads
            self._forget(thread)
            connection.close()

    def stop(self, timeout: float | None = None) -> None:
        """Wait for answers that are being computed, but not for clients."""
        self._has_ended.set()
        self._server.open.cut_waiting()
        end_s = time.monotonic() + (timeout or 0.0)
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            with suppress(RuntimeError):  # a signal came before it was started
                thread.join(max(0.0, end_s - time.monotonic()))

    def _forget(self, thread: threading.Thread) -> None:
        with self._lock:
            self._threads.discard(thread)

    def _serve(self, connection: _Connection) -> None:
        is_kept = False
        try:
            is_kept = connection.communicate()
        except (OSError, errors.FatalSSLAlert):
            pass  # the client is gone
        except Exception as error:
            self._server.error_log(repr(error), _ERROR, traceback=True)
        finally:
            try:
                if is_kept:
                    self._server.put_conn(connection)
                else:
                    connection.close()
            except Exception:  # the server stops
                with suppress(Exception):
                    connection.close()
            self._forget(threading.current_thread())

    def _watch(self) -> None:
        while not self._has_ended.wait(_TICK_S):
            self._server.open.cut_overdue()


class Server(CherootServer):
    """Serves a WSGI application. Call `prepare`, then `serve`, which runs until `stop` is called.

    Args:
        host: The address to listen on.
        port: The port; 0 picks a free one.
        app: The application. It is called from many threads at once.
        limits: The limits for clients.
        tls: The certificate; None for plain HTTP.
        tell: Called with a line for each error that is not caused by a client.
    """

    ConnectionClass = _Connection
    gateway: Any

    def __init__(
        self,
        host: str,
        port: int,
        app: WSGI,
        limits: Limits,
        *,
        tls: TLS | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__((host, port), app, server_name="tuner", request_queue_size=_BACKLOG)
        self.open = _Open(limits)
        self.requests = _Threads(self)
        self.gateway = Gateway_10
        self.max_request_header_size = limits.header_bytes
        self.max_request_body_size = limits.body_bytes
        self.keep_alive_conn_limit = limits.connections // 4
        self.ssl_adapter = tls
        self._tell = tell

    @property
    def bound_port(self) -> int:
        """The port that `prepare` took."""
        return self.bind_addr[1]

    def process_conn(self, conn: _Connection) -> None:
        """Serve a new or formerly idle connection."""
        if self.open.admit(conn):
            self.requests.put(conn)
        else:
            conn.close()

    def error_log(self, msg: str = "", level: int = 20, traceback: bool = False) -> None:
        """Report an error, unless a client caused it."""
        if level < _ERROR:
            return
        if traceback:
            msg = f"{msg}\n{_trace()}"
        if self._tell is None:
            say(f"{msg}")
        else:
            self._tell(msg)


def _trace() -> str:
    return traceback.format_exc().rstrip()
