"""The sampler `hub`: a module's files are read once, stored with the study, and the stored copy is what workers run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from sampler_study import Floats, make_study
from sampler_study import work as work  # a fixture
from storage_tools import opened

from tuner.errors import StudyError
from tuner.search import hub
from tuner.search.hub import Module, Source, fetch, load_class
from tuner.storage.read.queries import find_records

INIT = "from .middle import MiddleSampler\n\n__all__ = ['MiddleSampler']\n"
MIDDLE = """
from optuna.samplers import RandomSampler

from .place import PLACE


class MiddleSampler(RandomSampler):
    def __init__(self, scale: float = 1.0, seed: int | None = None) -> None:
        super().__init__(seed)
        self.scale = scale

    def sample_independent(self, study, trial, param_name, param_distribution):
        assert self._rng is not None
        return PLACE * self.scale
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "registry" / "middle"
    (made / "images").mkdir(parents=True)
    (made / "__init__.py").write_text(INIT)
    (made / "middle.py").write_text(MIDDLE)
    (made / "place.py").write_text("PLACE = 0.25\n")
    (made / "images" / "large.png").write_bytes(bytes(10**6))
    return made


def test_workers_run_the_stored_copy(work: Any, folder: Path, tmp_path: Path) -> None:
    sampler = {"name": "hub", "path": str(folder), "scale": 2.0}
    found, events, raised = work(make_study(space=Floats, sampler=sampler, trials=2))
    assert raised is None
    (said,) = [event["message"] for event in events if event["event"] == "search"]
    digest = fetch(Source(None, None, str(folder))).digest
    assert said == f"the sampler module {folder} is stored with the study, SHA-256 {digest}"

    shutil.rmtree(folder)  # a node that does not have it
    hub._loaded.clear()
    found, events, raised = work(make_study(space=Floats, sampler=sampler, trials=4))
    assert raised is None
    assert [trial.params for trial in found] == [{"x": 0.5, "y": 0.5}] * 4
    assert not [event for event in events if event["event"] == "search"]
    with opened(f"sqlite:///{tmp_path}/study.db") as storage:
        (record,) = find_records(storage.engine, storage.get_study_id_from_name("objects"), "tuner:hub:").values()
    assert record["digest"] == digest
    assert sorted(record["files"]) == ["__init__.py", "middle.py", "place.py"]


def test_a_folder_that_has_changed_is_refused(work: Any, folder: Path) -> None:
    study = make_study(space=Floats, sampler={"name": "hub", "path": str(folder)}, trials=1)
    work(study)
    (folder / "place.py").write_text("PLACE = 0.75\n")
    with pytest.raises(StudyError, match=r"middle' has changed since study 'objects' was created \(SHA-256"):
        work(study)


@pytest.mark.slow
def test_a_package_is_fetched_at_its_commit(monkeypatch: pytest.MonkeyPatch, folder: Path, work: Any) -> None:
    asked: list[Any] = []

    def load_module(package: str, *, ref: str) -> ModuleType:
        asked.append((package, ref))
        return SimpleNamespace(__file__=str(folder / "__init__.py"))  # pyright: ignore[reportReturnType]

    monkeypatch.setitem(sys.modules, "optunahub", SimpleNamespace(load_module=load_module))
    commit = "0123456789abcdef0123456789abcdef01234567"
    sampler = {"name": "hub", "package": "samplers/middle", "ref": commit}
    for trials in (1, 2):
        found, _, raised = work(make_study(space=Floats, sampler=sampler, trials=trials))
        assert raised is None
    assert asked == [("samplers/middle", commit)], "only once"
    assert [trial.params for trial in found] == [{"x": 0.25, "y": 0.25}] * 2
    assert "optunahub_registry.package.samplers.middle" in sys.modules


def test_it_is_loaded_as_optunahub_does(folder: Path) -> None:
    optunahub = pytest.importorskip("optunahub")
    theirs = optunahub.load_local_module("middle", registry_root=str(folder.parent)).MiddleSampler
    ours = load_class(fetch(Source(None, None, str(folder))), None)
    assert (ours.__module__, ours.__qualname__) == (theirs.__module__, theirs.__qualname__)


def test_without_optunahub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optunahub", None)
    with pytest.raises(StudyError, match=r"needs optunahub to fetch samplers/x at 0{40}, which .*\.\[hub\]"):
        fetch(Source("samplers/x", "0" * 40, None))


def test_a_network_that_is_down_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_module(package: str, **_: Any) -> ModuleType:
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "optunahub", SimpleNamespace(load_module=load_module))
    with pytest.raises(StudyError, match=r"cannot fetch samplers/x at 0+ from OptunaHub: ConnectionError: no route"):
        fetch(Source("samplers/x", "0" * 40, None))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "'hub' needs a package of OptunaHub at a commit, or a folder: .*got package=None, ref=None, path=None"),
        ({"package": "samplers/x"}, "'hub' needs a package of OptunaHub at a commit"),
        (
            {"package": "samplers/x", "ref": "main"},
            "needs a commit of 40 hexadecimal digits, .*: got ref='main'",
        ),
        ({"package": "samplers/x", "ref": "0" * 40, "path": "y"}, "'hub' needs a package"),
    ],
)
def test_what_is_not_pinned_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(StudyError, match=reason):
        make_study(sampler={"name": "hub", **options})


@pytest.mark.slow
def test_what_is_no_module_is_refused(folder: Path, work: Any) -> None:
    def told(**options: Any) -> str:
        hub._loaded.clear()
        study = make_study(space=Floats, name="wrong", sampler={"name": "hub", "path": str(folder), **options})
        with pytest.raises(StudyError) as caught:
            work(study)
        return str(caught.value)

    (folder / "large.bin").write_bytes(bytes(500_000))
    assert "may have 500,000 bytes" in told()
    (folder / "large.bin").unlink()
    (folder / "__init__.py").rename(folder / "init.py")
    assert "must be a folder with an __init__.py: got" in told()
    (folder / "init.py").rename(folder / "__init__.py")
    assert "with the name given as 'class': got 'Middl', it has MiddleSampler; did you mean" in told(
        **{"class": "Middl"}
    )


def test_code_that_fails_is_told_in_one_line(folder: Path) -> None:
    (folder / "place.py").write_text("import nowhere\n")
    with pytest.raises(StudyError, match="'middle' cannot be imported: ModuleNotFoundError: No module named 'nowhere'"):
        load_class(fetch(Source(None, None, str(folder))), None)


def test_a_damaged_copy_is_refused(folder: Path) -> None:
    record = fetch(Source(None, None, str(folder))).record()
    assert Module.of(record).files["__init__.py"].decode() == INIT
    record["files"]["place.py"] = record["files"]["__init__.py"]
    with pytest.raises(StudyError, match="stored copy of the sampler module 'middle' is damaged"):
        Module.of(record)
