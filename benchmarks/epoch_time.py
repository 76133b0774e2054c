"""How long is an epoch of `train_model`, compared with the fastest hand-written loop?

    python benchmarks/epoch_time.py --json results.jsonl

Trains three models on scikit-learn's digits with `tuner.training` and with two forms of a hand-written loop,
alternately in one process. The forms are an epoch as one `lax.scan`, and a Python loop of jitted steps with donated
state; the faster one is used. All sides have the same model, optimizer and batches of 64, shuffle on the device, and
fetch the mean loss and accuracy at the end of each epoch. An epoch is timed from the end of the previous one, so
compiling, the initial state and validation are not included. See `README.md` in this folder for the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits
from trials_per_minute import machine

from tuner.training import ArrayDataset, Splits, TrainerModule

BATCH, RATE, DECAY = 64, 1e-3, 1e-4


class MLP(nn.Module):
    """Two hidden layers of 128."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(128)(x))
        return nn.Dense(10)(x)


class CNN(nn.Module):
    """Two convolutions with batch normalisation."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for channels in (16, 32):
            x = nn.Conv(channels, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(10)(x.reshape(len(x), -1))


class ResNet(nn.Module):
    """Six residual blocks of two convolutions with batch normalisation, in three widths."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def norm(x: jax.Array) -> jax.Array:
            return nn.BatchNorm(use_running_average=not train)(x)

        x = nn.relu(norm(nn.Conv(16, (3, 3), use_bias=False)(x)))
        for channels, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
            y = nn.relu(norm(nn.Conv(channels, (3, 3), stride, use_bias=False)(x)))
            y = norm(nn.Conv(channels, (3, 3), use_bias=False)(y))
            if x.shape != y.shape:
                x = norm(nn.Conv(channels, (1, 1), stride, use_bias=False)(x))
            x = nn.relu(x + y)
        return nn.Dense(10)(x.mean((1, 2)))


MODELS = {"mlp": MLP(), "cnn": CNN(), "resnet": ResNet()}


class Trainer(TrainerModule):
    """Trains the model with tuner, which chooses between scan and steps."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.validate_every = 10**6
        self.ends: list[float] = []

    def init_model(self, hparams: Any) -> nn.Module:
        return self.module

    def init_optimizer(self, hparams: Any, total_steps: int) -> optax.GradientTransformation:
        return optax.adamw(hparams["learning_rate"], weight_decay=DECAY)

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"])
        return losses, {"accuracy": outputs.argmax(-1) == batch["labels"]}

    def batch_size(self, hparams: Any) -> int:
        return BATCH

    def on_training_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> None:
        self.ends.append(time.perf_counter())


def ours(module: nn.Module, splits: Splits, epochs: int) -> tuple[Callable[[], float], dict[str, str]]:
    """Return a function that trains `epochs` epochs with `train_model` and returns the seconds per epoch."""
    trainer, chosen = Trainer(module), {}

    def run() -> float:
        trainer.ends.clear()
        training = trainer.train_model({"learning_rate": RATE}, splits, epochs=epochs + 1, seed=0)
        for _ in training:
            pass
        chosen["mode"] = training.mode or ""
        return (trainer.ends[-1] - trainer.ends[0]) / epochs

    return run, chosen


def by_hand(module: nn.Module, splits: Splits, epochs: int, mode: str) -> Callable[[], float]:
    """Return the same function for a hand-written loop that is optimised for speed."""
    inputs = jnp.asarray(splits.train.host()["inputs"], jnp.float32)
    labels = jnp.asarray(splits.train.host()["labels"], jnp.int32)
    steps = len(inputs) // BATCH
    optimizer = optax.adamw(RATE, weight_decay=DECAY)

    def init(key: jax.Array) -> Any:
        variables = module.init(key, inputs[:BATCH], train=False)
        params, stats = variables["params"], variables.get("batch_stats", {})
        return params, stats, optimizer.init(params)

    def step(carry: Any, rows: jax.Array) -> Any:
        params, stats, opt_state = carry
        x, y = inputs[rows], labels[rows]

        def loss_of(params: Any) -> Any:
            variables = {"params": params, "batch_stats": stats}
            logits, changed = module.apply(variables, x, train=True, mutable=["batch_stats"])
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            return loss, (changed.get("batch_stats", {}), (logits.argmax(-1) == y).mean())

        (loss, (stats, accuracy)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), stats, opt_state), (loss, accuracy)

    @jax.jit
    def order(key: jax.Array) -> jax.Array:
        return jax.random.permutation(key, len(inputs))[: steps * BATCH].reshape(steps, BATCH)

    jit_init, jit_step = jax.jit(init), jax.jit(step, donate_argnums=0)

    def epoch(carry: Any, rows: jax.Array) -> Any:
        carry, metrics = jax.lax.scan(step, carry, rows)
        return carry, jax.tree.map(jnp.mean, metrics)

    scan = jax.jit(epoch, donate_argnums=0)
    unstack = jax.jit(lambda rows: list(rows))
    mean = jax.jit(lambda metrics: jax.tree.map(lambda *parts: jnp.stack(parts).mean(), *metrics))

    def run() -> float:
        carry, ends = jit_init(jax.random.key(0)), []
        for epoch in range(epochs + 1):
            rows = order(jax.random.key(epoch))
            if mode == "scan":
                carry, metrics = scan(carry, rows)
            else:
                collected = []
                for at in unstack(rows):
                    carry, metrics = jit_step(carry, at)
                    collected.append(metrics)
                metrics = mean(collected)
            jax.device_get(metrics)
            ends.append(time.perf_counter())
        return (ends[-1] - ends[0]) / epochs

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Time an epoch in train_model and in a hand-written loop.")
    parser.add_argument("--repeats", type=int, default=7, help="number of runs for each side, alternately")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the figures as one JSON line")
    args = parser.parse_args()
    images, labels = load_digits(return_X_y=True)
    splits = ArrayDataset(inputs=images.reshape(-1, 8, 8, 1) / 16.0, labels=labels).split(0.2, 0)
    whole = len(splits.train) // BATCH * BATCH  # no partial batch on either side
    splits = Splits(splits.train.take(range(whole)), splits.validation)
    record: dict[str, Any] = {**machine(), "repeats": args.repeats}
    print(", ".join(f"{key} {value}" for key, value in record.items()), flush=True)
    for name in args.models:
        epochs = {"mlp": 40, "cnn": 6, "resnet": 2}[name]
        run, chosen = ours(MODELS[name], splits, epochs)
        sides = {
            "tuner": run,
            **{f"hand {mode}": by_hand(MODELS[name], splits, epochs, mode) for mode in ("scan", "step")},
        }
        for side in sides.values():  # compile
            side()
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(args.repeats):
            for side, timed in sides.items():
                times[side].append(timed())
        medians = {side: statistics.median(found) for side, found in times.items()}
        best = min(medians["hand scan"], medians["hand step"])
        record[name] = {"mode": chosen["mode"], "times": times, "medians": medians, "ratio": medians["tuner"] / best}
        shown = ", ".join(f"{side} {1000 * value:.2f} ms" for side, value in medians.items())
        print(
            f"{name}: {shown} an epoch; tuner ({chosen['mode']}) / best by hand = {record[name]['ratio']:.3f}",
            flush=True,
        )
    if args.json:
        with args.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
