"""The old name of `tuner.study.space`, kept until version 0.4."""

import warnings

from tuner.study.space import Space, from_params, to_params

__all__ = ["Space", "from_params", "to_params"]

warnings.warn("tuner.space is now tuner.study; the old name will be removed in 0.4", DeprecationWarning, stacklevel=2)
