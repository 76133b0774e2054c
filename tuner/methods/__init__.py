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
from tuner.methods.autoencoder import Autoencoder, pairs
from tuner.methods.bayesian import EnsembleClassifier, LangevinClassifier, MapClassifier
from tuner.methods.calibration import ExpectedCalibrationError, forecast_metrics
from tuner.methods.classification import Classifier
from tuner.methods.curvature import Sharpness, extreme_eigenvalues, hessian_product, hessian_trace
from tuner.methods.flows import Flow, FlowTrainer
from tuner.methods.laplace import LaplaceClassifier, LaplaceRegressor

__all__ = [
    "Autoencoder",
    "Classifier",
    "EnsembleClassifier",
    "ExpectedCalibrationError",
    "Flow",
    "FlowTrainer",
    "LangevinClassifier",
    "LaplaceClassifier",
    "LaplaceRegressor",
    "MapClassifier",
    "Sharpness",
    "extreme_eigenvalues",
    "forecast_metrics",
    "hessian_product",
    "hessian_trace",
    "pairs",
]
