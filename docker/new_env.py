"""Writes .env from .env.example, with a random password for each that is empty there: `python3 docker/new_env.py`.

Only you can read the file. An existing one is not changed. It uses the standard library only.
"""

import os
import re
import secrets
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def fill(example: str) -> str:
    """Return the text with a password for each variable `..._PASSWORD` that has no value."""
    return re.sub(r"(?m)^(\w+_PASSWORD)=$", lambda found: f"{found[1]}={secrets.token_urlsafe(24)}", example)


if __name__ == "__main__":
    try:
        descriptor = os.open(ROOT / ".env", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        sys.exit(f"error: {ROOT / '.env'} exists already: edit it, or move it to another place first")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(fill((ROOT / ".env.example").read_text(encoding="utf-8")))
