"""The data of a study's trials, which may depend on static hyperparameters. Does not import JAX."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

from tuner.errors import MissingHParam, StudyError, TunerError, nearest
from tuner.study.domains import Domain, FloatDomain, domains_of
from tuner.study.signatures import takes_hparams
from tuner.study.source import describe_failure
from tuner.study.space import Space, SpaceMeta, is_traced

LIMIT_BYTES = 2 * 2**30
"""Bytes of arrays on the host that a process keeps for further trials. The latest data are always kept."""
_KEPT = 16
"""Data of different hyperparameters to keep. Streams need few bytes, but may hold files open."""

_Path = tuple[str, ...]
"""A field, with the fields of the spaces that it is nested in before it."""


@runtime_checkable
class _HasArrays(Protocol):
    def array_bytes(self) -> Mapping[int, int]: ...


@dataclass(frozen=True, eq=False)
class _Kept:
    """A result of `data`, and the hyperparameters that it was made from.

    Attributes:
        splits: The result.
        reads: The static fields that were read, with their values.
    """

    splits: Any
    reads: Mapping[_Path, object]

    def fits(self, hparams: Space) -> bool:
        """Return whether `data` returns the same for these hyperparameters."""
        return all(_is_same(_value_at(hparams, path), value) for path, value in self.reads.items())


class StudyData:
    """The data of a study's trials, by hyperparameters.

    A result is used again for all trials with the same values of the static fields that `data` has read. Of the
    others, those that were not used for longest are dropped when all arrays together need more than the limit.

    Args:
        function: `data(seed)`, or `data(seed, hparams)`, of a study. The second may read only static hyperparameters.
        seed: The study's seed.
        limit_bytes: The limit. A device holds a copy of the arrays that are in use or kept.

    Attributes:
        failure: What failed if the function raises an error, for `call_study_code`.

    Raises:
        StudyError: the function takes other arguments.
    """

    def __init__(self, function: Callable[..., Any], seed: int, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._function, self._seed, self._limit_bytes = function, seed, limit_bytes
        self._takes_hparams = takes_hparams(function, "data", "seed")
        self._kept: list[_Kept] = []  # the least recently used first
        self.failure = "data(seed, hparams) failed" if self._takes_hparams else "data(seed) failed"

    def for_hparams(self, hparams: Space) -> Any:
        """Return the `tuner.training.Splits` of a trial with these hyperparameters.

        Raises:
            StudyError: the function reads a traced hyperparameter; the message names it.
            MissingHParam: it reads one that the space does not have.
            Exception: the function's own error, with a note that has its file and line.
        """
        found = next((kept for kept in self._kept if kept.fits(hparams)), None)
        if found is None:
            found = self._make(hparams)
        else:
            self._kept.remove(found)
        self._kept.append(found)
        self._drop()
        return found.splits

    def _make(self, hparams: Space) -> _Kept:
        try:
            if not self._takes_hparams:
                return _Kept(self._function(self._seed), {})
            notes = _Notes()
            splits = self._function(self._seed, view(hparams, (), notes))
        except TunerError:
            raise
        except Exception as error:
            error.add_note(describe_failure(self.failure, error))
            raise
        reads, notes = notes.reads, weakref.ref(notes)
        if notes() is not None:  # the result holds the view, for example in a stream, and may read any field later
            _seen_by(view(hparams, (), _Notes(reads))).read_all()
        return _Kept(splits, reads)

    def _drop(self) -> None:
        while len(self._kept) > 1 and (len(self._kept) > _KEPT or self._bytes() > self._limit_bytes):
            del self._kept[0]

    def _bytes(self) -> int:
        """Return the size of all arrays; those that several results share count once."""
        sizes: dict[int, int] = {}
        for kept in self._kept:
            if isinstance(kept.splits, _HasArrays):
                sizes |= kept.splits.array_bytes()
        return sum(sizes.values())


def _value_at(hparams: object, path: _Path) -> object:
    """Return the value of a field, or the class of a nested space."""
    for name in path:
        hparams = getattr(hparams, name, None)
    return type(hparams) if isinstance(hparams, Space) else hparams


def _is_same(one: object, other: object) -> bool:
    return one is other or (type(one) is type(other) and one == other)


# --- What `data` sees of the hyperparameters


@dataclass(eq=False)
class _Notes:
    """The static fields that were read, with their values. All views of one call hold the same object."""

    reads: dict[_Path, object] = dataclasses.field(default_factory=dict[_Path, object])


@dataclass(frozen=True)
class _Seen:
    """The hyperparameters behind a view, the fields that lead to them from those of the trial, and what was read."""

    hparams: Space
    path: _Path
    notes: _Notes

    def read(self, name: str) -> Any:
        value, path = getattr(self.hparams, name), (*self.path, name)
        if isinstance(value, Space):
            self.notes.reads[path] = type(value)
            return view(value, path, self.notes)
        if _is_variable(self.hparams, name, value):
            advice = _advice(domains_of(type(self.hparams)).get(name))
            raise StudyError(
                f"data read the traced hyperparameter {'.'.join(path)!r}: only static hyperparameters may change the "
                f"data, because traced ones are numbers inside the program; {advice}, or use it in the trainer"
            )
        self.notes.reads[path] = value
        return value

    def missing(self, name: str) -> MissingHParam:
        kind = type(self.hparams)
        known = [field.name for field in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
        return MissingHParam(
            f"data reads a hyperparameter that is not in the search space: {kind.__name__} has no {name!r}, it has "
            f"{', '.join(known) or 'none'}{nearest(name, known)}"
        )

    def read_all(self) -> None:
        """Note that every static field was read."""
        for field in dataclasses.fields(self.hparams):  # pyright: ignore[reportArgumentType]
            value = getattr(self.hparams, field.name)
            if isinstance(value, Space) or not _is_variable(self.hparams, field.name, value):
                found = self.read(field.name)
                if isinstance(found, Space):
                    _seen_by(found).read_all()


def _is_variable(hparams: Space, name: str, value: object) -> bool:
    """Return whether a field is traced and may differ between trials; None is the lack of an optional space."""
    kind = type(hparams)
    if value is None or not is_traced(kind, name):
        return False
    default = next(field.default for field in dataclasses.fields(kind) if field.name == name)  # pyright: ignore[reportArgumentType]
    return name in domains_of(kind) or not _is_same(default, value)


def _advice(domain: Domain | None) -> str:
    if domain is None:  # of a define-by-run space
        return "make it a whole number or a text"
    return "make it static (`static=True`)" if isinstance(domain, FloatDomain) else "make it static (no `traced=True`)"


def view(hparams: Space, path: _Path, notes: _Notes) -> Space:
    """Return hyperparameters whose static fields can be read, and are noted.

    It is an instance of a subclass of the space's class, so that `isinstance` and the class's own methods work.
    """
    made: Any = object.__new__(_view_class(type(hparams)))
    object.__setattr__(made, "_seen", _Seen(hparams, path, notes))
    return made


def _remade(hparams: Space, path: _Path) -> Space:
    """Return the view in another process, which cannot tell what it reads."""
    return view(hparams, path, _Notes())


def _seen_by(viewed: Space) -> _Seen:
    return object.__getattribute__(viewed, "_seen")


@lru_cache(maxsize=256)
def _view_class(kind: type[Space]) -> type[Space]:
    names = {field.name for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]

    def read(self: Space, name: str) -> Any:
        # `dataclasses.replace` makes an instance of this class that is no view.
        is_view = name in names and "_seen" in vars(self)
        return _seen_by(self).read(name) if is_view else object.__getattribute__(self, name)

    def miss(self: Space, name: str) -> Any:
        if name.startswith("_") or "_seen" not in vars(self):
            return Space.__getattr__(self, name)
        raise _seen_by(self).missing(name)

    def reduce(self: Space) -> tuple[Any, ...]:
        seen = _seen_by(self)
        seen.read_all()
        return _remade, (seen.hparams, seen.path)

    body: dict[str, Any] = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    body |= {"__getattribute__": read, "__getattr__": miss, "__reduce__": reduce}
    made: Any = SpaceMeta(kind.__name__, (kind,), body)
    return made
