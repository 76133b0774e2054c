"""A web server that receives notifications, and refuses or hangs as told."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterable
from typing import Any, ClassVar

HANG = 0


class NoticeServer:
    """Answers each request with the next status, and 200 after the last; `HANG` answers nothing until `close`.

    Attributes:
        got: The bodies of the requests, in order.
        headers: Their headers.
        paths: Their paths.
    """

    def __init__(self, statuses: Iterable[int] = (), *, port: int = 0) -> None:
        self.got: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.statuses = list(statuses)
        self.is_closed = threading.Event()
        mine = self

        class Handler(http.server.BaseHTTPRequestHandler):
            owner: ClassVar[NoticeServer] = mine

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                mine.got.append(body)
                mine.headers.append(dict(self.headers))
                mine.paths.append(self.path)
                status = mine.statuses.pop(0) if mine.statuses else 200
                if status == HANG:
                    mine.is_closed.wait()
                    return
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", f"http://127.0.0.1:{mine.port}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hooks/very-secret-path"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def ids(self) -> list[str]:
        """Return the ids of the events that were received."""
        return [body["id"] for body in self.got]

    def __enter__(self) -> NoticeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
