"""HTML of the pages about workers, checkpoints, plots and logs, of the login and of refusals."""

from __future__ import annotations

from bottle import SimpleTemplate

from tuner.dashboard.layout import CHOICE, HEAD, Page
from tuner.storage.read.activity import WorkerRow

_LOGIN = SimpleTemplate(
    HEAD
    + """</head>
<body class="tuner">
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
    HEAD
    + """</head>
<body class="tuner">
<main class="login">
<h1>Not possible</h1>
<p class="break">{{reason}}</p>
<p><a href="{{prefix}}/">To the dashboard</a></p>
</main>
</body>
</html>
"""
)

_WORKERS = (
    CHOICE
    + """<div id="live-workers" data-live>
<h2>Workers</h2>
<p class="note">{{at_work}} at work, {{len(workers)}} in all.
% if saved_s is not None:
Compiling took {{seconds(compile_s)}}; trials that found their program compiled saved about {{seconds(saved_s)}}:
the mean of their study's trials that compiled, for each, less what reading the cache took.
% end
Times are those of the database's clock.</p>
<div class="wide" tabindex="0" role="region" aria-label="Workers">
<table id="workers">
<thead><tr><th>worker</th><th>study</th><th>state</th><th>seen</th><th>devices</th><th>trial</th><th>epoch</th>
<th>last metrics</th><th>lease</th><th>trials ended</th><th>training</th><th>compiling</th><th>saved</th></tr></thead>
<tbody>
% for row in workers:
<tr>
<td title="process {{row['pid']}} on {{row['host']}}">{{row['worker']}}</td>
<td>{{!study_link(prefix, row['study'])}}</td>
<td class="{{state_class(row['state'])}}">{{row['state']}}</td>
<td class="number">{{seconds(row['unseen_s'])}} ago</td>
<td>{{row['devices']}}</td>
<td class="number">{{!trial_link(prefix, row['study'], row['trial'])}}</td>
<td class="number">{{blank(row['epoch'])}}</td>
<td>{{metrics(row['metrics'])}}</td>
<td class="number">{{lease(row)}}</td>
<td class="number">{{row['trials']}}</td>
<td class="number">{{seconds(row['train_s'])}}</td>
<td class="number">{{seconds(row['compile_s'])}} ({{row['compilations']}})</td>
<td class="number">{{seconds(row['saved_s'])}}</td>
</tr>
% end
</tbody>
</table>
</div>
<h2>Latest failures</h2>
% if not failures:
<p class="note">None.</p>
% else:
<div class="wide" tabindex="0" role="region" aria-label="Latest failures">
<table id="failures">
<thead><tr><th>when</th><th>study</th><th>trial</th><th>worker</th><th>ending</th><th>error</th></tr></thead>
<tbody>
% for row in failures:
<tr>
<td class="number">{{seconds(row['ago_s'])}} ago</td>
<td>{{!study_link(prefix, row['study'])}}</td>
<td class="number">{{!trial_link(prefix, row['study'], row['trial'])}}</td>
<td>{{row['worker']}}</td>
<td class="{{state_class(row['ending'])}}">{{words(row['ending'])}}</td>
<td>
% if row['error']:
<details><summary>{{last_line(row['error'])}}</summary><pre tabindex="0">{{row['error']}}</pre></details>
% end
</td>
</tr>
% end
</tbody>
</table>
</div>
% end
</div>
"""
)

_CHECKPOINTS = (
    CHOICE
    + """<p class="note">Checkpoints of the best trials, kept for inference:
<code>load_from_checkpoint(path, trainer=study.trainer)</code>.
Those of trials that others have surpassed are removed.</p>
% for group in groups:
<h2>{{!study_link(prefix, group['study'])}}</h2>
% if not group['rows']:
<p class="note">None yet.</p>
% else:
<div class="wide" tabindex="0" role="region" aria-label="Checkpoints of {{group['study']}}">
<table class="checkpoints">
<thead><tr><th>trial</th><th>{{group['objective']}}</th><th>by epoch</th><th>epoch</th><th>step</th><th>size</th>
<th>files</th><th>path</th></tr></thead>
<tbody>
% for row in group['rows']:
<tr>
<td class="number">{{!trial_link(prefix, group['study'], row['trial'])}}</td>
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
</tbody>
</table>
</div>
% end
% end
"""
)

_PLOTS = (
    CHOICE
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
"""
)

_LOGS = (
    CHOICE
    + """% if not study:
<p class="note">Choose a study above.</p>
% else:
<form method="get" class="row">
<input type="hidden" name="study" value="{{study}}">
<label for="trial">Trial</label>
<input id="trial" name="trial" inputmode="numeric" pattern="[0-9]+" value="{{blank(trial)}}" required>
<button class="plain">Show log</button>
</form>
% if trial is not None:
<p class="note">The last lines that trial {{!trial_link(prefix, study, trial)}} has printed, as far as they were stored:
the latest are up to five seconds old. <code>tuner logs {{study}} {{trial}}</code> prints all of them where its file
is.</p>
% if lines:
<pre id="log" tabindex="0" data-live>{{lines}}</pre>
% else:
<p class="note" id="log" data-live>Nothing.</p>
% end
% end
% end
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


def lease(row: WorkerRow) -> str:
    """Return the remaining time of a worker's lease, and the number of workers that died in its trial."""
    rest_s = row["lease_rest_s"]
    if rest_s is None:
        return ""
    deaths = f", {row['deaths']} died" if row["deaths"] else ""
    return (f"{rest_s:.0f} s" if rest_s > 0 else "ended") + deaths


WORKERS = Page(_WORKERS, "Workers", ["live.js"], {"lease": lease, "may_be_all": True})
CHECKPOINTS = Page(_CHECKPOINTS, "Checkpoints", formats={"may_be_all": True})
PLOTS = Page(_PLOTS, "Plots", formats={"may_be_all": False})
LOGS = Page(_LOGS, "Logs", ["live.js"], {"may_be_all": False})
