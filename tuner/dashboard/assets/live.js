// Brings the parts of a page that are marked data-live up to date, unless they are being used.
(function () {
  "use strict";
  const EVERY_MS = 5000;
  function isInUse(part) {
    const active = document.activeElement;
    const isEdited = part.contains(active) && active.matches("input, select, textarea, button, summary");
    const isChanged = [...part.querySelectorAll("input")].some((input) => input.value !== input.defaultValue);
    return isEdited || isChanged || part.querySelector("details[open]") !== null;
  }
  function isAtEnd(part) {
    return part.scrollHeight - part.scrollTop - part.clientHeight < 8;
  }
  async function refresh() {
    if (document.hidden) {
      return;
    }
    let answer;
    try {
      answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    } catch {
      return; // the server cannot be reached now
    }
    if (answer.redirected) {
      location.reload(); // the session has ended
    }
    if (!answer.ok) {
      return;
    }
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of document.querySelectorAll("[data-live]")) {
      const other = fresh.getElementById(part.id);
      if (other && !isInUse(part) && !part.isEqualNode(other)) {
        const atEnd = isAtEnd(part), top = part.scrollTop;
        part.replaceWith(other);
        other.scrollTop = atEnd ? other.scrollHeight : top;
      }
    }
  }
  setInterval(refresh, EVERY_MS);
})();
