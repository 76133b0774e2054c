"""The HTTP server of the dashboard and of the metrics: what clients on 127.0.0.2 do does not stop one on 127.0.0.1."""

from __future__ import annotations

import contextlib
import gc
import http.client
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trustme
from attackers import ON_TLS, PLAIN, attacked, connect, send_nothing, talk
from cheroot.errors import FatalSSLAlert

from tuner.web.address import network_of
from tuner.web.server import TLS, Limits, Server

LARGE = b"x" * 40_000_000


class Echo:
    """An application that tells what it was asked; `/large` has 40 MB, `/wait` waits for the test."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.goes_on = threading.Event()
        self.waiting = threading.Semaphore(0)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        self.asked.append(environ)
        if environ["PATH_INFO"] == "/wait":
            self.waiting.release()
            assert self.goes_on.wait(300)
        if environ["PATH_INFO"] == "/read":
            environ["the body"] = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [LARGE] if environ["PATH_INFO"] == "/large" else [b"fine"]


@contextlib.contextmanager
def serving(app: Any, limits: Limits, tls: TLS | None = None) -> Iterator[tuple[Server, list[str]]]:
    errors: list[str] = []
    server = Server("0.0.0.0", 0, app, limits, tls=tls, tell=errors.append)
    server.expiration_interval = 0.02  # how long it may take to notice that it must stop
    server.prepare()
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server, errors
    finally:
        server.stop()
        thread.join()


def ask(port: int, path: str = "/", tls: ssl.SSLContext | None = None) -> bytes:
    made = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    if tls is not None:
        made = http.client.HTTPSConnection("127.0.0.1", port, timeout=300, context=tls)
    with contextlib.closing(made) as connection:
        connection.request("GET", path)
        return connection.getresponse().read()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[TLS, ssl.SSLContext]:
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    made, context = authority.issue_cert("127.0.0.1"), ssl.create_default_context()
    made.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    made.private_key_pem.write_to_path(str(folder / "key.pem"))
    authority.configure_trust(context)
    return TLS(str(folder / "cert.pem"), str(folder / "key.pem")), context


@pytest.mark.parametrize("begin", PLAIN)
@pytest.mark.slow
def test_clients_that_wait_stop_nobody_else(begin: Callable[[socket.socket], None]) -> None:
    # No deadline ends them meanwhile: that there are too many of one address does.
    with serving(Echo(), Limits(connections=40, per_address=8, reading_s=600.0, writing_s=600.0)) as (server, errors):
        with attacked(server.bound_port, begin, 60) as attack:
            assert [ask(server.bound_port) for _ in range(20)] == [b"fine"] * 20
            assert attack.opened >= 60
            assert sum(one.remote_addr == "127.0.0.2" for one in list(server.open.connections)) <= 8
        assert errors == []


@pytest.mark.parametrize("begin", ON_TLS)
@pytest.mark.slow
def test_handshakes_that_are_not_finished_stop_nobody_else(
    begin: Callable[[socket.socket], None], certificate: tuple[TLS, ssl.SSLContext]
) -> None:
    tls, context = certificate
    with serving(Echo(), Limits(connections=40, per_address=8, reading_s=600.0), tls) as (server, errors):
        with attacked(server.bound_port, begin, 60):
            assert [ask(server.bound_port, tls=context) for _ in range(20)] == [b"fine"] * 20
        assert errors == []


@pytest.mark.slow
def test_a_client_that_is_gone_before_its_handshake_leaves_no_socket_open(
    certificate: tuple[TLS, ssl.SSLContext],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()  # with a reset, because nothing lingers
        accepted, _ = listening.accept()
        with pytest.raises(FatalSSLAlert):
            certificate[0].wrap(accepted)
    assert accepted.fileno() == -1
    gc.collect()  # a socket that is still open would be a warning now, and so an error


def test_many_addresses_stop_nobody_else() -> None:
    with (
        serving(Echo(), Limits(connections=20, per_address=8, reading_s=600.0)) as (server, _),
        contextlib.ExitStack() as held,
    ):
        honest = held.enter_context(contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.bound_port)))
        honest.request("GET", "/")
        assert honest.getresponse().read() == b"fine"
        kept = honest.sock
        for number in range(60):
            send_nothing(held.enter_context(connect(server.bound_port, f"127.0.0.{2 + number % 5}")))
        last = held.enter_context(connect(server.bound_port, "127.0.0.7"))
        last.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert last.recv(15) == b"HTTP/1.1 200 OK", "so all before it have been accepted"
        honest.request("GET", "/")
        assert honest.getresponse().read() == b"fine"
        assert honest.sock is kept, "the address with the most connections loses one, not this one"
        assert ask(server.bound_port) == b"fine"


def test_behind_a_proxy_connections_of_one_address_are_not_limited() -> None:
    app = Echo()
    with serving(app, Limits(per_address=None)) as (server, _), contextlib.ExitStack() as held:
        for _ in range(100):
            made = held.enter_context(connect(server.bound_port))
            made.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert app.waiting.acquire(timeout=300)
        app.goes_on.set()
        assert len(app.asked) == 100


def test_answers_that_are_being_made_are_not_ended_for_others() -> None:
    app = Echo()
    with serving(app, Limits(per_address=2)) as (server, _), contextlib.ExitStack() as held:
        asking = [held.enter_context(connect(server.bound_port)) for _ in range(2)]
        for one in asking:
            one.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert app.waiting.acquire(timeout=300)
        third = held.enter_context(connect(server.bound_port))
        assert third.recv(1) == b"", "a third of that address finds no place"
        app.goes_on.set()
        assert [one.recv(15) for one in asking] == [b"HTTP/1.1 200 OK"] * 2


@pytest.mark.parametrize("begin", PLAIN[1:4])
def test_a_request_must_come_within_its_time(begin: Callable[[socket.socket], None]) -> None:
    """A client that goes on sending a byte at a time is ended as well: the time is for the whole request."""
    with serving(Echo(), Limits(reading_s=0.5)) as (server, errors), connect(server.bound_port) as made:
        begin(made)
        made.settimeout(0.05)
        with contextlib.suppress(ConnectionError):
            while True:
                made.sendall(b"a")
                with contextlib.suppress(TimeoutError):
                    if not made.recv(65536):
                        break
        assert errors == []


def test_a_handshake_must_come_within_its_time(certificate: tuple[TLS, ssl.SSLContext]) -> None:
    with serving(Echo(), Limits(reading_s=0.5), certificate[0]) as (server, _), connect(server.bound_port) as made:
        made.settimeout(8)  # less than the 10 s of a socket
        assert made.recv(1) == b""


def test_an_answer_must_be_taken_within_its_time() -> None:
    """A client that goes on reading a little at a time is ended as well."""
    with serving(Echo(), Limits(writing_s=0.5, least_bytes_s=10**9)) as (server, _), connect(server.bound_port) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        told, pause = len(made.recv(1024)), threading.Event()
        (ended,) = server.open.connections
        while server.open.connections:
            told += len(made.recv(1024))
            pause.wait(0.001)  # a slow reader is slow
        assert told < len(LARGE) / 2
        assert ended.wfile.closed, "nothing tries to send the rest: Python 3.13 would print a traceback"


def test_a_client_that_is_slow_and_steady_gets_all_of_a_large_answer() -> None:
    limits = Limits(writing_s=0.2, least_bytes_s=1000)
    with serving(Echo(), limits) as (server, _), connect(server.bound_port) as made:
        made.sendall(b"GET /large HTTP/1.0\r\nHost: a\r\n\r\n")
        told, pause = 0, threading.Event()
        while piece := made.recv(1_000_000):
            told += len(piece)
            pause.wait(0.03)
        assert told > len(LARGE)


def test_tls_and_plain_are_told_apart(certificate: tuple[TLS, ssl.SSLContext]) -> None:
    tls, context = certificate
    with serving(Echo(), Limits(), tls) as (server, errors):
        told = talk(server.bound_port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert told.startswith(b"HTTP/1.1 400 ")
        assert told.endswith(b"this server speaks HTTPS only\n")
        assert talk(server.bound_port, b"\x16\x03\x01\x00\x05hello") != b"", "an alert"
        with connect(server.bound_port) as made, context.wrap_socket(made, server_hostname="127.0.0.1") as wrapped:
            wrapped.sendall(b"GET / HTTP/1.1\r\n")
            made_up = wrapped.detach()
            socket.close(made_up)
        assert ask(server.bound_port, tls=context) == b"fine"
        assert errors == []


def head(*headers: str, path: str = "/read", body: str = "") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Connection: close", *headers, "", body]
    return "\r\n".join(lines).encode("latin-1")


@pytest.mark.parametrize(
    "headers",
    [
        ["Host: a", "Host: b"],
        ["Host: a", "Authorization: Bearer x", "authorization: Bearer y"],
        ["Host: a", "Content-Length: 0", "Content-Length: 5"],
        ["Host: a", "Origin: http://a", "Origin: http://b"],
        ["Host: a", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"],
        ["Host: a", "Transfer-Encoding: chunked"],
        ["Host: a", "Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Host: a", "Transfer-Encoding: identity", "Content-Length: 0"],
        ["Host: a", "Content-Length: +5"],
        ["Host: a", "Content-Length: 1_0"],
        ["Host: a", "Content-Length: -1"],
        ["Host: a", "Content-Length: 0, 5"],
        ["Host: a", "Content-Length: " + "9" * 5000],
        ["Host: a", "X-A : b"],
        ["Host: a", " folded: yes"],
        ["Host: a", "no colon"],
        ["Host: a", ": no name"],
        ["Host: a", "X-A: a\0b"],
        ["Host: a", "X-A: a\rX-B: c"],
        ["Host: a", "X-A: a\nX-B: c"],
    ],
)
def test_headers_that_two_programs_read_differently_are_refused(headers: list[str]) -> None:
    app = Echo()
    with serving(app, Limits()) as (server, errors):
        told = talk(server.bound_port, head(*headers, body="0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"))
    assert told.startswith(b"HTTP/1.1 400 Bad Request\r\n"), told
    assert told.count(b"HTTP/1.1") == 1
    assert (app.asked, errors) == ([], [])


def test_headers_with_underscores_are_dropped_and_lists_are_joined() -> None:
    app = Echo()
    with serving(app, Limits()) as (server, _):
        names = ("X_Forwarded_For: 10.0.0.1", "X-Forwarded_For: 10.0.0.2", "Sec_Fetch_Site: same-origin")
        lists = ("X-Forwarded-For: 1.1.1.1", "X-Forwarded-For: 2.2.2.2", "Cookie: a=1", "cookie: b=2")
        sized = ("Content_Length: 3", "Content-Length: 4")
        talk(server.bound_port, head("Host: a", *names[:2], *lists, *sized, *names, body="body"))
    (asked,) = app.asked
    assert asked["HTTP_X_FORWARDED_FOR"] == "1.1.1.1, 2.2.2.2"
    assert asked["HTTP_COOKIE"] == "a=1; b=2"
    assert "HTTP_SEC_FETCH_SITE" not in asked
    assert asked["the body"] == b"body"


def test_what_is_left_of_a_body_is_not_the_next_request() -> None:
    app, inner = Echo(), b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    with serving(app, Limits()) as (server, _):
        first = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(inner), inner)
        told = talk(server.bound_port, first + b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert told.count(b"HTTP/1.1 200 OK") == 2
    assert [asked["PATH_INFO"] for asked in app.asked] == ["/", "/last"]


@pytest.mark.parametrize(
    "line", ["GET http://[ HTTP/1.1", "GET //[::1 HTTP/1.1", "GET", "GET / HTTP/x", "\0 / HTTP/1.1"]
)
def test_a_first_line_of_any_kind_is_answered(line: str) -> None:
    with serving(Echo(), Limits()) as (server, errors):
        told = talk(server.bound_port, f"{line}\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    assert told[9:12] in (b"400", b"200"), told
    assert errors == []


def test_a_client_does_not_choose_the_scheme() -> None:
    app = Echo()
    with serving(app, Limits()) as (server, _):
        talk(server.bound_port, b"OPTIONS https://a/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert (app.asked[0]["wsgi.url_scheme"], app.asked[0]["PATH_INFO"]) == ("http", "/x")


def test_too_much_is_refused() -> None:
    with serving(Echo(), Limits(header_bytes=1000, body_bytes=1000)) as (server, errors):
        assert talk(server.bound_port, head("Host: a", "X-A: " + "a" * 2000))[9:12] == b"413"
        assert talk(server.bound_port, head("Host: a", "Content-Length: 1001"))[9:12] == b"413"
        assert errors == []


def test_an_error_of_the_application_is_told_with_its_traceback() -> None:
    def fails(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise ZeroDivisionError("on purpose")

    with serving(fails, Limits()) as (server, errors):
        assert talk(server.bound_port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")[9:12] == b"500"
    assert len(errors) == 1
    assert "on purpose" in errors[0]
    assert "Traceback" in errors[0]


def test_a_signal_while_a_thread_is_started_ends_the_server_in_good_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal of `tuner dashboard` raises in the main thread, which starts the threads of the connections."""

    def interrupted(thread: threading.Thread) -> None:
        raise SystemExit(0)

    server: Any = Server("127.0.0.1", 0, Echo(), Limits())
    server.prepare()
    with monkeypatch.context() as during, connect(server.bound_port):
        connection = server._connections._from_server_socket(server.socket)
        during.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(SystemExit):
            server.requests.put(connection)
    server.stop()


def test_the_server_ends_while_clients_wait() -> None:
    with serving(Echo(), Limits(reading_s=600.0)) as (server, _), connect(server.bound_port) as made:
        made.sendall(b"GET / HT")
        assert ask(server.bound_port) == b"fine"
        server.stop()
        assert made.recv(1) == b""


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("10.0.0.1:5678", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("[2001:db8::1]:5678", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
        ("", ""),
    ],
)
def test_addresses_that_count_together(address: str, network: str) -> None:
    assert network_of(address) == network
