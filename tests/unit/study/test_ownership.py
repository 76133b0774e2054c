"""Owners and labels in a study's settings."""

from __future__ import annotations

import getpass
from typing import Any

import pytest

import tuner
from tuner.errors import StudyError
from tuner.study import StudySpec
from tuner.study.ownership import default_owner


class HParams(tuner.Space):
    x: float = tuner.uniform(0.0, 1.0)


def study(**settings: Any) -> StudySpec:
    return StudySpec(name="s", space=HParams, objective="loss", direction="minimize", trials=1, **settings)


@pytest.mark.parametrize("owner", ["", " ann", "ann\n", 3, "a" * 101, "\ud800"])
def test_an_owner_is_a_line(owner: Any) -> None:
    with pytest.raises(StudyError, match="owner must be a line of 1 to 100 characters"):
        study(owner=owner)


@pytest.mark.parametrize("labels", ["vision", ["a,b"], [""], [3], None, [" a"]])
def test_labels_are_a_list_of_words(labels: Any) -> None:
    with pytest.raises(StudyError, match="labels must be texts"):
        study(labels=labels)


def test_a_launch_adds_labels_and_replaces_the_owner() -> None:
    changed = study(owner="ann", labels=["vision"]).changed(owner="bob", labels=("paper",))
    assert (changed.owner, changed.labels) == ("bob", ("vision", "paper"))
    unchanged = study(owner="ann", labels=["vision"]).changed(owner=None, labels=None)
    assert (unchanged.owner, unchanged.labels) == ("ann", ["vision"])


def test_the_default_owner_is_the_variable_or_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNER_OWNER", raising=False)
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    assert default_owner() == "ann"
    monkeypatch.setenv("TUNER_OWNER", "team a")
    assert default_owner() == "team a"


def test_a_user_without_a_name_owns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.delenv("TUNER_OWNER", raising=False)
    monkeypatch.setattr(getpass, "getuser", unknown)
    assert default_owner() is None
