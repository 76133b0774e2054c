"""Research methods as trainers: each a `TrainerModule`, so that a study can tune it. Imports JAX."""

from tuner.methods.adversarial import AdversarialClassifier, fgsm, pgd
from tuner.methods.augmentations import (
    augment,
    brightness,
    contrast,
    crop,
    flip,
    noise,
    rotate,
    scaled,
    shift,
)
from tuner.methods.classification import Classifier
from tuner.methods.contrastive import SimCLR, nt_xent
from tuner.methods.distillation import DistilledClassifier, soft_losses, with_teacher

__all__ = [
    "AdversarialClassifier",
    "Classifier",
    "DistilledClassifier",
    "SimCLR",
    "augment",
    "brightness",
    "contrast",
    "crop",
    "fgsm",
    "flip",
    "noise",
    "nt_xent",
    "pgd",
    "rotate",
    "scaled",
    "shift",
    "soft_losses",
    "with_teacher",
]
