"""Digits of which most have a wrong label, the easy ones first: curriculum learning.

    tuner launch studies/digits_curriculum.py

Devices: 2 CPU cores, one worker on each. Time: 16 s. Best validation accuracy: 0.904 (2026-11-22).

What is new beside `digits_mlp.py`: the order of the examples is searched. How difficult one is says a network that was
trained on the others for a moment: wrong labels are the hardest (Hacohen & Weinshall, 2019). The baseline has one
stage, in which all examples are allowed.

    tuner plot digits_curriculum picture     the easiest and the hardest examples
"""

import numpy as np
from sklearn.datasets import load_digits

from tuner import Space, Study, choice, log_uniform, uniform
from tuner.methods import Classifier, Curriculum, easiest_first, held_out_losses
from tuner.models import MLP
from tuner.training import ArrayDataset, Splits

DRAWN = 0.75  # the share of the training labels that is drawn at random; a tenth of them happen to be right
EPOCHS = 30


# 1. What is searched. In stage k of N the easiest k / N of the examples are allowed. Both numbers of the curriculum are
#    traced: they change what is drawn, not the program. If the stages are long, the last ones are never reached.
class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 3e-2)
    weight_decay: float = log_uniform(1e-4, 1.0)
    dropout_rate: float = uniform(0.0, 0.6)
    stages: int = choice(1, 2, 4, 8, traced=True)
    stage_epochs: float = log_uniform(1.0, EPOCHS)


# 2. The trainer: a classifier whose batches are drawn by a curriculum.
class Trainer(Curriculum, Classifier):
    loop = "scan"

    def init_model(self, hparams):
        return MLP(self.classes, 64, 1, hparams.dropout_rate)


# 3. The data: wrong labels in the training part only, and the order from easy to hard. The teacher is a plain
#    classifier of the same kind; each example is scored by one that has not seen it.
class Teacher(Classifier):
    loop = "scan"

    def init_model(self, hparams):
        return MLP(self.classes, 64, 1)


def data(seed: int) -> Splits:
    images, labels = load_digits(return_X_y=True)
    splits = ArrayDataset(inputs=images / 16.0, labels=labels, true_labels=labels).split(0.3, seed)
    rng, train = np.random.default_rng(seed), splits.train.host()
    is_drawn = rng.random(len(splits.train)) < DRAWN
    given = np.where(is_drawn, rng.integers(0, 10, len(is_drawn)), train["labels"])
    noisy = ArrayDataset(**{**train, "labels": given})
    scores = held_out_losses(Teacher(10), {"learning_rate": 3e-3}, noisy, epochs=10, seed=seed)
    return Splits(easiest_first(noisy, scores), splits.validation)


# 4. What it looks like: of the training data the easiest, and the hardest, each with the label it has there.
def picture(loaded, splits):
    from matplotlib.figure import Figure

    train = splits.train.host()
    figure = Figure(figsize=(6, 1.9), layout="constrained")
    rows = figure.subplots(2, 12)
    for name, row, examples in (("easy", rows[0], range(12)), ("hard", rows[1], range(-12, 0))):
        row[0].set_ylabel(name)
        for axes, at in zip(row, examples, strict=True):
            axes.imshow(train["inputs"][at].reshape(8, 8), cmap="gray_r")
            is_true = train["labels"][at] == train["true_labels"][at]
            axes.set_title(train["labels"][at], color="black" if is_true else "tab:red", fontsize="small")
            axes.set(xticks=[], yticks=[])
    return figure


study = Study(
    name="digits_curriculum",
    space=HParams,
    trainer=Trainer(10),
    data=data,
    objective="accuracy",
    direction="maximize",
    epochs=EPOCHS,
    trials=40,
    pruner="none",  # a curriculum begins with few examples, and so behind
    baseline=HParams(learning_rate=3e-3, weight_decay=1e-3, dropout_rate=0.3, stages=1, stage_epochs=1.0),
    picture=picture,
)
