"""Builds a wheel of the installed tuner. Bundles contain it, because no package index has this project yet."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import zipfile
from pathlib import Path
from typing import NamedTuple

from tuner.errors import DISTRIBUTION, PACKAGE, UsageError


class Wheel(NamedTuple):
    """A wheel: the name of its file, and its content."""

    name: str
    content: bytes


def make_wheel() -> Wheel:
    """Return a wheel of the installed package, including local changes to its files.

    The format is that of https://packaging.python.org/en/latest/specifications/binary-distribution-format/.

    Raises:
        UsageError: the package is not installed, so that its requirements are not known.
    """
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise UsageError(
            f"writing a bundle needs the installed package {DISTRIBUTION}: tuner runs here from a folder; "
            "run `pip install -e .` in the clone of tuner"
        ) from None
    stem = f"{DISTRIBUTION.replace('-', '_')}-{distribution.version}"
    about = f"{stem}.dist-info"
    package = Path(PACKAGE)
    files = {
        str(path.relative_to(package.parent)): path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    # Python finds the clone's egg-info first, if it runs in the clone; there the metadata has another name.
    metadata = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    files[f"{about}/METADATA"] = metadata.encode()
    files[f"{about}/entry_points.txt"] = (distribution.read_text("entry_points.txt") or "").encode()
    files[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: tuner\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in files.items())
    files[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n".encode()
    scratch = io.BytesIO()
    with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return Wheel(f"{stem}-py3-none-any.whl", scratch.getvalue())


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
