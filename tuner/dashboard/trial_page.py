"""The page of a trial: its hyperparameters, result, curve, attempts, versions, checkpoint, pictures and log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bottle import SimpleTemplate

from tuner.admin.edits import MAY_BE_RETRIED
from tuner.dashboard.curves_page import CHARTS, SCRIPTS
from tuner.dashboard.layout import NOTE, Page, study_query
from tuner.dashboard.notes import read_note
from tuner.dashboard.pictures import find_pictures
from tuner.dashboard.study_page import value_text
from tuner.output.numbers import as_text, duration
from tuner.output.sanitize import printable
from tuner.results.gpus import gpu_texts
from tuner.results.json_rows import ReportJson, ShownJson
from tuner.results.rows import show_row
from tuner.results.trial_log import last_lines
from tuner.storage.optuna.storage import Storage
from tuner.storage.read.queries import StudyRow, read_trial
from tuner.storage.worker.retries import find_open_retry
from tuner.trial import Outcome

MOST_REPORTS = 100
"""Rows of the table of metrics; of more reports, some at equal distances are shown."""
_OPEN = (Outcome.RUNNING, Outcome.PREEMPTED, Outcome.WAITING)

_BODY = (
    """% if done:
<p class="done" role="status">{{done}}</p>
% end
<p class="note"><a href="{{prefix}}/study{{query}}">{{study}}</a></p>
<div id="live-facts" data-live>
<div class="tiles">
<section class="tile"><h2>Outcome</h2>
<p class="large {{state_class(row['outcome'])}}">{{words(row['outcome'])}}</p></section>
<section class="tile"><h2>{{'Values' if 'values' in row else 'Value'}}</h2>
<p class="large">{{value_text(row) or 'none'}}</p></section>
<section class="tile"><h2>Time</h2><p class="large">{{seconds(row['seconds']) or 'not ended'}}</p></section>
</div>
</div>
% if may_change:
<div class="row" id="actions" data-live>
% if may_end:
<form method="post" action="{{path}}/end"
 data-confirm="End trial {{number_}}? Its worker drops it, and the study continues.">
<button id="end">End this trial</button>
</form>
% end
% if retry is not None:
<p class="note" id="retried"><a href="{{prefix}}/trial{{retried}}">Queued again as trial {{retry}}</a></p>
% elif may_retry:
<form method="post" action="{{path}}/retry"><button id="retry">Retry</button></form>
% end
% if row['hparams']:
<a href="{{prefix}}/study{{like}}#enqueue">Queue a trial like this one</a>
% end
<a href="{{prefix}}/dashboard/studies/{{study_id}}/trials?numbers={{number_}}">In Optuna's pages</a>
</div>
% end
<h2>Hyperparameters</h2>
{{!fields_table('hparams', row['hparams'])}}
% if facts:
<h2>Facts</h2>
{{!fields_table('facts', facts)}}
% end
<h2>Curves</h2>
"""
    + CHARTS
    + """% if row['error']:
<h2>Error</h2>
<pre tabindex="0" id="error">{{row['error']}}</pre>
% end
<h2>Attempts</h2>
<div class="wide" tabindex="0" role="region" aria-label="Attempts" id="live-attempts" data-live>
<table id="attempts">
<thead><tr><th>worker</th><th>devices</th><th>time</th><th>ending</th><th>error</th></tr></thead>
<tbody>
% for one in row['attempts']:
<tr><td>{{one['worker']}}</td><td class="number">{{one['devices']}}</td>
<td class="number">{{seconds(one['seconds'])}}</td>
<td class="{{state_class(one['ending'])}}">{{words(one['ending'])}}</td>
<td>
% if one['error']:
<details><summary>{{last_line(one['error'])}}</summary><pre tabindex="0">{{one['error']}}</pre></details>
% end
</td></tr>
% end
</tbody>
</table>
</div>
% if pictures:
<h2>Pictures</h2>
<div class="row">
% for name in pictures:
<img class="picture" loading="lazy" src="{{prefix}}/pictures/{{study_id}}/{{number_}}/{{name}}" alt="{{name}}">
% end
</div>
% end
<h2>Log</h2>
% if lines:
<p class="note"><a href="{{prefix}}/logs{{log}}">The last lines</a> that the trial has printed.</p>
<pre id="log" tabindex="0" data-live>{{lines}}</pre>
% else:
<p class="note" id="log" data-live>Nothing printed.</p>
% end
<h2>Metrics</h2>
% if not reports:
<p class="note" id="live-metrics" data-live>No reports yet.</p>
% else:
<div class="wide" tabindex="0" role="region" aria-label="Metrics" id="live-metrics" data-live>
<table id="metrics">
<thead><tr><th>epoch</th><th>step</th>
% for name in names:
<th>{{name}}</th>
% end
</tr></thead>
<tbody>
% for one in reports:
<tr><td class="number">{{one['epoch']}}</td><td class="number">{{blank(one['step'])}}</td>
% for name in names:
<td class="number">{{number(blank(one['metrics'].get(name)))}}</td>
% end
</tr>
% end
</tbody>
</table>
</div>
% end
"""
    + NOTE
)

_FIELDS = SimpleTemplate("""% if not fields:
<p class="note">None.</p>
% else:
<div class="wide">
<table class="fields" id="{{name}}">
<tbody>
% for key, value in fields.items():
<tr><th scope="row">{{key}}</th><td class="break">{{value}}</td></tr>
% end
</tbody>
</table>
</div>
% end
""")


def fields_table(name: str, fields: Mapping[str, object]) -> str:
    """Return the HTML of a table with a line for each field."""
    shown = {key: as_text(value) for key, value in fields.items()}
    return _FIELDS.render(name=name, fields=shown)


TRIAL = Page(
    _BODY, "Studies", [*SCRIPTS, "live.js", "forms.js"], {"fields_table": fields_table, "value_text": value_text}
)


def read_trial_page(storage: Storage, study: StudyRow, number: int, prefix: str) -> dict[str, object]:
    """Return the data of a trial's page.

    Args:
        storage: The storage.
        study: The study.
        number: The trial's number.
        prefix: The path that the dashboard is under.

    Raises:
        UnknownStudy: There is no such trial.
    """
    engine = storage.engine
    row = show_row(engine, study.name, number)
    trial = read_trial(engine, study, number)
    reports = _thinned(row["reports"])
    retry = find_open_retry(engine, study.study_id, number)
    lines = [printable(line) for line in last_lines(engine, trial.trial_id)]
    return {
        "study": study.name,
        "study_id": study.study_id,
        "number_": number,
        "row": row,
        "path": f"{prefix}/actions/{study.study_id}/trials/{number}",
        "note_path": f"/actions/{study.study_id}/trials/{number}/note",
        "like": study_query(study.name, like=number),
        "log": study_query(study.name, trial=number),
        "source": f"{prefix}/curves.json{study_query(study.name, trials=number)}",
        "may_end": trial.outcome in _OPEN,
        "may_retry": trial.outcome in MAY_BE_RETRIED and bool(trial.hparams),
        "retry": retry,
        "retried": study_query(study.name, trial=retry),
        "facts": _facts(row),
        "pictures": [path.name for path in find_pictures(engine, study, trial)],
        "lines": "\n".join(lines),
        "reports": reports,
        "names": list(dict.fromkeys(name for one in reports for name in one["metrics"])),
        "note": read_note(storage, study.study_id, trial.trial_id),
    }


def _thinned(reports: Sequence[ReportJson]) -> list[ReportJson]:
    """Return at most about `MOST_REPORTS` reports at equal distances, with the first and the last."""
    every = -(-len(reports) // MOST_REPORTS) or 1
    return [one for at, one in enumerate(reports) if at % every == 0 or at == len(reports) - 1]


def _facts(row: ShownJson) -> dict[str, object]:
    """Return what is known about a trial besides its reports, by name; without what is not known."""
    about = row["ran_with"]
    facts: dict[str, object] = {
        "started": row["started"],
        "completed": row["completed"],
        "worker": row["worker"],
        "checkpoint": row["checkpoint"],
        "satisfies its constraints": None if row["is_feasible"] is None else "yes" if row["is_feasible"] else "no",
        "training": _time(row["train_s"]),
        "compiling": _time(row["compile_s"], f", {row['compilations']} programs"),
        "waiting": _time(row["wait_s"]),
        "ended the study": row["ended_study"],
        **({} if row["gpu"] is None else gpu_texts(row["gpu"])),
    }
    facts |= {f"constraint {name}": value for name, value in (row["constraints"] or {}).items()}
    facts |= {name: value for name, value in row["user_attrs"].items()}
    if about is not None:
        git = about.get("git")
        facts |= {"host": about["host"], "devices": about["devices"], "file": about.get("file")}
        facts["commit"] = None if git is None else f"{git['commit']}{', with changes' if git['is_changed'] else ''}"
        facts |= {f"version of {name}": version for name, version in about.get("versions", {}).items()}
    return {name: value for name, value in facts.items() if value is not None}


def _time(seconds: float | None, more: str = "") -> str | None:
    return None if seconds is None else duration(seconds) + more
