"""A trial as everything else sees it: what it reports, what is said of it, how it ends. No JAX, no Optuna."""

from tuner.trial.events import Event, Stop, event_line, print_event
from tuner.trial.report import DEADLY, Outcome, Report, all_finite

__all__ = ["DEADLY", "Event", "Outcome", "Report", "Stop", "all_finite", "event_line", "print_event"]
