"""Files in object storage: S3, Google Cloud Storage, or another file system that fsspec opens. Does not import JAX."""

from tuner.object_storage.address import OBJECT_STORES, ArtifactsURL, cached_folder, is_url, parse_artifacts_url
from tuner.object_storage.fetch import fetched
from tuner.object_storage.store import RECORD, ObjectStore, describe_error

__all__ = [
    "OBJECT_STORES",
    "RECORD",
    "ArtifactsURL",
    "ObjectStore",
    "cached_folder",
    "describe_error",
    "fetched",
    "is_url",
    "parse_artifacts_url",
]
