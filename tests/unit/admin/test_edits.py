"""What people do to a study by hand, seen by Optuna and on the disk."""

import itertools
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState, create_trial

import tuner
from tuner import Space, Study, choice, log_uniform, uniform
from tuner.admin.edits import (
    EndedTrial,
    Shortage,
    belongings,
    clear,
    delete,
    end_trial,
    enqueue,
    find_shortage,
    retry,
)
from tuner.errors import LeaseLost, UnknownStudy, UsageError
from tuner.results.rows import trial_rows
from tuner.storage import artifacts, connect, parse_url
from tuner.storage.artifacts import StudyArtifacts, artifacts_of, study_folder
from tuner.storage.read.lineage import read_attempts
from tuner.storage.sql.tables import CHILDREN_OF_TRIALS
from tuner.storage.worker import leases
from tuner.storage.worker.claims import Claimant, claim
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import join, leave, register
from tuner.trial import Outcome, Report
from tuner.trial.extension import EXTENSION_KEY, Extension

pytestmark = pytest.mark.with_tables

TRAINER = SimpleNamespace(train_model=None)


@pytest.fixture
def storage(storage_url: str) -> Iterator[Any]:
    storage = tuner.open_storage(storage_url)
    yield storage
    storage.close()


def define(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "rate": trial.suggest_float("rate", 1e-5, 1e-1, log=True),
        "share": trial.suggest_float("share", 0.0, 1.0, step=0.25),
        "width": trial.suggest_int("width", 8, 64, step=8),
        "kind": trial.suggest_categorical("kind", ("relu", None, True, 3)),
    }


def make(storage: Any, name: str = "ours") -> optuna.Study:
    study = optuna.create_study(study_name=name, storage=storage)
    trial = study.ask()
    define(trial)
    study.tell(trial, 1.0)
    return study


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "values"),
    [
        ({"rate": "3e-3"}, {"rate": 3e-3}),
        ({"rate": "0.1", "share": "0.75", "width": "16"}, {"rate": 0.1, "share": 0.75, "width": 16}),
        ({"kind": "relu"}, {"kind": "relu"}),
        ({"kind": "None"}, {"kind": None}),
        ({"kind": "null"}, {"kind": None}),
        ({"kind": "True"}, {"kind": True}),
        ({"kind": "3"}, {"kind": 3}),
    ],
)
def test_a_queued_trial_gets_what_was_asked_for(
    storage: Any, storage_url: str, words: dict[str, str], values: dict[str, Any]
) -> None:
    study = make(storage)
    assert enqueue(storage_url, "ours", words) == values

    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE, TrialState.WAITING]
    trial = study.ask()
    assert trial.number == 1
    drawn = define(trial)
    assert {name: drawn[name] for name in values} == values


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"rate": "0.2"}, r"rate must be in \[1e-05, 0.1\]: got '0.2'"),
        ({"rate": "fast"}, r"rate must be in .*: got 'fast'"),
        ({"rate": "nan"}, r"rate must be in .*: got 'nan'"),
        ({"width": "12"}, r"width must be in \[8, 64\] in steps of 8: got '12'"),
        ({"width": "16.5"}, r"width must be in"),
        ({"kind": "gelu"}, r"kind must be in \{relu, None, True, 3\}: got 'gelu'"),
        ({"raet": "0.01"}, r"'ours' has no hyperparameter 'raet': it has rate, .*; did you mean 'rate'"),
    ],
)
def test_what_no_trial_can_have_is_not_queued(
    storage: Any, storage_url: str, words: dict[str, str], message: str
) -> None:
    study = make(storage)
    with pytest.raises(UsageError, match=message):
        enqueue(storage_url, "ours", {"share": "0.5", **words})
    assert len(study.get_trials()) == 1


def test_a_study_without_trials_knows_no_hyperparameters(storage: Any, storage_url: str) -> None:
    optuna.create_study(study_name="new", storage=storage)
    with pytest.raises(UsageError, match="study 'new' has no trials yet"):
        enqueue(storage_url, "new", {"rate": "0.01"})
    with pytest.raises(UnknownStudy):
        enqueue(storage_url, "old", {"rate": "0.01"})


def test_a_domain_that_changed_has_the_values_of_both(storage: Any, storage_url: str) -> None:
    study = optuna.create_study(study_name="ours", storage=storage)
    for high in (1.0, 8.0):
        trial = study.ask()
        trial.suggest_float("x", high / 2, high)
        study.tell(trial, 1.0)
    for word in ("0.5", "6"):
        enqueue(storage_url, "ours", {"x": word})
    with pytest.raises(UsageError, match=r"x must be in \[0.5, 1.0\] or \[4.0, 8.0\]: got '2'"):
        enqueue(storage_url, "ours", {"x": "2"})


class Nesterov(Space):
    damping: float = uniform(0.0, 1.0)


class Heavy(Space):
    mass: float = uniform(0.0, 1.0)


class SGD(Space):
    momentum: float = uniform(0.5, 0.95)
    kind: Nesterov | Heavy = choice(Nesterov, Heavy)
    decay: float = uniform(0.0, 1.0)


class AdamW(Space):
    b1: float = uniform(0.8, 0.99)
    decay: float = uniform(0.0, 1.0)


class Lion(Space):
    b1: float = uniform(0.1, 0.2)


class Searched(Space):
    learning_rate: float = log_uniform(1e-4, 1e-1)
    optimizer: SGD | AdamW | Lion = choice(SGD, AdamW, Lion)


def make_conditional(storage: Any, url: str, trials: int = 30, **settings: Any) -> Study:
    """Store a study as a worker does, with enough trials to have met every option."""
    given: dict[str, Any] = {
        "name": "ours",
        "space": Searched,
        "trainer": TRAINER,
        "data": lambda seed: None,
    }
    study = Study(**given, objective="loss", direction="minimize", epochs=1, trials=trials, **settings)
    engine = connect(url)
    register(storage, engine, "ours", ["minimize"], study.record())
    engine.dispose()
    optuna_study = optuna.load_study(study_name="ours", storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(trials):
        trial = optuna_study.ask()
        study.sample(trial)
        optuna_study.tell(trial, 1.0)
    return study


@pytest.mark.slow
def test_what_a_trial_might_not_have_is_not_queued(storage: Any, storage_url: str) -> None:
    make_conditional(storage, storage_url)
    for words, message in [
        ({"optimizer.momentum": "0.9"}, "optimizer.momentum needs optimizer=SGD; pass that as well"),
        ({"optimizer.momentum": "0.9", "optimizer": "AdamW"}, "momentum needs optimizer=SGD: got optimizer=AdamW"),
        ({"optimizer": "SGD", "optimizer.AdamW.b1": "0.9"}, "AdamW.b1 needs optimizer=AdamW: got optimizer=SGD"),
        ({"optimizer.decay": "0.5"}, "optimizer.decay needs optimizer=SGD or optimizer=AdamW; pass that as well"),
        ({"optimizer": "Lion", "optimizer.decay": "0.5"}, "needs optimizer=SGD or optimizer=AdamW: got optimizer=Lion"),
        ({"optimizer.kind": "Heavy"}, "optimizer.kind needs optimizer=SGD; pass that as well"),
        ({"optimizer": "SGD", "optimizer.kind.mass": "0.5"}, "mass needs optimizer.kind=Heavy; pass that as well"),
        # The option that it needs needs one itself.
        ({"optimizer.kind": "Heavy", "optimizer.kind.mass": "0.5"}, "kind needs optimizer=SGD; pass that as well"),
    ]:
        with pytest.raises(UsageError, match=f"hyperparameter .*{message}"):
            enqueue(storage_url, "ours", words)
    assert len(storage.get_all_trials(storage.get_study_id_from_name("ours"))) == 30


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        {"learning_rate": "0.01"},
        {"optimizer": "SGD", "optimizer.momentum": "0.9"},
        {"optimizer": "AdamW", "optimizer.AdamW.b1": "0.9", "optimizer.decay": "0.5"},
        {"optimizer": "SGD", "optimizer.kind": "Heavy", "optimizer.kind.mass": "0.25", "optimizer.decay": "0.5"},
    ],
)
def test_what_a_trial_is_queued_with_it_has(storage: Any, storage_url: str, words: dict[str, str]) -> None:
    study = make_conditional(storage, storage_url)
    params = enqueue(storage_url, "ours", words)
    assert params.keys() == words.keys()
    trial = optuna.load_study(study_name="ours", storage=storage).ask()
    study.sample(trial)
    assert {name: trial.params[name] for name in params} == params


def test_an_option_that_is_fixed_need_not_be_given(storage: Any, storage_url: str) -> None:
    make_conditional(storage, storage_url, trials=9, fixed={"optimizer": SGD})
    assert enqueue(storage_url, "ours", {"optimizer.momentum": "0.9"}) == {"optimizer.momentum": 0.9}
    with pytest.raises(UsageError, match=r"needs optimizer.kind=Heavy; pass that as well"):
        enqueue(storage_url, "ours", {"optimizer.kind.mass": "0.5"})


def test_the_hint_counts_every_queued_trial(storage: Any, storage_url: str) -> None:
    engine = connect(storage_url)
    study_id = register(storage, engine, "ours", ["minimize"], {}).study_id
    study = optuna.load_study(study_name="ours", storage=storage)
    claimant = Claimant(study_id, "one", trials=4, lease_s=300.0)
    study.enqueue_trial({})
    assert find_shortage(engine, "ours") is None, "it was never launched"
    join(engine, claimant, {"host": "here", "pid": 1, "devices": "cpu"})
    for outcome in (Outcome.COMPLETE, Outcome.FAILED, None):
        lease = claim(engine, claimant)
        assert isinstance(lease, Lease)
        if outcome is not None:
            leases.tell(engine, lease, outcome, [1.0] if outcome is Outcome.COMPLETE else None, {})
    assert find_shortage(engine, "ours") is None, "one is used, one runs"
    for needed in (3, 4, 5, 6):
        study.enqueue_trial({})
        found = find_shortage(engine, "ours")
        assert found == (None if needed <= 4 else Shortage(4, 1, needed))
    # As many as said do run.
    claimant.trials = 6
    running = [claim(engine, claimant) for _ in range(5)]
    assert [isinstance(one, Lease) for one in running] == [True] * 4 + [False]
    assert study.get_trials(states=[TrialState.WAITING]) == []
    engine.dispose()


def test_a_failed_trial_is_tried_again_as_a_new_one(storage: Any, storage_url: str) -> None:
    study = make(storage)
    failed = study.ask()
    hparams = define(failed)
    study.tell(failed, state=TrialState.FAIL)
    assert retry(storage_url, "ours", failed.number) == 2
    (queued,) = study.get_trials(states=[TrialState.WAITING])
    assert (queued.number, queued.datetime_start, queued.system_attrs) == (2, None, {"fixed_params": hparams})

    again = study.ask()
    assert (again.number, define(again)) == (2, hparams)
    assert again.user_attrs == {"retry_of": 1}
    for number, state in ((0, "complete"), (2, "running")):
        with pytest.raises(
            UsageError, match=f"cannot retry trial {number} of 'ours', which is {state}: only trials that failed"
        ):
            retry(storage_url, "ours", number)
    with pytest.raises(UnknownStudy):
        retry(storage_url, "ours", 9)
    assert len(study.get_trials()) == 3


def test_a_trial_is_queued_again_once_however_often_that_is_asked(storage: Any, storage_url: str) -> None:
    study = make(storage)
    failed = study.ask()
    define(failed)
    study.tell(failed, state=TrialState.FAIL)

    def ask(_: int) -> object:
        try:
            return retry(storage_url, "ours", failed.number)
        except UsageError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(ask, range(8)))

    already = "trial 2 of 'ours' is already a retry of trial 1: wait until it has ended"
    assert sorted(told, key=str) == [2, *[already] * 7]
    again = study.ask()
    assert (again.number, ask(0)) == (2, already), "it runs now"
    study.tell(again, state=TrialState.FAIL)
    assert retry(storage_url, "ours", failed.number) == 3


def test_a_failed_continuation_is_not_tried_again_from_the_start(storage: Any, storage_url: str) -> None:
    study = make(storage)
    extension = Extension(0, 1, 7, 0, "/gone").to_json()
    study.add_trial(create_trial(state=TrialState.FAIL, system_attrs={EXTENSION_KEY: extension}))
    with pytest.raises(
        UsageError, match=r"^cannot retry trial 1 .* continued trial 0: .* with `tuner extend ours`, for 7 epochs$"
    ):
        retry(storage_url, "ours", 1)


@pytest.mark.slow
def test_one_trial_is_ended_and_the_study_continues(storage: Any, storage_url: str) -> None:
    engine = connect(storage_url)
    study_id = register(storage, engine, "ours", ["minimize"], {}).study_id
    claimant = Claimant(study_id, "one", trials=4, lease_s=300.0)
    running, given_back = (claim(engine, claimant) for _ in range(2))
    assert isinstance(running, Lease)
    assert isinstance(given_back, Lease)
    leases.report(engine, running, [Report(1, 10, {"loss": 0.5})], "loss")
    leases.release(engine, given_back)
    study = optuna.load_study(study_name="ours", storage=storage)
    study.enqueue_trial({})

    endings = [end_trial(storage_url, "ours", number) for number in range(3)]

    assert endings == [
        EndedTrial(Outcome.RUNNING, Outcome.PRUNED, None),
        EndedTrial(Outcome.PREEMPTED, Outcome.PRUNED, None),
        EndedTrial(Outcome.WAITING, Outcome.FAILED, None),
    ]
    assert [one.describe("ours", number) for number, one in enumerate(endings)] == [
        "trial 0 of 'ours' is ended as pruned; its worker drops it at its next report",
        "trial 1 of 'ours' is ended as pruned; no worker resumes it",
        "trial 2 of 'ours' is removed from the queue",
    ]
    # As Optuna sees them: only the trial in the queue is forgotten by samplers and by the budget.
    states = [trial.state for trial in study.get_trials()]
    assert states == [TrialState.PRUNED, TrialState.PRUNED, TrialState.FAIL]
    assert study.trials[0].intermediate_values == {1: 0.5}
    assert study.trials[0].datetime_complete is not None
    attempts = read_attempts(engine, running.trial_id)
    assert [(one.worker, one.ending, one.ended_at_s is not None) for one in attempts] == [("one", "pruned", True)]
    assert [one.ending for one in read_attempts(engine, given_back.trial_id)] == ["preempted"]
    # The worker that held it is refused, and two of the four trials are left.
    with pytest.raises(LeaseLost):
        leases.report(engine, running, [Report(2, 20, {"loss": 0.4})], "loss")
    assert [isinstance(claim(engine, claimant), Lease) for _ in range(3)] == [True, True, False]
    with pytest.raises(UsageError, match="trial 0 of 'ours' has ended already: it is pruned"):
        end_trial(storage_url, "ours", 0)
    with pytest.raises(UnknownStudy, match="study 'ours' has no trial 9: it has 0 to 4"):
        end_trial(storage_url, "ours", 9)
    engine.dispose()


def test_a_continuation_is_ended_and_what_it_continues_is_named(storage: Any, storage_url: str) -> None:
    study = make(storage)
    extension = Extension(0, 1, 7, 0, "/gone").to_json()
    study.add_trial(create_trial(state=TrialState.WAITING, system_attrs={EXTENSION_KEY: extension}))

    ended = end_trial(storage_url, "ours", 1)

    assert ended == EndedTrial(Outcome.WAITING, Outcome.FAILED, 0)
    assert ended.describe("ours", 1) == (
        "trial 1 of 'ours' is removed from the queue; trial 0, which it continues, can be continued again with "
        "`tuner extend`"
    )


def test_a_trial_of_a_plain_optuna_process_is_ended(storage_url: str) -> None:
    storage = optuna.storages.RDBStorage(parse_url(storage_url).for_optuna)
    trial = optuna.create_study(study_name="theirs", storage=storage).ask()
    ended = end_trial(storage_url, "theirs", 0)
    assert (ended.outcome, ended.was_waiting) == (Outcome.FAILED, False)
    assert ended.describe("theirs", 0).startswith("trial 0 of 'theirs' is ended as failed: the program that runs it")
    with pytest.raises(UpdateFinishedTrialError):
        trial.report(1.0, 1)
    storage.remove_session()
    storage.engine.dispose()


def test_a_study_is_deleted_with_its_files_and_another_is_not(storage: Any, storage_url: str, tmp_path: Path) -> None:
    make(storage, "first")
    make(storage, "second")
    (tmp_path / "files" / "1").mkdir(parents=True)
    delete(storage_url, "first", StudyArtifacts(tmp_path / "files"))
    engine = connect(storage_url)
    with engine.connect() as connection:
        for name in CHILDREN_OF_TRIALS:
            lost = f"SELECT count(*) FROM {name} WHERE trial_id NOT IN (SELECT trial_id FROM trials)"
            assert connection.execute(sa.text(lost)).scalar_one() == 0
        assert connection.execute(sa.text("SELECT count(*) FROM trial_params")).scalar_one() == 4
    engine.dispose()
    assert [study.study_name for study in storage.get_all_studies()] == ["second"]
    assert not (tmp_path / "files").exists()
    with pytest.raises(UnknownStudy):
        delete(storage_url, "first", None)


def test_checkpoints_of_the_best_and_of_those_that_run_are_kept(storage: Any, storage_url: str, tmp_path: Path) -> None:
    engine = connect(storage_url)
    study = register(storage, engine, "ours", ["maximize"], {})
    held = []
    for value in (0.5, 0.9, 0.1, None, 0.7, "running"):
        lease = claim(engine, Claimant(study.study_id, "one", trials=9, lease_s=300.0))
        assert isinstance(lease, Lease)
        held.append(lease)
        if value != "running":
            outcome = Outcome.PRUNED if value is None else Outcome.COMPLETE
            leases.tell(engine, lease, outcome, None if value is None else [float(value)], {})
    folder = study_folder(tmp_path, "ours", study.identity)
    for number in range(6):
        (folder / str(number) / "best").mkdir(parents=True)
        (folder / str(number) / "best" / "arrays").write_bytes(bytes(1000))

    numbers, size = clear(engine, "ours", artifacts_of(tmp_path), 2)
    assert numbers == [0, 2, 3]
    assert 3000 <= size < 3 * 10_000
    assert sorted(path.name for path in folder.iterdir()) == ["1", "4", "5"]
    assert clear(engine, "ours", artifacts_of(tmp_path), 0)[0] == [1, 4]
    with pytest.raises(UsageError, match=r"no checkpoints of 'ours' in .*elsewhere: pass their folder or URL as `art"):
        clear(engine, "ours", artifacts_of(tmp_path / "elsewhere"), 2)
    assert [row["outcome"] for row in trial_rows(engine, "ours")][5] == "running"
    engine.dispose()


# --- The commands


def test_a_worker_between_two_trials_counts_as_running(storage: Any) -> None:
    study_id = register(storage, storage.engine, "ours", ["minimize"], {}).study_id
    claimant = Claimant(study_id, "one", trials=5, lease_s=300.0)
    join(storage.engine, claimant, {"host": "here", "pid": 1, "devices": "cpu"})
    found = belongings(storage.engine, "ours", artifacts_of(None))
    assert (found.trials, found.workers) == (0, 1)
    leave(storage.engine, "one")
    assert belongings(storage.engine, "ours", artifacts_of(None)).workers == 0


def test_files_are_removed_while_a_worker_writes_its_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "study").mkdir()
    remove, saves = shutil.rmtree, iter(["trial-1", "trial-2"])

    def remove_and_save(path: Path, **options: Any) -> None:
        remove(path, **options)
        for name in itertools.islice(saves, 1):
            (folder / name).mkdir(parents=True)

    monkeypatch.setattr(shutil, "rmtree", remove_and_save)
    StudyArtifacts(folder).remove()
    assert not folder.exists()


def test_files_that_cannot_be_removed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "_LAST_FILES_S", 0.2)
    monkeypatch.setattr(shutil, "rmtree", lambda *given, **options: None)
    with pytest.raises(OSError, match=f"cannot remove {tmp_path}"):
        StudyArtifacts(tmp_path).remove()


def answer(tuner: Any, word: str, *words: str) -> tuple[int, str]:
    """Run a command on a terminal and answer its question."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuner", *words],
            cwd=tuner.folder, env=tuner.env, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        os.write(ours, f"{word}\n".encode())
        _, error = process.communicate(timeout=300)
    finally:
        os.close(ours)
        os.close(theirs)
    return process.returncode, error


@pytest.mark.slow
def test_a_study_is_deleted_under_its_workers(
    tuner_on_sqlite: Any, tiny_function: Path, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    tuner = tuner_on_sqlite
    worker = tuner.start("worker", "tiny.py", "--trials", "300", TINY_PAUSE_S="0.2")
    wait_until(lambda: tuner.run_here("show", "tiny", "1").returncode == 0)

    done = tuner.run("delete", "tiny")
    assert done.returncode == 2
    assert "cannot ask for confirmation without a terminal: pass --yes to delete study 'tiny', its " in done.stderr
    assert done.stderr.rstrip().endswith("; running workers: 1")
    code, error = answer(tuner, "n", "delete", "tiny")
    assert (code, error.endswith("? [y/N]:tuner: nothing was deleted\n")) == (0, True), error
    code, error = answer(tuner, "y", "delete", "tiny")
    assert (code, "tuner: deleted study 'tiny'" in error) == (0, True), error

    output, _ = worker.communicate(timeout=300)
    assert worker.returncode == 2
    assert "the study was deleted while it ran" in output.splitlines()[-1]
    assert tuner.rows("studies") == []
    engine = connect(tuner.env["TUNER_STORAGE"])
    with engine.connect() as connection:
        for name in (*CHILDREN_OF_TRIALS, "trials", "tuner_reports", "tuner_attempts"):
            assert connection.execute(sa.text(f"SELECT count(*) FROM {name}")).scalar_one() == 0, name
    engine.dispose()


@pytest.mark.slow
def test_a_queued_trial_is_run_next(tuner_on_sqlite: Any, tiny_function: Path) -> None:
    tuner = tuner_on_sqlite
    assert tuner.run("worker", "tiny.py", "--trials", "2").returncode == 0
    name, value = next(iter(tuner.rows("show", "tiny", "0")["hparams"].items()))
    done = tuner.run("enqueue", "tiny", f"{name}={value}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"tuner: a trial of 'tiny' with {name}={value} is queued")
    wrong = tuner.run_here("enqueue", "tiny", "nonsense")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "tuner: a hyperparameter must have the form NAME=VALUE: got 'nonsense'\n",
    )
    assert tuner.run("worker", "tiny.py", "--trials", "4").returncode == 0
    rows = tuner.rows("trials", "tiny")
    assert len(rows) == 4
    assert rows[2]["hparams"][name] == value


def test_a_folder_that_another_worker_removes_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "7" / "best" / "1" / "arrays"
    inner.mkdir(parents=True)
    (inner / "data").write_bytes(bytes(100))
    (tmp_path / "7" / "kept").write_bytes(bytes(20))
    scan = os.scandir

    def vanishing(path: Any = ".") -> Any:
        if str(path) == str(inner):
            raise FileNotFoundError(path)
        return scan(path)

    (tmp_path / "7" / "gone").symlink_to("nowhere")
    look = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path: look(path if Path(path).name != "gone" else "/nowhere/at/all"))
    monkeypatch.setattr(os, "scandir", vanishing)
    assert artifacts._size(tmp_path / "7") == 20
    monkeypatch.undo()
    (tmp_path / "7" / "gone").unlink()
    assert artifacts.collect(tmp_path, lambda numbers: numbers) == ([7], 120)
