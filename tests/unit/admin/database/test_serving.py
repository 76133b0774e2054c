"""What is said before a server starts, and what its settings are."""

import builtins
import ipaddress
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tuner.admin.database import mounts, serving
from tuner.admin.database.certificate import check_library, ensure_certificate
from tuner.admin.database.folder import DatabaseFolder, Lock
from tuner.admin.database.server import access_rules
from tuner.errors import UsageError


@pytest.mark.parametrize(("kind", "is_warned"), [("nfs4", True), ("ext4", False)])
def test_a_network_file_system_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, is_warned: bool
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(f"1 1 0:1 / / rw - {kind} files:/ rw\n")
    monkeypatch.setattr(mounts, "_TABLE", table)
    serving._warn_of_network(DatabaseFolder(tmp_path / "db"), Lock(0, True))
    line = (
        f"tuner: {tmp_path}/db is on a network file system (nfs4 at /), where Postgres is slow and can lose data if "
        "the network fails: use a folder on a local disk, and back it up with pg_dump\n"
    )
    assert capsys.readouterr().err == (line if is_warned else "")


def test_every_rule_asks_for_a_password() -> None:
    """The columns are type, database, user, address and method; the first rule that fits decides."""
    here, everywhere = ([line.split() for line in access_rules(tls).splitlines()[1:]] for tls in (False, True))
    assert here == [
        ["local", "all", "all", "scram-sha-256"],
        ["host", "all", "all", "127.0.0.0/8", "scram-sha-256"],
        ["host", "all", "all", "::1/128", "scram-sha-256"],
    ]
    assert everywhere == [
        ["local", "all", "all", "scram-sha-256"],
        ["host", "all", "postgres", "127.0.0.0/8", "scram-sha-256"],
        ["host", "all", "postgres", "::1/128", "scram-sha-256"],
        ["host", "all", "postgres", "all", "reject"],
        ["hostssl", "all", "all", "all", "scram-sha-256"],
    ]


def test_a_certificate_is_made_once_and_its_key_is_private(tmp_path: Path) -> None:
    certificate, key = tmp_path / "server.crt", tmp_path / "server.key"
    ensure_certificate(certificate, key, ("192.0.2.1", "login1"))
    made = x509.load_pem_x509_certificate(certificate.read_bytes())
    private: Any = serialization.load_pem_private_key(key.read_bytes(), None)
    assert made.public_key() == private.public_key()
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["login1"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("192.0.2.1")]
    assert made.signature_hash_algorithm is not None  # channel binding needs it
    assert stat.S_IMODE(key.stat().st_mode) == 0o600

    before = certificate.read_bytes()
    ensure_certificate(certificate, key, (socket.gethostname(),))
    assert certificate.read_bytes() == before


def test_without_the_library_the_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def fail(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("cryptography"):
            raise ModuleNotFoundError(name)
        return found(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(UsageError, match=r"`pip install -e '.\[database\]'`"):
        check_library()
