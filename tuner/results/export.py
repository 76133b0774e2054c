"""Exports results: a file with a row for each trial, or a bundle that runs one trained model."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zipfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Engine

from tuner.errors import TunerError, UsageError, how_to_install
from tuner.output.cells import csv_text
from tuner.output.numbers import plain
from tuner.results.bundle_wheel import make_wheel
from tuner.results.json_rows import JsonRow, ShownJson
from tuner.results.rows import best_rows, check_file, format_time, no_feasible, show_row
from tuner.storage.artifacts import FILES, RECORD, local_checkpoint
from tuner.storage.read.queries import StudyRow, TrialRow, find_study, read_trial, read_trials

_RECORDED = ("compile_s", "compilations", "train_s", "worker", "checkpoint", "error_kind", "error")


def export_trials(engine: Engine, study_name: str, path: Path, *, force: bool = False) -> int:
    """Write a row for each trial to `path`; return the number of rows.

    Columns are those of `docs/json.md`, with hyperparameters as `hparams.NAME` and constraints as `constraints.NAME`.
    With several objectives, each has a column `values.NAME`.

    Args:
        engine: The storage's engine.
        study_name: The study.
        path: `.csv`, `.json` or `.parquet`.
        force: Whether to overwrite an existing file.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: the file exists, its folder does not, or its name has another suffix.
    """
    write = {".csv": _write_csv, ".json": _write_json, ".parquet": _write_parquet}.get(path.suffix.lower())
    if write is None:
        raise UsageError(
            f"the output file must end in .csv, .json, .parquet or, for one trial, .zip: got {str(path)!r}"
        )
    rows = flat_rows(engine, study_name)
    with in_place(path, force) as scratch:
        write(rows, scratch)
    return len(rows)


def flat_rows(engine: Engine, study_name: str) -> list[dict[str, object]]:
    """Return a row for each trial, with the columns of `export_trials`.

    Raises:
        UnknownStudy: there is no such study.
    """
    study = find_study(engine, study_name)
    return [_flat_row(study, trial) for trial in read_trials(engine, study)]


def _flat_row(study: StudyRow, trial: TrialRow) -> dict[str, object]:
    row: dict[str, object] = {"number": trial.number, "outcome": trial.outcome.value}
    if len(study.directions) == 1:
        row["value"] = None if trial.values is None else trial.values[0]
    else:
        values = trial.values or [None] * len(study.directions)
        row |= {f"values.{name}": value for name, value in zip(study.objectives, values, strict=True)}
    row |= _seeds_of(study, trial)
    row["is_feasible"] = trial.is_feasible
    row |= {f"constraints.{name}": value for name, value in trial.constraints.items()}
    row["seconds"] = trial.seconds
    for key, time in (("started", trial.started), ("completed", trial.completed)):
        row[key] = format_time(time, "milliseconds")
    row |= {key: getattr(trial.record, key) for key in _RECORDED}
    return row | {f"hparams.{name}": value for name, value in trial.hparams.items()}


def _seeds_of(study: StudyRow, trial: TrialRow) -> dict[str, object]:
    """Return the standard errors of a trial's values and its number of seeds, if trials of the study have several."""
    if not study.has_seeds:
        return {}
    stderrs = trial.stderrs or [None] * len(study.directions)
    named = {f"stderrs.{name}": stderr for name, stderr in zip(study.objectives, stderrs, strict=True)}
    errors: dict[str, object] = {"stderr": stderrs[0]} if len(study.directions) == 1 else dict(named)
    return errors | {"trained_seeds": None if trial.seeds is None else len(trial.seeds.values)}


@contextlib.contextmanager
def in_place(path: Path, force: bool) -> Generator[Path]:
    """Yield a temporary file that replaces `path` if the body succeeds."""
    if path.exists() and not force:
        raise UsageError(f"{path} exists already: pass `force` to overwrite it")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder")
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".tuner-", suffix=path.suffix)
        os.close(descriptor)
        scratch = Path(name)
        try:
            yield scratch
            umask = os.umask(0)
            os.umask(umask)
            scratch.chmod(0o666 & ~umask)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise TunerError(f"cannot write {path}: {error.strerror or error}") from None


def _columns(rows: Sequence[JsonRow]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def _write_csv(rows: Sequence[JsonRow], path: Path) -> None:
    columns = _columns(rows)
    text = csv_text([columns, *([row.get(column) for column in columns] for row in rows)])
    # A lone surrogate, which is allowed in JSON but not in UTF-8, becomes an escape.
    path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def _write_json(rows: Sequence[JsonRow], path: Path) -> None:
    plain_rows = [{key: plain(value) for key, value in row.items()} for row in rows]
    path.write_text(json.dumps(plain_rows, indent=2) + "\n", encoding="utf-8")


def _write_parquet(rows: Sequence[JsonRow], path: Path) -> None:
    try:
        from pyarrow import parquet, table  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
    except ImportError:
        raise UsageError(f"Parquet files need pyarrow: {how_to_install('parquet')}") from None
    columns: dict[str, list[Any]] = {}
    for column in _columns(rows):
        values = [row.get(column) for row in rows]
        kinds: set[type[Any]] = {type(value) for value in values if value is not None}
        # A column has one type: choices of several kinds become JSON.
        is_mixed = len(kinds) > 1 and not kinds <= {int, float}
        columns[column] = [json.dumps(value) for value in values] if is_mixed else values
    cast("Any", parquet).write_table(table(columns), path)


# --- Bundles


def export_bundle(engine: Engine, study_name: str, path: Path, number: int | None, *, force: bool = False) -> int:
    """Write a trial's model and everything that it needs to a zip file; return the trial's number.

    For a study without a trainer, the bundle has the state that the trial saved, and its files.

    Args:
        engine: The storage's engine.
        study_name: The study.
        path: The file to write.
        number: The trial; the best if None.
        force: Whether to overwrite an existing file.

    Raises:
        UnknownStudy: there is no such study or trial.
        UsageError: the trial has no checkpoint, or its study file is not on this machine.
    """
    study = find_study(engine, study_name)
    if number is None:
        number = best_number(engine, study_name)
    trial = show_row(engine, study_name, number)
    if "train" in study.record and trial["checkpoint"] is None:
        raise UsageError(
            f"trial {number} of {study_name!r} has no saved state or files: a study keeps those of its best trials "
            "(`keep_best`), if the training saves any: a function with `trial.save` or in `trial.folder`, a command in "
            "its `{folder}`"
        )
    checkpoint, file = checkpoint_of(trial), file_of(trial)
    run, about = _contents(study, checkpoint)
    check_file(engine, read_trial(engine, study, number), file)
    versions = (trial["ran_with"] or {}).get("versions", {})
    wheel = make_wheel()
    texts = {
        "trial.json": json.dumps({**trial, "seed": study.record["seed"]}, indent=2) + "\n",
        "requirements.txt": f"{_requirements(versions)}./{wheel.name}\n",
        "README.md": _README.format(
            study=study_name, number=number, python=versions.get("python", "3.11"), about=about
        ),
        **({} if run is None else {"run.py": run}),
    }
    with in_place(path, force) as scratch, zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, text in texts.items():
            bundle.writestr(name, text)
        bundle.writestr(wheel.name, wheel.content)
        bundle.write(file, "study.py")
        files = checkpoint.parent / FILES
        folders = {"checkpoint": checkpoint} | ({"files": files} if files != checkpoint else {})
        for name, folder in folders.items():
            for part in sorted(folder.rglob("*")):
                bundle.write(part, Path(name) / part.relative_to(folder))
    return number


def _contents(study: StudyRow, checkpoint: Path) -> tuple[str | None, str]:
    """Return the bundle's program, if it has one, and what its README says about it."""
    if "train" not in study.record:
        return _RUN, _ABOUT_MODEL
    return (_RUN_STATE, _ABOUT_STATE) if (checkpoint / RECORD).is_file() else (None, _ABOUT_FILES)


def check_has_model(study: StudyRow) -> None:
    """Raise UsageError if a study has no trainer, and so no model that tuner can load."""
    kind = study.record.get("train")
    if kind is not None:
        raise UsageError(
            f"study {study.name!r} has {'an' if kind == 'objective' else 'a'} {kind} instead of a trainer, so tuner "
            "cannot load its models: `tuner export` bundles the state or the files that a trial has saved, and "
            "`tuner.load_state` returns a saved state"
        )


def best_number(engine: Engine, study_name: str) -> int:
    """Return the number of the best trial.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: there is no complete trial that satisfies its constraints.
    """
    best = best_rows(engine, study_name)
    if not best:
        missing = f"study {study_name!r} has no complete trials yet"
        raise UsageError(no_feasible(engine, study_name) or missing)
    return best[0]["number"]


def checkpoint_of(trial: ShownJson) -> Path:
    """Return the path of a trial's best checkpoint; one in object storage is copied to this machine first.

    Args:
        trial: The trial's row, from `tuner.results.rows.show_row`.

    Raises:
        UsageError: it has no checkpoint, or none on this machine.
        ArtifactsLost: the object storage cannot be reached.
    """
    name = f"trial {trial['number']} of {trial['study']!r}"
    if trial["checkpoint"] is None:
        raise UsageError(f"{name} has no checkpoint: a study keeps only those of its best trials (`keep_best`)")
    return local_checkpoint(trial["checkpoint"], name)


def file_of(trial: ShownJson) -> Path:
    """Return the study file that a trial ran with.

    Args:
        trial: The trial's row, from `tuner.results.rows.show_row`.

    Raises:
        UsageError: it is not on this machine.
    """
    name, recorded = f"trial {trial['number']} of {trial['study']!r}", (trial["ran_with"] or {}).get("file")
    if recorded is None:
        raise UsageError(
            f"{name} has no study file: it ran in a notebook or in a program of its own; define the study in a file, "
            "and launch that"
        )
    file = Path(recorded)
    if not file.is_file():
        raise UsageError(f"the study file of {name} is not on this machine: no file {str(file)!r}")
    return file


def _requirements(versions: dict[str, str]) -> str:
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return "".join(f"{name}=={versions[name]}\n" for name in names if name in versions)


_README = """# Trial {number} of {study}

What the trial has saved, the study it comes from, and what it ran with.

    pip install -r requirements.txt     # Python {python}; in this folder

`requirements.txt` has the versions that the trial ran with, and the wheel of tuner in this folder. Do not
install `tuner` from the public package index: that is another project.

{about}
`study.py` is the study's file; `trial.json` has hyperparameters, curves, timings, versions and the state of the
repository. The bundle does not contain modules that the study file imports from its own folder.
"""

_ABOUT_MODEL = """`python run.py` loads the trained model, evaluates it on the study's validation data, and compares the
results with the recorded ones."""
_ABOUT_STATE = """`python run.py` loads the state that the training function has saved, and prints its parts.
`files` has the files that it wrote to the trial's folder, if any. `requirements.txt` does not have the
other packages that the function imports."""
_ABOUT_FILES = "`checkpoint` has the files that the trial wrote to its folder."

_RUN_STATE = '''"""Load the state that the trial has saved, and print its hyperparameters and the parts of the state."""

import json
from pathlib import Path

import tuner

here = Path(__file__).parent
trial = json.loads((here / "trial.json").read_text())
print(f"trial {trial['number']} of {trial['study']}: {json.dumps(trial['hparams'])}")


def show(part, name="state"):
    if isinstance(part, dict):
        for key, inner in part.items():
            show(inner, f"{name}[{key!r}]")
    elif isinstance(part, list | tuple):
        for at, inner in enumerate(part):
            show(inner, f"{name}[{at}]")
    else:
        print(f"{name}: {part.dtype}{list(part.shape)}" if hasattr(part, "shape") else f"{name}: {part}")


show(tuner.load_state(here / "checkpoint"))
'''

_RUN = '''"""Load the trial, evaluate it, and compare the results with the recorded ones."""

import json
from pathlib import Path

from tuner.study import load_study
from tuner.training import load_from_checkpoint

here = Path(__file__).parent
trial = json.loads((here / "trial.json").read_text())
study = load_study(f"{here / 'study.py'}:{trial['study']}")
hparams = study.hparams_of(trial["hparams"])
loaded = load_from_checkpoint(here / "checkpoint", trainer=study.trainer, hparams=hparams)
found = study.trainer.eval_model(loaded.state, study.data_for(hparams, seed=trial["seed"]).validation, hparams)
recorded = loaded.record["best"]["metrics"]
for name, value in found.items():
    print(f"{name}: {value:.6g}, recorded {recorded[name]:.6g}")
if any(abs(value - recorded[name]) > 1e-3 * max(abs(value), abs(recorded[name])) for name, value in found.items()):
    raise SystemExit("the results differ from those recorded: compare the package versions")
'''
