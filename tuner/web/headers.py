"""Parses headers strictly, so that this server, WSGI and a proxy in front interpret them in the same way."""

from __future__ import annotations

import re
from typing import Any

from cheroot.server import HeaderReader

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_ONCE = frozenset(
    {b"Authorization", b"Content-Length", b"Content-Type", b"Host", b"Origin", b"Referer", b"Sec-Fetch-Site"}
)


class StrictHeaders(HeaderReader):
    """Reads headers as defined by RFC 9110 and RFC 9112, and refuses those that two programs might read differently.

    - A header with an underscore is dropped: WSGI cannot tell `X_Forwarded_For` from `X-Forwarded-For`.
    - Headers with a single value (Host, Authorization, Content-Length, ...) may occur once. Others that occur
      several times are joined by commas, cookies by semicolons.
    - Transfer-Encoding is refused: a request must have Content-Length.
    - Folded lines, spaces before the colon and control characters are refused.
    """

    def __call__(self, rfile: Any, hdict: dict[bytes, bytes] | None = None) -> dict[bytes, bytes]:
        """Return the headers by name, capitalised like `Content-Length`.

        Args:
            rfile: The rest of the request, from its first header on.
            hdict: The dictionary to fill; a new one if None.

        Raises:
            ValueError: The headers are invalid; the message is for the client.
        """
        headers: dict[bytes, bytes] = {} if hdict is None else hdict
        while (line := rfile.readline()) != b"\r\n":
            name, value = _split(line)
            if b"_" in name:
                continue
            if name in headers:
                if name in _ONCE:
                    raise ValueError(f"the header {name.decode()} must not occur twice")
                value = headers[name] + (b"; " if name == b"Cookie" else b", ") + value
            headers[name] = value
        if b"Transfer-Encoding" in headers:
            raise ValueError("a request must have Content-Length, not Transfer-Encoding")
        if not _LENGTH.fullmatch(headers.get(b"Content-Length", b"0")):
            raise ValueError("Content-Length must be a whole number")
        return headers


def _split(line: bytes) -> tuple[bytes, bytes]:
    """Return the name and the value of a header line."""
    if not line.endswith(b"\r\n"):
        raise ValueError("each header must end with CRLF, and an empty line must follow the headers")
    name, colon, value = line[:-2].partition(b":")
    value = value.strip(b" \t")
    if not colon or not _NAME.fullmatch(name) or _CONTROL.search(value):
        raise ValueError("a header must be NAME: VALUE on one line, without control characters")
    return name.title(), value
