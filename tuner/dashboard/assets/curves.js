// Draws the curves of several trials, one chart for each metric, and asks for new reports while trials run.
(function () {
  "use strict";
  const POLL_MS = 3000, HEIGHT = 240;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  // The exponential moving average with a correction for its start; null stays null. `weight` is in [0, 1).
  function smoothed(values, weight) {
    let mean = 0, known = 0;
    return values.map(function (value) {
      if (value === null) {
        return null;
      }
      mean = weight * mean + (1 - weight) * value;
      known += 1;
      return mean / (1 - Math.pow(weight, known));
    });
  }

  // Columns for uPlot: all x that occur, and a column for each curve with null where it has no point.
  function joined(curves) {
    const xs = new Set();
    for (const [at] of curves) {
      at.forEach((x) => xs.add(x));
    }
    const columns = [Float64Array.from(xs).sort()];
    const places = new Map();
    columns[0].forEach((x, place) => places.set(x, place));
    for (const [at, values] of curves) {
      const column = new Array(columns[0].length).fill(null);
      at.forEach((x, i) => { column[places.get(x)] = values[i]; });
      columns.push(column);
    }
    return columns;
  }

  const order = new Map(); // trial number -> the place in which it was first shown
  function color(number) {
    if (!order.has(number)) {
      order.set(number, order.size);
    }
    const hue = (210 + order.get(number) * 137.508) % 360; // neighbours differ by the golden angle
    return "hsl(" + hue.toFixed(1) + " 70% " + (dark.matches ? 65 : 38) + "%)";
  }

  function variable(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function text(value) {
    return value === null || value === undefined ? "" : String(Number(value.toPrecision(5)));
  }

  const root = document.getElementById("curves");
  if (!root) {
    return;
  }
  const charts = document.getElementById("charts"), said = document.getElementById("curves-said");
  const legend = document.getElementById("curves-legend");
  const controls = {
    x: document.getElementById("curves-x"),
    logX: document.getElementById("curves-log-x"),
    logY: document.getElementById("curves-log-y"),
    smoothing: document.getElementById("curves-smoothing"),
  };
  const known = new Map(); // trial number -> its curve
  const drawn = new Map(); // metric -> its figure and plot
  let answer = null, shown = "";

  // The points of a trial that can be drawn on these axes.
  function points(curve, metric) {
    const at = curve[controls.x.value], values = smoothed(curve.metrics[metric] || [], Number(controls.smoothing.value));
    const xs = [], ys = [];
    values.forEach(function (value, i) {
      const x = at[i];
      const fits = value !== null && x !== null && !(controls.logY.checked && value <= 0) && !(controls.logX.checked && x <= 0);
      if (fits) {
        xs.push(x);
        ys.push(value);
      }
    });
    return [xs, ys];
  }

  function axis(label) {
    const ink = variable("--dim"), grid = variable("--line");
    return { label, stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 }, size: label ? 34 : 60, labelSize: 18, font: "12px system-ui", labelFont: "12px system-ui" };
  }

  function scale(isLog) {
    return isLog ? { time: false, distr: 3 } : { time: false };
  }

  function caption(figure, metric, plot) {
    const value = figure.querySelector(".value");
    const at = plot ? plot.cursor.idx : null;
    const series = plot ? plot.series.findIndex((one, i) => i > 0 && one._focus) : -1;
    if (at === null || at === undefined || series < 1) {
      value.textContent = "";
      return;
    }
    const column = plot.data[series];
    let place = at; // the nearest point of the curve
    for (let off = 0; off < column.length && column[place] === null; off += 1) {
      place = column[at - off] !== null && at - off >= 0 ? at - off : Math.min(at + off, column.length - 1);
    }
    value.textContent = "trial " + plot.series[series].label + ": " + text(column[place]) + " at " + text(plot.data[0][place]);
  }

  function draw(metric, curves) {
    const data = joined(curves.map((curve) => points(curve, metric)));
    const kind = [controls.x.value, controls.logX.checked, controls.logY.checked, dark.matches, curves.map((one) => one.number)].join();
    const before = drawn.get(metric);
    if (before && before.kind === kind) {
      const isZoomed = before.isZoomed;
      before.plot.setData(data, !isZoomed);
      if (isZoomed) {
        before.plot.redraw();
      }
      return;
    }
    const figure = before ? before.figure : document.createElement("figure");
    if (before) {
      before.plot.destroy();
    } else {
      const head = document.createElement("figcaption"), value = document.createElement("span");
      value.className = "value";
      head.append(metric + " ", value);
      figure.append(head);
      figure.dataset.metric = metric;
      charts.append(figure);
    }
    const many = curves.length > 12;
    const made = { figure, kind, isZoomed: false };
    const options = {
      width: Math.max(200, figure.clientWidth - 16),
      height: HEIGHT,
      scales: { x: scale(controls.logX.checked), y: scale(controls.logY.checked) },
      axes: [axis(controls.x.value === "time" ? "seconds" : controls.x.value), axis("")],
      legend: { show: false },
      focus: { alpha: many ? 0.15 : 0.35 },
      cursor: { focus: { prox: 24 }, drag: { x: true, y: false }, y: false },
      series: [{}, ...curves.map((curve) => ({ label: String(curve.number), stroke: color(curve.number), width: many ? 1 : 1.6, spanGaps: true, points: { show: (plot, i) => plot.data[0].length === 1 } }))],
      hooks: {
        setSeries: [(plot, series) => { plot.series.forEach((one, i) => { one._focus = i === series; }); caption(figure, metric, plot); }],
        setCursor: [(plot) => caption(figure, metric, plot)],
        setSelect: [(plot) => { made.isZoomed = plot.select.width > 0; }],
      },
    };
    made.plot = new window.uPlot(options, data, figure);
    made.plot.over.addEventListener("dblclick", () => { made.isZoomed = false; });
    made.plot.root.setAttribute("aria-hidden", "true"); // the numbers are in the table and in the JSON
    drawn.set(metric, made);
  }

  function drawAll() {
    if (answer === null) {
      return;
    }
    document.getElementById("curves-smoothed").textContent = controls.smoothing.value;
    const curves = answer.numbers.map((number) => known.get(number)).filter(Boolean);
    for (const [metric, one] of drawn) {
      if (!answer.metrics.includes(metric)) {
        one.plot.destroy();
        one.figure.remove();
        drawn.delete(metric);
      }
    }
    for (const metric of answer.metrics) {
      draw(metric, curves.filter((curve) => curve.metrics[metric]));
    }
  }

  function drawLegend() {
    const now = [dark.matches, ...answer.numbers].join();
    if (now === shown) {
      return;
    }
    shown = now;
    legend.replaceChildren(...answer.numbers.map(function (number) {
      const line = document.createElement("li"), mark = document.createElement("span"), link = document.createElement("a");
      mark.style.background = color(number);
      link.textContent = "trial " + number;
      link.href = root.dataset.trial + "&trial=" + number;
      line.append(mark, link);
      return line;
    }));
  }

  function say() {
    const running = answer.numbers.filter((number) => known.has(number) && !known.get(number).has_ended).length;
    const parts = [answer.numbers.length + (answer.numbers.length === 1 ? " trial" : " trials") + (running ? ", " + running + " running" : "")];
    if (answer.is_thinned) {
      parts.push("long curves are thinned to " + answer.points_each + " reports each");
    }
    if (answer.hidden_metrics) {
      parts.push(answer.hidden_metrics + " more metrics are not shown");
    }
    if (!answer.metrics.length) {
      parts.push("no reports yet");
    }
    said.textContent = parts.join("; ") + ".";
  }

  function address() {
    const ended = [...known.values()].filter((curve) => curve.has_ended).map((curve) => curve.number);
    return root.dataset.source + (ended.length ? "&known=" + ended.join(",") : "");
  }

  async function load() {
    let got;
    try {
      got = await fetch(address());
    } catch {
      said.textContent = "The server cannot be reached; trying again.";
      return true;
    }
    if (got.status === 401) {
      location.reload(); // the session has ended
      return false;
    }
    const found = await got.json();
    if (!got.ok) {
      said.textContent = found.reason;
      return got.status >= 500;
    }
    found.trials.forEach((curve) => known.set(curve.number, curve));
    // What the server has left out, because it was known, still has its metrics.
    if (answer !== null) {
      found.metrics = [...new Set([...answer.metrics, ...found.metrics])];
      found.is_thinned = found.is_thinned || answer.is_thinned;
    }
    answer = found;
    for (const number of [...known.keys()]) {
      if (!answer.numbers.includes(number)) {
        known.delete(number);
      }
    }
    say();
    drawLegend();
    drawAll();
    return true;
  }

  async function poll() {
    const goesOn = document.hidden && answer !== null ? true : await load();
    if (goesOn) {
      setTimeout(poll, POLL_MS);
    }
  }

  for (const control of Object.values(controls)) {
    control.addEventListener("input", drawAll);
  }
  dark.addEventListener("change", function () {
    if (answer !== null) {
      drawLegend();
      drawAll();
    }
  });
  new ResizeObserver(function () {
    for (const { figure, plot } of drawn.values()) {
      const width = Math.max(200, figure.clientWidth - 16);
      if (width !== plot.width) {
        plot.setSize({ width, height: HEIGHT });
      }
    }
  }).observe(charts);
  window.tunerCurves = { smoothed, joined, drawn, known };
  poll();
})();
