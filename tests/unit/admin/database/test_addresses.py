"""Where a database listens, and what a client tells whoever listens there."""

import socket
import threading

import psycopg2
import pytest
import sqlalchemy as sa

from tuner.admin.database.addresses import (
    Place,
    choose_port,
    find_place,
    free_port,
    storage_url_of,
    tunnel_command,
)
from tuner.errors import UsageError
from tuner.storage import parse_url

HERE = Place(("127.0.0.1",), "127.0.0.1", "127.0.0.1", True)


@pytest.fixture
def taken_port() -> object:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
def test_a_loopback_address_is_served_alone(host: str) -> None:
    assert find_place(host) == Place((host,), host, host, True)


def test_localhost_is_loopback() -> None:
    place = find_place("localhost")
    assert place.is_loopback
    assert place.shown in ("127.0.0.1", "::1")


def test_other_addresses_are_served_beside_loopback() -> None:
    assert find_place("192.0.2.1") == Place(("127.0.0.1", "192.0.2.1"), "192.0.2.1", "127.0.0.1", False)
    assert find_place("2001:db8::1") == Place(("127.0.0.1", "2001:db8::1"), "2001:db8::1", "127.0.0.1", False)
    assert find_place("0.0.0.0") == Place(("0.0.0.0",), socket.gethostname(), "127.0.0.1", False)
    assert find_place("::") == Place(("::", "127.0.0.1"), socket.gethostname(), "127.0.0.1", False)


def test_a_name_that_is_loopback_only_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in Debian's /etc/hosts.
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(UsageError, match=r"got 'login1', which is 127\.0\.1\.1 on this machine"):
        find_place("login1")


def test_the_wanted_port_is_taken_or_refused(taken_port: int) -> None:
    free = free_port()
    assert choose_port(HERE, free, None) == free
    with pytest.raises(UsageError, match=rf"`port` must be one that is free on 127.0.0.1: got {taken_port} \(Address"):
        choose_port(HERE, taken_port, None)


def test_the_last_port_is_kept_while_it_is_free(taken_port: int) -> None:
    last = free_port()
    assert choose_port(HERE, None, last) == last
    other = choose_port(HERE, None, taken_port)
    assert other != taken_port
    assert choose_port(HERE, other, None) == other  # it is free


def test_an_address_of_another_machine_is_refused() -> None:
    place = find_place("198.51.100.7")  # an address for documentation
    for wanted, last in ((5432, None), (None, 5432), (None, None)):
        with pytest.raises(UsageError, match=r"`host` must be an address of this machine: got 198\.51\.100\.7"):
            choose_port(place, wanted, last)


def test_urls_are_ones_that_sqlalchemy_and_tuner_read() -> None:
    password = "p@ss w/%ü"
    for place in (HERE, find_place("::1"), find_place("2001:db8::1")):
        text = storage_url_of(place, 5433, password)
        url = sa.make_url(text)
        assert (url.username, url.password, url.database) == ("tuner", password, "tuner")
        assert (url.host, url.port, url.drivername) == (place.shown, 5433, "postgresql+psycopg2")
        assert password not in str(parse_url(text))


def test_beyond_loopback_the_url_requires_tls_and_that_the_certificate_is_the_servers() -> None:
    query = sa.make_url(storage_url_of(find_place("192.0.2.1"), 5433, "secret")).query
    assert query == {"sslmode": "require", "channel_binding": "require"}


def test_an_impostor_on_the_port_does_not_get_the_password() -> None:
    """While the server is down, another user of the machine may listen on its port and ask for the password."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as impostor:

        def ask() -> None:
            while True:
                try:
                    client, _ = impostor.accept()
                except OSError:
                    return
                with client:
                    first = client.recv(4096)
                    if first[4:8] in (b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30"):  # TLS or GSS, please
                        client.sendall(b"N")
                        client.recv(4096)
                    client.sendall(b"R\x00\x00\x00\x08\x00\x00\x00\x03")  # your password in plain text
                    received.append(client.recv(4096))

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        port = impostor.getsockname()[1]
        url = storage_url_of(HERE, port, "secret").replace("+psycopg2", "")
        with pytest.raises(psycopg2.OperationalError, match='requirement "scram-sha-256" failed'):
            psycopg2.connect(url)
        assert b"secret" not in b"".join(received)
        with pytest.raises(psycopg2.OperationalError):  # what the test would find
            psycopg2.connect(url.partition("?")[0])
        impostor.shutdown(socket.SHUT_RDWR)
    thread.join(60)
    assert b"secret" in b"".join(received)


def test_the_tunnel_keeps_the_port() -> None:
    here = socket.gethostname()
    assert tunnel_command(5433) == f"ssh -N -L 5433:127.0.0.1:5433 {here}"
    assert tunnel_command(5433, "::1") == f"ssh -N -L 5433:[::1]:5433 {here}"
