"""A trial's reports, events, outcomes and failures. Does not import JAX or Optuna."""

from tuner.trial.events import Event, Stop, event_line, print_event
from tuner.trial.report import DEADLY, Outcome, Report, all_finite

__all__ = ["DEADLY", "Event", "Outcome", "Report", "Stop", "all_finite", "event_line", "print_event"]
