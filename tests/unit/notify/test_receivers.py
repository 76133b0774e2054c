"""Receivers of notifications: how addresses are read, what is sent, and that secrets are never shown."""

from __future__ import annotations

import json
import socket
import ssl
import sys
from collections.abc import Generator, Iterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest
import trustme
from notice_server import HANG, NoticeServer

from tuner.errors import UsageError
from tuner.notify import receivers
from tuner.notify.receivers import NotDelivered, parse_receiver, read_receivers

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # apprise imports it

BODY = {"id": "1234", "event": "new_best", "study": "digits", "text": "0.9 & <!channel>", "value": 0.9}
SLACK, DISCORD = "https://hooks.slack.com/services/T0/B0/secret", "https://discord.com/api/webhooks/1/secret"


@pytest.mark.parametrize(
    ("address", "form"),
    [
        (SLACK, "slack"),
        (DISCORD, "discord"),
        ("https://ptb.discord.com/api/webhooks/1/secret", "discord"),
        ("https://discord.com.evil.example/api/webhooks/1", "json"),
        ("https://example.org/hook", "json"),
        ("json+https://hooks.slack.com/services/x", "json"),
        ("slack+http://127.0.0.1:80/hook", "slack"),
        ("discord+https://proxy.example/hook", "discord"),
    ],
)
def test_the_format_comes_from_the_scheme_else_from_the_host(address: str, form: str) -> None:
    receiver: Any = parse_receiver(address)
    assert receiver.form == form


def test_a_web_hook_gets_json_with_the_id_in_body_and_header() -> None:
    with NoticeServer() as server:
        parse_receiver(server.url).send(BODY, 10.0)
    assert server.got == [BODY]
    assert server.headers[0]["Idempotency-Key"] == "1234"
    assert server.headers[0]["Content-Type"] == "application/json"
    assert server.paths == ["/hooks/very-secret-path"]


def test_slack_and_discord_get_their_formats_without_mentions() -> None:
    with NoticeServer() as server:
        plain = server.url
        parse_receiver(f"slack+{plain}").send(BODY, 10.0)
        parse_receiver(f"discord+{plain}").send({**BODY, "text": "x" * 3000}, 10.0)
    slack, discord = server.got
    assert slack == {"text": "0.9 &amp; &lt;!channel&gt; (1234)"}
    assert len(discord["content"]) == 2000
    assert discord["content"].endswith("x (1234)")
    assert discord["allowed_mentions"] == {"parse": []}


def test_a_login_in_the_url_becomes_a_header() -> None:
    with NoticeServer() as server:
        parse_receiver(server.url.replace("://", "://me:p%40ss@")).send(BODY, 10.0)
    assert server.headers[0]["Authorization"] == "Basic bWU6cEBzcw=="  # of `me:p@ss`
    assert server.headers[0]["Host"] == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize("status", [302, 404, 500])
def test_other_answers_are_not_deliveries_and_redirects_are_not_followed(status: int) -> None:
    with NoticeServer([status]) as server, pytest.raises(NotDelivered, match=f"^status {status}$"):
        parse_receiver(server.url).send(BODY, 10.0)
    assert server.paths == ["/hooks/very-secret-path"]


def test_a_server_that_hangs_is_left_after_the_time_limit() -> None:
    with NoticeServer([HANG]) as server, pytest.raises(NotDelivered, match="timed out"):
        parse_receiver(server.url).send(BODY, 0.1)


def test_a_closed_port_is_named_without_the_secret() -> None:
    with pytest.raises(NotDelivered, match="refused") as caught:
        parse_receiver(f"http://me:hidden@127.0.0.1:{_free_port()}/very-secret?token=hidden").send(BODY, 10.0)
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "secret",
        "ftp://host/secret",
        "https:///secret",
        "https://host:port/secret",
        "https://host/a secret",
        "http://me:se/cret@host/secret",
        "smtp://me:secret@host",
        "smtp://me:secret@host?to=a@b.c&secret=1",
        "apprise+nothing://secret",
        "apprise+tgram://secret",
        "exec:",
        "exec:'secret",
    ],
)
def test_a_wrong_address_is_refused_and_not_shown(address: str) -> None:
    with pytest.raises(UsageError, match="notify") as caught:
        parse_receiver(address)
    assert "secret" not in str(caught.value).replace("unknown option 'secret'", "")


@pytest.mark.parametrize(
    "address",
    [SLACK, "https://me:secret@host/secret", "smtp://me:secret@host?to=a@b.c", "apprise+json://me:secret@host"],
)
def test_a_receiver_shows_no_secret(address: str) -> None:
    receiver: Any = parse_receiver(address)
    assert "secret" not in f"{receiver} {receiver!r} {receiver.key}"
    assert receiver.secret in address


def test_the_key_does_not_depend_on_the_password() -> None:
    keys = {parse_receiver(f"smtp://me:{word}@host?to=a@b.c").key for word in ("one", "two")}
    assert len(keys) == 1
    assert parse_receiver("smtp://me:one@host?to=d@b.c").key not in keys


def test_addresses_come_from_options_files_and_else_the_variable(tmp_path: Path) -> None:
    path = tmp_path / "receivers"
    path.write_text(f"# ours\n{SLACK}\n\n{DISCORD}\n")
    given = read_receivers([f"@{path}", SLACK], {"TUNER_NOTIFY": "https://not.used/"})
    assert [str(one) for one in given] == ["https://hooks.slack.com/***", "https://discord.com/***"]
    of_variable = read_receivers([], {"TUNER_NOTIFY": f"{SLACK}\n@{path}"})
    assert [one.key for one in of_variable] == [one.key for one in given]
    assert read_receivers([], {}) == []
    with pytest.raises(UsageError, match=r"^in \$TUNER_NOTIFY, which is split at blanks: .* needs a file, "):
        read_receivers([], {"TUNER_NOTIFY": "exec:python hook.py"})
    with pytest.raises(UsageError, match=r"cannot read the file of `notify`: '.*nothing'"):
        read_receivers([f"@{tmp_path}/nothing"], {})


def test_an_address_on_the_command_line_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [parse_receiver(SLACK)]
    monkeypatch.setattr(sys, "argv", ["tuner", "launch", "--notify", "@file"])
    receivers.warn_of_secrets(found)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "argv", ["tuner", "launch", "--notify", SLACK])
    receivers.warn_of_secrets(found)
    told = capsys.readouterr().err
    assert "visible in the process list" in told
    assert "secret" not in told


# --- A command


def test_a_command_gets_the_event_on_standard_input(tmp_path: Path) -> None:
    parse_receiver(f"exec:sh -c 'cat > {tmp_path}/got'").send(BODY, 10.0)
    assert json.loads((tmp_path / "got").read_text()) == BODY


def test_a_command_that_fails_is_quoted_without_passwords() -> None:
    receiver = parse_receiver("exec:sh -c 'echo first >&2; echo password=hidden >&2; exit 3'")
    with pytest.raises(NotDelivered, match=r"^exit status 3: password=\*\*\*$"):
        receiver.send(BODY, 10.0)
    with pytest.raises(NotDelivered, match="cannot run it: No such file"):
        parse_receiver("exec:/nothing/here").send(BODY, 10.0)


def test_a_command_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receivers, "_COMMAND_S", 0.1)
    with pytest.raises(NotDelivered, match="did not end in 0 s, and was killed"):
        parse_receiver("exec:sh -c 'sleep 1000'").send(BODY, 0.1)


# --- Mail


class Mails:
    """What a mail server got, and who logged in."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.logins: list[tuple[bytes, bytes]] = []
        self.is_down = False

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:
        if self.is_down:
            return "451 try again"
        self.got.append((envelope.rcpt_tos, message_from_bytes(envelope.content, policy=policy.default)))
        return "250 OK"

    def log_in(self, server: object, session: object, envelope: object, mechanism: object, data: Any) -> Any:
        from aiosmtpd.smtp import AuthResult

        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"p@ss", handled=False)


def serve_mails(host: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> Generator[tuple[Mails, int]]:
    from aiosmtpd.controller import Controller

    mails = Mails()
    controller = Controller(
        mails,
        hostname=host,
        port=_free_port(),
        authenticator=mails.log_in,
        auth_require_tls=context is not None,
        tls_context=context,
    )
    controller.start()
    try:
        yield mails, controller.port
    finally:
        controller.stop()


@pytest.fixture
def mail_server() -> Iterator[tuple[Mails, int]]:
    """A mail server without TLS."""
    yield from serve_mails()


def test_a_mail_has_the_id_in_its_message_id(mail_server: tuple[Mails, int]) -> None:
    mails, port = mail_server
    receiver = parse_receiver(f"smtp://127.0.0.1:{port}?to=a@b.org,c@d.org&from=tuner@b.org")
    mails.is_down = True
    with pytest.raises(NotDelivered, match="try again"):
        receiver.send(BODY, 10.0)
    mails.is_down = False
    receiver.send({**BODY, "study": "digits\nBcc: x@y.z"}, 10.0)
    [(to, mail)] = mails.got
    assert to == ["a@b.org", "c@d.org"]
    assert mail["Message-ID"] == "<1234@tuner>"
    assert mail["Subject"] == "digits\\nBcc: x@y.z: new best"
    assert mail["From"] == "tuner@b.org"
    assert "0.9 & <!channel>" in mail.get_content()


def test_a_login_by_mail_hides_a_wrong_password(mail_server: tuple[Mails, int]) -> None:
    mails, port = mail_server
    parse_receiver(f"smtp://me:p%40ss@127.0.0.1:{port}?to=a@b.org").send(BODY, 10.0)
    assert mails.logins[-1] == (b"me", b"p@ss")
    with pytest.raises(NotDelivered, match="535") as caught:
        parse_receiver(f"smtp://me:wr0ng@127.0.0.1:{port}?to=a@b.org").send(BODY, 10.0)
    assert "wr0ng" not in str(caught.value)


def test_no_password_is_sent_to_another_host_without_tls() -> None:
    server = serve_mails("127.0.0.2")
    mails, port = next(server)
    with pytest.raises(NotDelivered, match="offers no TLS"):
        parse_receiver(f"smtp://me:p%40ss@127.0.0.2:{port}?to=a@b.org").send(BODY, 10.0)
    assert mails.logins == []
    server.close()


def test_tls_is_used_where_it_is_offered_and_its_certificate_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = serve_mails(context=context)
    mails, port = next(server)
    receiver = parse_receiver(f"smtp://me:p%40ss@127.0.0.1:{port}?to=a@b.org")
    with pytest.raises(NotDelivered, match="CERTIFICATE_VERIFY_FAILED"):
        receiver.send(BODY, 10.0)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    receiver.send(BODY, 10.0)
    assert len(mails.got) == 1
    server.close()


def test_apprise_sends_to_what_it_knows() -> None:
    with NoticeServer() as server:
        parse_receiver(f"apprise+json://127.0.0.1:{server.port}/hook").send(BODY, 10.0)
    assert server.got[0]["title"] == "digits: new best"
    assert server.got[0]["message"] == "0.9 & <!channel> (1234)"
    with NoticeServer([500]) as server, pytest.raises(NotDelivered, match="could not send it"):
        parse_receiver(f"apprise+json://127.0.0.1:{server.port}/hook").send(BODY, 10.0)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
