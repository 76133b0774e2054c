"""Scan or step: measured once for a program and remembered; programs are few, dropped, and found again on disk."""

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tuner
from tuner import Space, choice, uniform
from tuner.errors import StudyError
from tuner.storage import connect
from tuner.storage.worker.studies import mode_of, register
from tuner.training import ArrayDataset, Layout, Splits, TrainerModule, Training
from tuner.training.data.arrays import batch_order
from tuner.training.data.feed import Feed
from tuner.training.hparams import register as register_hparams
from tuner.training.loop import modes
from tuner.training.loop.programs import programs
from tuner.training.loop.runtime import CompileClock, use_persistent_cache
from tuner.training.state import Stream

RNG = np.random.default_rng(0)


class HParams(Space):
    learning_rate: float = uniform(0.0, 1.0)
    width: int = choice(*range(1, 50))


H = HParams(learning_rate=0.01, width=2)
register_hparams(H)


class Line(TrainerModule):
    """A linear model whose static width changes only the shape of its weights."""

    def __init__(self, loop: Any = "auto", size: int = 4) -> None:
        self.loop, self.size = loop, size

    def init_model(self, hparams: Any) -> Any:
        return lambda key, x: jax.random.normal(key, (2, hparams.width)), lambda params, x: (x @ params).sum(-1)

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (outputs - batch["labels"].astype(jnp.float32)) ** 2, {"label": batch["labels"]}

    def batch_size(self, hparams: Any) -> int:
        return self.size

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return optax.sgd(hparams.learning_rate)


class Other(Line):
    pass


ALL = ArrayDataset(inputs=RNG.normal(size=(600, 2)), labels=RNG.integers(0, 9, 600))
SPLITS = Splits(ALL.take(np.arange(23)), ALL.take(np.arange(23, 30)))
LINE = Line()


def train(trainer: TrainerModule = LINE, hparams: Any = H, splits: Any = SPLITS, **options: Any) -> Training:
    return trainer.train_model(hparams, splits, **{"epochs": 2, "seed": 1, **options})


def fixed(mode: Any) -> Any:
    return lambda program, measure: mode


def name_of(trainer: TrainerModule = LINE, hparams: Any = H, splits: Any = SPLITS) -> str:
    feed = Feed(splits.train, Layout(), trainer.batch_size(hparams))
    return modes.program_name(trainer, hparams, feed, feed.resident(feed.in_order()))


@pytest.fixture
def clock(compiles_anew: None) -> Iterator[CompileClock]:
    made = CompileClock()
    yield made
    jax.monitoring.unregister_event_duration_listener(made._add)
    jax.monitoring.unregister_event_listener(made._found)


@pytest.mark.parametrize("mode", ["scan", "step"])
@pytest.mark.slow
def test_a_program_is_measured_once_and_measuring_leaves_no_trace(mode: Any) -> None:
    asked: list[str] = []

    def choose(program: str, measure: Any) -> Any:
        asked.append(program)
        assert measure() in ("scan", "step")
        return mode

    measured, plain = train(choose=choose), train(choose=fixed(mode))
    assert measured.mode is None
    assert list(measured) == list(plain)
    assert asked == [name_of()]
    assert (measured.mode, plain.mode) == (mode, mode)
    jax.tree.map(np.testing.assert_array_equal, measured.state.params, plain.state.params)


def test_answers_are_remembered_for_each_trainer() -> None:
    answers: Any = iter(["scan", "step", "step"])
    one, other = Line(), Line()
    asked = [(one, "a"), (one, "a"), (one, "b"), (other, "a"), (one, "a")]
    found = [modes.remembered(trainer)(name, lambda: next(answers)) for trainer, name in asked]
    assert found == ["scan", "scan", "step", "step", "scan"]


@pytest.mark.parametrize("loop", ["scan", "step"])
def test_a_forced_mode_asks_nobody(loop: Any) -> None:
    training = train(Line(loop), choose=lambda program, measure: pytest.fail("asked"))
    next(training)
    assert training.mode == loop


def test_an_unknown_loop_is_refused() -> None:
    with pytest.raises(StudyError, match="loop must be 'auto', 'scan' or 'step': got 'loop'"):
        train(Line("loop"))


def test_a_name_is_of_a_program_not_of_its_numbers() -> None:
    name = name_of()
    assert name == name_of(hparams=HParams(learning_rate=0.5, width=2))
    wider = ArrayDataset(inputs=ALL.host()["inputs"], labels=ALL.host()["labels"], extra=np.ones((600, 3)))
    others = [
        name_of(hparams=HParams(learning_rate=0.01, width=3)),
        name_of(Line(size=5)),
        name_of(Other()),
        name_of(splits=Splits(ALL.take(np.arange(30)), SPLITS.validation)),  # more steps
        name_of(splits=Splits(wider.take(np.arange(23)), SPLITS.validation)),
    ]
    assert len({name, *others}) == 6


def test_chunks_are_equal_parts_of_at_most_256_steps() -> None:
    assert [modes.chunk(steps) for steps in (1, 256, 257, 512, 600, 1000)] == [1, 256, 129, 256, 200, 250]
    for steps in range(1, 2000):
        size, parts = modes.chunk(steps), -(-steps // 256)
        last = steps - (parts - 1) * size
        assert size <= 256
        assert 0 <= size - last < parts


@pytest.mark.slow
def test_a_long_epoch_is_a_few_programs_and_the_same_as_steps_one_by_one() -> None:
    long, trainer = Splits(ALL, SPLITS.validation), Line(size=1)
    between: list[int] = []
    scanned = train(trainer, splits=long, choose=fixed("scan"), stop=lambda: between.append(scanned.step) or False)
    stepped = train(trainer, splits=long, choose=fixed("step"))
    ours, theirs = list(scanned), list(stepped)
    assert between == [200, 400, 600, 800, 1000]  # asked after each program but the last
    assert [report.step for report in ours] == [600, 1200]
    for one, other in zip(ours, theirs, strict=True):
        assert one.metrics == pytest.approx(other.metrics, rel=1e-5)
        assert one.metrics["train_label"] == float(np.float32(ALL.host()["labels"].sum()) / np.float32(600))
    np.testing.assert_allclose(scanned.state.params, stepped.state.params, rtol=1e-5)


class Timed:
    """Programs that take their time on a clock of their own; the first call of each takes a minute longer."""

    def __init__(self, step_s: float, scan_s: float) -> None:
        self.now_s, self.step_s, self.scan_s = 0.0, step_s, scan_s
        self.calls: list[int] = []

    def copy(self, carry: Any) -> Any:
        return carry

    def step(self, source: Any, hparams: Any, *carry: Any) -> Any:
        return self.steps(source, hparams, *carry, count=0)

    def steps(self, source: Any, hparams: Any, *carry: Any, count: int) -> Any:
        self.now_s += (self.scan_s * count or self.step_s) + (0 if count in self.calls else 60)
        self.calls.append(count)
        return carry


@pytest.mark.parametrize(
    ("step_s", "scan_s", "steps", "expected", "scans"),
    [
        (0.001, 0.0009, 600, "scan", [200] * 4),  # 0.2 s a round: three, after one that compiles
        (0.001, 0.0011, 600, "step", [200] * 4),
        (0.001, 0.0009, 3, "scan", [3] * 21),  # 0.006 s a round: as many as are allowed
        (0.019, 0.0001, 3, "scan", [3] * 7),  # 0.0573 s a round: for 0.3 s
        (0.021, 0.0001, 3, "step", []),  # slow steps: no second program is compiled
    ],
)
def test_the_faster_mode_is_chosen_without_the_time_to_compile(
    step_s: float, scan_s: float, steps: int, expected: str, scans: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: Any = Timed(step_s, scan_s)
    monkeypatch.setattr(modes, "time", SimpleNamespace(perf_counter=lambda: timed.now_s))
    carry: Any = (0, 0, 0)
    assert modes.measure(timed, None, None, carry, steps) == expected  # pyright: ignore[reportArgumentType]
    assert [count for count in timed.calls if count] == scans


def test_slow_steps_leave_the_scan_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "_SLOW_STEP_S", 0.0)
    trainer = Line()
    training = train(trainer, choose=lambda program, measure: measure())
    next(training)
    made: Any = programs(trainer, training.host_hparams, Layout())
    assert (training.mode, made.step._cache_size(), made.steps._cache_size()) == ("step", 1, 0)


@pytest.mark.slow
def test_workers_of_a_study_take_the_first_answer(sqlite_url: str) -> None:
    storage: Any = tuner.open_storage(sqlite_url)
    engine = connect(sqlite_url)
    try:
        first = register(storage, engine, "first", ["minimize"], {}).study_id
        second = register(storage, engine, "second", ["minimize"], {}).study_id
        ask = partial(mode_of, engine)
        # Another worker answers while this one measures.
        assert ask(first, "program", lambda: ask(first, "program", lambda: "scan") and "step") == "scan"
        assert ask(first, "program", lambda: pytest.fail("measured again")) == "scan"
        assert ask(first, "another program", lambda: "step") == "step"
        assert ask(second, "program", lambda: "step") == "step"
        found = list(train(choose=partial(ask, second)))
        assert found == list(train(choose=lambda program, measure: ask(second, program, lambda: pytest.fail("asked"))))
    finally:
        storage.close()
        engine.dispose()


@pytest.mark.slow
def test_only_the_latest_programs_are_kept() -> None:
    trainer, alive, made = Line(), [], None
    for width in range(1, 41):
        placed = jax.device_put(HParams(learning_rate=0.1, width=width))
        made = programs(trainer, placed, Layout())
        if width < 4:  # what was compiled does not keep them alive
            made.predict(jnp.ones((2, width)), {}, (jnp.ones((1, 2)),), placed)
        alive.append((weakref.ref(made), weakref.ref(made.predict)))
    del made
    gc.collect()
    kept = [[reference() is not None for reference in pair] for pair in alive]
    assert kept == [[False, False]] * 24 + [[True, True]] * 16
    latest = programs(trainer, jax.device_put(HParams(learning_rate=0.7, width=40)), Layout())
    assert latest is alive[-1][0]()


def test_a_clock_counts_what_is_compiled(clock: CompileClock) -> None:
    before = clock.count
    own = float(np.random.default_rng().random())  # no cache on disk has these programs
    first, second = jax.jit(lambda x: x * 2 + own), jax.jit(lambda x: x * 3 - own)
    x, y = jax.device_put((np.ones(3, np.float32), np.ones(4, np.float32)))
    for program, argument in ((first, x), (first, x), (second, x), (first, y), (second, x)):
        program(argument)
    assert (clock.count - before, clock.total_s > 0) == (3, True)


@pytest.mark.parametrize("mode", ["scan", "step"])
@pytest.mark.slow
def test_twenty_trials_compile_once_and_nothing_is_transferred_unasked(mode: Any, clock: CompileClock) -> None:
    trainer = Line(mode)
    with jax.transfer_guard("disallow"):
        list(train(trainer))
    assert clock.count > 0
    clock.count, losses = 0, set()
    for number in range(20):
        hparams = HParams(learning_rate=number / 1000, width=2)
        with jax.transfer_guard("disallow"):
            losses.add([report.metrics["train_loss"] for report in train(trainer, hparams, seed=number)][-1])
    assert (clock.count, len(losses)) == (0, 20)


def compile_all() -> dict[str, Any]:
    """Train in both modes; return what was compiled and what came out."""
    clock = CompileClock()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    runs = [train(choose=fixed(mode)) for mode in ("scan", "step")]
    metrics = [[report.metrics for report in run] for run in runs]
    return {"compiled": clock.count, "name": name_of(), "metrics": metrics, "total_s": clock.total_s}


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    program, found = [sys.executable, __file__, str(tmp_path)], []
    for _ in range(2):
        done = subprocess.run(program, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    first, second = found
    assert first["compiled"] > 0
    assert second["compiled"] == 0
    assert second["total_s"] > 0  # reading them takes time, which counts
    assert first["metrics"] == second["metrics"]
    assert first["name"] == second["name"] == name_of()


def test_every_step_of_an_epoch_has_its_own_batch() -> None:
    hparams = HParams(learning_rate=0.0, width=2)
    report = next(train(hparams=hparams, choose=fixed("scan")))
    order = jax.random.permutation(Stream.ORDER.key(jax.random.key(1), 0), 23)
    indices, weights = map(np.asarray, batch_order(order, 4))
    labels = ALL.host()["labels"][:23]
    assert report.metrics["train_label"] == pytest.approx((labels[indices] * weights).sum() / 23, rel=1e-6)
    assert report.metrics["train_label"] == pytest.approx(labels.mean(), rel=1e-6)


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", sys.argv[1])
    use_persistent_cache()
    print(json.dumps(compile_all()))
