"""The old name of `tuner.study.space`, kept until version 0.4."""

from tuner.study.space import Space, from_params, to_params

__all__ = ["Space", "from_params", "to_params"]
