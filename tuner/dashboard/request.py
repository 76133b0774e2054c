"""One request as the login sees it: where it comes from, what it names, and whether a page of ours sent it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

COOKIE = "tuner_session"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_HOST", "HTTP_FORWARDED")


@dataclass(frozen=True)
class Request:
    """What decides about a request.

    Attributes:
        method: GET, POST, ...
        path: Below the prefix; None if the request is not below it.
        scheme: As the browser has it: https also behind a proxy that ends TLS.
        host: As the browser has it, with its port if that is not the usual one.
        address: The client's.
        origin: Of the page that sent it, if the browser says so.
        site: The browser's `Sec-Fetch-Site`.
        token: A bearer token.
        session: The session's id in the cookie.
        wants_page: Whether a person waits for a page, rather than a script for data.
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
        """Whether the method is one that does not change anything."""
        return self.method in SAFE_METHODS

    @property
    def is_from_our_pages(self) -> bool | None:
        """Whether a page of this dashboard sent it; None if nothing says so, as from a script."""
        if self.site is not None:
            return self.site == "same-origin"
        if self.origin is None:
            return None
        return self.origin.lower() == f"{self.scheme}://{self.host}".lower()


def read_request(environ: dict[str, Any], prefix: str, is_behind_proxy: bool) -> Request:
    """Read a WSGI request.

    What a proxy forwards is believed only behind one, and only what the nearest one says; it is removed from
    `environ`, since libraries believe it from anybody.

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
    """Return whether a Host header names this machine's loopback, which no name of a foreign site does."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def network_of(address: str) -> str:
    """Return whose attempts count together: an IPv4 address, or the /64 network of an IPv6 address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)


def page_after_login(asked: str) -> str:
    """Return the page that was asked for before the login if it is one of ours, else the dashboard's first."""
    is_ours = asked.startswith("/") and not asked.startswith("//") and "\\" not in asked and asked.isprintable()
    return asked if is_ours else "/dashboard"
