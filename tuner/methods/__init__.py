"""Research methods as trainers: each a `TrainerModule`, so that a study can tune it. Imports JAX."""

from tuner.methods.classification import Classifier
from tuner.methods.curriculum import Curriculum, easiest_first, held_out_losses
from tuner.methods.darts import ArchitectureSearch, alphas_of, paired_halves
from tuner.methods.darts_networks import DiscreteClassifier, DiscreteNetwork, SearchNetwork, genotype
from tuner.methods.gan import Adversarial
from tuner.methods.maml import MetaLearner, adapt

__all__ = [
    "Adversarial",
    "ArchitectureSearch",
    "Classifier",
    "Curriculum",
    "DiscreteClassifier",
    "DiscreteNetwork",
    "MetaLearner",
    "SearchNetwork",
    "adapt",
    "alphas_of",
    "easiest_first",
    "genotype",
    "held_out_losses",
    "paired_halves",
]
