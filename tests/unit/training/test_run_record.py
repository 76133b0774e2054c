"""The log of a run: valid JSON at any time, and enough to train it again, bit for bit, in another process."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tuner.errors import CheckpointError, StudyError, TunerError
from tuner.study.source import import_file
from tuner.training import ArrayDataset, Checkpoints, Splits, TrainerModule, load_from_checkpoint, load_run

FILE = """
import jax, jax.numpy as jnp, numpy as np, optax
from tuner import Space, choice, uniform
from tuner.training import ArrayDataset, TrainerModule

class HParams(Space):
    learning_rate: float = uniform(0.0, 1.0)
    sizes: tuple[int, int] = choice((2, 3), (4, 5))

class Line(TrainerModule):
    def init_model(self, hparams):
        return lambda key, x: jax.random.normal(key, hparams.sizes[:1]), lambda params, x: x @ params

    def loss(self, outputs, batch, hparams):
        return (outputs - batch["labels"]) ** 2, {"nothing": outputs * jnp.nan}

    def batch_size(self, hparams):
        return 4

    def init_optimizer(self, hparams, total_steps):
        return optax.sgd(hparams.learning_rate)

def data(seed):
    rng = np.random.default_rng(seed)
    return ArrayDataset(inputs=rng.normal(size=(30, 2)), labels=rng.normal(size=30)).split(0.2, 0, test=0.1)
"""


@pytest.fixture
def file(tmp_path: Path) -> Any:
    path = tmp_path / "line.py"
    path.write_text(FILE)
    return import_file(path)


def strictly(path: Path) -> Any:
    """Read a file as JSON of the standard, which has no NaN."""
    return json.loads(path.read_text(), parse_constant=lambda found: pytest.fail(f"{found} is no JSON"))


def train(file: Any, folder: Path | None, **options: Any) -> Any:
    hparams = file.HParams(learning_rate=0.01, sizes=(2, 3))
    return file.Line().train_model(hparams, file.data(0), log=folder, **{"epochs": 3, "seed": 4, **options})


@pytest.mark.slow
def test_a_log_is_whole_from_the_start_and_after_each_report(file: Any, tmp_path: Path) -> None:
    training = train(file, tmp_path / "runs" / "one", objective="loss")
    lengths = []
    for _ in training:
        lengths.append(len(strictly(tmp_path / "runs" / "one" / "run.json")["reports"]))
    assert lengths == [1, 2, 3]
    assert [path.name for path in (tmp_path / "runs" / "one").iterdir()] == ["run.json"]
    run = load_run(tmp_path / "runs" / "one")
    assert repr(run.reports) == repr(training.reports)  # NaN equals itself in text only
    assert math.isnan(run.reports[0].metrics["nothing"])
    assert run.record["versions"]["device"] == "cpu"
    assert run.record["versions"]["xla_flags"] == os.environ["XLA_FLAGS"]
    assert run.record["mode"] == training.mode
    assert run.record["best"]["epoch"] == training.best.epoch


@pytest.mark.slow
def test_a_run_that_failed_at_once_has_a_log(file: Any, tmp_path: Path) -> None:
    class Failing(file.Line):
        def on_training_start(self, state: Any, hparams: Any) -> None:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        next(
            Failing().train_model(
                file.HParams(learning_rate=0.1, sizes=(2, 3)), file.data(0), epochs=1, seed=0, log=tmp_path
            )
        )
    assert strictly(tmp_path / "run.json")["reports"] == []


@pytest.mark.slow
def test_without_a_folder_nothing_is_written(
    file: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.chdir(empty)
    list(train(file, None))
    assert not list(empty.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["scan", pytest.param("step", marks=pytest.mark.long)])
def test_a_log_is_enough_to_train_again_in_another_process(file: Any, tmp_path: Path, mode: Any) -> None:
    training = train(file, tmp_path / "run", choose=lambda program, measure: mode)
    reports = list(training)
    code = (
        "import pathlib, sys\n"
        "from tuner.study.source import import_file\n"
        "from tuner.training import load_run\n"
        "run = load_run(sys.argv[1], trust=True)\n"
        "again = run.train(import_file(pathlib.Path(sys.argv[2])).data(0))\n"
        "print([(report.step, {name: value.hex() for name, value in report.metrics.items()}) for report in again])\n"
        "print(again.mode, run.hparams)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / "line.py")],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told, said = done.stdout.splitlines()
    expected = [(report.step, {name: value.hex() for name, value in report.metrics.items()}) for report in reports]
    assert told == str(expected)
    assert said == f"{mode} {training.host_hparams}"
    assert load_run(tmp_path / "run").hparams.sizes == (2, 3)


@pytest.mark.slow
def test_other_data_are_refused_and_options_may_be_added(file: Any, tmp_path: Path) -> None:
    reports = list(train(file, tmp_path))
    run = load_run(tmp_path)
    with pytest.raises(StudyError, match=r"cannot repeat the run: the train data differ"):
        run.train(file.data(1))
    splits = file.data(0)
    with pytest.raises(StudyError, match=r"the test data differ .*; create the splits as"):
        run.train(Splits(splits.train, splits.validation))
    reordered = Splits(splits.train.take(np.arange(len(splits.train))[::-1]), splits.validation, splits.test)
    with pytest.raises(StudyError, match="the train data differ"):
        run.train(reordered)
    assert repr(list(run.train(splits, log=tmp_path))) == repr(reports)
    assert len(list(run.train(splits, epochs=1))) == 1


@pytest.mark.slow
def test_a_folder_is_of_one_run(file: Any, tmp_path: Path) -> None:
    list(train(file, tmp_path))
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(
        StudyError, match=r"run.json is the log of another run: it has seed=4, this training has seed=5; use"
    ):
        train(file, tmp_path, seed=5)
    assert (tmp_path / "run.json").read_bytes() == before


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_log(file: Any, tmp_path: Path) -> None:
    stops = iter([False, True])
    options: Any = {"choose": lambda program, measure: "scan"}
    first = train(
        file,
        tmp_path / "log",
        checkpoints=Checkpoints(tmp_path / "ck", every_s=0),
        stop=lambda: next(stops),
        **options,
    )
    assert len(list(first)) == 2
    assert len(strictly(tmp_path / "log" / "run.json")["reports"]) == 2
    list(train(file, tmp_path / "log", checkpoints=Checkpoints(tmp_path / "ck", every_s=0), **options))
    assert repr(load_run(tmp_path / "log").reports) == repr(list(train(file, None, **options)))


class Plain(TrainerModule):
    def init_model(self, hparams: Any) -> Any:
        return lambda key, x: jnp.zeros(2), lambda params, x: x @ params

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (outputs - batch["inputs"][:, 0]) ** 2, {}

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return optax.sgd(hparams["learning_rate"] if isinstance(hparams, dict) else hparams[0])


PLAIN = ArrayDataset(inputs=np.eye(2)).take([0, 1, 0, 1]).split(0.5, 0)


def test_a_loaded_model_predicts_numpy_arrays(tmp_path: Path) -> None:
    hparams = {"learning_rate": 0.5}
    training = Plain().train_model(hparams, PLAIN, epochs=1, seed=0, checkpoints=Checkpoints(tmp_path, every_s=0))
    list(training)
    loaded = load_from_checkpoint(tmp_path, trainer=Plain(), hparams=hparams)
    inputs = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    found = loaded.predict(inputs)
    assert type(found) is np.ndarray
    np.testing.assert_allclose(found, inputs @ np.asarray(training.state.params), rtol=1e-6)


@pytest.mark.slow
def test_a_dict_of_plain_values_comes_back_and_others_are_asked_for(tmp_path: Path) -> None:
    for number, hparams in enumerate([{"learning_rate": np.float32(0.5)}, [0.5]]):
        list(Plain().train_model(hparams, PLAIN, epochs=1, seed=0, log=tmp_path / str(number)))
    assert load_run(tmp_path / "0").hparams == {"learning_rate": 0.5}
    with pytest.raises(CheckpointError, match=r"are neither a Space nor plain values: pass hparams="):
        load_run(tmp_path / "1")
    given: dict[str, float] = {}
    assert load_run(tmp_path / "1", hparams=given).hparams is given


@pytest.mark.slow
def test_a_trainer_that_was_typed_in_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys, numpy as np, jax.numpy as jnp, optax\n"
        "from tuner.training import ArrayDataset, Checkpoints, TrainerModule, load_from_checkpoint, load_run\n"
        "class Typed(TrainerModule):\n"
        "    def init_model(self, hparams): return lambda key, x: jnp.ones(2), lambda params, x: x @ params\n"
        "    def loss(self, outputs, batch, hparams): return outputs**2, {}\n"
        "    def init_optimizer(self, hparams, total_steps): return optax.sgd(hparams['learning_rate'])\n"
        "    def __call__(self): pass\n"
        "splits = ArrayDataset(inputs=np.eye(4, 2)).split(0.5, 0)\n"
        "training = Typed().train_model({'learning_rate': 0.1}, splits, epochs=2, seed=0, log=sys.argv[1],\n"
        "    checkpoints=Checkpoints(sys.argv[1] + '/ck', every_s=0))\n"
        "list(training)\n"
        "assert load_run(sys.argv[1]).trainer.__class__ is Typed\n"
        "assert load_from_checkpoint(sys.argv[1] + '/ck').trainer.__class__ is Typed\n"
    )
    folder = tmp_path / "typed"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    main = sys.modules["__main__"]
    monkeypatch.delattr(main, "__file__", raising=False)
    with pytest.raises(CheckpointError, match=r"^__main__ no longer defines Typed of .*; pass trainer="):
        load_run(folder)
    monkeypatch.setattr(main, "__file__", str(tmp_path / "other.py"), raising=False)
    with pytest.raises(CheckpointError, match=r"the file of Typed in .* does not exist: ''; pass trainer="):
        load_run(folder)
    assert len(load_run(folder, trainer=Plain()).reports) == 2


@pytest.mark.parametrize("content", [None, "", "{", "{}", "[]"])
def test_what_is_no_log_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"cannot read the log .*run.json: "):
        load_run(tmp_path)


class Scaled(Plain):
    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return self.scale * super().loss(outputs, batch, hparams)[0], {}


H = {"learning_rate": 0.5}


@pytest.mark.slow
def test_a_trainer_that_is_made_otherwise_is_asked_for(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "ck") as checkpoints:
        list(Scaled(5.0).train_model(H, PLAIN, epochs=1, seed=0, log=tmp_path, checkpoints=checkpoints))
    for load in (partial(load_run, tmp_path), partial(load_from_checkpoint, tmp_path / "ck")):
        with pytest.raises(CheckpointError, match=r"had scale=5.0, but Scaled\(\) has 1.0; pass trainer="):
            load()
        assert load(trainer=Scaled(5.0)).hparams == H


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainer": Plain()}, "trainer='Scaled', this training has trainer='Plain'"),
        ({"trainer": Scaled(2.0)}, "'scale': 1.0"),
        ({"splits": ArrayDataset(inputs=2 * np.eye(2)).take([0, 1, 0, 1]).split(0.5, 0)}, "data="),
        ({"objective": "train_loss"}, "objective='loss', this training has objective='train_loss'"),
        ({"direction": "maximize"}, "direction='minimize'"),
    ],
)
def test_a_folder_is_of_one_trainer_and_data(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"trainer": Scaled(), "splits": PLAIN}

    def run(options: Any, name: str) -> None:
        folders = {
            "log": {"log": tmp_path},
            "checkpoints": {"checkpoints": Checkpoints(tmp_path / "ck", every_s=0)},
        }
        chosen = {**given, **options}
        trainer, splits = chosen.pop("trainer"), chosen.pop("splits")
        list(trainer.train_model(H, splits, epochs=2, seed=0, **chosen, **folders[name]))

    for name in ("log", "checkpoints"):
        run({}, name)
        with pytest.raises(TunerError, match=re.escape(message)):
            run(change, name)


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    training = Plain().train_model(H, PLAIN, epochs=4, seed=0, log=tmp_path / "run")
    next(training)
    shutil.rmtree(tmp_path / "run")
    assert len(list(training)) == 3
    assert capfd.readouterr().err.count("tuner: cannot write the log ") == 1
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match=r"cannot create the folder .* for the log: "):
        Plain().train_model(H, PLAIN, epochs=4, seed=0, log=tmp_path / "file")
