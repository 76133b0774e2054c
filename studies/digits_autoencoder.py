"""An autoencoder for digits with a bottleneck of four numbers, compared with a linear one, which is PCA.

    tuner launch studies/digits_autoencoder.py

Devices: 2 CPU cores, one worker on each. Time: 19 s. Best validation loss: 0.017 (2026-11-22).

New compared with `digits_mlp.py`: there are no labels, and a hook saves pictures. Every ten epochs, the trainer saves a
picture of eight digits above their reconstructions, `pictures/reconstructions-0010.png` in the trial's folder.

    tuner plot digits_autoencoder picture
"""

import flax.linen as nn
import numpy as np
from sklearn.datasets import load_digits

from tuner import Space, Study, choice, log_uniform
from tuner.methods import Autoencoder, pairs
from tuner.training import ArrayDataset, Splits

LATENT = 4


# 1. The search space. Without hidden layers, the autoencoder is linear. The best linear one projects on the first four
#    principal components, so deeper models must be better than that.
class HParams(Space):
    learning_rate: float = log_uniform(3e-4, 3e-2)
    weight_decay: float = log_uniform(1e-6, 1e-1)
    depth: int = choice(0, 1, 2)
    width: int = choice(64, 128)


# 2. The model. The decoder has the layers of the encoder in reverse order.
class Model(nn.Module):
    depth: int
    width: int

    @nn.compact
    def __call__(self, x):
        features = x.shape[-1]
        for _ in range(self.depth):
            x = nn.gelu(nn.Dense(self.width)(x))
        x = nn.Dense(LATENT, name="code")(x)
        for _ in range(self.depth):
            x = nn.gelu(nn.Dense(self.width)(x))
        return nn.Dense(features)(x)


class Trainer(Autoencoder):
    loop = "scan"

    def init_model(self, hparams):
        return Model(hparams.depth, hparams.width)


# 3. The data: the digits of `digits_mlp.py`, without labels. The pictures show the first eight, which are 0 to 7.
IMAGES = load_digits(return_X_y=True)[0].reshape(-1, 8, 8).astype(np.float32) / 16.0


def data(seed: int) -> Splits:
    return ArrayDataset(inputs=IMAGES.reshape(-1, 64)).split(0.2, seed)


# 4. The picture: digits of the validation set and their reconstructions from four numbers.
def picture(loaded, splits):
    from matplotlib.figure import Figure

    digits = splits.validation.host()["inputs"][:10]
    figure = Figure(figsize=(6, 1.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(pairs(digits.reshape(-1, 8, 8), loaded(digits)), cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()
    return figure


study = Study(
    name="digits_autoencoder",
    space=HParams,
    trainer=Trainer(shown=IMAGES[:8], every=10),
    data=data,
    objective="loss",
    direction="minimize",
    epochs=40,
    trials=20,
    # This reaches a validation error of 0.038, the same as scikit-learn's PCA with four components.
    baseline=HParams(learning_rate=3e-2, weight_decay=1e-6, depth=0, width=64),
    picture=picture,
)
