"""The wheel in a bundle."""

import importlib.metadata
import io
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from tuner.results.bundle_wheel import make_wheel


@pytest.mark.parametrize("is_in_clone", [False, True])
def test_the_wheel_has_the_metadata_of_the_package(
    is_in_clone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = importlib.metadata.version("tuner-jax")
    if is_in_clone:  # as Python sees it that runs in the folder of an editable clone
        version = "7.8.9"
        (found := tmp_path / "tuner_jax.egg-info").mkdir()
        (found / "PKG-INFO").write_text(f"Metadata-Version: 2.4\nName: tuner-jax\nVersion: {version}\n")
        (found / "entry_points.txt").write_text("[console_scripts]\ntuner = tuner.cli:main\n")
        monkeypatch.syspath_prepend(tmp_path)
    wheel = make_wheel()
    assert wheel.name == f"tuner_jax-{version}-py3-none-any.whl"
    with zipfile.ZipFile(io.BytesIO(wheel.content)) as archive:
        metadata = message_from_string(archive.read(f"tuner_jax-{version}.dist-info/METADATA").decode())
        points = archive.read(f"tuner_jax-{version}.dist-info/entry_points.txt").decode()
    assert (metadata["Name"], metadata["Version"]) == ("tuner-jax", version)
    assert "tuner = tuner.cli:main" in points
