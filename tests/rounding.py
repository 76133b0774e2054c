"""Tolerances of numeric tests: derived from the arithmetic, not measured on one processor."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp


def rounding(operations: int, dtype: Any = jnp.float32) -> float:
    """Return the most by which so many roundings, one after another, change a result relative to it.

    This is n u / (1 - n u), with u half the distance from 1 to the next number (Higham, "Accuracy and Stability of
    Numerical Algorithms", 2002, section 3.1). It holds on every processor, whatever the order of its additions and
    whether it fuses products with them. A sum of n products is off by at most this, of n operations, times the sum of
    the products' sizes. So where terms cancel, multiply by that sum: `atol=rounding(n) * scale`.

    Args:
        operations: How many roundings lie between inputs and result, on both sides of a comparison. An addition, a
            product, a quotient and a root are one; exp, log, tanh and powers are 8, as they may be 4 ulp off.
        dtype: The type of the numbers, which is that of the less exact side.
    """
    unit = float(jnp.finfo(dtype).eps) / 2
    return operations * unit / (1 - operations * unit)
