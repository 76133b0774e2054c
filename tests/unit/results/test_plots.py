"""Pictures of studies: what is in them, against the storage's numbers."""

import contextlib
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa

import tuner
from tuner.admin.edits import end_trial
from tuner.errors import UnknownStudy, UsageError
from tuner.results import plots
from tuner.results.compare import compare_rows
from tuner.results.plots import KINDS, opened, plot
from tuner.storage import connect, open_storage
from tuner.storage.sql.tables import attempts, reports
from tuner.storage.worker import leases
from tuner.storage.worker.claims import Claimant, claim
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import join, register
from tuner.study.population import COPIES_KEY
from tuner.trial import Outcome, Report

NAME = "ours <b>&"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A study of 24 trials of two workers, of which a third is pruned in its second epoch; and others."""
    url = f"sqlite:///{tmp_path_factory.mktemp('plots') / 'study.db'}"
    storage = tuner.open_storage(url)
    engine = connect(url)
    study = register(storage, engine, NAME, ["minimize"], {"objective": ["loss"], "epochs": 4})
    for at in range(24):
        name = f"worker {at % 2}"
        claimant = Claimant(study.study_id, name, trials=99, lease_s=300.0)
        join(engine, claimant, {"host": "here", "pid": 1, "devices": f"gpu {at % 2}"})
        lease = claim(engine, claimant)
        assert isinstance(lease, Lease)
        for param, value in (("rate", (at + 1) / 25), ("width", float(at % 3)), ("other", at / 30)):
            storage.set_trial_param(lease.trial_id, param, value, optuna.distributions.FloatDistribution(0.0, 3.0))
        place: dict[str, Any] = {"bracket": 0, "reduction_factor": 3, "bootstrap_count": 0, "maximize": [False]}
        storage.enter_rung(study.study_id, lease.trial_id, rung=0, values=[at / 10], **place)
        if at in (0, 3):  # trial 0, the best, copied trial 3, which had copied trial 4
            copy = {"epoch": 2 if at == 0 else 1, "trial": 3 if at == 0 else 4, "hparams": {"rate": 0.5}}
            storage.set_trial_system_attr(lease.trial_id, COPIES_KEY, [copy])
        is_pruned = at % 3 == 2
        for epoch in range(1, 3 if is_pruned else 5):
            leases.report(engine, lease, [Report(epoch, epoch, {"loss": at / epoch})], "loss")
        outcome, values = (Outcome.PRUNED, None) if is_pruned else (Outcome.COMPLETE, [at / 4])
        leases.tell(engine, lease, outcome, values, {"compile_s": 20.0})
    held = claim(engine, Claimant(study.study_id, "worker 0", trials=99, lease_s=300.0))
    assert isinstance(held, Lease)
    with engine.begin() as connection:
        ended = attempts.c.trial_id != held.trial_id
        c = attempts.c
        connection.execute(
            attempts.update().where(ended).values(started_at_s=60.0 * c.trial_id, ended_at_s=60.0 * c.trial_id + 50)
        )
        connection.execute(attempts.update().where(~ended).values(started_at_s=2000.0))
        connection.execute(reports.update().values(reported_at_s=15.0 * reports.c.epoch))
    for name, count in (("pair", 2), ("four", 4)):
        directions = [optuna.study.StudyDirection.MINIMIZE] * count
        several = optuna.create_study(study_name=name, storage=storage, directions=directions)
        for at in range(12):
            trial = several.ask()
            x = trial.suggest_float("x", 0.0, 1.0)
            several.tell(trial, [x, 1 - x, x, float(at)][:count])
    engine.dispose()
    storage.close()
    return url


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pareto"])
@pytest.mark.slow
def test_each_kind_is_a_picture_and_the_same_each_time(url: str, tmp_path: Path, kind: str) -> None:
    plot(url, NAME, kind, tmp_path / "one.svg")
    root = ElementTree.fromstring((tmp_path / "one.svg").read_text())
    assert root.tag.endswith("svg")
    assert len(list(root.iter())) > 50
    if kind != "timeline":  # it goes on
        plot(url, NAME, kind, tmp_path / "two.svg")
        assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


@pytest.mark.slow
def test_the_lineage_has_a_thick_line_for_what_led_to_the_best_trial(url: str) -> None:
    with opened(url, NAME) as subject:
        figure: Any = plots._lineage(subject)
    (axes,) = figure.axes
    thin, *thick = [collection.get_segments() for collection in axes.collections]
    assert len(thin) == 24
    assert [[tuple(end) for end in segments[0]] for segments in thick] == [
        [(0.0, 4.0), (1.0, 4.0)], [(1.0, 3.0), (2.0, 3.0)], [(2.0, 0.0), (4.0, 0.0)],
    ]  # fmt: skip
    assert sorted((text.xyann, text.xy) for text in axes.texts) == [((1, 4), (1, 3)), ((2, 3), (2, 0))]


def test_a_picture_for_a_paper(url: str, tmp_path: Path) -> None:
    plot(url, "pair", "pareto", tmp_path / "front.PNG")
    assert (tmp_path / "front.PNG").read_bytes().startswith(b"\x89PNG")


@pytest.mark.timezone
def test_the_timeline_has_a_bar_for_each_attempt(url: str) -> None:
    with opened(url, NAME) as subject:
        figure: Any = plots._timeline(subject)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["worker 0\ngpu 0", "worker 1\ngpu 1"]
    assert {bars.get_label(): len(bars.patches) for bars in axes.containers} == {
        "complete": 16, "pruned": 8, "running": 1,
    }  # fmt: skip
    (pruned,) = [bars for bars in axes.containers if bars.get_label() == "pruned"]
    seconds = 3600.0 if axes.get_xlabel().startswith("h ") else 1.0
    first = pruned.patches[0]
    assert first.get_width() * seconds == pytest.approx(50.0)
    assert first.get_x() * seconds == pytest.approx(120.0), "two minutes after the first"


def test_rungs_say_who_came_and_who_went_on(url: str) -> None:
    with opened(url, NAME) as subject:
        figure: Any = plots._rungs(subject)
    (axes,) = figure.axes
    came, went_on = ([bar.get_height() for bar in bars] for bars in axes.containers)
    engine = connect(url)
    with engine.connect() as connection:
        counts = connection.execute(sa.text("SELECT count(*), sum(is_promoted) FROM tuner_rungs")).one()
    engine.dispose()
    assert (came, went_on) == ([24], [counts[1]])
    assert 0 < counts[1] < 24


def test_what_pruning_saved_is_what_compare_says(url: str) -> None:
    engine = connect(url)
    (row,) = compare_rows(engine, [NAME])
    engine.dispose()
    # Eight trials: two epochs of 15 seconds each.
    assert row["hours_saved"] == pytest.approx(8 * 2 * 15 / 3600, abs=1e-4)
    with opened(url, NAME) as subject:
        figure: Any = plots._savings(subject)
    (axes,) = figure.axes
    spent, whole = (collection.get_paths()[0].vertices[:, 1].max() for collection in axes.collections)
    assert spent == pytest.approx(24 * 50 / 3600)
    assert whole - spent == pytest.approx(8 * 2 * 15 / 3600)


@pytest.mark.slow
def test_a_report_needs_nothing_else(url: str, tmp_path: Path) -> None:
    plot(url, NAME, "report", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<h1>ours &lt;b&gt;&amp;</h1>" in page
    assert NAME not in page
    assert page.count("<svg") == len(KINDS) - 1
    assert "<li>a Pareto front needs two or three objectives: study &#x27;ours &lt;b&gt;&amp;&#x27; has 1</li>" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", page), "everything is inside"
    assert "rate=0.04" in page


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_of_very_many_trials_a_part_is_drawn(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "MOST_LINES", 10)
    with opened(url, NAME) as subject:
        assert len(subject.part.trials) == 10
        figure: Any = KINDS["intermediate"](subject)
        assert [text.get_text() for text in figure.texts] == ["10 of the trials"]
        assert len(KINDS["edf"](subject).axes) == 1


@pytest.mark.parametrize(
    "kind",
    [
        "history",
        "report",
        *(
            pytest.param(kind, marks=pytest.mark.long)
            for kind in ("importances", "parallel", "contour", "slice", "edf")
        ),
    ],
)
@pytest.mark.slow
def test_a_trial_that_was_removed_from_the_queue_is_not_drawn(tmp_path: Path, kind: str) -> None:
    """It has failed without a start, and Optuna refuses to copy such a trial."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with contextlib.closing(open_storage(url)) as storage:
        study = optuna.create_study(study_name="queued", storage=storage)
        study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0) + trial.suggest_float("y", 0.0, 0.1), 4)
        study.enqueue_trial({"x": 0.5})
    assert end_trial(url, "queued", 4).was_waiting
    suffix = "html" if kind == "report" else "png"
    plot(url, "queued", kind, tmp_path / f"a.{suffix}")
    with opened(url, "queued") as subject:
        assert (len(subject.whole.trials), len(subject.part.trials)) == (5, 4)


@pytest.mark.parametrize(
    ("name", "kind", "file", "message"),
    [
        (NAME, "historry", "a.png", r"one of history, .*, report: got 'historry'; did you mean 'history'"),
        (NAME, "history", "a.pdf", r"the file of the plot 'history' must end in .png or .svg: got '.*a.pdf'"),
        (NAME, "report", "a.png", r"the file of the plot 'report' must end in .html"),
        (NAME, "pareto", "a.png", r"needs two or three objectives: study 'ours <b>&' has 1"),
        ("four", "pareto", "a.png", r"needs two or three objectives: study 'four' has 4"),
        ("pair", "timeline", "a.png", r"a timeline needs trials that workers ran: study 'pair' has none"),
        ("pair", "rungs", "a.png", r"only the pruners asha and hyperband have rungs: study 'pair' has none"),
        (
            "pair",
            "savings",
            "a.png",
            r"the time saved is not known: study 'pair' was not created by tuner",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said(url: str, tmp_path: Path, name: str, kind: str, file: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plot(url, name, kind, tmp_path / file)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_study_is_not_drawn(url: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownStudy):
        plot(url, "none", "history", tmp_path / "a.png")
    (tmp_path / "a.png").write_text("mine")
    with pytest.raises(UsageError, match=r"a.png exists already: pass `force` to overwrite it"):
        plot(url, NAME, "history", tmp_path / "a.png")
    plot(url, NAME, "history", tmp_path / "a.png", force=True)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_command_has_a_name_for_the_file(tuner_on_sqlite: Any, url: str) -> None:
    done = tuner_on_sqlite.run("plot", NAME, "edf", "--storage", url)
    assert (done.returncode, done.stderr) == (0, f"tuner: edf of {NAME!r} written to {NAME}-edf.png\n")
    assert (tuner_on_sqlite.folder / f"{NAME}-edf.png").stat().st_size > 10_000
