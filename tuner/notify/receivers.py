"""Who is notified: web hooks, Slack, Discord, mail, a command, and what Apprise knows. Addresses are secrets."""

from __future__ import annotations

import base64
import contextlib
import email.message
import email.utils
import hashlib
import html
import importlib.util
import json
import logging
import os
import shlex
import signal
import smtplib
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from tuner.errors import UsageError, how_to_install
from tuner.output.log import tell
from tuner.output.sanitize import hide_password, one_line

VARIABLE = "TUNER_NOTIFY"
"""Has addresses of receivers, separated by blanks or line breaks; used without `notify`."""
_FORMS = (
    "https://..., slack+https://..., discord+https://..., smtp://..., exec:COMMAND, apprise+URL, or @FILE with one of "
    "them on each line"
)
_HIDDEN = "it is not shown, because it may contain a password"
_LONGEST_DISCORD = 2000
_COMMAND_S = 30.0
"""Seconds that a command may take."""
Body = Mapping[str, Any]


class NotDelivered(Exception):
    """A receiver has not taken a notice; the message has no secrets."""


class Receiver(Protocol):
    """Someone who gets notices."""

    @property
    def key(self) -> str:
        """A digest of the address, without passwords: the same in every launch."""
        ...

    @property
    def secret(self) -> str:
        """The part of the address that others must not see; empty if there is none."""
        ...

    def send(self, body: Body, timeout_s: float) -> None:
        """Send a notice.

        Raises:
            NotDelivered: the receiver did not take it.
        """
        ...


def read_receivers(given: Sequence[str], environment: Mapping[str, str]) -> list[Receiver]:
    """Return the receivers of a launch, each once.

    Args:
        given: Addresses, or `@FILE` with one on each line; without any, `$TUNER_NOTIFY` has them.
        environment: The environment variables.

    Raises:
        UsageError: an address is wrong, a file cannot be read, or a package is not installed. The message does not
            have the address.
    """
    words = [*given] or environment.get(VARIABLE, "").split()
    texts = [text for word in words for text in (_lines(word[1:]) if word.startswith("@") else [word])]
    try:
        found = {receiver.key: receiver for receiver in map(parse_receiver, texts)}
    except UsageError as error:
        if given:
            raise
        hint = f"a command with arguments needs a file, ${VARIABLE}=@FILE"
        raise UsageError(f"in ${VARIABLE}, which is split at blanks: {error}; {hint}") from None
    return list(found.values())


def warn_of_secrets(receivers: Sequence[Receiver]) -> None:
    """Warn on stderr if the address of a receiver is on this process's command line."""
    words = " ".join(sys.argv)
    if any(secret in words for receiver in receivers for secret in [receiver.secret] if secret):
        tell(
            "an address of `notify` on the command line is visible in the process list; "
            f"use ${VARIABLE} or @FILE instead",
            "password_shown",
            "warning",
        )


def _lines(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"cannot read the file of `notify`: {path!r}: {why}") from None
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def parse_receiver(text: str) -> Receiver:
    """Return the receiver of an address.

    Raises:
        UsageError: it is not a valid address; the message does not have it.
    """
    if text.startswith("exec:"):
        return _command(text.removeprefix("exec:"))
    scheme, separator, rest = text.partition("://")
    kind, _, inner = scheme.rpartition("+")
    if not separator or not scheme.isprintable() or len(scheme) > 30:
        raise UsageError(f"`notify` must be {_FORMS}: got a text without one of these schemes; {_HIDDEN}")
    if scheme.startswith("apprise+"):
        return _apprise(text.removeprefix("apprise+"))
    if inner in ("http", "https") and kind in ("", *_FORMATS):
        parts = _split(f"{inner}://{rest}")
        return Webhook(parts.geturl(), kind or _format_of(parts))
    if scheme in ("smtp", "smtps"):
        return _mail(_split(text))
    raise UsageError(f"`notify` must be {_FORMS}: got the scheme {scheme!r}")


def _split(url: str) -> SplitResult:
    parts = urlsplit(url)
    must = "the URL of `notify` must have a host, at most a port that is a number, and no blanks"
    try:
        is_right = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_right = False
    if not is_right or any(one.isspace() or not one.isprintable() for one in url):
        raise UsageError(f"{must}: got one of scheme {parts.scheme!r}; {_HIDDEN}; escape / ? # @ in passwords")
    return parts


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:32]


def _why(error: BaseException, *secrets: str | None) -> str:
    """Return an error in one line without these secrets."""
    text = " ".join(str(error).split()) or type(error).__name__
    for secret in sorted({one for one in secrets if one}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return one_line(hide_password(text))[:300]


# --- Web hooks


def _as_json(body: Body) -> Body:
    return body


def _as_slack(body: Body) -> Body:
    return {"text": f"{html.escape(str(body['text']), quote=False)} ({body['id']})"}


def _as_discord(body: Body) -> Body:
    ending = f" ({body['id']})"
    text = str(body["text"])[: _LONGEST_DISCORD - len(ending)]
    return {"content": text + ending, "allowed_mentions": {"parse": []}}


_FORMATS: Mapping[str, Callable[[Body], Body]] = {"json": _as_json, "slack": _as_slack, "discord": _as_discord}


def _format_of(parts: SplitResult) -> str:
    host = (parts.hostname or "").lower()
    if host in ("hooks.slack.com", "hooks.slack-gov.com"):
        return "slack"
    is_discord = host in ("discord.com", "discordapp.com") or host.endswith((".discord.com", ".discordapp.com"))
    return "discord" if is_discord and parts.path.startswith("/api/") else "json"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Fails instead: the secret in the URL is not for another server."""

    def redirect_request(self, req: object, fp: object, code: int, msg: str, headers: object, newurl: str) -> None:
        return None


@dataclass(frozen=True)
class Webhook:
    """Gets a POST request for each notice; `str()` shows only its host."""

    url: str = field(repr=False)
    form: str

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}/***"

    @property
    def key(self) -> str:
        parts = urlsplit(self.url)
        netloc = f"{parts.username or ''}@{parts.hostname}:{parts.port}"
        return _key(self.form, parts.scheme, netloc, parts.path, parts.query)

    @property
    def secret(self) -> str:
        parts = urlsplit(self.url)
        return parts.password or parts.query or parts.path.strip("/")

    def send(self, body: Body, timeout_s: float) -> None:
        parts = urlsplit(self.url)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "tuner",
            "Idempotency-Key": str(body["id"]),
        }
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
        data = json.dumps(_FORMATS[self.form](body)).encode()
        try:
            request = urllib.request.Request(url, data, headers, method="POST")
            with urllib.request.build_opener(_NoRedirects).open(request, timeout=timeout_s):
                return
        except urllib.error.HTTPError as error:
            error.close()
            raise NotDelivered(f"status {error.code}") from None
        except Exception as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            cause = reason if isinstance(reason, BaseException) else Exception(reason)
            secrets = (url, parts.path, parts.query, parts.password, unquote(parts.password or ""))
            raise NotDelivered(_why(cause, *(one for one in secrets if one != "/"))) from None


# --- Mail


def _mail(parts: SplitResult) -> Mail:
    query = parse_qs(parts.query, keep_blank_values=True)
    to = [one for text in query.get("to", []) for one in text.split(",") if one]
    sender = query.get("from", [""])[0] or unquote(parts.username or "")
    sender = sender if "@" in sender else (to[0] if to else "")
    unknown = sorted(query.keys() - {"to", "from"})
    if not to or unknown or not all("@" in one for one in (*to, sender)):
        found = f"the unknown option {unknown[0]!r}" if unknown else "no such address"
        raise UsageError(
            "mail for `notify` must be smtp://USER:PASSWORD@HOST:PORT?to=ADDRESS, with several `to`, `from`, or smtps: "
            f"got {found} for host {parts.hostname!r}"
        )
    return Mail(
        is_tls=parts.scheme == "smtps",
        host=parts.hostname or "",
        port=parts.port or (465 if parts.scheme == "smtps" else 587 if parts.username else 25),
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        given_password=parts.password or "",
        sender=sender,
        to=tuple(to),
    )


@dataclass(frozen=True)
class Mail:
    """Gets a mail for each notice; with TLS if the server offers it, and always with TLS if it wants a password."""

    is_tls: bool
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    given_password: str = field(repr=False)  # as in the URL
    sender: str
    to: tuple[str, ...]

    def __str__(self) -> str:
        return f"{', '.join(self.to)} through {self.host}:{self.port}"

    @property
    def key(self) -> str:
        return _key("smtp", self.is_tls, self.host, self.port, self.user, self.sender, *self.to)

    @property
    def secret(self) -> str:
        return self.given_password

    def send(self, body: Body, timeout_s: float) -> None:
        mail = email.message.EmailMessage()
        mail["Subject"] = one_line(f"{body['study']}: {body['event'].replace('_', ' ')}")[:150]
        mail["From"], mail["To"] = self.sender, ", ".join(self.to)
        mail["Date"] = email.utils.formatdate()
        mail["Message-ID"] = f"<{body['id']}@tuner>"
        rest = "\n".join(f"{name}: {value}" for name, value in body.items() if name != "text")
        mail.set_content(f"{body['text']}\n\n{rest}\n")
        try:
            with self._connect(timeout_s) as server:
                server.send_message(mail)
        except NotDelivered:
            raise
        except Exception as error:
            raise NotDelivered(_why(error, self.password)) from None

    def _connect(self, timeout_s: float) -> smtplib.SMTP:
        context = ssl.create_default_context()
        if self.is_tls:
            server: smtplib.SMTP = smtplib.SMTP_SSL(self.host, self.port, timeout=timeout_s, context=context)
        else:
            server = smtplib.SMTP(self.host, self.port, timeout=timeout_s)
        try:
            server.ehlo()
            is_secret = self.is_tls
            if not is_secret and server.has_extn("starttls"):
                server.starttls(context=context)
                is_secret = True
            if self.user:
                if not is_secret and self.host not in ("localhost", "127.0.0.1", "::1"):
                    raise NotDelivered("the server offers no TLS, so the password is not sent")
                server.login(self.user, self.password)
        except BaseException:
            server.close()
            raise
        return server


# --- A command


def _command(text: str) -> Command:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"the command of `notify` cannot be split into words: {error}") from None
    if not words:
        raise UsageError("the command of `notify` must be exec:PROGRAM with its arguments: got no program")
    return Command(tuple(words))


@dataclass(frozen=True)
class Command:
    """Runs once for each notice, which it gets as JSON on standard input; status 0 means that it was delivered."""

    words: tuple[str, ...] = field(repr=False)

    def __str__(self) -> str:
        return f"exec:{one_line(self.words[0])}"

    @property
    def key(self) -> str:
        return _key("exec", *self.words)

    @property
    def secret(self) -> str:
        return ""

    def send(self, body: Body, timeout_s: float) -> None:
        with tempfile.TemporaryFile() as said:
            try:
                process = subprocess.Popen(
                    self.words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
                )
            except OSError as error:
                raise NotDelivered(f"cannot run it: {error.strerror}") from None
            try:
                process.communicate(json.dumps(body).encode(), timeout=max(timeout_s, _COMMAND_S))
            except subprocess.TimeoutExpired:
                raise NotDelivered(f"it did not end in {max(timeout_s, _COMMAND_S):.0f} s, and was killed") from None
            finally:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if process.returncode != 0:
                said.seek(0)
                last = said.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
                why = f": {_why(Exception(last))}" if last else ""
                raise NotDelivered(f"exit status {process.returncode}{why}")


# --- Apprise


def _apprise(url: str) -> Apprise:
    if importlib.util.find_spec("apprise") is None:
        raise UsageError(f"apprise+... of `notify` needs the package apprise: {how_to_install('apprise')}")
    from apprise import Apprise as Client

    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # its lines may have parts of the URL
    scheme = url.partition("://")[0]
    if not Client().add(url):
        raise UsageError(f"apprise does not know the address of `notify` with scheme {scheme[:30]!r}; {_HIDDEN}")
    return Apprise(url, scheme)


@dataclass(frozen=True)
class Apprise:
    """Another service that the library Apprise knows, which has its own time limits."""

    url: str = field(repr=False)
    scheme: str

    def __str__(self) -> str:
        return f"{self.scheme}://*** (apprise)"

    @property
    def secret(self) -> str:
        return self.url.partition("://")[2]

    @property
    def key(self) -> str:
        parts = urlsplit(self.url)
        return _key("apprise", parts.scheme, parts.netloc.replace(f":{parts.password}@", "@"), parts.path, parts.query)

    def send(self, body: Body, timeout_s: float) -> None:
        from apprise import Apprise as Client

        client = Client()
        try:
            is_sent = client.add(self.url) and client.notify(
                title=f"{body['study']}: {body['event'].replace('_', ' ')}", body=f"{body['text']} ({body['id']})"
            )
        except Exception as error:
            raise NotDelivered(f"apprise failed: {type(error).__name__}") from None
        if not is_sent:
            raise NotDelivered("apprise could not send it")
