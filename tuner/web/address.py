"""Addresses: groups of clients for limits, and which ones other machines reach."""

from __future__ import annotations

import ipaddress
import socket

from tuner.errors import UsageError


def network_of(address: str) -> str:
    """Return the group of addresses that share limits: an IPv4 address, or the /64 network of an IPv6 address.

    An IPv4 address that a dual-stack socket shows as IPv6 (`::ffff:192.0.2.1`) is that IPv4 address. Some proxies add
    the client's port, which is removed. Text that is not an address is returned unchanged.
    """
    plain = address.strip().partition("%")[0]
    if plain.startswith("["):
        plain = plain[1:].partition("]")[0]
    elif plain.count(":") == 1:
        plain = plain.partition(":")[0]
    try:
        found = ipaddress.ip_address(plain)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            return str(ipaddress.ip_network((found, 64), strict=False))
        found = found.ipv4_mapped
    return str(found)


def is_address(host: str) -> bool:
    """Return whether a host is given as an IP address, not as a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_wildcard(host: str) -> bool:
    """Return whether a host is an address that means all addresses of a machine: `0.0.0.0` or `::`."""
    return is_address(host) and ipaddress.ip_address(host).is_unspecified


def is_loopback(host: str) -> bool:
    """Return whether an address, or every address of a name, is a loopback address.

    Raises:
        UsageError: The name cannot be resolved.
    """
    if is_address(host):
        return ipaddress.ip_address(host).is_loopback
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        raise UsageError(f"`host` must be an address of this machine: got {host!r}") from None
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)
