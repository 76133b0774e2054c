"""Finds misspelt settings and methods of a trainer, which would otherwise have no effect."""

from __future__ import annotations

import difflib
import dis
import types
from collections.abc import Iterator
from functools import lru_cache

from tuner.errors import StudyError

_ELSEWHERE = {
    "check_val_every_n_epoch": "validate_every",
    "configure_optimizers": "init_optimizer",
    "training_step": "train_step",
    "validation_step": "eval_step",
    "on_train_start": "on_training_start",
    "on_train_epoch_end": "on_training_epoch_end",
}
"""Names in PyTorch Lightning, and their counterparts here."""
_ALIKE = 0.8
"""The `difflib` ratio of two names from which one counts as a misspelling of the other."""


def check_spelling(trainer: object) -> None:
    """Raise StudyError if a trainer has an unused attribute or method with almost a name of `TrainerModule`.

    A name that the trainer's own code uses is accepted, however similar it is.
    """
    slip = _slip(type(trainer), frozenset(vars(trainer)))
    if slip is not None:
        name, meant = slip
        raise StudyError(
            f"{type(trainer).__name__} defines {name!r}, which tuner does not know and no code of the class reads; "
            f"did you mean {meant!r}? If the name is your own, start it with an underscore"
        )


@lru_cache(maxsize=256)
def _slip(kind: type, attributes: frozenset[str]) -> tuple[str, str] | None:
    """Return the first misspelt name, and the name that was probably meant."""
    ours, theirs = [], []
    for each in kind.__mro__[:-1]:
        (ours if each.__module__.partition(".")[0] == "tuner" else theirs).append(each)
    known = {name for each in ours for name in (*vars(each), *each.__annotations__) if not name.startswith("_")}
    known |= {name for each in ours for name in _attributes(each, "STORE_ATTR") if not name.startswith("_")}
    targets = {**_ELSEWHERE, **{name: name for name in known}}
    own = {name for each in theirs for name in vars(each) if not name.startswith("_")} | attributes
    read = {name for each in theirs for name in _attributes(each, "LOAD_")}
    for name in sorted(own - known - read):
        alike = difflib.get_close_matches(name.lower(), targets, n=1, cutoff=_ALIKE)
        if alike and not name.startswith("_"):
            return name, targets[alike[0]]
    return None


def _attributes(kind: type, operation: str) -> Iterator[str]:
    """Yield the names that the code of a class reads or sets; a method's use of its own name does not count."""
    for name, member in vars(kind).items():
        parts = (member.fget, member.fset) if isinstance(member, property) else (member,)
        for part in parts:
            code = getattr(getattr(part, "__func__", part), "__code__", None)
            if code is not None:
                yield from (each for each in _names(code, operation) if each != name)


def _names(code: types.CodeType, operation: str) -> Iterator[str]:
    for step in dis.get_instructions(code):
        if step.opname.startswith(operation) and isinstance(step.argval, str):
            yield step.argval  # also a text, as in getattr(self, "name")
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant, operation)
