// Asks before a form that cannot be undone is sent, and sends no form twice.
(function () {
  "use strict";
  document.addEventListener("submit", function (event) {
    const form = event.target;
    const question = form.dataset.confirm;
    if (question && !window.confirm(question)) {
      event.preventDefault();
      return;
    }
    if (form.method === "post") {
      for (const button of form.querySelectorAll("button")) {
        button.disabled = true;
      }
    }
  });
  window.addEventListener("pageshow", function () {
    for (const button of document.querySelectorAll("form[method=post] button")) {
      button.disabled = false;
    }
  });
})();
