"""The tiny study as a training function, without JAX: a worker is ready in a second or two.

Linear regression on made-up data; its state is saved after each epoch. `tiny_environment` makes it slow or wrong.
"""

import numpy as np
from tiny_environment import EPOCHS, MODE, PRUNER, TRIALS, fail_if_told, note, pause, wait_for_others

from tuner import Space, Study, log_uniform, uniform


class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1e-1)
    noise: float = uniform(0.0, 1.0)


def train(hparams, trial):
    wait_for_others()
    fail_if_told(hparams.noise)
    rng = np.random.default_rng(trial.seed)
    inputs = rng.normal(size=(200, 3))
    targets = inputs @ [1.0, 2.0, 3.0]
    state = trial.restore()
    weights = np.zeros(3) if state is None else state
    for epoch in range(trial.epoch, EPOCHS):
        note(trial.number, epoch + 1)
        weights = weights - hparams.learning_rate * inputs.T @ (inputs @ weights - targets) / len(inputs)
        loss = float(np.mean((inputs @ weights - targets) ** 2))
        if pause(epoch + 1, trial.should_stop):
            return
        yield {"loss": float("nan") if MODE == "nan" and hparams.noise > 0.5 else loss}
        trial.save(weights)


study = Study(
    name="tiny",
    space=HParams,
    train=train,
    objective="loss",
    direction="minimize",
    epochs=EPOCHS,
    trials=TRIALS,
    sampler="random",
    pruner=PRUNER,
)
