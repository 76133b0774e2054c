"""Login for the dashboard: requests without a valid session or token get only the login page.

A WSGI application around another. It refuses by default: a path is public only if it is named here, a method changes
something unless it is GET, HEAD or OPTIONS. Routes that a later version of Optuna's dashboard adds are guarded as well.
"""

from __future__ import annotations

import datetime
import io
import json
import logging
import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit
from wsgiref.types import StartResponse, WSGIEnvironment

from tuner.dashboard.pages import login_page, refusal_page
from tuner.dashboard.request import (
    COOKIE,
    Request,
    is_loopback_name,
    page_after_login,
    read_body,
    read_request,
)
from tuner.dashboard.sessions import Attempts, Sessions
from tuner.dashboard.users import Role, User, Users
from tuner.web.address import network_of

WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Headers = list[tuple[str, str]]

CALLER = "tuner.caller"
"""The key of the `Caller` in the WSGI environment."""
PUBLIC_ASSETS = frozenset({"/assets/page.css", "/favicon.ico"})
_UNCHANGING = ("/static/", "/assets/", "/favicon.ico")
_FAILURES, _WINDOW_S = 10, 300.0
_LONGEST_FORM_BYTES = 4096
_AT_ONCE = 24  # a page of plots has several requests open while they are drawn one after another
_ALWAYS: Headers = [
    ("X-Frame-Options", "DENY"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]
_POLICY = (
    "Content-Security-Policy",
    "default-src 'none';img-src 'self';style-src 'self';form-action 'self';base-uri 'none';frame-ancestors 'none'",
)
_NOT_STORED = ("Cache-Control", "no-store")


@dataclass(frozen=True)
class Caller:
    """The sender of a request: a user or, on loopback without users, anyone on this machine."""

    name: str | None
    role: Role
    has_session: bool


class Refused(Exception):
    """A refused request."""

    def __init__(self, status: str, reason: str, headers: Headers | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers or []


class Login:
    """A WSGI application that passes on only the requests that their sender is allowed to make.

    Args:
        app: The application inside. It sees `SCRIPT_NAME`, and its caller at `CALLER`.
        users: The users; None allows everyone who can reach this machine's loopback address.
        prefix: The path that the dashboard is under, as `/tuner`, or nothing.
        is_behind_proxy: Whether every request comes through a proxy.
        audit: Gets one JSON line for each login, refusal and change.
        sessions: Who is logged in.
    """

    def __init__(
        self,
        app: WSGI,
        users: Users | None,
        *,
        prefix: str,
        is_behind_proxy: bool,
        audit: logging.Logger,
        sessions: Sessions | None = None,
    ) -> None:
        self.app = app
        self.users = users
        self.prefix = prefix
        self.is_behind_proxy = is_behind_proxy
        self.audit = audit
        self.sessions = sessions or Sessions()
        self.by_address = Attempts(_FAILURES, _WINDOW_S)
        self.by_name = Attempts(_FAILURES, _WINDOW_S)
        self._at_once = threading.BoundedSemaphore(_AT_ONCE)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = read_request(environ, self.prefix, self.is_behind_proxy)
        answer = self._respond(environ, request, start_response)
        return [] if request.method == "HEAD" and isinstance(answer, list) else answer

    def _respond(self, environ: WSGIEnvironment, request: Request, start_response: StartResponse) -> Iterable[bytes]:
        caller = None
        try:
            if request.path is None:
                raise Refused("404 Not Found", f"the dashboard is at {self.prefix}/")
            if self.users is not None and request.path == "/login":
                return self._login_page(environ, request, start_response)
            if self.users is not None and request.path in PUBLIC_ASSETS and request.is_safe:
                caller = Caller(None, Role.READER, has_session=False)
                return self._pass_on(environ, request, caller, start_response)
            caller = self._caller(request)
            self._check(request, caller)
            if request.path == "/logout" and request.method == "POST":
                return self._log_out(request, caller, start_response)
            return self._pass_on(environ, request, caller, start_response)
        except Refused as refused:
            if not request.is_safe or request.token is not None or refused.status.startswith(("403", "421")):
                self._note(request, "refused", caller, refused.status, reason=refused.reason)
            return self._refuse(request, refused, start_response)

    # --- The caller

    def _caller(self, request: Request) -> Caller:
        if self.users is None:
            if not is_loopback_name(request.host):
                raise Refused(
                    "421 Misdirected Request",
                    "without users, the dashboard accepts only loopback names such as localhost: "
                    f"got Host {request.host!r}; start it with a users file to allow other names",
                )
            return Caller(None, Role.EDITOR, has_session=False)
        if request.token is not None:
            user = self.users.with_token(request.token)
            if user is None:
                raise Refused("401 Unauthorized", "unknown bearer token", [("WWW-Authenticate", "Bearer")])
            return Caller(user.name, user.role, has_session=False)
        user = None if request.session is None else self.sessions.find(request.session, self.users.named)
        if user is not None:
            return Caller(user.name, user.role, has_session=True)
        if request.wants_page and request.is_safe:
            asked = quote((request.path or "/").encode("latin-1"), safe="/")  # WSGI has bytes as Latin-1
            raise Refused("303 See Other", "log in first", [("Location", f"{self.prefix}/login?next={asked}")])
        raise Refused("401 Unauthorized", "log in first", [("WWW-Authenticate", "Bearer")])

    def _check(self, request: Request, caller: Caller) -> None:
        """Refuse requests that the caller may not make, or that another site makes the caller's browser send."""
        if request.is_safe:
            return
        if request.path == "/logout":  # readers may
            self._check_origin(request, must_be_known=caller.has_session)
            return
        if caller.role is not Role.EDITOR:
            raise Refused("403 Forbidden", f"{caller.role}s cannot make changes")
        self._check_origin(request, must_be_known=caller.has_session)

    def _check_origin(self, request: Request, *, must_be_known: bool) -> None:
        is_ours = request.is_from_our_pages
        if is_ours is False or (must_be_known and is_ours is None):
            raise Refused(
                "403 Forbidden",
                "a change must come from a page of the dashboard, or have a bearer token: "
                f"got Origin {request.origin!r} at {request.scheme}://{request.host}",
            )

    # --- Logging in and out

    def _login_page(self, environ: WSGIEnvironment, request: Request, start_response: StartResponse) -> Iterable[bytes]:
        if request.method in ("GET", "HEAD"):
            asked = parse_qs(environ.get("QUERY_STRING", "")).get("next", ["/studies"])[0]
            return self._answer(start_response, "200 OK", login_page(self.prefix, page_after_login(asked)))
        if request.method != "POST":
            raise Refused("405 Method Not Allowed", "log in by POST", [("Allow", "GET, HEAD, POST")])
        self._check_origin(request, must_be_known=True)
        form = _form(environ)
        name, asked = form.get("name", ""), page_after_login(form.get("next", ""))
        user = self._tried(request, name, form.get("password", ""))
        if user is None:
            # An unknown name may be a password in the wrong field.
            known = name if self.users is not None and self.users.named(name) else None
            self._note(request, "login refused", None, "401 Unauthorized", tried=known)
            page = login_page(self.prefix, asked, "Wrong name or password.")
            return self._answer(start_response, "401 Unauthorized", page)
        assert self.users is not None
        if request.session is not None:
            self.sessions.end(request.session)
        key = self.sessions.begin(user)
        self._note(request, "login", Caller(user.name, user.role, has_session=True), "303 See Other")
        headers = [("Location", f"{self.prefix}{asked}"), ("Set-Cookie", self._cookie(request, key))]
        return self._answer(start_response, "303 See Other", "", headers)

    def _tried(self, request: Request, name: str, password: str) -> User | None:
        assert self.users is not None
        address = network_of(request.address)
        wait_s = self.by_address.begin(address)
        if wait_s == 0.0:
            wait_s = self.by_name.begin(name)
        if wait_s > 0.0:
            seconds = math.ceil(wait_s)
            raise Refused(
                "429 Too Many Requests", f"too many logins; try again in {seconds} s", [("Retry-After", str(seconds))]
            )
        user = self.users.with_password(name, password)
        if user is not None:
            self.by_address.succeed(address)
            self.by_name.succeed(name)
        return user

    def _log_out(self, request: Request, caller: Caller, start_response: StartResponse) -> Iterable[bytes]:
        if request.session is not None:
            self.sessions.end(request.session)
        self._note(request, "logout", caller, "303 See Other")
        where = "/login" if self.users is not None else "/"
        headers = [("Location", f"{self.prefix}{where}"), ("Set-Cookie", f"{self._cookie(request, '')}; Max-Age=0")]
        return self._answer(start_response, "303 See Other", "", headers)

    def _cookie(self, request: Request, key: str) -> str:
        secure = "; Secure" if request.scheme == "https" else ""
        return f"{COOKIE}={key}; HttpOnly; SameSite=Strict; Path={self.prefix or '/'}{secure}"

    # --- Answers

    def _pass_on(
        self, environ: WSGIEnvironment, request: Request, caller: Caller, start_response: StartResponse
    ) -> Iterable[bytes]:
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = self.prefix, request.path or "/"
        environ["wsgi.url_scheme"] = request.scheme
        environ[CALLER] = caller
        if not request.is_safe:  # before taking a slot of the limit, because clients may be slow
            environ["wsgi.input"] = io.BytesIO(_body(environ))
        is_same_for_all = (request.path or "").startswith(_UNCHANGING)

        def start(status: str, headers: Headers, *rest: Any) -> Any:
            if not request.is_safe:
                self._note(request, "change", caller, status)
            return start_response(status, self._dressed(headers, is_same_for_all), *rest)

        with self._at_once:
            return self.app(environ, start)

    def _dressed(self, headers: Headers, is_same_for_all: bool) -> Headers:
        """Return the inner application's headers with ours; redirects stay below the prefix."""
        kept = []
        policies = [value for name, value in headers if name.lower() == "content-security-policy"]
        for name, value in headers:
            lower = name.lower()
            if lower == "location":
                to = urlsplit(value)
                value = self.prefix + to.path + (f"?{to.query}" if to.query else "")
            if lower not in ("access-control-allow-origin", "content-security-policy", "cache-control"):
                kept.append((name, value))
        policy = ";".join([*policies, "frame-ancestors 'none'"])
        stored = ("Cache-Control", "private, no-cache") if is_same_for_all else _NOT_STORED
        return [*kept, ("Content-Security-Policy", policy), stored, *_ALWAYS]

    def _answer(
        self, start_response: StartResponse, status: str, page: str, headers: Headers | None = None
    ) -> Iterable[bytes]:
        body = page.encode()
        about = [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(body)))]
        start_response(status, [*about, *(headers or []), _POLICY, _NOT_STORED, *_ALWAYS])
        return [body]

    def _refuse(self, request: Request, refused: Refused, start_response: StartResponse) -> Iterable[bytes]:
        if request.wants_page or refused.status.startswith("303"):
            return self._answer(
                start_response, refused.status, refusal_page(self.prefix, refused.reason), refused.headers
            )
        body = json.dumps({"reason": refused.reason}).encode()
        about = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response(refused.status, [*about, *refused.headers, _NOT_STORED, *_ALWAYS])
        return [body]

    def _note(self, request: Request, event: str, caller: Caller | None, status: str, **more: str | None) -> None:
        line = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "event": event,
            "user": None if caller is None else caller.name,
            "method": request.method,
            "path": request.path,
            "status": int(status[:3]),
            "address": request.address,
            **more,
        }
        self.audit.info("%s", json.dumps(line))


def _body(environ: WSGIEnvironment) -> bytes:
    try:
        return read_body(environ)
    except EOFError as error:
        raise Refused("400 Bad Request", str(error)) from None


def _form(environ: WSGIEnvironment) -> dict[str, str]:
    """Return the fields of a small form.

    Raises:
        Refused: The body is too long or incomplete.
    """
    length = environ.get("CONTENT_LENGTH") or "0"
    if not length.isdecimal() or int(length) > _LONGEST_FORM_BYTES:
        raise Refused("413 Content Too Large", f"a login must have at most {_LONGEST_FORM_BYTES} bytes")
    text = _body(environ).decode("utf-8", "replace")
    return {name: values[-1] for name, values in parse_qs(text, keep_blank_values=True).items()}
