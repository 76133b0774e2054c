"""Pauses between tries of something that fails."""

from __future__ import annotations

import random


class Backoff:
    """Pauses that double up to a limit, each shortened by a random part.

    This keeps processes that failed together from retrying together.

    Args:
        first_s: The longest that the first pause may be, in seconds.
        longest_s: The longest that any pause may be.
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._tries = 0

    def next_s(self) -> float:
        """Return the seconds to wait before the next try: between half of this pause's limit and all of it."""
        limit_s = min(self._longest_s, self._first_s * 2 ** min(self._tries, 60))
        self._tries += 1
        return limit_s * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin with the first pause again, after a success."""
        self._tries = 0
