"""The questions of `on_gpu.py` that are answered by timing two sides.

Each question is a function that yields rows of figures. Times are the shortest of several rounds, in which the sides
alternate; compiling is not included. `ratio` is above 1 where the second side is faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from tuner.models import CNN, MLP, Transformer
from tuner.models.kernels import RMSNorm, rms_norm
from tuner.training import ArrayDataset, Layout, Splits, TrainerModule
from tuner.training.data.arrays import batch_order
from tuner.training.data.batches import Source
from tuner.training.loop.programs import eval_batch, first_carry, many_steps

Row = dict[str, Any]

BATCH, TOKENS = 64, 256
_TRIALS_AGREE, _PRECISIONS_AGREE = 0.02, 0.1
"""The largest difference between the losses of two sides, relative to the loss."""

_FAST_TO_COMPILE = {"xla_backend_optimization_level": 0}
"""How tuner, too, compiles the program that makes the initial state: it runs once for each trial."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: How often each side is timed.
        steps: Training steps of a trial; a Transformer makes a tenth of them.
        lanes: Numbers of trials in one program.
        layers: Layers of the Transformer.
        width: Its width.
        sequences: Sequences in its batch.
        length: Tokens in a sequence.
        epochs: Epochs that are timed together.
        examples: Images of digits.
        rows: Vectors that are normalised.
        widths: Their lengths; the kernel pads those that are not powers of two.
    """

    rounds: int
    steps: int
    lanes: tuple[int, ...]
    layers: int
    width: int
    sequences: int
    length: int
    epochs: int
    examples: int
    rows: int
    widths: tuple[int, ...]


FULL = Size(3, 100, (16, 256), 6, 512, 32, 256, 10, 22 * BATCH, 8192, (256, 1000, 4096))
SMALL = Size(1, 10, (4,), 1, 16, 2, 8, 1, 2 * BATCH, 64, (32, 33))


class Trainer(TrainerModule):
    """Trains a Linen module: squared error for labels that are floats, else cross-entropy."""

    validate_every = 10**6

    def __init__(self, model: nn.Module, **settings: str) -> None:
        self._model = model
        self._ends: list[float] = []
        vars(self).update(settings)

    def init_model(self, hparams: Any) -> nn.Module:
        return self._model

    def loss(self, outputs: jax.Array, batch: Any, hparams: Any) -> tuple[jax.Array, dict[str, Any]]:
        labels = batch["labels"]
        if jnp.issubdtype(labels.dtype, jnp.floating):
            losses = (outputs - labels) ** 2
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
        return losses.reshape(len(losses), -1).mean(1), {}

    def on_training_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> None:
        self._ends.append(time.perf_counter())

    def epoch_s(self, splits: Splits, epochs: int) -> float:
        """Train and return the seconds of an epoch; the first epoch, which may compile, does not count."""
        self._ends.clear()
        for _ in self.train_model({"learning_rate": 1e-3}, splits, epochs=epochs + 1, seed=0):
            pass
        return (self._ends[-1] - self._ends[0]) / epochs


# --- Comparing two sides


def figures(**numbers: float) -> Row:
    """Return numbers with five significant digits."""
    return {name: float(f"{number:.5g}") for name, number in numbers.items()}


def ratio_row(first: str, second: str, seconds: Mapping[str, float], units: int = 1) -> Row:
    """Return the seconds of two sides for each of `units`, and how many times as fast the second side is."""
    each = {f"{name}_s": seconds[name] / units for name in (first, second)}
    return figures(**each, ratio=seconds[first] / seconds[second])


def shortest(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Call the sides in turn and return the fewest seconds of each. The first call of each compiles: it is ignored."""
    times = [[side() for side in sides.values()] for _ in range(rounds + 1)]
    return {name: min(found) for name, *found in zip(sides, *times[1:], strict=True)}


def timed(run: Callable[[], Any]) -> Callable[[], float]:
    """Return a function that calls `run`, waits for the device, and returns the seconds."""

    def side() -> float:
        began = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - began

    return side


def check_difference(difference: float, most: float, what: str) -> None:
    """Check that two sides computed the same; NaN is not the same.

    Raises:
        RuntimeError: they did not.
    """
    if not difference <= most:
        raise RuntimeError(f"{what} must differ by at most {most:.4g}: got {difference:.4g}")


# --- Data


def digits(size: Size) -> Row:
    """Return images [examples, 8, 8, 1] of handwritten digits, and their labels."""
    images, labels = load_digits(return_X_y=True)
    return {"inputs": images[: size.examples].reshape(-1, 8, 8, 1) / 16, "labels": labels[: size.examples]}


def waves() -> Row:
    """Return a regression problem: eight inputs, one output."""
    inputs = np.random.default_rng(0).normal(size=(512, 8))
    return {"inputs": inputs, "labels": np.sin(inputs.sum(1, keepdims=True))}


def counting(size: Size) -> Row:
    """Return sequences of tokens that count up, and the tokens that follow."""
    starts = np.random.default_rng(0).integers(0, TOKENS, (size.sequences, 1))
    tokens = starts + np.arange(size.length)
    return {"inputs": tokens % TOKENS, "labels": (tokens + 1) % TOKENS}


def source_of(arrays: Row, steps: int, batch_size: int) -> Source:
    """Return a source of `steps` batches of random examples."""
    data = ArrayDataset(**arrays)
    rows = np.random.default_rng(0).integers(0, len(data), steps * batch_size)
    return Source(data.arrays, batch_order(jnp.asarray(rows, jnp.int32), batch_size))


# --- Questions


def many_trials(size: Size) -> Iterator[Row]:
    """Compare trials one at a time with as many trials in one program."""
    for name, model, arrays in (("regression", MLP(1, 16), waves()), ("digits", MLP(10), digits(size))):
        source = source_of(arrays, size.steps, BATCH)
        alone, together = (trial_program(Trainer(model), size.steps, form) for form in (lambda one: one, in_lanes))
        for lanes in size.lanes:
            rates, seeds = np.geomspace(1e-3, 1e-2, lanes, dtype=np.float32), np.arange(lanes, dtype=np.uint32)
            trials = [({"learning_rate": rate}, seed) for rate, seed in zip(rates, seeds, strict=True)]
            one_by_one = partial(run_each, partial(alone, source), trials)
            at_once = partial(together, source, {"learning_rate": rates}, seeds)
            seconds = shortest({"one_at_a_time": timed(one_by_one), "together": timed(at_once)}, size.rounds)
            difference = compare_trials(one_by_one(), at_once(), size.steps)
            rate_s = {f"{side}_trials_per_s": lanes / found for side, found in seconds.items()}
            row = ratio_row("one_at_a_time", "together", seconds) | figures(**rate_s, loss_difference=difference)
            yield {"model": name, "lanes": lanes, "steps": size.steps, **row}
            check_difference(difference, _TRIALS_AGREE, f"losses of {lanes} trials of {name}, alone and together,")


def in_lanes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of many trials; its first argument, the source, is the same for all."""
    return lambda source, *of_trials: jax.vmap(partial(function, source))(*of_trials)


def trial_program(
    trainer: Trainer, steps: int, form: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[..., Any]:
    """Return a function of source, hyperparameters and seed: it trains and evaluates, in two compiled programs.

    The evaluation is on all examples. The function returns the state and the loss.
    """

    def start(source: Source, hparams: Any, seed: Any) -> Any:
        return first_carry(trainer, hparams, source.at(jnp.int32(0)), seed, steps)

    def finish(source: Source, hparams: Any, carry: Any) -> Any:
        state = many_steps(trainer, Layout(), hparams, source, carry, steps).state
        loss: Any = eval_batch(trainer, Layout(), hparams, source.arrays, state)["loss"]
        return state, loss.value

    first, rest = jax.jit(form(start), compiler_options=_FAST_TO_COMPILE), jax.jit(form(finish))
    return lambda source, hparams, seed: rest(source, hparams, first(source, hparams, seed))


def run_each(program: Callable[..., Any], trials: Sequence[tuple[Any, Any]]) -> list[Any]:
    """Run trials one after the other; wait for each, as a worker does."""
    return [jax.block_until_ready(program(*trial)) for trial in trials]


def compare_trials(alone: Sequence[Any], together: Any, steps: int) -> float:
    """Return the largest difference between a trial's loss alone and in its lane, relative to the loss.

    Raises:
        RuntimeError: the two sides differ in the shapes of their states or in the number of steps.
    """
    states, losses = together
    wanted = [(len(alone), *leaf.shape) for leaf in jax.tree.leaves(alone[0][0])]
    found = [leaf.shape for leaf in jax.tree.leaves(states)]
    if found != wanted:
        raise RuntimeError(f"the states of all trials together must have shapes {wanted}: got {found}")
    counts = {int(state.step) for state, _ in alone} | set(np.asarray(states.step).tolist())
    if counts != {steps}:
        raise RuntimeError(f"each trial must make {steps} steps: got {sorted(counts)}")
    expected = np.array([float(loss) for _, loss in alone])
    return float(np.max(np.abs(np.asarray(losses) - expected) / expected))


def precision(size: Size) -> Iterator[Row]:
    """Compare the steps of a Transformer in float32 with those in bfloat16."""
    model = Transformer(TOKENS, size.width, depth=size.layers, longest=size.length)
    steps, hparams = max(2, size.steps // 10), {"learning_rate": jnp.float32(1e-3)}
    source, runs = source_of(counting(size), steps, size.sequences), {}
    for name in ("float32", "bfloat16"):
        trainer = Trainer(model, precision=name)
        start = jax.jit(partial(first_carry, trainer, total_steps=steps), compiler_options=_FAST_TO_COMPILE)
        carry = start(hparams, source.at(jnp.int32(0)), seed=jnp.uint32(0))
        runs[name] = partial(jax.jit(partial(many_steps, trainer, Layout(), count=steps)), hparams, source, carry)
    seconds = shortest({name: timed(run) for name, run in runs.items()}, size.rounds)
    first, second = (float(run().totals["loss"].value) for run in runs.values())
    difference, tokens = abs(second - first) / first, size.sequences * size.length
    row = ratio_row("float32", "bfloat16", seconds, steps) | figures(loss_difference=difference)
    yield {"model": "transformer", "width": size.width, "layers": size.layers, "tokens": tokens, "steps": steps, **row}
    check_difference(difference, _PRECISIONS_AGREE, "mean losses in float32 and bfloat16")


def loop(size: Size) -> Iterator[Row]:
    """Compare epochs as a loop of compiled steps with epochs as one compiled scan."""
    data = ArrayDataset(**digits(size))
    for name, model in {"mlp": MLP(10, 128), "cnn": CNN(10)}.items():
        sides = {
            mode: partial(Trainer(model, loop=mode).epoch_s, Splits(data, data), size.epochs)
            for mode in ("step", "scan")
        }
        row = ratio_row("step", "scan", shortest(sides, size.rounds))
        yield {"model": name, "steps_per_epoch": size.examples // BATCH, **row}


def kernel(size: Size) -> Iterator[Row]:
    """Compare Flax's RMSNorm with the compiled kernel."""
    if jax.default_backend() == "cpu":
        yield {"skipped": "on a CPU, Pallas kernels are interpreted, not compiled"}
        return
    if "custom_call" not in jax.jit(rms_norm).lower(jnp.ones((64, 64)), jnp.ones(64)).as_text():
        raise RuntimeError("the kernel must be a custom call of its program: it was not compiled")
    yield from compare_norms(size)


def compare_norms(size: Size) -> Iterator[Row]:
    """Compare Flax's RMSNorm with the kernel: outputs, gradients, and the time of both passes."""
    for width in size.widths:
        for dtype in (jnp.float32, jnp.bfloat16):
            keys = jax.random.split(jax.random.key(0), 3)
            inputs, pull = (jax.random.normal(key, (size.rows, width), dtype) for key in keys[:2])
            given = (inputs, jax.random.normal(keys[2], (width,)), pull)
            norms = {"plain": nn.RMSNorm(dtype=dtype), "kernel": RMSNorm(dtype=dtype)}
            runs = {name: partial(jax.jit(partial(both_passes, norm)), *given) for name, norm in norms.items()}
            difference = max_difference(runs["plain"](), runs["kernel"]())
            row = ratio_row("plain", "kernel", shortest({name: timed(run) for name, run in runs.items()}, size.rounds))
            shape = {"rows": size.rows, "width": width, "dtype": jnp.dtype(dtype).name}
            yield {**shape, **row, **figures(max_difference=difference)}
            # One rounding of the outputs on each side, and sums of up to `rows` terms in float32.
            most = 2 * float(jnp.finfo(dtype).eps) + size.rows * float(jnp.finfo(jnp.float32).eps)
            check_difference(difference, most, f"the kernel and Flax, of width {width} in {shape['dtype']},")


def both_passes(norm: nn.Module, inputs: jax.Array, scale: jax.Array, pull: jax.Array) -> Any:
    """Return a normalisation's outputs, and the gradients of inputs and scale if that of the outputs is `pull`."""

    def apply(inputs: jax.Array, scale: jax.Array) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # Flax mixes precisions here
            return norm.apply({"params": {"scale": scale}}, inputs)

    outputs, back = jax.vjp(apply, inputs, scale)
    return outputs, back(pull)


def max_difference(first: Any, second: Any) -> float:
    """Return the largest difference between the arrays of two pytrees, relative to the largest number of an array."""
    leaves = [[np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)] for tree in (first, second)]
    return max(float(np.max(np.abs(one - other)) / np.max(np.abs(one))) for one, other in zip(*leaves, strict=True))


TIMINGS = {question.__name__: question for question in (many_trials, precision, loop, kernel)}
