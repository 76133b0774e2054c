"""Exports results to a file with a row for each trial; finds a trial's checkpoint and study file."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Engine

from tuner.errors import TunerError, UsageError, how_to_install
from tuner.output.cells import csv_text
from tuner.output.numbers import plain_json
from tuner.results.choice import pareto_front, preferred
from tuner.results.json_rows import JsonRow, ShownJson
from tuner.results.rows import best_rows, format_time, no_feasible
from tuner.storage.artifacts import local_checkpoint
from tuner.storage.read.queries import StudyRow, TrialRow, find_study, read_trials

_GPU = ("gpu_peak_bytes", "gpu_mean_bytes", "gpu_total_bytes", "gpu_percent")
_RECORDED = ("compile_s", "compilations", "train_s", "worker", "checkpoint", "error_kind", "error")


def export_trials(engine: Engine, study_name: str, path: Path, *, force: bool = False) -> int:
    """Write a row for each trial to `path`; return the number of rows.

    Columns are those of `docs/json.md`, with hyperparameters as `hparams.NAME`, constraints as `constraints.NAME` and
    user attributes as `user_attrs.NAME`. With several objectives, each has a column `values.NAME`. CSV and Parquet have
    nested attributes as JSON.

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
    trials = read_trials(engine, study)
    known = [name for name in _GPU if any(getattr(trial.record, name) is not None for trial in trials)]
    return [_flat_row(study, trial, (*_RECORDED, *known)) for trial in trials]


def _flat_row(study: StudyRow, trial: TrialRow, recorded: Sequence[str]) -> dict[str, object]:
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
    row |= {key: getattr(trial.record, key) for key in recorded}
    row |= {f"hparams.{name}": value for name, value in trial.hparams.items()}
    return row | {f"user_attrs.{name}": value for name, value in trial.user_attrs.items()}


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


def _cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _write_csv(rows: Sequence[JsonRow], path: Path) -> None:
    columns = _columns(rows)
    text = csv_text([columns, *([_cell(row.get(column)) for column in columns] for row in rows)])
    # A lone surrogate, which is allowed in JSON but not in UTF-8, becomes an escape.
    path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def _write_json(rows: Sequence[JsonRow], path: Path) -> None:
    path.write_text(json.dumps(plain_json(list(rows)), indent=2) + "\n", encoding="utf-8")


def _write_parquet(rows: Sequence[JsonRow], path: Path) -> None:
    try:
        from pyarrow import parquet, table  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
    except ImportError:
        raise UsageError(f"Parquet files need pyarrow: {how_to_install('parquet')}") from None
    columns: dict[str, list[Any]] = {}
    for column in _columns(rows):
        values = [_cell(row.get(column)) for row in rows]
        kinds: set[type[Any]] = {type(value) for value in values if value is not None}
        # A column has one type: choices of several kinds become JSON.
        is_mixed = len(kinds) > 1 and not kinds <= {int, float}
        columns[column] = [json.dumps(value) for value in values] if is_mixed else values
    cast("Any", parquet).write_table(table(columns), path)


def check_has_model(study: StudyRow) -> None:
    """Raise UsageError if a study has no trainer, and so no model that tuner can load."""
    kind = study.record.get("train")
    if kind is not None:
        raise UsageError(
            f"study {study.name!r} has {'an' if kind == 'objective' else 'a'} {kind} instead of a trainer, so tuner "
            "cannot load its models: `tuner export` bundles the state or the files that a trial has saved, and "
            "`tuner.load_state` returns a saved state"
        )


def best_number(engine: Engine, study_name: str, prefer: str | None = None) -> int:
    """Return the number of the best trial.

    Args:
        engine: The storage's engine.
        study_name: The study.
        prefer: With several objectives, which trial of the Pareto front; see `tuner.results.choice.preferred`. None is
            possible if the front has one trial.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: there is no complete trial that satisfies its constraints, or it is not clear which one is meant.
    """
    study = find_study(engine, study_name)
    if len(study.directions) > 1:
        front = pareto_front(read_trials(engine, study), study.maximize)
        best = [trial.number for trial in preferred(study, front, prefer)] if front else []
    else:
        best = [row["number"] for row in best_rows(engine, study_name, prefer=prefer)]
    if not best:
        missing = f"study {study_name!r} has no complete trials yet"
        raise UsageError(no_feasible(engine, study_name) or missing)
    return best[0]


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


def study_file_of(trial: ShownJson) -> Path:
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
            "and launch that, or pass a file with the same study as `file`"
        )
    file = Path(recorded)
    if not file.is_file():
        host = (trial["ran_with"] or {}).get("host")
        raise UsageError(
            f"the study file of {name} is not on this machine: no file {str(file)!r}, which was on {host}; pass the "
            "location of a copy as `file`"
        )
    return file
