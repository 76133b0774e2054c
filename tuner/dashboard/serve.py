"""Serves the dashboard: checks the options, then runs a threaded WSGI server, with or without TLS."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import re
import signal
import ssl
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tuner.dashboard.users import Users
from tuner.errors import UsageError
from tuner.output.log import say, tell
from tuner.storage import StorageURL
from tuner.web.address import is_loopback

if TYPE_CHECKING:
    from tuner.notify.notifier import Note
    from tuner.notify.receivers import Receiver

_MOST_BODY_BYTES = 8 * 1024 * 1024  # notes are the longest; bodies of unknown senders are read and discarded
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*")


@dataclass(frozen=True)
class Serving:
    """Options for serving the dashboard.

    Args:
        host: The address to listen on.
        port: The port; 0 takes a free one.
        users: The users file; None allows everyone on this machine, which is possible only on loopback.
        tls_cert: The certificate, its chain after it, in PEM.
        tls_key: Its key, in PEM.
        is_behind_proxy: Whether every request comes through a proxy, whose `X-Forwarded-...` headers are trusted.
        prefix: The path that the dashboard is under, as `/tuner`, or nothing.
        audit_log: The file for the audit lines; stderr if None.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    users: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    behind_proxy: bool = False
    prefix: str = ""
    audit_log: Path | None = None


@dataclass(frozen=True)
class Notifying:
    """Whom to notify of which studies; of all studies if none is named."""

    receivers: Sequence[Receiver] = ()
    studies: Sequence[str] = ()


def check_serving(serving: Serving) -> Serving:
    """Check the options, and return them with the prefix without a trailing slash.

    Raises:
        UsageError: The address needs users, or TLS or a proxy.
    """
    if not 0 <= serving.port < 65536:
        raise UsageError(f"`port` must be 1 to 65535, or 0 for a free one: got {serving.port}")
    prefix = serving.prefix.rstrip("/")
    if not _PREFIX.fullmatch(prefix):
        raise UsageError(f"`prefix` must be a path such as /tuner: got {serving.prefix!r}")
    if (serving.tls_cert is None) != (serving.tls_key is None):
        raise UsageError("`tls_cert` and `tls_key` must be passed together: got only one of them")
    make_one = "create users with `tuner user add NAME --role editor --users FILE`, then pass `users`"
    if serving.users is None and not is_loopback(serving.host):
        raise UsageError(
            f"any address but loopback needs a login: got `host` {serving.host} without `users`; {make_one}"
        )
    if serving.users is None and serving.behind_proxy:
        raise UsageError(f"a proxy lets others in, so it needs a login: got `behind_proxy` without `users`; {make_one}")
    if serving.tls_cert is None and not serving.behind_proxy and not is_loopback(serving.host):
        raise UsageError(
            f"passwords would be sent unencrypted: got `host` {serving.host} without TLS; "
            "pass `tls_cert` and `tls_key`, or `behind_proxy` if a proxy in front handles TLS"
        )
    return replace(serving, prefix=prefix)


def serve(url: StorageURL, serving: Serving, notifying: Notifying | None = None) -> None:
    """Serve the dashboard until interrupted or terminated.

    Args:
        url: The storage's URL.
        serving: The options.
        notifying: Whom to notify of which studies.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        StorageLost: the database cannot be reached.
        UsageError: as for `check_serving`; the users, certificate or log file cannot be used; or the address cannot be
            listened on.
    """
    serving = check_serving(serving)
    users = None if serving.users is None else Users(serving.users)
    tls = None if serving.tls_cert is None else _tls(serving)
    audit = _audit(serving.audit_log)
    # Imported late: Optuna takes a second to import, and errors in the files are reported first.
    from tuner.dashboard.app import make_app
    from tuner.storage.optuna.storage import Storage
    from tuner.storage.sql.zones import UTC
    from tuner.web.server import Limits, Server

    # Times with a zone, because a browser treats times without one as local.
    storage = Storage(url, zone=UTC, creates_tables=False)
    app = make_app(storage, users, prefix=serving.prefix, is_behind_proxy=serving.behind_proxy, audit=audit)
    limits = Limits(body_bytes=_MOST_BODY_BYTES)
    if serving.behind_proxy:  # all clients have the proxy's address
        limits = replace(limits, per_address=None)
    server = Server(serving.host, serving.port, app, limits, tls=tls)
    try:
        server.prepare()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot serve the dashboard on {serving.host}:{serving.port}: {reason}") from None
    signal.signal(signal.SIGTERM, _end)
    with _notified(url, notifying or Notifying()):
        say(f"dashboard of {url} on {_address(serving, server)}, press Ctrl-C to stop")
        try:
            server.serve()
        finally:
            server.stop()


@contextlib.contextmanager
def _notified(url: StorageURL, notifying: Notifying) -> Generator[None]:
    """Notify of what happens to studies while the body runs."""
    if not notifying.receivers:
        yield
        return
    from tuner.notify.all_studies import StudiesNotifier

    to = ", ".join(map(str, notifying.receivers))
    say(f"notifications of {', '.join(notifying.studies) or 'all studies'} go to {to}")

    def told(note: Note) -> None:
        tell(note.text, "notify", note.level, **({} if note.event_id is None else {"id": note.event_id}))

    notifier = StudiesNotifier(notifying.receivers, url, told, only=notifying.studies)
    notifier.start()
    try:
        yield
    finally:
        notifier.close()


def _end(*_: object) -> NoReturn:
    raise SystemExit(0)


def _address(serving: Serving, server: Any) -> str:
    host = f"[{serving.host}]" if ":" in serving.host else serving.host
    scheme = "http" if serving.tls_cert is None else "https"
    return f"{scheme}://{host}:{server.bound_port}{serving.prefix}/"


def _tls(serving: Serving) -> Any:
    from tuner.web.server import TLS

    try:
        return TLS(str(serving.tls_cert), str(serving.tls_key))
    except (OSError, ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise UsageError(
            f"`tls_cert` and `tls_key` must be a certificate and its key in PEM: "
            f"got {serving.tls_cert} and {serving.tls_key} ({reason})"
        ) from None


def _audit(path: Path | None) -> logging.Logger:
    """Return a function that writes audit lines, to stderr or to a file with mode 0600 that may be rotated."""
    handler: logging.Handler = logging.StreamHandler()
    if path is not None:
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            handler = logging.handlers.WatchedFileHandler(path, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write to the file of `audit_log`: {path}: {error.strerror}") from None
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.Logger("tuner.audit", logging.INFO)  # a separate logger, so that settings cannot silence it
    logger.addHandler(handler)
    return logger
