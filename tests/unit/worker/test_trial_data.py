"""Trials of one study with data of their own: what is compiled, resumed, and what an error ends."""

from __future__ import annotations

import dataclasses
import runpy
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
import windows_study

from tuner import Space, choice, uniform
from tuner.errors import StudyError
from tuner.results.bundle import export_bundle
from tuner.results.model_picture import draw_picture
from tuner.results.rows import trial_rows
from tuner.storage import connect
from tuner.study import load_study
from tuner.training import Splits
from tuner.training.loop import programs
from tuner.training.loop.runtime import CompileClock
from tuner.trial import Event, Stop
from tuner.trial.events import EpochEnded, TrialBegan, TrialEnded, TrialRestarted, TrialRetried
from tuner.worker import run_worker
from tuner.worker.rerun import confirm, open_study, reproduce


def study(**changes: Any) -> Any:
    return dataclasses.replace(windows_study.study, **changes)


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    windows_study.CALLS.clear()


@pytest.fixture
def clock(compiles_anew: None) -> Iterator[CompileClock]:
    made = CompileClock()
    yield made
    jax.monitoring.unregister_event_duration_listener(made._add)
    jax.monitoring.unregister_event_listener(made._found)


def rows_of(url: str) -> list[Any]:
    engine = connect(url)
    try:
        return sorted(trial_rows(engine, "windows"), key=lambda row: row["number"])
    finally:
        engine.dispose()


@pytest.mark.slow
def test_each_length_is_made_and_compiled_once(
    tmp_path: Path, clock: CompileClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "_DROPPED", 10_000)  # else it depends on earlier tests when JAX's caches are cleared
    lengths: list[int] = []
    compiled: list[int] = []

    def say(event: Event) -> None:
        if isinstance(event, TrialBegan):
            lengths.append(event.hparams["length"])
            compiled.append(-clock.count)
        if isinstance(event, TrialEnded):
            compiled[-1] += clock.count

    url = f"sqlite:///{tmp_path}/study.db"
    # Saving a checkpoint compiles small programs, which a trial does that takes long on a busy machine.
    made = dataclasses.replace(study(trials=6), save_every_s=3600.0)
    run_worker(made, url, artifacts=str(tmp_path / "artifacts"), say=say)

    assert sorted(lengths) == [2, 2, 3, 3, 4, 4]
    firsts = [lengths.index(length) for length in (2, 3, 4)]
    assert [number for number, count in enumerate(compiled) if count > 0] == sorted(firsts)
    # The check before the first trial has the data of its example; trials of the same length use them again.
    assert sorted(windows_study.CALLS) == [(5, 2), (5, 3), (5, 4)]
    assert windows_study.CALLS[0] == (5, 2)
    assert {row["outcome"] for row in rows_of(url)} == {"complete"}


@pytest.mark.slow
def test_a_resumed_trial_has_its_own_data(tmp_path: Path) -> None:
    made = study(trials=3)
    quiet, url = f"sqlite:///{tmp_path}/quiet.db", f"sqlite:///{tmp_path}/study.db"
    run_worker(made, quiet, artifacts=str(tmp_path / "quiet"))
    expected = {row["number"]: (row["hparams"], row["value"]) for row in rows_of(quiet)}
    assert len({hparams["length"] for hparams, _ in expected.values()}) > 1

    said: list[Event] = []
    rounds = 0
    while sum(isinstance(event, TrialEnded) for event in said) < 3:  # each worker ends after one epoch
        stop = Stop()
        rounds += 1
        assert rounds < 20

        def stop_after_one(event: Event, stop: Stop = stop) -> None:
            said.append(event)
            stop.requested |= isinstance(event, EpochEnded)

        run_worker(made, url, artifacts=str(tmp_path / "artifacts"), say=stop_after_one, stop=stop)

    assert sum(isinstance(event, TrialBegan) for event in said) > 3, "trials were resumed"
    assert not any(isinstance(event, TrialRestarted) for event in said)
    assert {row["number"]: (row["hparams"], row["value"]) for row in rows_of(url)} == expected


@pytest.mark.slow
def test_an_error_in_the_data_of_one_trial_fails_only_that_trial(tmp_path: Path) -> None:
    def broken(seed: int, hparams: Any) -> Splits:
        if hparams.length == 4 and len(failures) < 2:  # the first trial of this length, and its retry
            failures.append(hparams.length)
            raise ValueError("no windows of 4")
        return windows_study.data(seed, hparams)

    line = broken.__code__.co_firstlineno + 3
    said: list[Event] = []
    failures: list[int] = []
    url = f"sqlite:///{tmp_path}/study.db"
    run_worker(study(data=broken), url, artifacts=str(tmp_path / "artifacts"), say=said.append)

    rows = rows_of(url)
    assert [row["hparams"]["length"] for row in rows if row["outcome"] == "failed"] == [4]
    assert [row["outcome"] for row in rows if row["outcome"] != "failed"] == ["complete"] * 4
    message = f"data(seed, hparams) failed: {__file__}:{line}: ValueError: no windows of 4"
    retried = [event.error for event in said if isinstance(event, TrialRetried)]
    assert retried == [message]


def test_errors_before_the_first_trial_store_nothing(tmp_path: Path) -> None:
    def broken(seed: int, hparams: Any) -> Splits:
        raise ValueError("no windows")

    def reading(seed: int, hparams: Any) -> Splits:
        return windows_study.data(int(hparams.rate), hparams)

    path = tmp_path / "study.db"
    with pytest.raises(StudyError, match=r"data\(seed, hparams\) failed: .*test_trial_data.py:\d+: ValueError: no"):
        run_worker(study(data=broken), f"sqlite:///{path}")
    with pytest.raises(StudyError, match="data read the traced hyperparameter 'rate'"):
        run_worker(study(data=reading), f"sqlite:///{path}")
    assert not path.exists()


class Small(Space):
    length: int = choice(2)


class Large(Space):
    length: int = choice(4)


class Nested(Space):
    rate: float = uniform(0.01, 0.1)
    size: Small | Large = choice(Small, Large)


def test_every_example_is_checked_with_its_own_data(tmp_path: Path) -> None:
    class NestedMean(windows_study.Mean):
        def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
            return super().loss(outputs, batch, hparams.size)

    def too_few(seed: int, hparams: Any) -> Any:
        return 3 if isinstance(hparams.size, Large) else windows_study.data(seed, hparams.size)

    nested = study(space=Nested, trainer=NestedMean(), data=too_few, sampler="random")
    with pytest.raises(StudyError, match=r"data must be a tuner\.training\.Splits .*: got int"):
        run_worker(nested, f"sqlite:///{tmp_path}/study.db")
    assert windows_study.CALLS == [(5, 2)]
    assert not (tmp_path / "study.db").exists()


@pytest.mark.slow
def test_trials_are_repeated_confirmed_drawn_and_bundled_with_their_own_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "windows.py"
    file.write_text(Path(windows_study.__file__).read_text())
    url = f"sqlite:///{tmp_path}/study.db"
    run_worker(load_study(str(file)), url, artifacts=str(tmp_path / "artifacts"), file=str(file))
    rows = rows_of(url)
    of_each_length = {row["hparams"]["length"]: row for row in rows}
    assert len(of_each_length) > 1
    engine = connect(url)
    try:
        rerunner = open_study(engine, "windows", None, {})
        for row in of_each_length.values():
            compared = {one.metric: one for one in reproduce(rerunner, row["number"], lambda report: None)}
            assert compared["loss"].difference == 0.0
            assert compared["length"].found == row["hparams"]["length"]
            path = tmp_path / f"{row['number']}.svg"
            draw_picture(engine, "windows", path, row["number"])
            assert f"<!-- length {row['hparams']['length']} -->" in path.read_text()
            bundle = tmp_path / f"{row['number']}.zip"
            export_bundle(engine, "windows", bundle, row["number"])
            with zipfile.ZipFile(bundle) as opened:
                opened.extractall(tmp_path / bundle.stem)
            runpy.run_path(str(tmp_path / bundle.stem / "run.py"))
            assert (
                f"length: {row['hparams']['length']}, recorded {row['hparams']['length']}\n" in capsys.readouterr().out
            )
        confirmed: list[float | None] = []
        confirm(rerunner, 4, 1, lambda trial, repeat, value: confirmed.append(value))
    finally:
        engine.dispose()
    assert len(confirmed) == 4
    assert None not in confirmed
