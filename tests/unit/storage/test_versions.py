"""The newest migration is found without Alembic, and tables of other versions are refused as before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from tuner.errors import StorageSchemaError
from tuner.storage.optuna.storage import Storage
from tuner.storage.sql import versions
from tuner.storage.sql.versions import Versions, check_tables, newest_in, optuna_scripts, tuner_config, tuner_scripts
from tuner.trial.optuna_private import migrations

OURS = Path(tuner_config().get_main_option("script_location"))


def test_the_newest_is_that_of_alembic() -> None:
    assert newest_in(OURS) == tuner_scripts().get_current_head()
    assert newest_in(migrations()) == optuna_scripts().get_current_head()


def test_it_is_the_one_that_no_other_follows(tmp_path: Path) -> None:
    folder = tmp_path / "versions"
    folder.mkdir()
    (folder / "b.py").write_text('revision: str = "first"\ndown_revision: str | None = None\n')
    (folder / "a.py").write_text("revision = 'second'\ndown_revision = 'first'\nbranch_labels = 'third'\n")
    assert newest_in(tmp_path) == "second"


def test_of_branches_and_files_of_another_form_none_is_the_newest(tmp_path: Path) -> None:
    assert newest_in(tmp_path) is None
    folder = tmp_path / "other" / "versions"
    folder.mkdir(parents=True)
    for name in ("second", "third"):
        (folder / f"{name}.py").write_text(f'revision = "{name}"\ndown_revision = "first"\n')
    assert newest_in(tmp_path / "other") is None


@pytest.mark.parametrize(
    "text",
    [
        'V = "v3"\nrevision = V\ndown_revision = "v2"\n',
        'revision = (\n    "v3"\n)\ndown_revision = "v2"\n',
        'V, W = "v3", "v2"\nrevision = V\ndown_revision = W\n',
    ],
)
def test_a_file_of_another_form_is_not_overlooked(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "versions"
    folder.mkdir()
    (folder / "a.py").write_text('revision = "v1"\ndown_revision = None\n')
    (folder / "b.py").write_text('revision = "v2"\ndown_revision = "v1"\n')
    (folder / "c.py").write_text(text)
    assert newest_in(tmp_path) is None


@pytest.mark.parametrize("is_found", [True, False])
def test_tables_are_checked_with_and_without_the_text_of_the_files(
    is_found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_found:
        monkeypatch.setattr(versions, "newest_in", lambda _: None)
    engine = sa.create_engine("sqlite:///tuner.db")
    theirs, ours = optuna_scripts().get_current_head(), tuner_scripts().get_current_head()
    check_tables(Versions(theirs, ours), engine)
    check_tables(Versions(None, None), engine)
    with pytest.raises(StorageSchemaError, match=f"are at version 0001, but this installation needs {ours}"):
        check_tables(Versions(theirs, "0001"), engine)
    with pytest.raises(StorageSchemaError, match="'v9', which this installation does not know"):
        check_tables(Versions("v9", ours), engine)


def test_a_storage_with_its_tables_is_used_without_alembic(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'tuner.db'}"
    Storage(url).close()
    program = (
        "import optuna, sys; from tuner.storage.optuna.storage import Storage; storage = Storage(sys.argv[1]);"
        "study = optuna.create_study(storage=storage, study_name='one'); study.set_user_attr('a', 1);"
        "study.optimize(lambda trial: trial.suggest_float('x', 0, 1), n_trials=2);"
        "print(storage.get_all_studies()[0].study_name, 'alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, check=True)
    assert done.stdout == "one False\n"
