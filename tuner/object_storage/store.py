"""Folders in object storage, through fsspec: a checkpoint's record is written last, so that no half of one is used."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import uuid
from collections.abc import Collection, Generator, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

from tuner.errors import ArtifactsLost, ArtifactsURLError, CheckpointError, how_to_install
from tuner.object_storage.address import ArtifactsURL, is_inside

RECORD = "record.json"
"""The file in a checkpoint that describes it; it has the size or the digest of each other file."""
_SCRATCH = ".tmp-"
_DENIED = ("NoCredentialsError", "PartialCredentialsError", "PermissionError", "DefaultCredentialsError")
_NO_BUCKET = re.compile(r"NoSuchBucket|bucket does not exist", re.IGNORECASE)
_WORDS_DENIED = re.compile(r"\b(?:Forbidden|AccessDenied|InvalidAccessKeyId|Anonymous caller)\b")
_S3_TIMES = {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 2}}


class ObjectStore:
    """The files below a URL. Keys are paths relative to it, such as `STUDY/3/1/best`.

    Every method raises ArtifactsLost if the store cannot be reached, and ArtifactsURLError if it refuses the call: the
    bucket does not exist, or the credentials are missing or wrong.

    Args:
        url: The URL.

    Raises:
        ArtifactsURLError: fsspec does not know the protocol, or a package for it is not installed.

    Concurrency: safe from several threads and processes.
    """

    def __init__(self, url: ArtifactsURL) -> None:
        self.url = url
        self._files, self._root = _open(url)

    def url_of(self, key: str) -> str:
        """Return the URL of a key."""
        return f"{self.url}/{key}" if key else str(self.url)

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}" if key else self._root

    # --- Questions

    def check(self) -> None:
        """Write an empty object and remove it, to see that the store can be used."""
        probe = f".tuner-check-{uuid.uuid4().hex}"
        with self._called("write to"):
            if self.url.extra is None:  # other file systems have folders
                self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(self._path(probe), b"")
            self._files.rm_file(self._path(probe))

    def names(self, key: str) -> list[str]:
        """Return the names directly below a key; none if there is nothing."""
        with self._called("list"):
            self._files.invalidate_cache()
            try:
                found = self._files.ls(self._path(key), detail=False)
            except FileNotFoundError:
                return []
        return sorted(PurePosixPath(str(one)).name for one in found)

    def sizes(self, key: str) -> dict[str, int]:
        """Return all files below a key, by their path relative to it, with their bytes.

        Names that would lead out of a folder are skipped; no worker writes them.
        """
        with self._called("list"):
            self._files.invalidate_cache()
            try:
                found = self._files.find(self._path(key), detail=True)
            except FileNotFoundError:
                return {}
        start = f"{self._strip(self._path(key))}/"
        sizes: dict[str, int] = {}
        for path, about in cast("Mapping[str, Mapping[str, Any]]", found).items():
            full = self._strip(path)
            name = full.removeprefix(start)
            if full.startswith(start) and is_inside(name):
                sizes[name] = int(about.get("size") or 0)
        return sizes

    def _strip(self, path: str) -> str:
        return str(self._files._strip_protocol(path)).rstrip("/")

    def read_json(self, key: str) -> Any:
        """Return the content of a JSON file.

        Raises:
            CheckpointError: there is no such file, or it is not JSON.
        """
        with self._called("read"):
            try:
                text = self._files.cat_file(self._path(key))
            except FileNotFoundError:
                raise CheckpointError(f"there is no {self.url_of(key)}") from None
        try:
            return json.loads(text)
        except ValueError:
            raise CheckpointError(f"the checkpoint is damaged: {self.url_of(key)} is not valid JSON") from None

    # --- Changes

    def upload(self, folder: Path, key: str, names: Collection[str] | None = None) -> None:
        """Copy a folder's files to a key, the records of checkpoints last.

        Args:
            folder: The folder.
            key: The key.
            names: The files, relative to the folder; all of them if None.

        Raises:
            FileNotFoundError: a file was removed meanwhile.
            OSError: a file cannot be read.
            UnicodeError: a file has a name that no store takes.
        """
        if names is None:
            names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        for batch in _with_records_last(names):
            for name in batch:
                name.encode()
                with (folder / name).open("rb"):  # else the error would be taken for one of the store
                    pass
            with self._called("write to"):
                self._files.put([str(folder / name) for name in batch], [self._path(f"{key}/{name}") for name in batch])

    def download(self, key: str, folder: Path, names: Mapping[str, int]) -> None:
        """Copy files of a key to a folder, the records of checkpoints last; each file is complete or absent there.

        A file that the folder has in the same size is not copied again, except records.

        Args:
            key: The key.
            folder: The folder; created if it does not exist.
            names: The files with their sizes, from `sizes`.

        Raises:
            FileNotFoundError: a file was removed meanwhile.
        """
        for batch in _with_records_last(names):
            for name in batch:
                target = folder / name
                if not is_record(name) and _size(target) == names[name]:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                scratch = target.with_name(f"{_SCRATCH}{uuid.uuid4().hex}")
                try:
                    with self._called("read"):
                        self._files.get_file(self._path(f"{key}/{name}"), str(scratch))
                    scratch.replace(target)
                finally:
                    scratch.unlink(missing_ok=True)

    def remove(self, key: str) -> int:
        """Remove everything below a key, the records of checkpoints first; return the freed bytes."""
        sizes = self.sizes(key)
        if not sizes:
            return 0
        self.remove_files(key, filter(is_record, sizes))
        with self._called("remove from"), contextlib.suppress(FileNotFoundError):
            self._files.rm(self._path(key), recursive=True)
        return sum(sizes.values())

    def remove_files(self, key: str, names: Iterable[str]) -> None:
        """Remove single files of a key."""
        with self._called("remove from"):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(self._path(f"{key}/{name}"))

    @contextlib.contextmanager
    def _called(self, verb: str) -> Generator[None]:
        """Turn what fsspec and its file systems raise into errors of tuner."""
        try:
            yield
        except FileNotFoundError as error:
            if _NO_BUCKET.search(_without_paths(str(error))):
                raise self._no_bucket() from None
            raise
        except (ArtifactsLost, ArtifactsURLError, CheckpointError):
            raise
        except Exception as error:
            text = describe_error(error)
            if _NO_BUCKET.search(_without_paths(text)):
                raise self._no_bucket() from None
            if _is_denied(error):
                raise ArtifactsURLError(
                    f"cannot {verb} {self.url}: {text}; give credentials with the right to read, write, list and "
                    f"remove, by {self.url.credentials}"
                ) from None
            raise ArtifactsLost(f"cannot {verb} {self.url}: {text}") from None

    def _no_bucket(self) -> ArtifactsURLError:
        return ArtifactsURLError(f"the bucket of {self.url} does not exist; create it first, or correct the URL")


def _open(url: ArtifactsURL) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path of the URL in it."""
    install = "" if url.extra is None else f": {how_to_install(url.extra)}"
    try:
        import fsspec  # pyright: ignore[reportMissingTypeStubs]
        from fsspec.config import conf  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
    except ImportError:
        needed = install or f": {how_to_install('s3')}, or install fsspec"
        raise ArtifactsURLError(f"artifacts in {url} need the package fsspec{needed}") from None
    module: Any = fsspec
    try:
        module.get_filesystem_class(url.protocol)
    except ImportError as error:
        raise ArtifactsURLError(f"artifacts in {url} need another package{install or f': {error}'}") from None
    except ValueError:
        raise ArtifactsURLError(
            f"the URL of artifacts must have a protocol of fsspec, such as s3 or gs: got {url.protocol!r} in {url}"
        ) from None
    options: dict[str, Any] = {}
    if url.extra == "s3":  # a server that does not answer must not hold up the end of a trial for minutes
        given = cast("Mapping[str, Mapping[str, Any]]", conf).get(url.protocol, {})
        options["config_kwargs"] = {**_S3_TIMES, **given.get("config_kwargs", {})}
    if url.protocol in ("file", "local"):
        options["auto_mkdir"] = True
    try:
        return module.core.url_to_fs(str(url), **options)
    except Exception as error:
        raise ArtifactsURLError(f"fsspec cannot open {url}: {describe_error(error)}") from None


def describe_error(error: BaseException) -> str:
    """Return an error's type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}".rstrip(": ")


def _is_denied(error: BaseException) -> bool:
    """Return whether a store has refused a call for want of rights: by the error's type, its status, or its words."""
    if type(error).__name__ in _DENIED or str(_status(error)) in ("401", "403"):
        return True
    return _WORDS_DENIED.search(_without_paths(describe_error(error))) is not None


def _status(error: BaseException) -> object:
    """Return the status of a store's answer, as packages for stores name it; None if there was no answer."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # of botocore
        return cast("dict[str, dict[str, object]]", response).get("ResponseMetadata", {}).get("HTTPStatusCode")
    names = ("status_code", "status", "code")
    found = (getattr(one, name, None) for one in (error, response) for name in names)
    return next((one for one in found if isinstance(one, int | str)), None)


def _without_paths(text: str) -> str:
    """Return a text without URLs and paths, whose parts are names that users choose, and numbers of trials."""
    return re.sub(r"\S*/\S*", "", text)


def _with_records_last(names: Iterable[str]) -> list[list[str]]:
    """Return the files in groups, in the order in which they are copied: records of checkpoints last."""
    listed = sorted(names)
    groups = [name for name in listed if not is_record(name)], [name for name in listed if is_record(name)]
    return [group for group in groups if group]


def is_record(name: str) -> bool:
    """Return whether a file is the record of a checkpoint, and not one of this name in the files that a user saved."""
    *folders, last = name.split("/")
    return last == RECORD and "files" not in folders


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def check_complete(folder: Path) -> None:
    """Check that a folder with a record has all files of the checkpoint, by their sizes or digests.

    Raises:
        CheckpointError: a file is missing or differs, or the record is not one of tuner's.
    """
    try:
        listed = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        for name, expected in listed.items():
            path = folder / name
            found = path.stat().st_size if isinstance(expected, int) else _digest(path)
            if not is_inside(name) or found != expected:
                raise CheckpointError(f"the checkpoint {folder} is incomplete: {name} differs from its record")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint {folder} is incomplete: {describe_error(error)}") from None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
