// Links to our own pages beside Optuna's front-end, and its way back to the login when a session has ended.
(function () {
  "use strict";
  const { prefix, user, role } = document.currentScript.dataset;
  const send = window.fetch;
  window.fetch = async function (...words) {
    const answer = await send.apply(this, words);
    if (answer.status === 401) {
      const here = location.pathname.slice(prefix.length);
      location.assign(prefix + "/login?next=" + encodeURIComponent(here));
    }
    return answer;
  };
  function link(text, path) {
    const made = document.createElement("a");
    made.textContent = text;
    made.href = prefix + path;
    made.style.color = "#fff";
    return made;
  }
  function button(text) {
    const form = document.createElement("form");
    form.method = "post";
    form.action = prefix + "/logout";
    form.style.margin = "0";
    const made = document.createElement("button");
    made.id = "tuner-log-out";
    made.textContent = text;
    made.style.cssText = "font:inherit;color:#fff;background:none;border:1px solid #8aa;border-radius:4px;cursor:pointer";
    form.append(made);
    return form;
  }
  document.addEventListener("DOMContentLoaded", function () {
    const bar = document.createElement("nav");
    bar.id = "tuner-bar";
    bar.style.cssText =
      "position:fixed;right:12px;bottom:12px;z-index:2000;display:flex;gap:14px;align-items:center;" +
      "padding:6px 12px;border-radius:6px;background:#1c2733;color:#fff;font:13px system-ui,sans-serif;opacity:.92";
    const logs = link("Logs", "/logs");
    logs.addEventListener("click", function () {
      // On the page of a trial: its log.
      const study = location.pathname.match(/\/studies\/(\d+)\/trials/);
      const trial = new URLSearchParams(location.search).get("numbers");
      logs.href = prefix + "/logs" + (study && /^\d+$/.test(trial) ? "/" + study[1] + "?trial=" + trial : "");
    });
    bar.append(link("Workers", "/workers"), link("Checkpoints", "/checkpoints"), link("Plots", "/plots"), logs);
    if (user) {
      const who = document.createElement("span");
      who.textContent = user + " (" + role + ")";
      bar.append(who, button("Log out"));
    }
    document.body.append(bar);
  });
})();
