"""Runs a command in a process group of its own, and kills the group when the worker ends for any reason.

`python -I -S supervisor.py GRACE_S WORD...`. The worker keeps a pipe to standard input open. SIGTERM is passed on to
the group, which gets SIGKILL `GRACE_S` seconds later; at the end of standard input, it gets SIGKILL immediately. Exits
like the command: with its status, or by its signal. If this process is killed, so is the command (on Linux). Imports
nothing of the package, so that it starts quickly.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run the command in `sys.argv`."""
    grace_s = float(sys.argv[1])
    is_asked = threading.Event()
    try:
        import ctypes  # some builds of Python lack it

        libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    except ImportError:
        libc = None

    def die_with_parent() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    signal.signal(signal.SIGTERM, lambda number, frame: is_asked.set())
    try:
        process = subprocess.Popen(
            sys.argv[2:], stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_parent
        )
    except OSError as error:
        print(f"cannot run {sys.argv[2]!r}: {error.strerror}", file=sys.stderr)
        os._exit(127)

    def kill(number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    def watch_worker() -> None:
        while os.read(0, 1):
            pass
        kill(signal.SIGKILL)

    def watch_request() -> None:
        is_asked.wait()
        kill(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
        kill(signal.SIGKILL)

    for watch in (watch_worker, watch_request):
        threading.Thread(target=watch, daemon=True).start()
    while True:
        try:
            status = process.wait(0.5)  # signal handlers run between the waits
            break
        except subprocess.TimeoutExpired:
            continue
    kill(signal.SIGKILL)  # processes that it left behind
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


main()
