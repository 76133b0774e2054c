"""Interrupts that arrive as another error."""

from __future__ import annotations

import subprocess
import sys

import pytest
from interrupted import wait_interrupted

import tuner.cli
from tuner.errors import is_interrupted


def test_an_interrupt_in_the_middle_of_threading_ends_a_command_as_any_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="un-acquired lock"):
        wait_interrupted()
    monkeypatch.setattr(tuner.cli, "_run", wait_interrupted)
    with pytest.raises(SystemExit) as ended:
        tuner.cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "")


def test_an_error_that_no_interrupt_led_to_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        try:
            raise KeyError("x")
        finally:
            raise RuntimeError("mine")

    monkeypatch.setattr(tuner.cli, "_run", fail)
    with pytest.raises(RuntimeError, match="mine"):
        tuner.cli.main()


def test_an_error_is_interrupted_however_many_came_between() -> None:
    first, second = ValueError("1"), ValueError("2")
    second.__context__, first.__context__ = first, second  # a circle ends
    assert not is_interrupted(second)
    first.__context__ = KeyboardInterrupt()
    assert is_interrupted(second)


@pytest.mark.parametrize(
    ("ends", "status", "said"),
    [
        ("print('done')", 0, []),
        ("sys.exit(3)", 3, []),
        ("raise UsageError('no such study')", 2, ["tuner: no such study"]),
        ("raise RuntimeError('a fault of tuner')", 1, ["RuntimeError: a fault of tuner"]),
    ],
)
def test_a_command_ends_with_its_status_though_a_write_of_a_checkpoint_never_ends(
    ends: str, status: int, said: list[str]
) -> None:
    """Python would wait for the thread of that write at the end of the process."""
    code = f"""if True:
        import sys, threading
        from tuner import cli
        from tuner.errors import UsageError
        from tuner.training.saved import files
        def run():
            {ends}
        cli._run = run
        files._stalled.append(threading.Thread(target=threading.Event().wait))
        files._stalled[0].start()
        cli.main()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    assert done.stderr.splitlines()[-1:] == said
    assert done.stdout == ("done\n" if status == 0 else "")
