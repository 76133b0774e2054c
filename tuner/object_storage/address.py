"""URLs of object storage: checked once, where they enter the program, and the folders for local copies."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tuner.errors import ArtifactsURLError

BUCKETS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""The protocols of object stores that have an extra -> its name."""
OBJECT_STORES = (*BUCKETS, "abfs", "abfss", "az", "adl", "oci", "oss", "tos", "memory")
"""The protocols that lead to an object store, or to this process; not to files of this machine, or to any server."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?:::[^/]*)?://")
_FORMS = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, or another URL that fsspec opens"
_CREDENTIALS = {
    "s3": "$AWS_ACCESS_KEY_ID and $AWS_SECRET_ACCESS_KEY, or a profile in $AWS_PROFILE",
    "gcs": "$GOOGLE_APPLICATION_CREDENTIALS",
}
_KEY_PARTS = 4  # STUDY/TRIAL/ATTEMPT/best: what a worker stores below its URL


@dataclass(frozen=True)
class ArtifactsURL:
    """A checked URL of artifacts, from `parse_artifacts_url`; it has no password.

    Attributes:
        text: The URL without a slash at its end.
        protocol: For example `s3`.
        path: What follows `://`.
    """

    text: str
    protocol: str
    path: str

    def __str__(self) -> str:
        return self.text

    @property
    def extra(self) -> str | None:
        """The extra of tuner that installs what the protocol needs; None if there is none."""
        return BUCKETS.get(self.protocol)

    @property
    def credentials(self) -> str:
        """Where credentials for this protocol come from, as text."""
        name = f"FSSPEC_{self.protocol.upper()}"
        return _CREDENTIALS.get(self.extra or "", f"variables that start with ${name}_, which fsspec reads")

    def split(self) -> tuple[ArtifactsURL, str]:
        """Return the URL of the store, and the key below it, for the URL of a checkpoint that a worker has stored.

        For other URLs, the key has at most four parts.
        """
        bucket, *parts = self.path.split("/")
        count = min(_KEY_PARTS, len(parts))
        path = "/".join([bucket, *parts[: len(parts) - count]])
        store = ArtifactsURL(f"{self.protocol}://{path}", self.protocol, path)
        return store, "/".join(parts[len(parts) - count :])


def is_url(given: str | Path | None) -> bool:
    """Return whether a place for artifacts is a URL, and not the path of a folder."""
    return isinstance(given, str) and _SCHEME.match(given) is not None


def parse_artifacts_url(given: str) -> ArtifactsURL:
    """Check the URL of artifacts in object storage.

    Raises:
        ArtifactsURLError: it has no bucket, has credentials or options, has an empty part, `.` or `..` in its path, or
            is one of fsspec's chained URLs.
    """
    protocol, _, path = given.partition("://")
    protocol, path = protocol.lower(), path.rstrip("/")
    # A secret may have slashes, so that it would be part of the path.
    if re.search(r":.*@", path) or (protocol in BUCKETS and "@" in path.partition("/")[0]):
        shown = f"{protocol}://***@{path.rpartition('@')[2]}"
        url = ArtifactsURL(shown, protocol, "")
        raise ArtifactsURLError(
            f"the URL of artifacts must have no user and no key: got {shown}; set {url.credentials}"
        )
    if "::" in protocol or "?" in path or "#" in path:
        shown = f"{protocol}://{re.split(r'[?#]', path)[0]}"
        raise ArtifactsURLError(
            f"the URL of artifacts must be {_FORMS}, without options and chains of protocols: got {shown}; set options "
            "in fsspec's configuration"
        )
    if not path.strip("/") or (protocol in BUCKETS and path.startswith("/")):
        raise ArtifactsURLError(f"the URL of artifacts must be {_FORMS}: got {given!r}")
    if not is_inside(path if protocol in BUCKETS else path.removeprefix("/")):
        raise ArtifactsURLError(f"the URL of artifacts must have no empty part, `.` or `..` in its path: got {given!r}")
    return ArtifactsURL(f"{protocol}://{path}", protocol, path)


def is_inside(name: str) -> bool:
    """Return whether a relative path leads to a file inside its folder."""
    parts = name.split("/")
    return not ({"", ".", ".."} & set(parts)) and "\\" not in name and "\0" not in name


def cached_folder(url: ArtifactsURL) -> Path:
    """Return the folder of this machine for the files of a store, below the user's cache folder.

    It is `$XDG_CACHE_HOME/tuner/artifacts/...`, else `~/.cache/tuner/artifacts/...`.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    readable = quote(url.path.strip("/"), safe=" ").replace("%2F", "_")[-60:]
    digest = hashlib.sha256(url.text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return cache.absolute() / "tuner" / "artifacts" / f"{url.protocol}-{readable}-{digest}"


def cached_path(url: ArtifactsURL, key: str) -> Path:
    """Return the path on this machine for a key of a store.

    Raises:
        ArtifactsURLError: it would not be in the folder for the files of the store.
    """
    folder = cached_folder(url)
    path = folder / key
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactsURLError(f"the path of a checkpoint must stay below {url}: got {key!r}")
    return path
