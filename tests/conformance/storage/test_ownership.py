"""The owner and the labels of a study, on SQLite and Postgres."""

from __future__ import annotations

import threading

import optuna
import pytest
from storage_tools import opened

from tuner.admin.edits import relabel
from tuner.errors import StudyError, UnknownStudy, UsageError
from tuner.results.rows import study_rows
from tuner.storage import parse_url
from tuner.storage.read.queries import find_study
from tuner.storage.worker.studies import Owner, set_ownership

pytestmark = pytest.mark.with_tables


def test_the_first_user_owns_a_study_until_an_owner_is_given(storage_url: str) -> None:
    with opened(storage_url) as storage:
        study_id = storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "s")

        def owner_after(owner: Owner) -> str | None:
            set_ownership(storage.engine, study_id, owner, [])
            return find_study(storage.engine, "s").owner

        assert owner_after(Owner(None, is_certain=False)) is None
        assert owner_after(Owner("ann", is_certain=False)) == "ann"
        assert owner_after(Owner("bob", is_certain=False)) == "ann"
        assert owner_after(Owner("bob")) == "bob"
        assert storage.get_study_user_attrs(study_id) == {"owner": "bob"}


def test_labels_that_several_workers_add_are_all_there(storage_url: str) -> None:
    with opened(storage_url) as storage:
        study_id = storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "s")
        nobody = Owner(None)

        def add(at: int) -> None:
            set_ownership(storage.engine, study_id, nobody, ["all", f"label {at}"])

        threads = [threading.Thread(target=add, args=(at,)) for at in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(find_study(storage.engine, "s").labels) == ["all", *(f"label {at}" for at in range(8))]


def test_studies_are_listed_by_owner_and_labels(storage_url: str) -> None:
    url = parse_url(storage_url)
    with opened(storage_url) as storage:
        for name in ("a", "b", "c"):
            storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], name)
        relabel(url, "a", owner="ann", labels=["x", "y"])
        relabel(url, "b", owner="ann", labels=["y"])

        def listed(owner: str | None = None, *labels: str) -> list[str]:
            return [row["study"] for row in study_rows(storage.engine, owner=owner, labels=labels)]

        assert listed() == ["a", "b", "c"]
        assert listed("ann") == ["a", "b"]
        assert listed("ann", "x") == ["a"]
        assert listed(None, "y") == ["a", "b"]
        assert listed(None, "x", "y") == ["a"]
        assert listed("bob") == []
        found = relabel(url, "a", labels=["z"], without=["x"])
        assert (found.owner, found.labels) == ("ann", ("y", "z"))
        with pytest.raises(UsageError, match="study 'b' has no label 'yy': it has y; did you mean 'y'"):
            relabel(url, "b", without=["yy"])
        with pytest.raises(UsageError, match="either added or removed: got 'v' in both"):
            relabel(url, "b", labels=["u", "v"], without=["v"])
        with pytest.raises(UnknownStudy):
            relabel(url, "d", labels=["x"])
        with pytest.raises(StudyError, match="labels must be texts"):
            relabel(url, "a", labels=["x,y"])


def test_attributes_of_the_same_names_that_are_something_else_are_no_owner_and_no_labels(storage_url: str) -> None:
    with opened(storage_url) as storage:
        study_id = storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "s")
        storage.set_study_user_attr(study_id, "owner", {"name": "ann"})
        storage.set_study_user_attr(study_id, "labels", ["x", 3, None])
        found = find_study(storage.engine, "s")
        assert (found.owner, found.labels) == (None, ("x",))
