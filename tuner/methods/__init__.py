"""Research methods as trainers: each a `TrainerModule`, so that a study can tune it. Imports JAX."""

from tuner.methods.classification import Classifier

__all__ = [
    "Classifier",
]
