"""A study: its search space, its settings, the file that it is written in. No JAX, and Optuna is imported late."""

from tuner.study.file import load_study
from tuner.study.space import Space, from_params, to_params
from tuner.study.spec import StudySpec, trial_seed

__all__ = ["Space", "StudySpec", "from_params", "load_study", "to_params", "trial_seed"]
