"""Local copies of what is in object storage, for code that reads files."""

from __future__ import annotations

from pathlib import Path

from tuner.errors import ArtifactsLost, CheckpointError
from tuner.object_storage.address import cached_path, is_url, parse_artifacts_url
from tuner.object_storage.store import RECORD, ObjectStore, check_complete, is_record


def fetched(path: str | Path) -> Path:
    """Return the local path of a folder: for a URL that of a copy in the user's cache folder, brought up to date.

    The copy is in the folder where a worker of this machine writes the same files, so that they are downloaded only
    where they are not. If the store cannot be reached, a complete copy is used as it is.

    Args:
        path: A path, which is returned, or the URL of a checkpoint, of a trial's files, or of a folder above.

    Raises:
        ArtifactsURLError: the URL is wrong, or the store refuses to be read.
        ArtifactsLost: the store cannot be reached, and there is no complete copy.
        CheckpointError: there is nothing at the URL, or the checkpoint is damaged.
    """
    if not isinstance(path, str) or not is_url(path):
        return Path(path)
    url = parse_artifacts_url(path)
    place, key = url.split()
    folder = cached_path(place, key)
    store = ObjectStore(place)
    try:
        sizes = store.sizes(key)
        if not sizes:
            raise CheckpointError(f"there is nothing at {url}: pass the URL that `tuner show` prints as `checkpoint`")
        store.download(key, folder, sizes)
    except FileNotFoundError:
        raise CheckpointError(f"a file of {url} was removed while it was copied; try again") from None
    except ArtifactsLost:
        if not _is_complete(folder):
            raise
        return folder
    for name in filter(is_record, sizes):
        check_complete((folder / name).parent)
    return folder


def _is_complete(folder: Path) -> bool:
    """Return whether a folder has checkpoints, and all their files."""
    records = [path for path in folder.rglob(RECORD) if is_record(path.relative_to(folder).as_posix())]
    try:
        for record in records:
            check_complete(record.parent)
    except CheckpointError:
        return False
    return bool(records)
