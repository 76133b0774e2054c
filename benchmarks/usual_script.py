"""The usual tuning script: one process, one Optuna objective, a new `jax.jit` for each trial.

    python benchmarks/usual_script.py --storage sqlite:////tmp/usual.db
    tuner launch benchmarks/usual_script.py:objective --name digits_mlp --direction maximize --trials 30 --workers 2

`trials_per_minute.py` compares this script with tuner. It follows the examples of Optuna and Flax: the objective
suggests hyperparameters, builds the model, the optimizer and jitted steps, loops over shuffled mini-batches in NumPy,
reports each epoch and prunes. The study is the same as `studies/digits_mlp.py`, with the same space, data, split,
sampler, pruner and number of epochs.

The script is written for speed: steps are jitted, the state is donated, only the evaluation waits for the device, the
last partial batch is skipped because it would need a second compilation, and the validation set is one batch. There is
no persistent compile cache, because JAX does not use one by default.
"""

from __future__ import annotations

import argparse
from functools import cache, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
from flax.training.train_state import TrainState

from tuner.search import make_pruner
from tuner.study import load_study

BATCH_SIZE, EPOCHS, SEED = 64, 20, 0
STUDY_FILE = Path(__file__).resolve().parent.parent / "studies" / "digits_mlp.py"


class MLP(nn.Module):
    """The model of `studies/digits_mlp.py`, with Flax's own dropout."""

    width: int
    depth: int
    dropout_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(self.width)(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(10)(x)


@cache
def load_arrays() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the training and validation arrays of the study's split."""
    data = load_study(str(STUDY_FILE)).data
    assert data is not None
    splits = data(SEED)
    return splits.train.host(), splits.validation.host()


def objective(trial: optuna.Trial) -> float:
    train, validation = load_arrays()
    learning_rate = trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
    weight_decay = trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True)
    dropout_rate = trial.suggest_float("dropout_rate", 0.0, 0.6)
    label_smoothing = trial.suggest_float("label_smoothing", 0.0, 0.2)
    width = trial.suggest_categorical("width", [32, 64, 128])
    depth = trial.suggest_categorical("depth", [1, 2, 3])

    model = MLP(width, depth, dropout_rate)
    steps = len(train["labels"]) // BATCH_SIZE
    total = EPOCHS * steps
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, total // 10, total, 0.01 * learning_rate)
    optimizer = optax.adamw(
        schedule, weight_decay=weight_decay, mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    )
    init_key, dropout_key = jax.random.split(jax.random.key(trial.number))
    params = model.init(init_key, jnp.ones((1, 64)), train=False)["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)

    @partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, images: jax.Array, labels: jax.Array) -> tuple[TrainState, jax.Array]:
        def mean_loss(params: Any) -> jax.Array:
            key = jax.random.fold_in(dropout_key, state.step)
            logits = model.apply({"params": params}, images, train=True, rngs={"dropout": key})
            assert isinstance(logits, jax.Array)
            targets = optax.smooth_labels(jax.nn.one_hot(labels, 10), label_smoothing)
            return optax.softmax_cross_entropy(logits, targets).mean()

        loss, grads = jax.value_and_grad(mean_loss)(state.params)
        return state.apply_gradients(grads=grads), loss

    @jax.jit
    def eval_step(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = model.apply({"params": params}, images, train=False)
        assert isinstance(logits, jax.Array)
        return (logits.argmax(-1) == labels).mean()

    rng = np.random.default_rng(trial.number)
    accuracy = 0.0
    for epoch in range(1, EPOCHS + 1):
        order = rng.permutation(len(train["labels"]))
        for step in range(steps):
            batch = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
            state, _ = train_step(state, train["inputs"][batch], train["labels"][batch])
        accuracy = float(eval_step(state.params, validation["inputs"], validation["labels"]))
        trial.report(accuracy, epoch)
        if epoch < EPOCHS and trial.should_prune():
            raise optuna.TrialPruned
    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description="Tune the digits MLP with a plain Optuna script.")
    parser.add_argument("--storage", required=True, help="URL of the database, as for Optuna's RDBStorage")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--pruner", choices=["asha", "none"], default="asha")
    parser.add_argument("--width", type=int, help="fix the width instead of searching it")
    parser.add_argument("--depth", type=int, help="fix the depth instead of searching it")
    args = parser.parse_args()

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fixed = {name: value for name, value in (("width", args.width), ("depth", args.depth)) if value is not None}
    sampler: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(seed=SEED)
    if fixed:
        sampler = optuna.samplers.PartialFixedSampler(fixed, sampler)
    study = optuna.create_study(
        study_name="digits_mlp",
        storage=optuna.storages.RDBStorage(args.storage),
        sampler=sampler,
        pruner=make_pruner(args.pruner, EPOCHS),
        direction="maximize",
    )
    study.optimize(objective, n_trials=args.trials)
    print(f"best accuracy {study.best_value:.4f} of {len(study.trials)} trials")


if __name__ == "__main__":
    main()
