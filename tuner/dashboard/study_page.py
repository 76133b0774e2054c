"""The page of a study: how it is doing on the first screen, its trials, and what an editor can do with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine

from tuner.admin.edits import shortage_of
from tuner.dashboard.enqueue_form import FORM, read_fields
from tuner.dashboard.layout import NOTE, Page
from tuner.dashboard.notes import read_note
from tuner.dashboard.savings import Saved, SavingsCache
from tuner.dashboard.start_page import best_text, used_trials
from tuner.output.numbers import as_text, duration
from tuner.results.json_rows import BestJson, WatchedJson
from tuner.results.rows import best_rows, progress
from tuner.storage.optuna.storage import Storage
from tuner.storage.read.improvements import read_improvements
from tuner.storage.read.queries import Standing, StudyRow, read_standings
from tuner.trial import Outcome

_SHOWN = 10

_TRIALS = """% def trials_table(name, rows, heading):
<h2>{{heading}}</h2>
% if not rows:
<p class="note">None yet.</p>
% else:
<div class="wide" tabindex="0" role="region" aria-label="{{heading}}">
<table id="{{name}}">
<thead><tr><th>trial</th><th>outcome</th><th>value</th><th>seconds</th>
% if 'hparams' in rows[0]:
<th>hyperparameters</th>
% end
</tr></thead>
<tbody>
% for row in rows:
<tr>
<td class="number">{{!trial_link(prefix, study, row['number'])}}</td>
<td class="{{state_class(row['outcome'])}}">{{words(row['outcome'])}}</td>
<td class="number">{{value_text(row)}}</td>
<td class="number">{{seconds(row['seconds'])}}</td>
% if 'hparams' in row:
<td>{{metrics(row['hparams'])}}</td>
% end
</tr>
% end
</tbody>
</table>
</div>
% end
% end
"""

_BODY = (
    _TRIALS
    + """% if done:
<p class="done" role="status">{{done}}</p>
% end
<div id="live-tiles" data-live>
% if shortage:
<p class="hint">{{shortage}}</p>
% end
<div class="tiles">
% for tile in tiles:
<section class="tile" id="tile-{{tile.key}}"><h2>{{tile.heading}}</h2>
<p class="large{{' ' + state_class(row['state']) if tile.key == 'state' else ''}}">{{tile.large}}</p>
% for line in tile.lines:
<p class="small">{{line}}</p>
% end
% if tile.trials:
<p class="small">{{'trials' if len(tile.trials) > 1 else 'trial'}}
% for one in tile.trials:
{{!trial_link(prefix, study, one)}}
% end
</p>
% end
</section>
% end
</div>
% if history:
<svg class="curve large" viewBox="0 0 1000 80" preserveAspectRatio="none" role="img"
 aria-label="Best value by trial"><polyline points="{{step_line(history, last, 1000, 80)}}"/></svg>
% end
</div>
<div class="row">
<a href="{{prefix}}/curves{{query}}">Curves</a>
<a href="{{prefix}}/plots{{query}}">Plots</a>
<a href="{{prefix}}/workers{{query}}">Workers</a>
<a href="{{prefix}}/checkpoints{{query}}">Checkpoints</a>
<a href="{{prefix}}/dashboard/studies/{{study_id}}">In Optuna's pages</a>
<form method="get" action="{{prefix}}/trial" class="row">
<input type="hidden" name="study" value="{{study}}">
<label for="number">Trial</label>
<input id="number" name="trial" type="number" min="0" required>
<button class="plain">Open</button>
</form>
</div>
% if may_change:
<div class="row" id="actions" data-live>
% if is_ours:
<form method="post" action="{{prefix}}/actions/{{study_id}}/{{'resume' if is_stopped else 'stop'}}">
<button id="{{'resume' if is_stopped else 'stop'}}">{{'Resume' if is_stopped else 'Stop'}} the study</button>
</form>
% end
% if asked is not None:
<form method="post" action="{{prefix}}/actions/{{study_id}}/trials" class="row">
<label for="trials">Number of trials</label>
<input id="trials" name="trials" type="number" min="1" value="{{asked}}" required>
<button id="change-trials">Change</button>
</form>
% end
</div>
% if fields:
<details id="enqueue"{{!' open' if is_filled else ''}}><summary>Queue a trial</summary>
"""
    + FORM
    + """</details>
% end
% end
<div id="live-trials" data-live>
% if busy:
<h2>Running</h2>
<div class="wide" tabindex="0" role="region" aria-label="Running trials">
<table id="running">
<thead><tr><th>trial</th><th>epoch</th><th>metrics</th><th>worker</th><th>devices</th></tr></thead>
<tbody>
% for one in busy:
<tr><td class="number">{{!trial_link(prefix, study, one['trial'])}}</td><td class="number">{{blank(one['epoch'])}}</td>
<td>{{one['metrics']}}</td><td>{{one['worker']}}</td><td>{{one['devices']}}</td></tr>
% end
</tbody>
</table>
</div>
% end
% trials_table('best', best, 'Pareto front' if has_front else 'Best trials')
% trials_table('latest', latest, 'Latest trials')
</div>
"""
    + NOTE
)


@dataclass(frozen=True)
class Tile:
    """A fact about a study.

    Attributes:
        key: Its name in the page.
        heading: What it is.
        large: The fact.
        lines: What else is known.
        trials: Trials to link to.
    """

    key: str
    heading: str
    large: str
    lines: Sequence[str] = ()
    trials: Sequence[int] = ()


def value_text(row: Mapping[str, object]) -> str:
    """Return the value of a trial, or its values, as text; empty if it has none."""
    found = row.get("values") if "values" in row else row.get("value")
    return "" if found is None else as_text(found)


STUDY = Page(_BODY, "Studies", ["live.js", "forms.js"], {"value_text": value_text})


def read_study_page(
    storage: Storage, study: StudyRow, savings: SavingsCache, given: Mapping[str, object]
) -> dict[str, object]:
    """Return the data of a study's page; a fixed number of queries, whose rows do not grow with the trials shown.

    Args:
        storage: The storage.
        study: The study.
        savings: What pruning and shared compilation have saved.
        given: Hyperparameters that the form for queueing a trial begins with.

    Raises:
        UnknownStudy: The study was deleted.
    """
    engine = storage.engine
    state = progress(engine, study.name, _SHOWN)
    standing = read_standings(engine, study.study_id).get(study.study_id)
    best = best_rows(engine, study.name, _SHOWN)
    has_front = len(study.directions) > 1
    shortage = shortage_of(standing, {outcome: state["study"][outcome.value] for outcome in Outcome})
    improvements = {} if has_front else read_improvements(engine, [study], study.study_id)
    return {
        "study": study.name,
        "study_id": study.study_id,
        "row": state["study"],
        "tiles": [*_tiles(engine, study, state, standing, best), _savings_tile(savings.read(study))],
        "shortage": None if shortage is None else shortage.describe(study.name),
        "history": improvements.get(study.study_id, []),
        "last": state["study"]["trials"] - 1,
        "is_ours": bool(study.record),
        "is_stopped": standing is not None and standing.is_stopped,
        "asked": None if standing is None else standing.trials,
        "fields": read_fields(engine, study, given),
        "is_filled": bool(given),
        "busy": state["workers"],
        "best": best,
        "has_front": has_front,
        "latest": state["ended"],
        "note": read_note(storage, study.study_id),
        "note_path": f"/actions/{study.study_id}/note",
    }


def _tiles(
    engine: Engine, study: StudyRow, state: WatchedJson, standing: Standing | None, best: Sequence[BestJson]
) -> list[Tile]:
    row = state["study"]
    tiles = [Tile("state", "State", row["state"] or "not created by tuner", [row["reason"]] if row["reason"] else [])]
    tiles += [_budget_tile(state, standing)]
    busy = len(state["workers"])
    tiles += [Tile("workers", "Workers", f"{busy} at work", [f"{row['waiting']} trials in the queue"])]
    if len(study.directions) == 1:
        tiles += [_best_tile(study, state, best), *_tied_tile(best), *_baseline_tile(best)]
    else:
        tiles += [Tile("best", "Pareto front", f"{len(best)} trials shown below")]
    labels = [f"labels: {', '.join(study.labels)}"] if study.labels else []
    return [*tiles, *([Tile("owner", "Owner", study.owner or "nobody", labels)] if study.owner or labels else [])]


def _budget_tile(state: WatchedJson, standing: Standing | None) -> Tile:
    row = state["study"]
    used = used_trials(row)
    if standing is None or standing.trials is None:
        return Tile("budget", "Trials", str(row["trials"]))
    lines = [
        f"{duration(used_s)} of {duration(limit_s)} {what}"
        for used_s, limit_s, what in (
            (standing.used.wall_s, standing.wall_s, "of running"),
            (standing.used.device_s, standing.device_s, "of devices"),
        )
        if limit_s is not None
    ]
    lines = lines or [f"{duration(standing.used.device_s)} of devices"]
    counts = ", ".join(f"{row[name]} {name}" for name in ("complete", "pruned", "failed") if row[name])
    return Tile("budget", "Budget used", f"{used} of {standing.trials} trials", [*([counts] if counts else []), *lines])


def _best_tile(study: StudyRow, state: WatchedJson, best: Sequence[BestJson]) -> Tile:
    heading = f"Best {study.objectives[0]}" if study.named_objectives else "Best value"
    if not best:
        return Tile("best", heading, "none yet")
    first = best[0]
    confirmed = first.get("confirmed")
    trials = [first["number"]]
    if confirmed is None:
        how = f"of one training; tuner confirm {study.name} measures how much of it is luck"
        text = best_text(state["study"])
        if first.get("stderr") is not None:
            how = f"mean over {first.get('trained_seeds')} seeds of its own, with its standard error"
        return Tile("best", heading, text, [how], trials)
    low, high = confirmed["low"], confirmed["high"]
    interval = "" if low is None or high is None else f" [{as_text(low)}, {as_text(high)}]"
    how = f"mean over {confirmed['seeds']} other seeds" + (", 95 % interval" if interval else "")
    return Tile("best", heading, f"{as_text(confirmed['mean'])}{interval}", [how], trials)


def _tied_tile(best: Sequence[BestJson]) -> list[Tile]:
    confirmed = best[0].get("confirmed") if best else None
    if confirmed is None:
        return []
    tied = confirmed["tied_with"]
    what = f"{len(tied)} trial{'s' if len(tied) != 1 else ''}" if tied else "no other trial"
    return [Tile("tied", "Tied with the best", what, ["cannot be told apart (95 %, Tukey)"] if tied else [], tied)]


def _baseline_tile(best: Sequence[BestJson]) -> list[Tile]:
    baseline = best[0].get("baseline") if best else None
    if baseline is None:
        return []
    lines: list[str] = []
    if best[0]["number"] == baseline["number"]:
        lines.append("it is the best trial")
    elif baseline["better_by"] is not None:
        low, high = baseline["low"], baseline["high"]
        interval = "" if low is None or high is None else f" [{as_text(low)}, {as_text(high)}]"
        is_worse = float(baseline["better_by"]) < 0
        by = as_text(abs(float(baseline["better_by"]))) if is_worse and not interval else as_text(baseline["better_by"])
        lines.append(f"the best is {'worse' if is_worse and not interval else 'better'} by {by}{interval}")
    return [Tile("baseline", "Baseline", as_text(baseline["value"]), lines, [baseline["number"]])]


def _savings_tile(saved: Saved) -> Tile:
    pruning = "not known" if saved.pruning_s is None else f"about {duration(saved.pruning_s)}"
    compilation = "not known" if saved.compilation_s is None else f"about {duration(saved.compilation_s)}"
    lines = ["of devices, by pruning", f"by shared compilation: {compilation}"]
    return Tile("savings", "Saved", pruning, lines)
