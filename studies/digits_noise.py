"""Ten layers with a bad initialization: noise on the gradient makes a network learn that otherwise does not.

    tuner launch studies/digits_noise.py

Devices: 2 CPU cores, one worker on each. Time: 31 s. Best validation accuracy: 0.961 (2026-11-22).

What is new beside `digits_mlp.py`: noise of variance eta / (1 + t)^gamma on the gradient of update t (Neelakantan et
al., 2015), and a look at the Hessian: `sharpness` is its greatest eigenvalue on the validation set. The weights begin
so small that almost no signal passes ten layers: the loss is flat, and its gradient almost zero. With the smallest
eta, of the baseline, there is hardly any noise, and one digit in ten is right.
"""

import flax.linen as nn
from sklearn.datasets import load_digits

from tuner import Space, Study, log_uniform, uniform
from tuner.methods import Classifier, Sharpness
from tuner.training import ArrayDataset, GradientNoise, OptimizerSpec, Splits, WarmupCosine


# 1. What is searched. All three are numbers inside one program.
class HParams(Space):
    learning_rate: float = log_uniform(1e-2, 1e-1)
    eta: float = log_uniform(1e-8, 1.0)
    gamma: float = uniform(0.0, 1.0)


# 2. The network. Weights of variance 2/32 would keep the size of what goes through a layer of 32 (He et al., 2015);
#    these have 1/100, so that each layer more than halves it.
class Deep(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(10):
            x = nn.relu(nn.Dense(32, kernel_init=nn.initializers.normal(0.1))(x))
        return nn.Dense(10, kernel_init=nn.initializers.normal(0.1))(x)


# 3. The trainer is put together: classification, whose validation measures the sharpness as well. That takes twelve
#    products with the Hessian, so it is done every third epoch.
class Trainer(Sharpness, Classifier):
    loop = "scan"
    validate_every = 3

    def init_model(self, hparams):
        return Deep()

    def init_optimizer(self, hparams, total_steps):
        return OptimizerSpec(
            "sgd",
            hparams.learning_rate,
            options={"momentum": 0.9},
            schedule=WarmupCosine(),
            clip_norm=10.0,
            noise=GradientNoise(hparams.eta, hparams.gamma),
        )


def data(seed: int) -> Splits:
    images, labels = load_digits(return_X_y=True)
    return ArrayDataset(inputs=images / 16.0, labels=labels).split(0.2, seed)


# 4. The search prunes nothing: for a while all stand still, and some set out late.
study = Study(
    name="digits_noise",
    space=HParams,
    trainer=Trainer(classes=10),
    data=data,
    objective="accuracy",
    direction="maximize",
    epochs=30,
    trials=40,
    pruner="none",
    baseline=HParams(learning_rate=3e-2, eta=1e-8, gamma=0.55),
)
