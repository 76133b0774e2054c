"""The trials of a study as a CSV file, in the columns of optuna-dashboard."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import bottle
from optuna.trial import FrozenTrial

from tuner.output.cells import safe_cell
from tuner.storage.optuna.storage import Storage

_METRIC_NAMES = "study:metric_names"
_NOT_IN_FILE_NAMES = re.compile(r'[\\/:*?"<>|\x00-\x1f\x7f]+')


def send_csv(storage: Storage, study_id: int) -> bytes:
    """Send the trials of a study as CSV; `trial_ids` in the query selects trials by number, separated by commas.

    Raises:
        HTTPError: The numbers are invalid, or a trial does not exist.
    """
    query: Any = bottle.request.query
    asked = query.get("trial_ids", "")
    trials: Sequence[FrozenTrial] = storage.get_all_trials(study_id, deepcopy=False)
    if asked:
        words = [word.strip() for word in asked.split(",")]
        if not all(re.fullmatch(r"[0-9]{1,18}", word) for word in words):
            raise bottle.HTTPError(400, "trial_ids must be whole numbers, separated by commas")
        numbers = {int(word) for word in words}
        trials = [trial for trial in trials if trial.number in numbers]
        if not trials:
            raise bottle.HTTPError(404, "the study has no trial of these numbers")
    name = storage.get_study_name_from_id(study_id)
    headings = storage.get_study_system_attrs(study_id).get(_METRIC_NAMES)
    count = len(storage.get_study_directions(study_id))
    headings = headings or (["Value"] if count == 1 else [f"Objective {number}" for number in range(count)])
    bottle.response.content_type = "text/csv; charset=utf-8"
    bottle.response.set_header("Content-Disposition", attachment(f"{name}.csv"))
    # Attributes may contain lone surrogates, which UTF-8 does not support.
    return csv_text(trials, headings).encode("utf-8", "backslashreplace")


def csv_text(trials: Sequence[FrozenTrial], headings: Sequence[str]) -> str:
    """Return trials as CSV; text that a spreadsheet would run as a formula gets an apostrophe in front.

    Args:
        trials: The trials.
        headings: The headings of the objectives' columns.
    """
    params = sorted({name for trial in trials for name in trial.params})
    attributes = sorted({name for trial in trials for name in trial.user_attrs})
    rows: list[list[Any]] = [
        ["Number", "State", *headings, *(f"Param {name}" for name in params),
         *(f"UserAttribute {name}" for name in attributes)]
    ]  # fmt: skip
    for trial in trials:
        values = trial.values if trial.values is not None else [None] * len(headings)
        chosen = [trial.params.get(name) for name in params]
        rows.append(
            [trial.number, trial.state.name, *values, *chosen, *(trial.user_attrs.get(name) for name in attributes)]
        )
    file = io.StringIO(newline="")
    csv.writer(file).writerows([[safe_cell(value) for value in row] for row in rows])
    return file.getvalue()


def attachment(name: str) -> str:
    """Return a `Content-Disposition` for a file of any name: RFC 6266."""
    name = _NOT_IN_FILE_NAMES.sub("", name).replace(" ", "-")
    plain = "".join(character if character.isascii() else "_" for character in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='', errors='replace')}"
