"""Groups addresses of clients for limits."""

from __future__ import annotations

import ipaddress


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
