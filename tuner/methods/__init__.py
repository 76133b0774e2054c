"""Research methods as trainers. Each is a `TrainerModule`, so that a study can tune it. Imports JAX."""

from tuner.methods.adversarial import AdversarialClassifier, fgsm, pgd
from tuner.methods.augmentations import augment, brightness, contrast, crop, flip, noise, rotate, scaled, shift
from tuner.methods.autoencoder import Autoencoder, pairs
from tuner.methods.bayesian import EnsembleClassifier, LangevinClassifier, MapClassifier
from tuner.methods.calibration import ExpectedCalibrationError, forecast_metrics
from tuner.methods.classification import Classifier
from tuner.methods.contrastive import SimCLR, nt_xent
from tuner.methods.curriculum import Curriculum, easiest_first, held_out_losses
from tuner.methods.curvature import Sharpness, extreme_eigenvalues, hessian_product, hessian_trace
from tuner.methods.darts import ArchitectureSearch, alphas_of, paired_halves
from tuner.methods.darts_networks import DiscreteClassifier, DiscreteNetwork, SearchNetwork, genotype
from tuner.methods.distillation import DistilledClassifier, soft_losses, with_teacher
from tuner.methods.flows import Flow, FlowTrainer
from tuner.methods.gan import GANTrainer
from tuner.methods.laplace import LaplaceClassifier, LaplaceRegressor
from tuner.methods.maml import MetaLearner, adapt

__all__ = [
    "AdversarialClassifier",
    "ArchitectureSearch",
    "Autoencoder",
    "Classifier",
    "Curriculum",
    "DiscreteClassifier",
    "DiscreteNetwork",
    "DistilledClassifier",
    "EnsembleClassifier",
    "ExpectedCalibrationError",
    "Flow",
    "FlowTrainer",
    "GANTrainer",
    "LangevinClassifier",
    "LaplaceClassifier",
    "LaplaceRegressor",
    "MapClassifier",
    "MetaLearner",
    "SearchNetwork",
    "Sharpness",
    "SimCLR",
    "adapt",
    "alphas_of",
    "augment",
    "brightness",
    "contrast",
    "crop",
    "easiest_first",
    "extreme_eigenvalues",
    "fgsm",
    "flip",
    "forecast_metrics",
    "genotype",
    "held_out_losses",
    "hessian_product",
    "hessian_trace",
    "noise",
    "nt_xent",
    "paired_halves",
    "pairs",
    "pgd",
    "rotate",
    "scaled",
    "shift",
    "soft_losses",
    "with_teacher",
]
