"""Engines that run workers on a cluster: one module for each, behind the interface in `engine`.

Workers pull trials from the database, so an engine schedules nothing: it keeps a number of identical workers running.
"""

from tuner.launch.engines.engine import EngineError, Job
from tuner.launch.engines.follow import launch_on
from tuner.launch.engines.jobs import cancel_open_jobs, open_jobs, scale_jobs
from tuner.launch.engines.plan import JobOptions, Plan, make_plan

__all__ = [
    "EngineError",
    "Job",
    "JobOptions",
    "Plan",
    "cancel_open_jobs",
    "launch_on",
    "make_plan",
    "open_jobs",
    "scale_jobs",
]
