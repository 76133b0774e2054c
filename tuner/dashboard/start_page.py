"""The first page: all studies with their state, progress, best value, its history, and owner."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from sqlalchemy import Engine

from tuner.dashboard.layout import Page
from tuner.output.numbers import with_error
from tuner.results.json_rows import StudyJson
from tuner.results.rows import study_rows
from tuner.storage.read.budget import find_all_effective_trials
from tuner.storage.read.improvements import read_improvements
from tuner.storage.read.queries import read_studies
from tuner.trial import Outcome

_BODY = """% if chosen:
<p class="note">Only studies {{chosen.describe()}}. <a href="{{prefix}}/studies">Show all studies</a></p>
% end
% if not studies and chosen:
<p class="note">There is no such study in this storage.</p>
% elif not studies:
<p class="note">There is no study in this storage yet. <code>tuner launch FILE</code> starts one.</p>
% else:
% has_owners = any(one.owner for one in studies)
% has_labels = any(one.labels for one in studies)
<div class="wide" tabindex="0" role="region" aria-label="Studies" id="live-studies" data-live>
<table id="studies" class="cards">
<thead><tr><th>study</th><th>state</th><th>progress</th><th>workers</th><th>best</th><th>best so far</th>
% if has_owners:
<th>owner</th>
% end
% if has_labels:
<th>labels</th>
% end
</tr></thead>
<tbody>
% for one in studies:
<tr>
<td class="break">{{!study_link(prefix, one.name)}}</td>
<td data-label="state"><span class="{{state_class(one.state)}}">{{one.state or 'not created by tuner'}}</span></td>
<td data-label="progress">{{one.progress}}
% if one.asked:
<meter min="0" max="{{one.asked}}" value="{{one.used}}" aria-label="Trials of {{one.name}} that are done"></meter>
% end
</td>
<td data-label="workers" class="number">{{one.workers}}</td>
<td data-label="best" class="number">{{one.best}}</td>
<td>
% if one.history:
<svg class="curve" viewBox="0 0 160 32" width="160" height="32" role="img" aria-label="Best value of {{one.name}}">
<polyline points="{{step_line(one.history, one.last, 160, 32)}}"/></svg>
% end
</td>
% if has_owners:
<td data-label="owner">{{!choice_link(prefix, 'owner', one.owner) if one.owner else ''}}</td>
% end
% if has_labels:
<td data-label="labels">{{!', '.join(choice_link(prefix, 'label', label) for label in one.labels)}}</td>
% end
</tr>
% end
</tbody>
</table>
</div>
% end
"""


@dataclass(frozen=True)
class StudyOverview:
    """A study in the list.

    Attributes:
        name: Its name.
        state: As in `tuner studies`; None for a study of plain Optuna.
        used: The number of trials that count towards `asked`.
        asked: The number of trials of the latest launch; None if it was never launched.
        trials: The number of trials with any outcome.
        workers: The number of workers that hold a trial.
        best: The best value as text, or what is shown instead.
        history: The best value from each trial on that improved it.
        last: The greatest number of a trial.
        owner: Who owns it, if that is recorded.
        labels: Its labels.
    """

    name: str
    state: str | None
    used: int
    asked: int | None
    trials: int
    workers: int
    best: str
    history: Sequence[tuple[int, float]]
    last: int
    owner: str | None
    labels: Sequence[str]

    @property
    def progress(self) -> str:
        """How many trials are done, of how many."""
        return f"{self.used} of {self.asked} trials" if self.asked else f"{self.trials} trials"


def used_trials(row: StudyJson) -> int:
    """Return how many trials of a study count towards its number of trials."""
    return sum(row[outcome.value] for outcome in Outcome if outcome.uses_budget)


def best_text(row: StudyJson) -> str:
    """Return the best value of a study as text."""
    if "," in row["direction"]:
        return "several objectives"
    return "none yet" if row["best"] is None else with_error(row["best"], row.get("best_stderr"))


@dataclass(frozen=True)
class Choice:
    """Which studies a page lists.

    Attributes:
        owner: Only those of this owner.
        label: Only those with this label.
    """

    owner: str | None = None
    label: str | None = None

    def __bool__(self) -> bool:
        return self.owner is not None or self.label is not None

    def describe(self) -> str:
        """Return the choice in words, to be read after "studies"."""
        owner = [] if self.owner is None else [f"of {self.owner}"]
        return " ".join([*owner, *([] if self.label is None else [f"with the label {self.label}"])])


def choice_link(prefix: str, kind: str, word: str) -> str:
    """Return the HTML of an owner or a label, with a link to its studies."""
    address = html.escape(f"{prefix}/studies?{urlencode({kind: word})}")
    return f'<a href="{address}">{html.escape(word)}</a>'


START = Page(_BODY, "Studies", ["live.js"], {"choice_link": choice_link})


def read_overviews(engine: Engine, chosen: Choice) -> list[StudyOverview]:
    """Return the chosen studies, the newest first; a few queries for each, however many trials it has."""
    labels = [] if chosen.label is None else [chosen.label]
    rows = {row["study"]: row for row in study_rows(engine, owner=chosen.owner, labels=labels)}
    studies = [study for study in read_studies(engine) if study.name in rows]
    asked = find_all_effective_trials(engine)
    improvements = read_improvements(engine, studies)
    found: list[StudyOverview] = []
    for study in reversed(studies):
        row = rows.get(study.name)
        if row is None:  # deleted since
            continue
        has_one = len(study.directions) == 1
        overview = StudyOverview(
            study.name,
            row["state"],
            used_trials(row),
            asked.get(study.study_id),
            row["trials"],
            row["workers"],
            best_text(row),
            improvements.get(study.study_id, []) if has_one else [],
            row["trials"] - 1,
            study.owner,
            study.labels,
        )
        found.append(overview)
    return found
