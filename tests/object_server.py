"""An S3 server on loopback (moto), behind a gate that can refuse connections for a while."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

_DEADLINE_S = 120.0


class Gate:
    """Forwards connections on its port to another port, or refuses them while it is shut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._sockets: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()  # a connection accepted while the gate shuts must be closed too
        self.port = 0
        self.open()

    def open(self) -> None:
        listener = self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def shut(self) -> None:
        """Refuse new connections, and end those that exist."""
        with self._lock:
            listener, self._listener = self._listener, None
            closing = [*self._sockets, *([listener] if listener else [])]
            self._sockets.clear()
        for one in closing:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                with self._lock:
                    is_open = self._listener is listener
                    if is_open:
                        self._sockets += [client, server]
                if not is_open:
                    client.close()
                    server.close()
                    return
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class ObjectServer:
    """An S3 server with a bucket `bucket`; `env` has what makes a process use it."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._log = (folder / "moto.log").open("w")
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        end_s = time.monotonic() + _DEADLINE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert self._process.poll() is None, (folder / "moto.log").read_text()
                assert time.monotonic() < end_s, "moto did not start"
                time.sleep(0.05)
        self.gate = Gate(port)
        self.env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.gate.port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        import botocore.session  # pyright: ignore[reportMissingTypeStubs]

        self._client: Any = botocore.session.Session().create_client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        self._client.create_bucket(Bucket="bucket")

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys in the bucket, as another client than tuner's lists them."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix)
        return [one["Key"] for page in pages for one in page.get("Contents", [])]

    def get(self, key: str) -> bytes:
        return self._client.get_object(Bucket="bucket", Key=key)["Body"].read()

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket="bucket", Key=key, Body=content)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket="bucket", Key=key)

    def close(self) -> None:
        self.gate.shut()
        self._client.close()
        self._process.kill()
        self._process.wait()
        self._log.close()
