"""The parts of a request that the login needs: its sender, its path, and whether one of our pages sent it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit
from wsgiref.types import WSGIEnvironment

COOKIE = "tuner_session"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_URL = "/%:?#[]@!$&'()*+,;=~"  # what a URL may have beside letters and digits
_PIECE = 64 * 1024
_FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_HOST", "HTTP_FORWARDED")


@dataclass(frozen=True)
class Request:
    """The parts of a request that decide whether it is allowed.

    Attributes:
        method: GET, POST, ...
        path: Below the prefix; None if the request is not below it.
        scheme: The browser's scheme: also https behind a proxy that ends TLS.
        host: The browser's host, with its port if that is not the default.
        address: The client's.
        origin: The origin of the page that sent it, if the browser sends it.
        site: The browser's `Sec-Fetch-Site`.
        token: A bearer token.
        session: The session's id in the cookie.
        wants_page: Whether a person requests a page, and not a script requests data.
    """

    method: str
    path: str | None
    scheme: str
    host: str
    address: str
    origin: str | None
    site: str | None
    token: str | None
    session: str | None
    wants_page: bool

    @property
    def is_safe(self) -> bool:
        """Whether the method makes no changes."""
        return self.method in SAFE_METHODS

    @property
    def is_from_our_pages(self) -> bool | None:
        """Whether a page of this dashboard sent it; None if unknown, for example from a script."""
        if self.site is not None:
            return self.site == "same-origin"
        if self.origin is None:
            return None
        return self.origin.lower() == f"{self.scheme}://{self.host}".lower()


def read_request(environ: WSGIEnvironment, prefix: str, is_behind_proxy: bool) -> Request:
    """Read a WSGI request.

    Forwarded headers are trusted only behind a proxy, and only the values of the nearest one. They are removed from
    `environ`, because libraries would trust them from any client.

    Args:
        environ: The WSGI environment; its headers `X-Forwarded-...` are removed.
        prefix: The path that the dashboard is under, as `/tuner`, or nothing.
        is_behind_proxy: Whether every request comes through a proxy.
    """
    forwarded = {name: environ.pop(name, "").rpartition(",")[2].strip() for name in _FORWARDED}
    scheme, address = environ["wsgi.url_scheme"], environ.get("REMOTE_ADDR", "")
    if is_behind_proxy:
        scheme = "https" if forwarded["HTTP_X_FORWARDED_PROTO"].lower() == "https" else scheme
        address = forwarded["HTTP_X_FORWARDED_FOR"] or address
    path = environ.get("PATH_INFO", "")
    is_below = path == prefix or path.startswith(f"{prefix}/")
    kind, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    return Request(
        method=environ["REQUEST_METHOD"].upper(),
        path=path[len(prefix) :] if is_below else None,
        scheme=scheme,
        host=environ.get("HTTP_HOST", ""),
        address=address,
        origin=environ.get("HTTP_ORIGIN"),
        site=environ.get("HTTP_SEC_FETCH_SITE"),
        token=token.strip() if kind.lower() == "bearer" else None,
        session=_session_of(environ.get("HTTP_COOKIE", "")),
        wants_page="text/html" in environ.get("HTTP_ACCEPT", ""),
    )


def _session_of(header: str) -> str | None:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return None
    return None if found is None else found.value


def is_loopback_name(host: str) -> bool:
    """Return whether a Host header is a loopback name, which no foreign site can use."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def page_after_login(asked: str) -> str:
    """Return the page requested before the login if it is one of ours, else the dashboard's start page.

    It can be sent as a `Location`: other characters than ASCII are percent-encoded.
    """
    is_ours = asked.startswith("/") and not asked.startswith("//") and "\\" not in asked and asked.isprintable()
    return quote(asked, safe=_URL) if is_ours else "/studies"


def read_body(environ: WSGIEnvironment) -> bytes:
    """Return the body of a WSGI request.

    Raises:
        EOFError: The client closed the connection before sending all of it.
    """
    left = int(environ.get("CONTENT_LENGTH") or "0")
    pieces: list[bytes] = []
    while left:  # in pieces, so that the server detects slow clients
        piece = environ["wsgi.input"].read(min(left, _PIECE))
        if not piece:
            raise EOFError(f"the request ended {left} bytes before its Content-Length")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)
