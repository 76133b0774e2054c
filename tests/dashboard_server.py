"""Runs `tuner dashboard` for tests, and asks it over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tuner.dashboard import Role, add_user, hash_password, hash_token

PASSWORD = "correct horse"
TOKENS = {"ci": Role.READER, "cd": Role.EDITOR}
"""Users with a token, which is their name."""


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class DashboardServer:
    """A running `tuner dashboard`."""

    process: subprocess.Popen[str]
    host: str
    port: int
    prefix: str
    audit: Path
    tls: ssl.SSLContext | None = None

    def ask(self, method: str, path: str, body: Any = None, form: Any = None, **headers: str) -> Answer:
        """Send one request; keyword arguments are headers, `_` for `-`."""
        where = (self.host, self.port)
        made = http.client.HTTPConnection(*where, timeout=3000)
        if self.tls is not None:
            made = http.client.HTTPSConnection(*where, timeout=3000, context=self.tls)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            given["Content-Type"], body = "application/json", json.dumps(body)
        if form is not None:
            given["Content-Type"], body = "application/x-www-form-urlencoded", urlencode(form)
        with contextlib.closing(made) as connection:
            connection.request(method, self.prefix + path, body, given)
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())

    @property
    def origin(self) -> str:
        return f"http{'s' if self.tls else ''}://{self.host}:{self.port}"

    def log_in(self, name: str, password: str = PASSWORD, **headers: str) -> Answer:
        headers = {"Origin": self.origin, **headers}
        return self.ask("POST", "/login", form={"name": name, "password": password, "next": "/workers"}, **headers)

    def cookie(self, name: str) -> str:
        """Log in and return the cookie, as a browser sends it back."""
        answer = self.log_in(name)
        assert answer.status == 303, answer
        return answer.headers["set-cookie"].partition(";")[0]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


@contextlib.contextmanager
def serve(
    folder: Path, storage: str, *words: str, prefix: str = "", tls: ssl.SSLContext | None = None
) -> Iterator[DashboardServer]:
    """Run `tuner dashboard` on a free port of loopback."""
    audit = folder / "audit.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "tuner", "dashboard", "--port", "0", "--audit-log", str(audit), *words],
        cwd=folder,
        env={**os.environ, "TUNER_STORAGE": storage, "PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said: list[str] = []
    try:
        for line in process.stderr:  # it ends if the process does
            said.append(line)
            if found := re.search(r"on https?://(\S+):(\d+)\S*, press Ctrl-C to stop", line):
                yield DashboardServer(process, found[1], int(found[2]), prefix, audit, tls)
                break
        else:
            pytest.fail(f"it did not start: {said}")
    finally:
        process.kill()
        process.communicate()


def make_users(path: Path) -> Path:
    """Make a users file: ann, who edits, rob and eve, who read, and those of `TOKENS`."""
    secret = hash_password(PASSWORD)
    for name, role in (("ann", Role.EDITOR), ("rob", Role.READER), ("eve", Role.READER)):
        add_user(path, name, role, secret)
    for name, role in TOKENS.items():
        add_user(path, name, role, hash_token(name))
    return path
