"""Makes text safe to output: hides passwords, escapes control characters, and cleans names of files."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Any
from urllib.parse import quote, unquote

_SECRET = r"(?:password|passwd|passphrase|wandb_api_key|mlflow_tracking_token)"
_HIDDEN = r"\*\*\*(?=['\"]?[)\],;.:}]*(?:[\s&]|$))"
"""The replacement for a password; hiding it again changes nothing."""
# An option of a URL: its name may be percent-encoded, and its value ends with the option or the word.
_OPTION = re.compile(rf"([?&])([^\s=&?'\"]+)=(?!{_HIDDEN})([^\s&]+)")
# `password=...`, as in libpq and the environment, or `'password': '...'`, as in Python and JSON.
_SETTING = re.compile(
    rf"({_SECRET}['\"]?\s*[=:]\s*)(?:'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"|(?!{_HIDDEN})((?:\\.|[^\s&'\"\\])(?:\\.|[^\s&\\])*))",
    re.IGNORECASE,
)
_CLOSING = re.compile(r"['\"]?[)\],;.:}]*$")
# Not the form that messages show, `postgresql+psycopg2://USER:PASSWORD@HOST`.
_USER_INFO = re.compile(r"(\w://[^\s:/]*):(?!PASSWORD@HOST)\S+@(?=[^\s@]*(?:\s|$))")
_TOKEN = re.compile(r"(https?://)[^\s/@:]+@")
# Web hooks of Slack and Discord: whoever knows the path may write to the channel.
_WEB_HOOK = re.compile(
    r"(https?://(?:hooks\.slack(?:-gov)?\.com|(?:[\w-]+\.)?discord(?:app)?\.com/api/webhooks)/)(?!\*\*\*)[^\s'\"<>)\]},]+"
)


def hide_password(text: str) -> str:
    """Return `text` with every password replaced by `***`: in URLs, their options, settings, and well-known web hooks.

    Empty passwords are not replaced. Hiding passwords twice changes nothing.
    """
    text = _OPTION.sub(_without_option, text)
    text = _SETTING.sub(_without_setting, text)
    text = _USER_INFO.sub(r"\1:***@", text)
    text = _WEB_HOOK.sub(r"\1***", text)
    return _TOKEN.sub(r"\1***@", text)


def _without_option(found: re.Match[str]) -> str:
    before, name, value = found.groups()
    if not re.search(_SECRET, unquote(name), re.IGNORECASE):
        return found[0]
    is_last = not found.string.startswith("&", found.end())
    return f"{before}{name}=***{_closing(value) if is_last else ''}"


def _without_setting(found: re.Match[str]) -> str:
    before, *quoted, plain = found.groups()
    if plain is not None:
        return f"{before}***{_closing(plain)}"
    return f"{before}***" if any(quoted) else found[0]


def _closing(value: str) -> str:
    """Return the quotes, brackets and periods at the end of a word, which belong to the sentence."""
    closing = _CLOSING.search(value)
    return closing[0] if closing else ""


def hide_passwords(value: object) -> Any:
    """Return a value with passwords hidden in all nested texts."""
    if isinstance(value, str):
        return hide_password(value)
    if isinstance(value, dict):
        return {name: hide_passwords(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(hide_passwords, value)) if type(value) in (list, tuple) else value
    return value


def printable(text: str) -> str:
    r"""Return `text` with characters that would control a terminal as escapes, such as `\x1b`.

    These are control characters other than the line break and the tab, characters that change the writing direction,
    and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(one if one in "\n\t" or not _is_control(one) else _escaped(one) for one in text)


def one_line(text: str) -> str:
    r"""Like `printable`, but also escape line breaks and tabs, for example for a name in a table."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def _is_control(character: str) -> bool:
    # Format characters (Cf) join and shape letters in some scripts; escape only those that change the direction.
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS


_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def is_unstorable(text: str) -> bool:
    """Return whether a database rejects a text, because of NUL or a lone surrogate."""
    return "\0" in text or any("\ud800" <= one <= "\udfff" for one in text)


def folder_name(name: str, identity: str) -> str:
    """Return the name of a study's folder, which is never a path, whatever name and identity a database has."""
    if not re.fullmatch(r"[0-9a-f]{8,}", identity):  # not created by tuner
        identity = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{quote(name.encode('utf-8', 'surrogatepass'), safe=' ')[:100]}-{identity[:8]}"
