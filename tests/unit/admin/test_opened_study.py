"""A study opened from Python: what it returns, against what Optuna says of the same database."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

import tuner
from tuner import Space, Study, choice, uniform
from tuner.admin.opened_study import OpenedStudy
from tuner.errors import CheckpointError, StorageLost, StudyError, StudyStopped, UnknownStudy, UsageError
from tuner.results.rows import progress
from tuner.storage import connected


class HParams(Space):
    rate: float = uniform(0.0, 1.0)
    kind: str = choice("small", "large")


def train(hparams: Any, trial: Any) -> Any:
    for epoch in range(1, 4):
        yield {"loss": (hparams.rate - 0.3) ** 2 + 1 / epoch, "size": 10.0 if hparams.kind == "large" else 1.0}
    trial.save({"rate": hparams.rate})


def study(name: str = "opened", **settings: Any) -> Study:
    given: dict[str, Any] = {"objective": "loss", "direction": "minimize", "trials": 12, "seed": 3, **settings}
    return Study(name=name, space=HParams, train=train, epochs=3, pruner="none", sampler="random", **given)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("opened")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        url = f"sqlite:///{folder / 'study.db'}"
        study().run(url)
        study("pair", objective=["loss", "size"], direction=None, directions=["minimize", "minimize"]).run(url)
    return url


@pytest.fixture
def opened(url: str) -> OpenedStudy:
    return tuner.open_study("opened", url)


def optunas(url: str, name: str = "opened") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=tuner.open_storage(url))


@pytest.mark.slow
def test_trials_are_those_of_optuna(opened: OpenedStudy, url: str) -> None:
    frame, theirs = opened.trials(), optunas(url).trials
    assert list(frame["number"]) == [trial.number for trial in theirs]
    assert list(frame["value"]) == [trial.value for trial in theirs]
    assert list(frame["hparams.rate"]) == [trial.params["rate"] for trial in theirs]
    assert list(frame["hparams.kind"]) == [trial.params["kind"] for trial in theirs]
    assert set(frame["outcome"]) == {"complete"}


@pytest.mark.slow
def test_curves_have_every_metric_of_every_epoch(opened: OpenedStudy, url: str) -> None:
    frame = opened.curves()
    assert list(frame.columns) == ["number", "epoch", "step", "loss", "size"]
    expected = [
        (trial.number, epoch, value)
        for trial in optunas(url).trials
        for epoch, value in sorted(trial.intermediate_values.items())
    ]
    assert list(zip(frame["number"], frame["epoch"], frame["loss"], strict=True)) == expected
    assert len(expected) == 36


def test_the_best_trial_is_optunas(opened: OpenedStudy, url: str) -> None:
    best, theirs = opened.best(), optunas(url).best_trial
    assert (best.number, best.value, best.hparams) == (theirs.number, theirs.value, theirs.params)
    assert best.metrics["loss"] == theirs.intermediate_values[3]
    assert best.outcome == "complete"
    assert opened.trial(best.number) == best
    assert best.checkpoint is not None
    assert tuner.load_state(best.checkpoint) == {"rate": theirs.params["rate"]}
    with pytest.raises(UsageError, match="one objective, and so no Pareto front: call `best`"):
        opened.pareto()


def test_the_front_is_optunas(url: str) -> None:
    pair = tuner.open_study("pair", url)
    theirs = {trial.number: tuple(trial.values) for trial in optunas(url, "pair").best_trials}
    assert {trial.number: trial.values for trial in pair.pareto()} == theirs
    assert list(pair.trials()["values.size"]) == [trial.values[1] for trial in optunas(url, "pair").trials]
    with pytest.raises(UsageError, match="has several objectives: call `pareto`"):
        pair.best()
    with pytest.raises(UsageError, match="has 2 objectives: use `values`"):
        _ = pair.trial(0).value


def test_importance_has_a_row_for_each_hyperparameter(opened: OpenedStudy) -> None:
    frame = opened.importance()
    assert set(frame["hparam"]) == {"rate", "kind"}
    assert sum(frame["ped_anova"]) == pytest.approx(1.0)


@pytest.mark.slow
def test_a_plot_is_shown_by_notebooks_and_leaves_pyplot_alone(opened: OpenedStudy, tmp_path: Path) -> None:
    from matplotlib import pyplot

    before, figures = pyplot.get_backend(), pyplot.get_fignums()
    mine = pyplot.figure()
    plot = opened.plot("history")
    assert plot._repr_png_().startswith(b"\x89PNG")
    plot.save(tmp_path / "history.svg")
    assert "<svg" in (tmp_path / "history.svg").read_text()
    (axes, *_) = plot.figure.axes
    drawn = {float(value) for line in axes.collections for value in np.asarray(line.get_offsets())[:, 1]}
    assert drawn == {float(value) for value in opened.trials()["value"]}
    assert pyplot.get_fignums() == [*figures, mine.number]  # pyright: ignore[reportAttributeAccessIssue]
    assert pyplot.get_backend() == before
    pyplot.close(mine)
    with pytest.raises(UsageError, match=r"a plot must be one of history, .* got 'history_'; did you mean 'history'\?"):
        opened.plot("history_")


def test_a_trial_is_queued_and_run_with_more_trials(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    mine = study("queued", trials=2)
    queued = mine.run(url)
    assert queued == tuner.open_study("queued", url)
    queued.enqueue(rate=0.30, kind="large")
    assert (
        "all 2 trials of 'queued' are used up: `tuner launch FILE --trials 3` runs what is queued"
        in capsys.readouterr().err
    )
    assert list(queued.trials()["outcome"]) == ["complete", "complete", "waiting"]
    with pytest.raises(UsageError, match=r"rate must be in \[0.0, 1.0\]: got '7'"):
        queued.enqueue(rate=7)
    mine.run(url, trials=3)
    trial = queued.trial(2)
    assert (trial.outcome, trial.hparams) == ("complete", {"rate": 0.30, "kind": "large"})
    assert queued.state == "finished"
    with pytest.raises(StudyError, match="trials must be an integer of at least 1: got 0"):
        mine.run(url, trials=0)


def test_a_stopped_study_does_not_run_until_it_is_resumed(url: str) -> None:
    mine = study("halted", trials=1)
    halted = mine.run(url)
    halted.stop()
    assert halted.state == "stopped"
    with pytest.raises(StudyStopped):
        mine.run(url, trials=2)
    assert len(halted.trials()) == 1
    halted.resume()
    mine.run(url, trials=2)
    assert len(halted.trials()) == 2


def test_a_study_describes_itself(opened: OpenedStudy, url: str) -> None:
    best = opened.best()
    assert repr(opened) == f"<study opened: finished, 12 complete, best {best.value:.5g} ({url})>"
    assert f"<td>{best.value:.5g}</td>" in opened._repr_html_()
    shown = best._repr_html_()
    assert "<th style='text-align:left'>hparams.kind</th>" in shown
    assert "metrics.size" in shown


def test_text_of_a_study_is_escaped_in_html(url: str) -> None:
    named = study("<b>&", trials=1).run(url)
    assert "&lt;b&gt;&amp;" in named._repr_html_()


@pytest.mark.slow
def test_a_study_of_plain_optuna_opens(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'plain.db'}"

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        trial.report(x * 2, 0)
        trial.report(math.inf, 5)
        return x

    theirs = optuna.create_study(study_name="plain", storage=url)
    theirs.optimize(objective, n_trials=2)
    plain = tuner.open_study("plain", url)
    assert plain.state is None
    frame = plain.curves()
    assert list(frame.columns) == ["number", "epoch", "step", "value"]
    assert list(frame["value"]) == [
        theirs.trials[0].params["x"] * 2,
        math.inf,
        theirs.trials[1].params["x"] * 2,
        math.inf,
    ]
    assert plain.best().value == theirs.best_value
    with pytest.raises(UsageError, match="was not created by tuner, so it has no workers to stop"):
        plain.stop()
    assert plain.best().metrics == {"value": math.inf}
    with connected(url) as engine:
        assert progress(engine, "plain", 5)["workers"] == []


def test_what_does_not_exist_is_named(opened: OpenedStudy, url: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownStudy, match=r"no study 'opened_' in this storage: .*did you mean 'opened'"):
        tuner.open_study("opened_", url)
    with pytest.raises(StorageLost, match=r"no such file|does not exist"):
        tuner.open_study("opened", f"sqlite:///{tmp_path / 'none.db'}")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UnknownStudy, match="has no trial 99: it has 0 to 11"):
        opened.trial(99)
    with pytest.raises(UsageError, match="a trial's number must be an integer: got '1'"):
        opened.trial("1")  # pyright: ignore[reportArgumentType]
    gone = OpenedStudy("gone", opened.storage)
    assert repr(gone) == f"<study gone ({opened.storage}): not readable>"
    with pytest.raises(UsageError, match=r"has a function instead of a trainer.*`tuner.load_state`"):
        opened.load()


def test_a_study_without_trials_has_empty_frames(url: str) -> None:
    optuna.create_study(study_name="empty", storage=tuner.open_storage(url))
    empty = tuner.open_study("empty", url)
    assert list(empty.trials().columns) == ["number", "outcome"]
    assert list(empty.curves().columns) == ["number", "epoch", "step"]
    with pytest.raises(UsageError, match="has no complete trials yet"):
        empty.best()


def test_without_pandas_the_extra_is_named(opened: OpenedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match=r"DataFrames need pandas: run `pip install -e '\.\[pandas\]'`"):
        opened.trials()


@pytest.mark.slow
def test_opening_imports_neither_jax_nor_optuna(url: str) -> None:
    program = (
        "import sys, tuner; study = tuner.open_study('opened', sys.argv[1]); study.best(); study.curves(); repr(study);"
        "print(sorted({'jax', 'flax', 'optuna'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_nothing_but_loading_a_model_imports_jax(url: str) -> None:
    program = (
        "import sys, tuner; pair = tuner.open_study('pair', sys.argv[1]); pair.trials(); pair.pareto();"
        "pair.best('loss'); pair.importance(); pair.plot('pareto'); pair.curves(); pair._repr_html_();"
        "pair.enqueue(rate=0.5); pair.stop(); pair.resume();"
        "print(sorted({'jax', 'flax', 'jaxlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_front_needs_a_rule_for_its_best_trial(url: str) -> None:
    pair = tuner.open_study("pair", url)
    with pytest.raises(UsageError, match=r"call `pareto` for its best trials, or pass one of 'loss', 'size', 'knee'"):
        pair.best()
    front = {trial.number: trial.values or () for trial in pair.pareto()}
    assert front[pair.best("loss").number] == min(front.values())
    with pytest.raises(UsageError, match="has a function instead of a trainer"):
        pair.load(prefer="loss")


CELL = """
import numpy as np
import flax.linen as nn
from tuner import Space, Study, log_uniform, open_study
from tuner.training import ArrayDataset, OptimizerSpec, Splits, TrainerModule


class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1e-1)


class Trainer(TrainerModule):
    def init_model(self, hparams):
        return nn.Dense(1)

    def init_optimizer(self, hparams, total_steps):
        return OptimizerSpec("adam", hparams.learning_rate)

    def loss(self, outputs, batch, hparams):
        return (outputs[:, 0] - batch["labels"]) ** 2, {}


def data(seed):
    inputs = np.random.default_rng(seed).normal(size=(64, 4)).astype("float32")
    sets = [ArrayDataset(inputs=inputs[part], labels=inputs[part].sum(1)) for part in (slice(48), slice(48, None))]
    return Splits(*sets)


study = Study(
    name="cell", space=HParams, trainer=Trainer, data=data, objective="loss", direction="minimize", epochs=2, trials=1
)
"""


@pytest.mark.slow
def test_a_study_of_a_notebook_runs_resumes_and_loads_its_model(tmp_path: Path) -> None:
    run = f"{CELL}\nstudy.run(trials=1)\nprint(study.run(trials=2).load().predict(np.zeros((1, 4))).shape)"
    # `python -c` has no file, as a notebook has none.
    done = subprocess.run([sys.executable, "-c", run], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "(1, 1)\n"), done.stderr
    best = "open_study('cell').best().hparams['learning_rate']"
    again = f"{CELL}\nprint(open_study('cell').load().hparams.learning_rate == {best})"
    done = subprocess.run([sys.executable, "-c", again], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    cell = tuner.open_study("cell", f"sqlite:///{tmp_path / 'tuner.db'}")
    assert len(cell.trials()) == 2
    with pytest.raises(CheckpointError, match="was defined in a notebook or interactively: define it again first"):
        cell.load()
