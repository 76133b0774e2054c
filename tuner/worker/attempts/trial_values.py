"""What a running trial has reported, and the values that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tuner.storage.read.ranking import constraint_key
from tuner.study import StudySpec
from tuner.study.constraints import check_metrics
from tuner.trial import Report
from tuner.trial.seed_values import SeedValues
from tuner.worker.trainables.trainable import ranking_epoch, ranking_values


class TrialValues:
    """The reports of a running trial, and the values that follow from them.

    Args:
        study: The study.

    Attributes:
        curve: The first objective of each epoch that was reported.
        latest_epoch: The epoch of the latest report; 0 before the first.
        values: The values of the objectives with which the trial is ranked; None before the first report.
        seeds: The values of the trial's seeds; None if it has one seed.
        violations: Optuna's numbers for the study's constraints, once they are checked.
    """

    def __init__(self, study: StudySpec) -> None:
        self._study = study
        self._metrics: dict[int, Mapping[str, float]] = {}  # of these epochs, if the study has constraints
        self.curve: dict[int, float] = {}
        self.latest_epoch = 0
        self.values: list[float] | None = None
        self.seeds: SeedValues | None = None
        self.violations: Mapping[str, float] = {}

    def note(self, report: Report) -> list[float]:
        """Note a report; return its objectives."""
        values = report.values(self._study.objectives)
        self.curve[report.epoch] = values[0]
        self.latest_epoch = report.epoch
        if self._study.all_constraints:
            self._metrics[report.epoch] = report.metrics
        self.values = ranking_values(self.curve, values, self._study)
        return values

    def set(self, values: Sequence[float]) -> None:
        """Set the values of the objectives, if they are not those of a report."""
        self.values = list(values)

    def set_seeds(self, seeds: SeedValues) -> None:
        """Set the values of the trial's seeds so far; the values of the trial are their means."""
        self.seeds, self.values = seeds, seeds.means

    def check_constraints(self, *, is_complete: bool) -> Sequence[str]:
        """Set `violations` from the metrics of the epoch that counts.

        Args:
            is_complete: Whether the trial is complete, so that it must have each metric.

        Returns:
            What is wrong with the metrics: one is missing or NaN.
        """
        constraints = self._study.all_constraints
        if not constraints:
            return ()
        epoch = ranking_epoch(self.curve, self.latest_epoch, self._study)
        checked = check_metrics(constraints, epoch, self._metrics.get(epoch, {}), is_complete=is_complete)
        self.violations = checked.violations
        return checked.problems

    def constraint_attributes(self) -> dict[str, float]:
        """Return the attributes in which Optuna reads the study's constraints."""
        return {constraint_key(name): value for name, value in self.violations.items()}
