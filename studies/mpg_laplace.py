"""Miles per gallon of 392 cars with error bars: Laplace's approximation compared with linear regression.

    tuner launch studies/mpg_laplace.py

Devices: 2 CPU cores, one worker on each. Time: 21 s. Best validation loss: 0.472 (2026-11-23).

New compared with `digits_mlp.py`: the data are a table with normalised columns, and the regression predicts its
uncertainty. The loss is -log p(y) under a Gaussian whose variance comes from the noise and from the weights. The
baseline has no hidden layers and is exactly Bayesian linear regression. Needs `pip install -e '.[data]'`.

    tuner plot mpg_laplace picture     predictions with their error bars
"""

import flax.linen as nn
import numpy as np

from tuner import Space, Study, choice, errors, log_uniform
from tuner.methods import LaplaceRegressor
from tuner.training import ArrayDataset, Splits

CARS = 262  # for training; the other 130 are for validation


# 1. The search space. The depth changes the program. The noise variance is relative to the variance of all cars.
class HParams(Space):
    learning_rate: float = log_uniform(3e-3, 1e-1)
    prior_precision: float = log_uniform(1e-2, 1e1)
    noise_variance: float = log_uniform(0.03, 0.5)
    depth: int = choice(0, 1, 2)


# 2. The network also returns the inputs of its last layer, which the approximation needs.
class MLP(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = nn.tanh(nn.Dense(32)(x))
        return nn.Dense(1)(x), x


class Trainer(LaplaceRegressor):
    def init_model(self, hparams):
        return MLP(hparams.depth)

    def batch_size(self, hparams):
        return 32


# 3. The data: cylinders, displacement, horsepower, weight, acceleration, year and origin. All columns are scaled to
#    mean 0 and variance 1 over the training set.
def data(seed: int) -> Splits:
    try:
        from mlxtend.data import autompg_data
    except ImportError:
        raise errors.StudyError("the cars come with mlxtend: pip install -e '.[data]'") from None
    columns, mpg = autompg_data()
    origin = np.eye(3)[columns[:, 6].astype(int) - 1]
    table = np.random.default_rng(seed).permutation(np.column_stack([columns[:, :6], origin, mpg]))
    table = (table - table[:CARS].mean(0)) / table[:CARS].std(0)
    train, validation = (ArrayDataset(inputs=part[:, :-1], labels=part[:, -1]) for part in (table[:CARS], table[CARS:]))
    return Splits(train, validation)


# 4. The picture: cars of the validation set, ordered by their prediction.
def picture(loaded, splits):
    from matplotlib.figure import Figure

    cars = splits.validation.host()
    mean, variance = np.asarray(loaded(cars["inputs"])).T
    order, width = np.argsort(mean), 2 * np.sqrt(variance)
    within = np.mean(np.abs(cars["labels"] - mean) < width)
    figure = Figure(figsize=(6.4, 3), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(range(len(order)), mean[order], width[order], fmt="none", ecolor="tab:blue", alpha=0.4)
    axes.plot(cars["labels"][order], ".", color="tab:orange", markersize=4)
    axes.set(title=f"{within:.0%} within two standard deviations", xlabel="car", ylabel="miles per gallon, scaled")
    return figure


# 5. The search. Trials are not pruned, because the posterior exists only at the end.
study = Study(
    name="mpg_laplace",
    space=HParams,
    trainer=Trainer(examples=CARS),
    data=data,
    objective="loss",
    direction="minimize",
    epochs=60,
    trials=30,
    pruner="none",
    baseline=HParams(learning_rate=3e-2, prior_precision=1.0, noise_variance=0.18, depth=0),
    picture=picture,
)
