"""Runs `tuner` with its own arguments, and starts it again where that helps.

Docker's restart policies do not distinguish exit statuses; this does:

| status of tuner | meaning | what happens |
| --- | --- | --- |
| 0 | the budget is used up, or the study is stopped | exits with 0 |
| 2 | invalid input | exits with 2 |
| 3 | the study fails | exits with 3 |
| 75 | the database cannot be reached, or others run the study's broken file | starts again after a minute, always |
| 130 | asked to stop | exits with 130 |
| 1, or ended by a signal | a crash | starts again, at most three times in a row, then exits with the status |

SIGTERM and SIGINT are passed to tuner, which is then not started again. It uses the standard library only.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import FrameType

FINAL = (0, 2, 3, 130)
DATABASE_LOST = 75
MOST_CRASHES = 3
"""Restarts after crashes in a row."""
LONG_RUN_S = 600.0
"""A crash after a run of this length is the first one of a row again."""
DATABASE_PAUSE_S = 60.0
CRASH_PAUSE_S = 5.0


class Runner:
    """Runs a command until a restart does not help.

    Args:
        command: The program and its arguments.
        database_pause_s: Seconds to wait before a restart after status 75.
        crash_pause_s: Seconds to wait before a restart after a crash.
    """

    def __init__(
        self,
        command: list[str],
        database_pause_s: float = DATABASE_PAUSE_S,
        crash_pause_s: float = CRASH_PAUSE_S,
    ) -> None:
        self._command = command
        self._database_pause_s = database_pause_s
        self._crash_pause_s = crash_pause_s
        self._is_asked = False
        self._process: subprocess.Popen[bytes] | None = None

    def stop(self, number: int, _: FrameType | None = None) -> None:
        """Pass a signal to the command, and do not start it again."""
        self._is_asked = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def run(self) -> int:
        """Run the command, and return the exit status for the container."""
        crashes = 0
        while not self._is_asked:
            began_s = time.monotonic()
            status = self._run_once()
            if status in FINAL or self._is_asked:
                return status
            if status == DATABASE_LOST:
                crashes, pause_s = 0, self._database_pause_s
            else:
                crashes = 1 if time.monotonic() - began_s >= LONG_RUN_S else crashes + 1
                pause_s = self._crash_pause_s
            if crashes > MOST_CRASHES:
                print(f"tuner crashed {crashes} times in a row, the last time with status {status}", file=sys.stderr)
                return status
            print(f"tuner exited with status {status}; it starts again in {pause_s:g} s", file=sys.stderr, flush=True)
            self._pause(pause_s)
        return 130

    def _run_once(self) -> int:
        # In a session of its own: Ctrl-C reaches it once, through `stop`.
        self._process = subprocess.Popen(self._command, start_new_session=True)
        if self._is_asked:  # a signal came before there was a process to pass it to
            self._process.terminate()
        status = self._process.wait()
        return status if status >= 0 else 128 - status

    def _pause(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while not self._is_asked and time.monotonic() < end_s:
            time.sleep(0.1)


def main() -> None:
    """Run `tuner` with the arguments of this process."""
    runner = Runner(["tuner", *sys.argv[1:]])
    signal.signal(signal.SIGTERM, runner.stop)
    signal.signal(signal.SIGINT, runner.stop)
    sys.exit(runner.run())


if __name__ == "__main__":
    main()
