"""A self-signed certificate for a server that other machines reach."""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path

from tuner.admin.database.folder import write_private
from tuner.errors import UsageError, how_to_install
from tuner.web.address import is_address

_DAYS = 3650


def check_library() -> None:
    """Check that the library that makes certificates is installed.

    Raises:
        UsageError: It is not.
    """
    try:
        import cryptography.hazmat.primitives.asymmetric.ec
        import cryptography.x509  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError(
            "the package cryptography, which makes the server's certificate, is not installed: "
            f"{how_to_install('database')}"
        ) from None


def ensure_certificate(certificate: Path, key: Path, hosts: tuple[str, ...]) -> None:
    """Write a key and a certificate for it, unless both exist.

    Clients need no copy of the certificate: see `storage_url_of`.

    Args:
        certificate: The file of the certificate, in PEM.
        key: The file of its private key, which gets the mode 0600.
        hosts: The names and addresses that the certificate is for.
    """
    if certificate.exists() and key.exists():
        return
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    made = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    now = dt.datetime.now(dt.UTC)
    names: list[x509.GeneralName] = [
        x509.IPAddress(ipaddress.ip_address(one)) if is_address(one) else x509.DNSName(one)
        for one in hosts
        if one.isascii()
    ]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(made.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(made, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    write_private(key, made.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain).decode())
    write_private(certificate, signed.public_bytes(pem).decode())
