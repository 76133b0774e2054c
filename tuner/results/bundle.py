"""Writes a bundle: a zip file with a trained model, or the saved state of a trial, and everything that it needs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Engine

from tuner.errors import UsageError
from tuner.results.bundle_packages import local_files, requirements
from tuner.results.bundle_programs import PREDICT, RUN, RUN_STATE
from tuner.results.bundle_wheel import make_wheel
from tuner.results.export import best_number, checkpoint_of, in_place, study_file_of
from tuner.results.rows import OTHER_FILE, check_file, show_row
from tuner.storage.artifacts import FILES, RECORD
from tuner.storage.read.queries import StudyRow, find_study, read_trial
from tuner.study.file import split_target

_OWN = ("study.py", "run.py", "predict.py")


def export_bundle(
    engine: Engine,
    study_name: str,
    path: Path,
    number: int | None,
    *,
    prefer: str | None = None,
    file: str | None = None,
    force: bool = False,
) -> int:
    """Write a trial's model and everything that it needs to a zip file; return the trial's number.

    For a study without a trainer, the bundle has the state that the trial saved, and its files.

    Args:
        engine: The storage's engine.
        study_name: The study.
        path: The file to write.
        number: The trial; the best if None.
        prefer: The trial of a Pareto front if `number` is None; see `tuner.results.export.best_number`.
        file: A copy of the study's file; if None, the file of the trial.
        force: Whether to overwrite an existing file.

    Raises:
        UnknownStudy: there is no such study or trial.
        UsageError: the trial has no checkpoint, its study file is not on this machine or has changed, or it is not
            clear which trial is meant.
    """
    study = find_study(engine, study_name)
    if number is None:
        number = best_number(engine, study_name, prefer)
    trial = show_row(engine, study_name, number)
    if "train" in study.record and trial["checkpoint"] is None:
        raise UsageError(
            f"trial {number} of {study_name!r} has no saved state or files to export: save a state with `trial.save`, "
            "or write files to `trial.folder` (in a command: `{folder}`); only the best trials keep them (`keep_best`)"
        )
    checkpoint = checkpoint_of(trial)
    source = study_file_of(trial) if file is None else split_target(file)[0]
    check_file(engine, read_trial(engine, study, number), source, OTHER_FILE)
    programs, about = _contents(study, checkpoint)
    more = local_files(source)
    _check_names(source, more)
    versions = (trial["ran_with"] or {}).get("versions", {})
    wheel = make_wheel()
    texts = {
        "trial.json": json.dumps({**trial, "seed": study.record["seed"]}, indent=2) + "\n",
        "requirements.txt": f"{requirements(versions, [source, *more])}./{wheel.name}\n",
        "README.md": _README.format(
            study=study_name, number=number, python=versions.get("python", "3.11"), about=about
        ),
        **programs,
    }
    with in_place(path, force) as scratch, zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, text in texts.items():
            bundle.writestr(name, text)
        bundle.writestr(wheel.name, wheel.content)
        bundle.write(source, "study.py")
        for one in more:
            bundle.write(one, one.relative_to(source.parent))
        files = checkpoint.parent / FILES
        folders = {"checkpoint": checkpoint} | ({"files": files} if files != checkpoint else {})
        for name, folder in folders.items():
            for part in sorted(folder.rglob("*")):
                bundle.write(part, Path(name) / part.relative_to(folder))
    return number


def _contents(study: StudyRow, checkpoint: Path) -> tuple[dict[str, str], str]:
    """Return the bundle's programs, and what its README says about them."""
    if "train" not in study.record:
        return {"run.py": RUN, "predict.py": PREDICT}, _ABOUT_MODEL
    return ({"run.py": RUN_STATE}, _ABOUT_STATE) if (checkpoint / RECORD).is_file() else ({}, _ABOUT_FILES)


def _check_names(source: Path, more: Sequence[Path]) -> None:
    """Raise UsageError if a module of the study's folder has the name of a program of the bundle."""
    taken = [one.name for one in more if one.parent == source.parent and one.name in _OWN]
    if taken:
        raise UsageError(f"{source} imports {taken[0]} of its folder, a name that the bundle needs: rename that file")


_README = """# Trial {number} of {study}

What the trial has saved, the study it comes from, and what it ran with.

    pip install -r requirements.txt     # Python {python}; in this folder

`requirements.txt` has the versions that the trial ran with, for other packages that the study imports those of
the machine that wrote the bundle, and the wheel of tuner in this folder. Do not install `tuner` from the public
package index: that is another project.

{about}
`study.py` is the study's file; `trial.json` has hyperparameters, curves, timings, versions and the state of the
repository. Modules that the study's file imports from its own folder are beside it.
"""

_ABOUT_MODEL = """`python predict.py inputs.npy` writes what the trained model predicts, without the study's data.
Without arguments, it says what it takes. `python run.py` evaluates the model on the study's validation data, and
compares the results with the recorded ones."""
_ABOUT_STATE = """`python run.py` loads the state that the training function has saved, and prints its parts.
`files` has the files that it wrote to the trial's folder, if any."""
_ABOUT_FILES = "`checkpoint` has the files that the trial wrote to its folder."
