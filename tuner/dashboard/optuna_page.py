"""Serves Optuna's front-end with links to our own pages, and below a path prefix if there is one."""

from __future__ import annotations

import gzip
import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from tuner.dashboard.layout import LINKS
from tuner.dashboard.login import CALLER, WSGI
from tuner.errors import UsageError

_SCRIPT = '<script defer src="/static/bundle.js">'
_BUNDLE = "/static/bundle.js"


def below_prefix(script: str, prefix: str) -> str:
    """Return the front-end's script with all its addresses below a prefix.

    They are texts that begin with a slash, and optuna-dashboard has no option to change them.

    Args:
        script: The script of optuna-dashboard.
        prefix: As `/tuner`.

    Raises:
        UsageError: The script is of a version whose addresses look different.
    """
    changes = {
        "${this.baseURL}/": f"{prefix}/",
        'url_prefix:"/dashboard"': f'url_prefix:"{prefix}/dashboard"',
        "`/artifacts/": f"`{prefix}/artifacts/",
        "(/artifacts/": f"({prefix}/artifacts/",
        "`/csv/": f"`{prefix}/csv/",
    }
    for before, after in changes.items():
        if before not in script:
            raise UsageError(
                f"`prefix` does not work with this version of optuna-dashboard: its front-end has no {before!r}; "
                "install optuna-dashboard 0.21, or give the dashboard a host name of its own"
            )
        script = script.replace(before, after)
    return script


class OptunaPage:
    """A WSGI application around Optuna's: adds our navigation bar to its page and the prefix to its script.

    Args:
        app: The application inside.
        prefix: The path that the dashboard is under, as `/tuner`, or nothing.
        folder: Where optuna-dashboard has its `public/bundle.js`.

    Raises:
        UsageError: The front-end cannot be served below a prefix.
    """

    def __init__(self, app: WSGI, prefix: str, folder: Path) -> None:
        self.app = app
        self.prefix = prefix
        self._script = None
        if prefix:
            script = (folder / "public" / "bundle.js").read_text(encoding="utf-8")
            self._script = gzip.compress(below_prefix(script, prefix).encode(), compresslevel=6, mtime=0)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"].rstrip("/")
        if environ["REQUEST_METHOD"] == "GET" and (path == "/dashboard" or path.startswith("/dashboard/")):
            return self._page(environ, start_response)
        if self._script is not None and path == _BUNDLE:
            return self._send_script(environ, start_response, self._script)
        # optuna-dashboard supports only this one, and fails without the header or if it is not UTF-8.
        environ["HTTP_ACCEPT_ENCODING"] = "gzip" if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", "") else ""
        return self.app(environ, start_response)

    def _page(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # It depends on the user, so it is always sent completely, never as "not modified".
        for name in ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH", "HTTP_RANGE"):
            environ.pop(name, None)
        told: list[Any] = []
        answer = self.app(environ, lambda status, headers, *rest: told.append((status, headers)))
        try:
            page = b"".join(answer).decode()
        finally:
            getattr(answer, "close", lambda: None)()
        status, headers = told[-1]
        body = page.replace(_SCRIPT, self._scripts(environ)).encode()
        dropped = ("content-length", "etag", "last-modified", "accept-ranges")
        kept = [(name, value) for name, value in headers if name.lower() not in dropped]
        start_response(status, [*kept, ("Content-Length", str(len(body)))])
        return [body]

    def _scripts(self, environ: WSGIEnvironment) -> str:
        caller = environ[CALLER]
        user = caller.name if caller.has_session else ""
        data = {"prefix": self.prefix, "user": user, "role": caller.role, "links": json.dumps(LINKS)}
        told = " ".join(f'data-{name}="{html.escape(str(value or ""))}"' for name, value in data.items())
        ours = f'<script src="{self.prefix}/assets/bar.js" {told}></script>'
        icon = f'<link rel="icon" href="{self.prefix}/favicon.ico">'
        look = f'<link rel="stylesheet" href="{self.prefix}/assets/page.css">'
        return f'{icon}\n    {look}\n    {ours}\n    <script defer src="{self.prefix}{_BUNDLE}">'

    def _send_script(self, environ: WSGIEnvironment, start_response: StartResponse, script: bytes) -> Iterable[bytes]:
        headers = [("Content-Type", "text/javascript; charset=utf-8"), ("Vary", "Accept-Encoding")]
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            headers.append(("Content-Encoding", "gzip"))
        else:
            script = gzip.decompress(script)
        start_response("200 OK", [*headers, ("Content-Length", str(len(script)))])
        return [script]
