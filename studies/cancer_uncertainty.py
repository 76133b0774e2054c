"""Breast cancer from 100 patients: how sure may a network be? Four answers, one of which the search picks.

    tuner launch studies/cancer_uncertainty.py

Devices: 2 CPU cores, one worker on each. Time: 60 s. Best validation nll: 0.080 (2026-11-22).

What is new beside `digits_mlp.py`: the method is a hyperparameter. The mode of the posterior, a Gaussian around it, an
ensemble of modes and samples of the posterior are trainers of `tuner.methods` with one network, one prior and one
score, the probability given to what was the case. `ece` is how far the stated probabilities are from the frequencies.

    python studies/cancer_uncertainty.py tuner-artifacts/cancer_uncertainty-*/TRIAL out.png
"""

import sys

import flax.linen as nn
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from tuner import Space, Study, choice, log_uniform
from tuner.methods import (
    EnsembleClassifier,
    ExpectedCalibrationError,
    LangevinClassifier,
    LaplaceClassifier,
    MapClassifier,
)
from tuner.training import ArrayDataset, Splits, TrainerModule, load_from_checkpoint

PATIENTS = 100


# 1. What is searched. Each method is a class of programs; those of one method differ in numbers only.
class HParams(Space):
    method: str = choice("map", "laplace", "ensemble", "langevin")
    learning_rate: float = log_uniform(1e-3, 1e-1)
    prior_precision: float = log_uniform(1e-2, 1e1)
    temperature: float = log_uniform(1e-2, 1.0)


# 2. The network returns the last layer's inputs as well, which Laplace's approximation needs; the others look away.
class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.tanh(nn.Dense(32)(x))
        return nn.Dense(2)(x), x


class Network:
    def init_model(self, hparams):
        return MLP()

    def batch_size(self, hparams):
        return 25


class Map(Network, MapClassifier): ...


class Laplace(Network, LaplaceClassifier): ...


class Ensemble(Network, EnsembleClassifier): ...


class Langevin(Network, LangevinClassifier): ...


# 3. A trainer that is one of several: what is asked of it, the one that the hyperparameters name does.
class Trainer(TrainerModule):
    loop = "scan"

    def __init__(self):
        self.methods = {
            "map": Map(PATIENTS),
            "laplace": Laplace(PATIENTS),
            "ensemble": Ensemble(PATIENTS, members=5),
            "langevin": Langevin(PATIENTS, samples=16),
        }

    def batch_size(self, hparams):
        return self.methods[hparams.method].batch_size(hparams)

    def init_state(self, hparams, batch, key, total_steps):
        return self.methods[hparams.method].init_state(hparams, batch, key, total_steps)

    def train_step(self, state, batch, hparams, key):
        return self.methods[hparams.method].train_step(state, batch, hparams, key)

    def eval_step(self, state, batch, hparams):
        return self.methods[hparams.method].eval_step(state, batch, hparams)

    def apply_inputs(self, params, collections, inputs, hparams, *, train, key=None):
        method = self.methods[hparams.method]
        return method.apply_inputs(params, collections, inputs, hparams, train=train, key=key)


# 4. The data: 569 patients, 30 measurements each, come with scikit-learn. Few are trained on, so that there is
#    something to be unsure of; the others tell how much.
def data(seed: int) -> Splits:
    inputs, labels = load_breast_cancer(return_X_y=True)
    parts = train_test_split(inputs, labels, train_size=PATIENTS, stratify=labels, random_state=seed)
    scaler = StandardScaler().fit(parts[0])
    train, validation = (
        ArrayDataset(inputs=scaler.transform(inputs), labels=labels) for inputs, labels in (parts[0::2], parts[1::2])
    )
    return Splits(train, validation)


# 5. The search prunes nothing: samples of the posterior are only there at the end.
study = Study(
    name="cancer_uncertainty",
    space=HParams,
    trainer=Trainer(),
    data=data,
    objective="nll",
    direction="minimize",
    epochs=60,
    trials=40,
    pruner="none",
    baseline=HParams(method="map", learning_rate=1e-2, prior_precision=1.0, temperature=1.0),
)


# 6. What comes out: of the patients given a probability of 0.8, are 0.8 what they were said to be?
def picture(loaded, splits):
    import jax
    import numpy as np
    from matplotlib.figure import Figure

    patients = splits.validation.host()
    probabilities = np.exp(loaded(patients["inputs"]))
    parts = ExpectedCalibrationError.of(probabilities, patients["labels"], patients["weight"], bins=10)
    confidence, accuracy, share = jax.device_get(parts).curve()
    figure = Figure(figsize=(3.6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0.5, 1], [0.5, 1], color="tab:gray", linestyle="--", linewidth=1)
    axes.plot(confidence, accuracy, color="tab:blue")
    axes.scatter(confidence, accuracy, s=20 + 400 * share, color="tab:blue", alpha=0.6)
    axes.set(xlabel="confidence", ylabel="accuracy", title=f"{loaded.hparams.method}: error {parts.compute():.3f}")
    return figure


if __name__ == "__main__":
    checkpoint, file = sys.argv[1:]
    picture(load_from_checkpoint(checkpoint), data(study.seed)).savefig(file)
