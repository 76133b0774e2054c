"""What a named sampler is made from: the study, the trial, and what all workers of the study have agreed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tuner.errors import StudyError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from tuner.search.hub import Module

Confidence = Literal["low", "medium", "high"]


@dataclass(frozen=True)
class Prior:
    """Where a good value of a hyperparameter is expected.

    Attributes:
        value: The value expected to be good.
        confidence: How certain that is.
    """

    value: float
    confidence: Confidence


@dataclass(frozen=True)
class Plan:
    """The samplers that `auto` has chosen: `first` until 250 trials are complete, then `later`."""

    first: str
    later: str

    @classmethod
    def of(cls, record: Mapping[str, str]) -> Plan:
        """Return a plan from its record.

        Raises:
            StudyError: another version of tuner has recorded it in another form.
        """
        try:
            return cls(record["first"], record["later"])
        except KeyError:
            raise StudyError(f"the study was created with a newer version of tuner, auto={record}: upgrade") from None


@dataclass(frozen=True)
class Agreed:
    """What is stored with a study for its sampler, so that all its workers search alike.

    Attributes:
        plan: What the sampler `auto` has chosen; None for another sampler, or before it is stored.
        module: The module of the sampler `hub`; likewise.
        earlier: Trials of earlier studies. Their numbers and ids are negative.
    """

    plan: Plan | None = None
    module: Module | None = None
    earlier: Sequence[FrozenTrial] = ()


@dataclass(frozen=True)
class Context:
    """Information about the study for a named sampler.

    Attributes:
        study_seed: The study's seed, the same for all trials.
        trial_seed: The trial's seed.
        number: The trial's number.
        distributions: Unconditional parameters; None for a define-by-run space.
        conditional: Conditional parameters, the domains of each; empty for a define-by-run space.
        objectives: The number of objectives.
        is_constrained: Whether the study has constraints.
        priors: Priors of parameters, by name.
        agreed: What is stored with the study.
    """

    study_seed: int
    trial_seed: int
    number: int
    distributions: Mapping[str, BaseDistribution] | None
    conditional: Mapping[str, Sequence[BaseDistribution]] = field(
        default_factory=dict[str, "Sequence[BaseDistribution]"]
    )
    objectives: int = 1
    is_constrained: bool = False
    priors: Mapping[str, Prior] = field(default_factory=dict[str, Prior])
    agreed: Agreed = field(default_factory=Agreed)

    @property
    def is_conditional(self) -> bool:
        """Whether there are conditional parameters."""
        return bool(self.conditional)
