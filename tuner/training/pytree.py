"""The type of a tree of arrays."""

from typing import Any, TypeAlias

PyTree: TypeAlias = Any
"""A tree of arrays, as JAX has it: parameters, gradients, the state of an optimizer."""
