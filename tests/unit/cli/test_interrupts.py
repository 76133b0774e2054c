"""Interrupts that arrive as another error."""

from __future__ import annotations

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
