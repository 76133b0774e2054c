"""What `Study.run` shows in a notebook; a real kernel runs in `tests/system/project/test_notebook.py`."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tuner import Space, Study, uniform
from tuner.admin.notebook import is_in_notebook, progress_html
from tuner.results.rows import study_row
from tuner.storage import connected


class HParams(Space):
    rate: float = uniform(0.0, 1.0)


def study(**settings: Any) -> Study:
    given: dict[str, Any] = {"objective": "loss", "direction": "minimize", "trials": 3, "sampler": "random", **settings}
    return Study(name="<shown>", space=HParams, train=lambda hparams, trial: {"loss": 0.25}, **given)


class Kernel:
    """Stands for IPython in a kernel: keeps what is displayed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **shell: object) -> None:
        self.shown: list[str] = []
        module, display = ModuleType("IPython"), ModuleType("IPython.display")
        module.get_ipython = lambda: SimpleNamespace(**shell)  # type: ignore[attr-defined]
        display.display = self._display  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "IPython", module)
        monkeypatch.setitem(sys.modules, "IPython.display", display)

    def _display(self, one: Any, *, display_id: bool) -> Any:
        assert display_id
        self.update(one)
        return self

    def update(self, one: Any) -> None:
        self.shown.append(f"{one._repr_html_()}\n{one!r}")


def test_a_run_in_a_notebook_updates_one_output(
    monkeypatch: pytest.MonkeyPatch, sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = Kernel(monkeypatch, kernel=object())
    assert is_in_notebook()
    study().run(sqlite_url, trials=2)
    first = len(kernel.shown)
    assert "<b>&lt;shown&gt;</b>: 0 of 2 trials" in kernel.shown[0]
    assert "value='2' max='2'" in kernel.shown[-1]
    assert ": 2 of 2 trials, 2 complete, best loss 0.25<br>" in kernel.shown[-1]
    assert kernel.shown[-1].endswith("<shown>: finished, 2 complete, best 0.25")
    study().run(sqlite_url, trials=3)
    assert ": 2 of 3 trials" in kernel.shown[first], "earlier trials count"
    assert ": 3 of 3 trials" in kernel.shown[-1]
    assert "trial 0" not in capsys.readouterr().err


def test_without_a_kernel_lines_go_to_stderr(
    monkeypatch: pytest.MonkeyPatch, sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = Kernel(monkeypatch)  # IPython on a terminal
    assert not is_in_notebook()
    study().run(sqlite_url, trials=1)
    assert kernel.shown == []
    assert "trial 0: complete" in capsys.readouterr().err


def test_progress_has_the_current_trial_and_escapes_it(sqlite_url: str) -> None:
    study().run(sqlite_url, trials=1)
    with connected(sqlite_url) as engine:
        row = study_row(engine, "<shown>")
    shown = progress_html("<shown>", 4, row, "trial 1: kind=<b>")
    assert "value='1' max='4'" in shown
    assert "<code>trial 1: kind=&lt;b&gt;</code>" in shown
    assert "0 of 4 trials" in progress_html("new", 4, None, "")
