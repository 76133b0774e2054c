// Show what is new, unless a traceback is being read.
setInterval(function () {
  if (!document.querySelector("details[open]")) {
    location.reload();
  }
}, 5000);
