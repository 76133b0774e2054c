"""What all our pages have in common: head, bar, choice of a study, and how values are written as HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from bottle import SimpleTemplate

from tuner.output.numbers import as_text, duration

HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="UTF-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{title}}</title>
<link rel="stylesheet" href="{{prefix}}/assets/page.css">
<link rel="icon" href="{{prefix}}/favicon.ico">
"""
TOP = (
    HEAD
    + """% for script in scripts:
<script src="{{prefix}}/assets/{{script}}" defer></script>
% end
% if 'uPlot.iife.min.js' in scripts:
<link rel="stylesheet" href="{{prefix}}/assets/uPlot.min.css">
% end
</head>
<body class="tuner">
<nav id="tuner-bar" aria-label="Dashboard">
% for link_text, link_path in links(query):
<a href="{{prefix}}{{link_path}}"{{!' aria-current="page"' if link_text == here else ''}}>{{link_text}}</a>
% end
% if user:
<span class="who">{{user}} ({{role}})</span>
<form method="post" action="{{prefix}}/logout"><button id="tuner-log-out">Log out</button></form>
% end
</nav>
<main>
<h1>{{title}}</h1>
"""
)
CHOICE = """<form method="get" class="row">
<label for="choice">Study</label>
<select id="choice" name="study">
% if may_be_all:
<option value="">all studies</option>
% end
% for name in studies:
<option value="{{name}}"{{!' selected' if name == study else ''}}>{{name}}</option>
% end
</select>
<button class="plain">Show</button>
</form>
"""
NOTE = """<h2>Note</h2>
% if note.text:
<pre class="text" id="note">{{note.text}}</pre>
% elif not may_change:
<p class="note">None.</p>
% end
% if may_change:
<details id="change-note"><summary>{{'Change the note' if note.text else 'Add a note'}}</summary>
<form method="post" action="{{prefix}}{{note_path}}">
<input type="hidden" name="version" value="{{note.version}}">
<label for="note-text">Note, in Markdown</label>
<textarea id="note-text" name="text" maxlength="20000">{{note.text}}</textarea>
<button id="save-note">Save the note</button>
</form>
</details>
% end
"""
BOTTOM = """</main>
</body>
</html>
"""
LINKS = (
    ("Studies", "/studies"),
    ("Curves", "/curves"),
    ("Workers", "/workers"),
    ("Checkpoints", "/checkpoints"),
    ("Plots", "/plots"),
    ("Logs", "/logs"),
    ("Optuna", "/dashboard"),
)
"""The bar; on Optuna's pages too, where `assets/bar.js` makes it."""
_OF_ALL = ("/studies", "/dashboard")


@dataclass(frozen=True)
class Viewer:
    """Who looks at a page.

    Attributes:
        prefix: The path that the dashboard is under.
        user: The name of the user, if there is a session.
        role: What the user may do.
        may_change: Whether that includes changes.
    """

    prefix: str
    user: str | None = None
    role: str = ""
    may_change: bool = False


@dataclass(frozen=True)
class Page:
    """A kind of page.

    Args:
        body: Its template, between the bar and the end.
        here: The link of the bar that leads to it.
        scripts: Scripts in the folder of assets.
        formats: Functions for the template.
    """

    body: str
    here: str
    scripts: Sequence[str] = ()
    formats: Mapping[str, object] = field(default_factory=dict[str, object])

    def render(self, viewer: Viewer, title: str, **given: object) -> str:
        """Return the page as HTML; templates escape what is given.

        Args:
            viewer: Who looks at it.
            title: Its title and heading.
            given: The values of the template. `query` keeps the study that is looked at in the links of the bar.
        """
        template = _template(self.body)
        known = {**FORMATS, "query": "", "links": _links, **self.formats, **vars(viewer)}
        return template.render(known, title=title, here=self.here, scripts=self.scripts, **given)


_templates: dict[str, SimpleTemplate] = {}


def _template(body: str) -> SimpleTemplate:
    return _templates.setdefault(body, SimpleTemplate(TOP + body + BOTTOM))


def _links(query: str) -> list[tuple[str, str]]:
    return [(text, path if path in _OF_ALL else path + query) for text, path in LINKS]


def study_query(study: str, **more: object) -> str:
    """Return the query of an address for a study, with its question mark."""
    return "?" + urlencode({"study": study, **more}, errors="backslashreplace")


def study_link(prefix: str, study: str) -> str:
    """Return the HTML of a study's name, with a link to its page."""
    return f'<a href="{html.escape(prefix)}/study{html.escape(study_query(study))}">{html.escape(study)}</a>'


def trial_link(prefix: str, study: str, number: object) -> str:
    """Return the HTML of a trial's number, with a link to its page; nothing without a trial."""
    if number is None:
        return ""
    address = html.escape(prefix + "/trial" + study_query(study, trial=number))
    return f'<a href="{address}">{html.escape(str(number))}</a>'


def state_class(state: str | None) -> str:
    """Return the class of a state or an outcome in the stylesheet."""
    return "state " + (state or "").replace(" ", "-").replace("_", "-")


def words(state: str | None) -> str:
    """Return a state or an outcome as people read it."""
    return (state or "").replace("_", " ")


def seconds(value: float | None) -> str:
    """Return a duration as people read it; nothing for None."""
    return "" if value is None else duration(value)


def size(value: int) -> str:
    """Return a readable number of bytes."""
    for unit, bytes_ in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= bytes_:
            return f"{value / bytes_:.1f} {unit}"
    return f"{value} B"


def number(value: object) -> str:
    """Return a metric with five digits."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def metrics(values: Mapping[str, object] | None) -> str:
    """Return metrics by name."""
    return ", ".join(f"{name} {number(value)}" for name, value in (values or {}).items())


def blank(value: object) -> Any:
    """Return a value, or an empty text for None."""
    return "" if value is None else value


def last_line(error: str) -> str:
    """Return the last line of a traceback: the error itself."""
    return error.rstrip().rpartition("\n")[2][:300]


def polyline(curve: Sequence[float], width: int, height: int) -> str:
    """Return values as the points of an SVG polyline that fills a box, skipping values that are not finite."""
    places = [(float(place), value) for place, value in enumerate(curve) if math.isfinite(value)]
    return _points(places, max(1.0, len(curve) - 1.0), width, height)


def step_line(points: Sequence[tuple[int, float]], last: int, width: int, height: int) -> str:
    """Return the best value up to each trial as the points of an SVG polyline with steps.

    Args:
        points: Trial numbers, increasing, and the best value from each on.
        last: The number of the last trial, where the line ends.
        width: Of the box that it fills.
        height: Of the box.
    """
    steps: list[tuple[float, float]] = []
    for at, (place, value) in enumerate(points):
        if at:
            steps.append((float(place), points[at - 1][1]))
        steps.append((float(place), value))
    if points:
        steps.append((float(max(last, points[-1][0])), points[-1][1]))
    return _points(steps, float(max(last, 1)), width, height)


def _points(places: Sequence[tuple[float, float]], end: float, width: int, height: int) -> str:
    if len(places) < 2:
        return ""
    low, high = min(value for _, value in places), max(value for _, value in places)
    across, up = (width - 4) / end, (height - 4) / ((high - low) or 1.0)
    return " ".join(f"{2 + place * across:.1f},{height - 2 - (value - low) * up:.1f}" for place, value in places)


FORMATS: Mapping[str, object] = {
    "study_query": study_query,
    "study_link": study_link,
    "trial_link": trial_link,
    "state_class": state_class,
    "words": words,
    "seconds": seconds,
    "size": size,
    "number": number,
    "as_text": as_text,
    "metrics": metrics,
    "blank": blank,
    "last_line": last_line,
    "polyline": polyline,
    "step_line": step_line,
}
