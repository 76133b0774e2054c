"""URLs of artifacts: which are taken, what a refusal says and hides, and the folders of local copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuner.errors import ArtifactsURLError
from tuner.object_storage import cached_folder, fetched, is_url, parse_artifacts_url
from tuner.object_storage.address import cached_path
from tuner.storage.artifacts import VARIABLE, artifacts_of


def test_paths_are_not_urls() -> None:
    assert [is_url(one) for one in ("files", "/a/b", "./s3:/b", Path("s3://b"), "C:\\files", None)] == [False] * 6
    assert is_url("gs://bucket/prefix")
    assert is_url("filecache::s3://bucket")


def test_a_folder_stays_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    assert (artifacts_of(None).folder, artifacts_of(None).store) == (tmp_path / "tuner-artifacts", None)
    monkeypatch.setenv(VARIABLE, "elsewhere")
    assert artifacts_of(None).folder == tmp_path / "elsewhere"
    assert artifacts_of("mine").folder == tmp_path / "mine"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("s3://bucket/some/prefix/", "s3://bucket/some/prefix"),
        ("S3://bucket", "s3://bucket"),
        ("file:///shared/tuner", "file:///shared/tuner"),
        ("sftp://user@host/shared", "sftp://user@host/shared"),
    ],
)
def test_urls(given: str, text: str) -> None:
    assert str(parse_artifacts_url(given)) == text


SECRET = "abc/def+ghi"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (f"s3://AKIA:{SECRET}@bucket/x", r"s3://\*\*\*@bucket/x; set \$AWS_ACCESS_KEY_ID and \$AWS_SECRET_ACCESS_KEY"),
        (f"gs://{SECRET.partition('/')[0]}@bucket", r"gs://\*\*\*@bucket; set \$GOOGLE_APPLICATION_CREDENTIALS"),
        (
            f"sftp://user:{SECRET}@host/x",
            r"got sftp://\*\*\*@host/x; set variables that start with \$FSSPEC_SFTP",
        ),
        (f"s3://bucket/x?secret={SECRET}", r"without options and chains of protocols: got s3://bucket/x; set"),
        ("simplecache::s3://bucket/x", r"without options and chains of protocols: got simplecache::s3://bucket/x"),
        ("s3://", r"must be s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, or another URL that fsspec opens: got 's3://'"),
        ("s3:///x", r"got 's3:///x'"),
        ("s3://bucket/../x", r"must have no empty part, `.` or `..` in its path: got 's3://bucket/../x'"),
        ("s3://bucket/p//home/me/.ssh", r"no empty part, `.` or `..` in its path: got 's3://bucket/p//home/me/.ssh'"),
        ("s3://bucket/p/./x", r"no empty part"),
        ("file:////home/me", r"no empty part"),
    ],
)
def test_a_refused_url_is_named_without_its_secret(given: str, told: str) -> None:
    with pytest.raises(ArtifactsURLError, match=told) as caught:
        parse_artifacts_url(given)
    assert not any(part in str(caught.value) for part in ("AKIA", "abc", "def", "ghi"))
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ArtifactsURLError, match="must have a protocol of fsspec, such as s3 or gs: got 'foo'"):
        artifacts_of("foo://bucket/x")


def test_each_url_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    urls = ["s3://b/a/c", "s3://b/a_c", "gs://b/a/c", "s3://b/a/c/../../x", "s3://b/a c"]
    folders = {cached_folder(parse_artifacts_url(url)) for url in urls if ".." not in url}
    assert len(folders) == 4
    assert {folder.parent for folder in folders} == {tmp_path / "tuner" / "artifacts"}


def test_a_checkpoints_url_leads_to_the_store_that_it_is_in() -> None:
    store, key = parse_artifacts_url("s3://b/p/q/tiny-12345678/3/1/best").split()
    assert (str(store), key) == ("s3://b/p/q", "tiny-12345678/3/1/best")
    store, key = parse_artifacts_url("s3://b/tiny-12345678/3/1/best").split()
    assert (str(store), key) == ("s3://b", "tiny-12345678/3/1/best")
    store, key = parse_artifacts_url("s3://b/best").split()
    assert (str(store), key) == ("s3://b", "best")


def test_a_path_is_not_fetched(tmp_path: Path) -> None:
    assert fetched(str(tmp_path)) == fetched(tmp_path) == tmp_path


@pytest.mark.parametrize("key", ["/etc", "../other", "a/../../other"])
def test_a_copy_stays_in_the_folder_of_its_store(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    url = parse_artifacts_url("s3://bucket/p")
    assert cached_path(url, "a/b") == cached_folder(url) / "a" / "b"
    with pytest.raises(ArtifactsURLError, match=r"must stay below s3://bucket/p: got "):
        cached_path(url, key)
