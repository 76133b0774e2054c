"""Explains errors from Python code that needs the value of a traced number."""

from __future__ import annotations

import contextlib
import os
import re
import traceback
from collections.abc import Iterator

import jax

from tuner.errors import StudyError
from tuner.study.source import frames_of_author

_UNKNOWN = (
    jax.errors.ConcretizationTypeError,  # TracerBoolConversionError is one: `if`, `and`, float()
    jax.errors.TracerIntegerConversionError,  # range(), a list's index
    jax.errors.TracerArrayConversionError,  # NumPy's functions
)
_DROPOUT = {
    os.path.join("flax", "linen", "stochastic.py"): ("flax.linen.Dropout", "tuner.training.Dropout"),
    os.path.join("flax", "nnx", "nn", "stochastic.py"): ("flax.nnx.Dropout", "tuner.training.nnx_layers.Dropout"),
}


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Convert JAX's errors about traced numbers to a one-line error with the place and what to write instead.

    Raises:
        StudyError: Python code needs the value of a traced number.
    """
    try:
        yield
    except _UNKNOWN as error:
        raise StudyError(_advice(error)) from error
    except TypeError as error:
        if not str(error).startswith("Shapes must be 1D sequences of concrete values"):
            raise
        raise StudyError(_advice(error)) from error


def _advice(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    theirs = frames_of_author(error)
    where = f" at {theirs[-1].filename}:{theirs[-1].lineno}: {theirs[-1].line}" if theirs else ""
    for file, (layer, instead) in _DROPOUT.items():
        if any(frame.filename.endswith(file) for frame in frames):
            return f"the rate of {layer} must not be a traced hyperparameter{where}; use {instead} instead"
    found = re.search(r"depends on the values? of the arguments? ([\w.\[\]'\", ]+)", str(error))
    hparams = [] if found is None else re.findall(r"\bhparams((?:\.\w+|\['\w+'\])+)", found[1])
    names = ", ".join(name.lstrip(".") for name in dict.fromkeys(hparams))
    return (
        f"Python code or a shape depends on "
        f"{f'the traced hyperparameter {names}' if names else 'a traced number'}{where}; use jnp.where or "
        "jax.lax.cond instead of `if`, or make the hyperparameter static with choice(...) or static=True"
    )
