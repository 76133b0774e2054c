"""A TCP proxy on loopback that falls silent: its peers acknowledge every packet and answer none."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field
from typing import Any

_POLL_S = 0.02


@dataclass(eq=False)
class _Pair:
    """A client's connection and ours to the server; `is_deaf` once what either sends is swallowed for ever."""

    client: socket.socket
    server: socket.socket | None = None
    is_deaf: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        for one in (self.client, self.server):
            if one is not None:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()


class Proxy:
    """Forwards connections on `port` to `target`, another port of this machine."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.accepted = 0
        self._is_held, self._is_over = threading.Event(), threading.Event()
        self._pairs: list[_Pair] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)

    def hold(self) -> None:
        """Forward nothing until `resume`, then all of it: as a network that loses packets, or a frozen server."""
        self._is_held.set()

    def resume(self) -> None:
        self._is_held.clear()

    def silence(self) -> int:
        """Swallow for ever what connections that exist send, and serve new ones; return how many exist."""
        alive = [pair for pair in self._pairs if pair.client.fileno() >= 0]
        for pair in alive:
            pair.is_deaf.set()
        return len(alive)

    def close(self) -> None:
        self._is_over.set()
        self._listener.close()
        for pair in self._pairs:
            pair.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _start(self, call: Any, *arguments: Any) -> None:
        threading.Thread(target=call, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.accepted += 1
                pair = _Pair(client)
                self._pairs.append(pair)
                self._start(self._serve, pair)

    def _serve(self, pair: _Pair) -> None:
        self._wait()
        try:
            pair.server = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            pair.close()
            return
        self._start(self._pump, pair, pair.server, pair.client)
        self._pump(pair, pair.client, pair.server)

    def _pump(self, pair: _Pair, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._wait()
                if not pair.is_deaf.is_set():
                    sink.sendall(data)
        if not pair.is_deaf.is_set():
            self._wait()
        pair.close()

    def _wait(self) -> None:
        while self._is_held.is_set() and not self._is_over.is_set():
            self._is_over.wait(_POLL_S)
