// The bar of our pages on Optuna's, and the way back to the login when a session has ended.
(function () {
  "use strict";
  const { prefix, user, role, links } = document.currentScript.dataset;
  const send = window.fetch;
  window.fetch = async function (...words) {
    const answer = await send.apply(this, words);
    if (answer.status === 401) {
      const here = location.pathname.slice(prefix.length);
      location.assign(prefix + "/login?next=" + encodeURIComponent(here));
    }
    return answer;
  };
  // The address of one of our pages for the study and the trial that are looked at, as Optuna's address names them.
  function address(path) {
    const study = location.pathname.match(/\/studies\/(\d+)/);
    if (!study || path === "/studies" || path === "/dashboard") {
      return prefix + path;
    }
    const trial = new URLSearchParams(location.search).get("numbers");
    const isOfTrial = path === "/logs" && /^\d+$/.test(trial || "");
    return prefix + "/of/" + study[1] + path + (isOfTrial ? "?trial=" + trial : "");
  }
  function link(text, path) {
    const made = document.createElement("a");
    made.textContent = text;
    made.href = prefix + path;
    if (path === "/dashboard") {
      made.setAttribute("aria-current", "page");
    }
    made.addEventListener("click", function () {
      made.href = address(path);
    });
    return made;
  }
  function logOut() {
    const form = document.createElement("form");
    form.method = "post";
    form.action = prefix + "/logout";
    const made = document.createElement("button");
    made.id = "tuner-log-out";
    made.textContent = "Log out";
    form.append(made);
    return form;
  }
  document.addEventListener("DOMContentLoaded", function () {
    const bar = document.createElement("nav");
    bar.id = "tuner-bar";
    bar.setAttribute("aria-label", "Dashboard");
    bar.append(...JSON.parse(links).map(([text, path]) => link(text, path)));
    if (user) {
      const who = document.createElement("span");
      who.className = "who";
      who.textContent = user + " (" + role + ")";
      bar.append(who, logOut());
    }
    document.body.classList.add("tuner-optuna");
    document.body.prepend(bar);
  });
})();
