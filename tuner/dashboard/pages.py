"""HTML of the extra pages. Templates escape everything that comes from users, studies and databases."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from bottle import SimpleTemplate

from tuner.output.numbers import duration
from tuner.storage.read.activity import WorkerRow

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="UTF-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{title}}</title>
<link rel="stylesheet" href="{{prefix}}/assets/page.css">
<link rel="icon" href="{{prefix}}/favicon.ico">
"""

_LOGIN = SimpleTemplate(
    _HEAD
    + """</head>
<body>
<main class="login">
<h1>tuner dashboard</h1>
% if wrong:
<p class="wrong" role="alert">{{wrong}}</p>
% end
<form method="post" action="{{prefix}}/login">
<input type="hidden" name="next" value="{{asked}}">
<label for="name">Name</label>
<input id="name" name="name" autocomplete="username" autofocus required>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required>
<button>Log in</button>
</form>
</main>
</body>
</html>
"""
)

_REFUSAL = SimpleTemplate(
    _HEAD
    + """</head>
<body>
<main class="login">
<h1>Not possible</h1>
<p>{{reason}}</p>
<p><a href="{{prefix}}/">To the dashboard</a></p>
</main>
</body>
</html>
"""
)

_TOP = (
    _HEAD
    + """% if reloads:
<script src="{{prefix}}/assets/reload.js" defer></script>
<noscript><meta http-equiv="refresh" content="10"></noscript>
% end
</head>
<body>
<header>
<h1>{{title}}</h1>
<a href="{{prefix}}/dashboard">Studies</a>
<a href="{{prefix}}/workers{{query}}">Workers</a>
<a href="{{prefix}}/checkpoints{{query}}">Checkpoints</a>
<a href="{{prefix}}/plots{{query}}">Plots</a>
<a href="{{prefix}}/logs{{query}}">Logs</a>
<form method="get">
<select name="study" aria-label="Study">
<option value="">all studies</option>
% for name in studies:
<option value="{{name}}"{{!' selected' if name == study else ''}}>{{name}}</option>
% end
</select>
<button>Show</button>
</form>
% if user:
<form method="post" action="{{prefix}}/logout"><button id="tuner-log-out">Log out {{user}}</button></form>
% end
</header>
"""
)

_WORKERS = SimpleTemplate(
    _TOP
    + """<h2>Workers</h2>
<p class="note">{{at_work}} at work, {{len(workers)}} in all.
% if saved_s is not None:
Compiling took {{seconds(compile_s)}}; trials that found their program compiled saved about {{seconds(saved_s)}}:
the mean of their study's trials that compiled, for each, less what reading the cache took.
% end
Times are those of the database's clock.</p>
<div class="wide">
<table id="workers">
<tr><th>worker</th><th>study</th><th>state</th><th>seen</th><th>devices</th><th>trial</th><th>epoch</th>
<th>last metrics</th><th>lease</th><th>trials ended</th><th>training</th><th>compiling</th><th>saved</th></tr>
% for row in workers:
<tr>
<td title="process {{row['pid']}} on {{row['host']}}">{{row['worker']}}</td>
<td>{{row['study']}}</td>
<td class="{{row['state'].replace(' ', '-')}}">{{row['state']}}</td>
<td class="number">{{seconds(row['unseen_s'])}} ago</td>
<td>{{row['devices']}}</td>
<td class="number">{{!trial_link(prefix, row)}}</td>
<td class="number">{{blank(row['epoch'])}}</td>
<td>{{metrics(row['metrics'])}}</td>
<td class="number">{{lease(row)}}</td>
<td class="number">{{row['trials']}}</td>
<td class="number">{{seconds(row['train_s'])}}</td>
<td class="number">{{seconds(row['compile_s'])}} ({{row['compilations']}})</td>
<td class="number">{{seconds(row['saved_s'])}}</td>
</tr>
% end
</table>
</div>
<h2>Latest failures</h2>
% if not failures:
<p class="note">None.</p>
% else:
<div class="wide">
<table id="failures">
<tr><th>when</th><th>study</th><th>trial</th><th>worker</th><th>ending</th><th>error</th></tr>
% for row in failures:
<tr>
<td class="number">{{seconds(row['ago_s'])}} ago</td>
<td>{{row['study']}}</td>
<td class="number">{{!trial_link(prefix, row)}}</td>
<td>{{row['worker']}}</td>
<td>{{row['ending']}}</td>
<td>
% if row['error']:
<details><summary>{{last_line(row['error'])}}</summary><pre>{{row['error']}}</pre></details>
% end
</td>
</tr>
% end
</table>
</div>
% end
</body>
</html>
"""
)

_CHECKPOINTS = SimpleTemplate(
    _TOP
    + """<p class="note">Checkpoints of the best trials, kept for inference:
<code>load_from_checkpoint(path, trainer=study.trainer)</code>.
Those of trials that others have surpassed are removed.</p>
% for group in groups:
<h2>{{group['study']}}</h2>
% if not group['rows']:
<p class="note">None yet.</p>
% else:
<div class="wide">
<table class="checkpoints">
<tr><th>trial</th><th>{{group['objective']}}</th><th>by epoch</th><th>epoch</th><th>step</th><th>size</th>
<th>files</th><th>path</th></tr>
% for row in group['rows']:
<tr>
<td class="number">{{row['trial']}}</td>
<td class="number">{{number(row['value'])}}</td>
<td><svg class="curve" viewBox="0 0 160 40" width="160" height="40" role="img"
 aria-label="{{group['objective']}} by epoch"><polyline points="{{polyline(row['curve'], 160, 40)}}"/></svg></td>
% about = row['about']
% if about is None:
<td colspan="4">not readable from this machine</td>
% else:
<td class="number">{{blank(about['epoch'])}}</td>
<td class="number">{{about['step']}}</td>
<td class="number">{{size(about['size_bytes'])}}</td>
<td class="number">{{about['files']}}</td>
% end
<td class="path">{{row['checkpoint']}}</td>
</tr>
% end
</table>
</div>
% end
% end
</body>
</html>
"""
)


_PLOTS = SimpleTemplate(
    _TOP
    + """% if not study:
<p class="note">Choose a study above.</p>
% else:
<p class="note">As <code>tuner plot {{study}} KIND</code> draws them; <code>tuner plot {{study}} report</code> makes one
page of all.</p>
% for kind in kinds:
<h2>{{kind.capitalize()}}</h2>
<a href="{{prefix}}/plots/{{kind}}.svg{{query}}"><img class="plot" loading="lazy" alt="{{kind}}"
 src="{{prefix}}/plots/{{kind}}.svg{{query}}"></a>
% end
% end
</body>
</html>
"""
)


_LOGS = SimpleTemplate(
    _TOP
    + """% if not study:
<p class="note">Choose a study above.</p>
% else:
<form method="get">
<input type="hidden" name="study" value="{{study}}">
<label for="trial">Trial</label>
<input id="trial" name="trial" inputmode="numeric" pattern="[0-9]+" value="{{blank(trial)}}" required>
<button>Show log</button>
</form>
% if trial is not None:
<p class="note">The last lines that trial {{trial}} has printed, as far as they were stored: the latest are up to five
seconds old. <code>tuner logs {{study}} {{trial}}</code> prints all of them where its file is.</p>
% if lines:
<pre id="log">{{lines}}</pre>
% else:
<p class="note">Nothing.</p>
% end
% end
% end
</body>
</html>
"""
)


def login_page(prefix: str, asked: str, wrong: str = "") -> str:
    """Return the login page.

    Args:
        prefix: The path that the dashboard is under.
        asked: The page to show after the login.
        wrong: The error of the last attempt.
    """
    return _LOGIN.render(prefix=prefix, title="Log in", asked=asked, wrong=wrong)


def refusal_page(prefix: str, reason: str) -> str:
    """Return a page with the reason for a refusal."""
    return _REFUSAL.render(prefix=prefix, title="Not possible", reason=reason)


def workers_page(**given: object) -> str:
    """Return the page of workers and failures."""
    formats = {"seconds": seconds, "blank": blank, "metrics": metrics, "lease": lease, "last_line": last_line}
    formats |= {"trial_link": trial_link}
    return _WORKERS.render(title="Workers", reloads=True, **formats, **given)


def checkpoints_page(**given: object) -> str:
    """Return the page of checkpoints."""
    formats = {"blank": blank, "number": number, "size": size, "polyline": polyline}
    return _CHECKPOINTS.render(title="Checkpoints", reloads=False, **formats, **given)


def plots_page(**given: object) -> str:
    """Return the page of plots."""
    return _PLOTS.render(title="Plots", reloads=False, **given)


def logs_page(*, reloads: bool, **given: object) -> str:
    """Return the page with what a trial has printed."""
    return _LOGS.render(title="Logs", reloads=reloads, blank=blank, **given)


def trial_link(prefix: str, row: Mapping[str, Any]) -> str:
    """Return the HTML of a trial's number, with a link to its log; nothing without a trial."""
    if row["trial"] is None:
        return ""
    query = html.escape(urlencode({"study": row["study"], "trial": row["trial"]}, errors="backslashreplace"))
    return f'<a href="{html.escape(prefix)}/logs?{query}">{row["trial"]}</a>'


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


def lease(row: WorkerRow) -> str:
    """Return the remaining time of a worker's lease, and the number of workers that died in its trial."""
    rest_s = row["lease_rest_s"]
    if rest_s is None:
        return ""
    deaths = f", {row['deaths']} died" if row["deaths"] else ""
    return (f"{rest_s:.0f} s" if rest_s > 0 else "ended") + deaths


def last_line(error: str) -> str:
    """Return the last line of a traceback: the error itself."""
    return error.rstrip().rpartition("\n")[2][:300]


def polyline(curve: Sequence[float], width: int, height: int) -> str:
    """Return values as the points of an SVG polyline that fills a box, skipping values that are not finite."""
    places = [(place, value) for place, value in enumerate(curve) if math.isfinite(value)]
    if len(places) < 2:
        return ""
    low, high = min(value for _, value in places), max(value for _, value in places)
    across, up = (width - 4) / (len(curve) - 1), (height - 4) / ((high - low) or 1.0)
    return " ".join(f"{2 + place * across:.1f},{height - 2 - (value - low) * up:.1f}" for place, value in places)
