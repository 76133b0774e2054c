"""The page of curves: all metrics of several trials, drawn in the browser from `/curves.json`."""

from __future__ import annotations

from tuner.dashboard.layout import CHOICE, Page

SCRIPTS = ("uPlot.iife.min.js", "curves.js")
CHARTS = """<div id="curves" data-source="{{source}}" data-trial="{{prefix}}/trial{{query}}">
<div class="row" role="group" aria-label="Axes">
<label for="curves-x">x</label>
<select id="curves-x"><option value="epoch">epoch</option><option value="step">step</option>
<option value="time">time</option></select>
<label><input type="checkbox" id="curves-log-x"> log x</label>
<label><input type="checkbox" id="curves-log-y"> log y</label>
<label for="curves-smoothing">smoothing</label>
<input type="range" id="curves-smoothing" min="0" max="0.98" step="0.02" value="0">
<output id="curves-smoothed" for="curves-smoothing">0</output>
</div>
<p class="note" id="curves-said" role="status">Loading.</p>
<ul class="legend" id="curves-legend" tabindex="0" aria-label="Trials"></ul>
<div class="charts" id="charts"></div>
<noscript><p class="hint">Curves are drawn by a script, which your browser does not run.</p></noscript>
</div>
"""
_BODY = (
    CHOICE
    + """% if not study:
<p class="note">Choose a study above.</p>
% else:
<form method="get" class="row">
<input type="hidden" name="study" value="{{study}}">
<label for="show">Trials</label>
<select id="show" name="show">
% for key, text in shows:
<option value="{{key}}"{{!' selected' if key == show else ''}}>{{text}}</option>
% end
</select>
<label for="count">at most</label>
<input id="count" name="count" type="number" min="1" max="{{most}}" value="{{count}}">
<label for="numbers">or these</label>
<input id="numbers" name="trials" value="{{numbers}}" placeholder="1, 4, 7-9" autocomplete="off">
<button class="plain">Show</button>
</form>
"""
    + CHARTS
    + """<p class="note"><a href="{{source}}">The same as JSON</a></p>
% end
"""
)
SHOWS = (("best", "the best"), ("latest", "the latest"), ("running", "those that run"))
CURVES = Page(_BODY, "Curves", SCRIPTS, {"may_be_all": False, "shows": SHOWS})
