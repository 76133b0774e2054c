"""A study: its search space, settings and file. Does not import JAX, and imports Optuna only when needed."""

from tuner.study.data import StudyData
from tuner.study.file import load_study
from tuner.study.space import Space, from_params, to_params
from tuner.study.spec import StudySpec, trial_seed

__all__ = ["Space", "StudyData", "StudySpec", "from_params", "load_study", "to_params", "trial_seed"]
