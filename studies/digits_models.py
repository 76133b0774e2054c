"""Digits, and which model to take: four architectures in one search.

    tuner launch studies/digits_models.py

Devices: 2 CPU cores, one worker on each. Time: 68 s. Best validation accuracy: 0.989 (2026-11-22).

What is new beside `digits_mlp.py`: the model is a hyperparameter, chosen by name. Trials of different models share
rates and budget, hopeless ones are pruned by those of all models, and the search turns to the models that do well.
Then `tuner trials digits_models --where model=mlp` lists those of one model, `tuner best digits_models` the winners,
and `tuner importance digits_models` says how much the choice matters beside the learning rate.
"""

from sklearn.datasets import load_digits

from tuner import Space, Study, choice, log_uniform, uniform
from tuner.methods import Classifier
from tuner.models import make_model
from tuner.training import ArrayDataset, Splits


# 1. What is searched. The four models are four compiled programs in each worker.
class HParams(Space):
    model: str = choice("linear", "mlp", "cnn", "cifar_resnet")
    learning_rate: float = log_uniform(1e-3, 1e-1)
    weight_decay: float = log_uniform(1e-6, 1e-1)
    dropout_rate: float = uniform(0.0, 0.5)


# 2. The models as `tuner.models` has them, small: 650, 9,000, 1,400 and 20,000 parameters. Each takes the
#    hyperparameters that are arguments of it: `dropout_rate` is one of `mlp` and `cnn`. To search sizes as well, give
#    the space fields of their names (`width`, `depth`), or a space to each model as in `digits_cnn.py`.
SIZES = {
    "linear": {},
    "mlp": {"width": 64, "depth": 2},
    "cnn": {"channels": 8, "depth": 2},
    "cifar_resnet": {"blocks": 1, "width": 8},
}


class Trainer(Classifier):
    def init_model(self, hparams):
        return make_model(hparams.model, hparams, classes=self.classes, **SIZES[hparams.model])


# 3. The data: 1,797 images of 8x8 pixels, half of them for validation: of a fifth, good models have all right.
#    Convolutions want the third axis, of one channel; the others do not mind.
def data(seed: int) -> Splits:
    images, labels = load_digits(return_X_y=True)
    return ArrayDataset(inputs=images.reshape(-1, 8, 8, 1) / 16.0, labels=labels).split(0.5, seed, stratify="labels")


# 4. The search. Judged after two epochs, as by default, a linear model that is quick to learn would put an end to all
#    others: trials are pruned from the fifth epoch on. And the sampler looks around for longer before it chooses.
study = Study(
    name="digits_models",
    space=HParams,
    trainer=Trainer(classes=10),
    data=data,
    objective="accuracy",
    direction="maximize",
    epochs=15,
    trials=30,
    sampler={"name": "tpe", "n_startup_trials": 16},
    pruner={"name": "asha", "min_resource": 5},
    baseline=HParams(model="mlp", learning_rate=1e-2, weight_decay=1e-6, dropout_rate=0.0),
)
