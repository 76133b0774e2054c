"""The list of studies, and the choice of those of an owner or with a label."""

from __future__ import annotations

import re
import sys
from typing import Any

import optuna
import pytest
from storage_tools import opened

from tuner.admin.edits import relabel
from tuner.dashboard.app import routes
from tuner.dashboard.login import CALLER, Caller
from tuner.dashboard.users import Role
from tuner.storage import parse_url

pytestmark = pytest.mark.with_tables


def listed(app: Any, query: str = "") -> tuple[list[str], str]:
    """Return the names of the studies of a page, and its HTML."""
    statuses: list[str] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/studies", "QUERY_STRING": query, "SCRIPT_NAME": ""}
    environ |= {
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": None,
        "SERVER_PROTOCOL": "HTTP/1.1",
    }
    environ |= {"wsgi.errors": sys.stderr, CALLER: Caller(None, Role.EDITOR, has_session=False)}
    body = b"".join(app(environ, lambda status, *_: statuses.append(status))).decode()
    assert statuses == ["200 OK"]
    return re.findall(r'<a href="[^"]*/study\?[^"]*">(.*?)</a>', body), body


def test_studies_are_chosen_by_owner_and_label(sqlite_url: str) -> None:
    with opened(sqlite_url) as storage:
        for name, owner, labels in (("a", "ann", ["x"]), ("b", "ann", ["x", "y z"]), ("c", "<b>ob", [])):
            optuna.create_study(study_name=name, storage=storage)
            relabel(parse_url(sqlite_url), name, owner=owner, labels=labels)
        app = routes(storage)

        names, page = listed(app)
        assert names == ["c", "b", "a"]
        assert 'href="/studies?label=y+z">y z</a>' in page
        assert "&lt;b&gt;ob" in page
        assert "<b>ob" not in page
        names, page = listed(app, "owner=ann&label=x")
        assert names == ["b", "a"]
        assert "Only studies of ann with the label x." in page
        assert listed(app, "label=y+z")[0] == ["b"]
        names, page = listed(app, "owner=nobody")
        assert names == []
        assert "There is no such study in this storage." in page
