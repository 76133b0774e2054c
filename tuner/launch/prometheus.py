"""Metrics of a launch for Prometheus, served over HTTP. docs/observability.md lists them."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from tuner.errors import UsageError, how_to_install
from tuner.launch.progress import Snapshot
from tuner.output.log import tell
from tuner.trial import Event, Outcome
from tuner.trial.events import TrialDeadly, TrialEnded, TrialLost

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_ENDS = tuple(outcome for outcome in Outcome if outcome.uses_budget or outcome is Outcome.FAILED)
_DOING = ("training", "compiling", "waiting", "database")


class LaunchMetrics:
    """Metrics of a launch's workers. A restarted worker continues the counters of its place.

    Args:
        groups: The device group of each place.

    Concurrency: the launcher writes, threads of the server read.
    """

    def __init__(self, groups: Sequence[str]) -> None:
        self._groups, self._lock = groups, threading.Lock()
        self._trials: Counter[str] = Counter()
        self._seconds: defaultdict[tuple[int, str], float] = defaultdict(float)
        self._lost: Counter[int] = Counter()
        self._deaths: Counter[int] = Counter()
        self._snapshot, self._alive = Snapshot(), 0

    def take(self, place: int, event: Event) -> None:
        """Add an event of the worker at a place."""
        with self._lock:
            match event:
                case TrialEnded(outcome=outcome) if outcome in _ENDS:
                    self._trials[outcome] += 1
                case TrialDeadly():
                    self._trials[Outcome.FAILED] += 1
                case TrialLost():
                    self._lost[place] += 1
                case _:
                    pass
            for doing, spent_s in (event.seconds or {}).items():
                self._seconds[place, doing] += spent_s

    def add_death(self, place: int) -> None:
        """Add the death of a worker that had not been asked to stop."""
        with self._lock:
            self._deaths[place] += 1

    def observe(self, snapshot: Snapshot, alive: int) -> None:
        """Set the progress of the study, and the number of workers."""
        with self._lock:
            self._snapshot, self._alive = snapshot, alive

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as `prometheus_client` collects them; none before the study is known."""
        with self._lock:
            snapshot, alive = self._snapshot, self._alive
            trials, seconds = dict(self._trials), dict(self._seconds)
            lost, deaths = dict(self._lost), dict(self._deaths)
        study = snapshot.study
        if not study:
            return
        places = range(len(self._groups))
        yield _counter(
            "tuner_trials",
            "Trials finished by workers of this launch",
            {(study, outcome.value): trials.get(outcome, 0) for outcome in _ENDS},
            "outcome",
        )
        yield _counter(
            "tuner_seconds",
            "Time that workers spent, by activity",
            {(study, str(place), doing): seconds.get((place, doing), 0.0) for place in places for doing in _DOING},
            "worker",
            "doing",
        )
        yield _counter(
            "tuner_device_busy_seconds",
            "Time that a worker's devices spent training",
            {
                (study, str(place), group): seconds.get((place, "training"), 0.0)
                for place, group in enumerate(self._groups)
            },
            "worker",
            "devices",
        )
        yield _counter(
            "tuner_lease_losses",
            "Trials dropped because another worker had taken them over",
            {(study, str(place)): lost.get(place, 0) for place in places},
            "worker",
        )
        yield _counter(
            "tuner_worker_deaths",
            "Workers that exited unexpectedly",
            {(study, str(place)): deaths.get(place, 0) for place in places},
            "worker",
        )
        yield _gauge("tuner_workers", "Worker processes of this launch", {(study,): alive})
        yield _gauge(
            "tuner_study_trials",
            "Trials of the whole study, on all machines",
            {(study, outcome.value): count for outcome, count in snapshot.counts.items()},
            "outcome",
        )
        best = {} if snapshot.best_value is None else {(study,): snapshot.best_value}
        yield _gauge("tuner_best_value", "Best objective value of the study's complete trials", best)


@dataclass(frozen=True)
class _Together:
    """The metrics of several studies: each family once, with the samples of all."""

    studies: tuple[LaunchMetrics, ...]

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for metrics in self.studies:
            for family in metrics.collect():
                families.setdefault(family.name, family)
                if families[family.name] is not family:
                    families[family.name].samples += family.samples
        yield from families.values()


def _counter(name: str, about: str, values: dict[tuple[str, ...], float], *labels: str) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    return _filled(CounterMetricFamily(name, about, labels=["study", *labels]), values)


def _gauge(name: str, about: str, values: dict[tuple[str, ...], float], *labels: str) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    return _filled(GaugeMetricFamily(name, about, labels=["study", *labels]), values)


def _filled(family: CounterMetricFamily | GaugeMetricFamily, values: dict[tuple[str, ...], float]) -> Metric:
    for labels, value in values.items():
        family.add_metric(list(labels), value)
    return family


@contextlib.contextmanager
def served(metrics: Sequence[LaunchMetrics], host: str, port: int) -> Generator[str]:
    """Serve a launch's metrics while the body runs.

    Args:
        metrics: The metrics of each study.
        host: The address to listen on.
        port: The port; 0 picks a free one.

    Yields:
        The URL.

    Raises:
        UsageError: the library is not installed, or the address cannot be used.
    """
    if not 0 <= port < 65536:
        raise UsageError(f"`metrics_port` must be 1 to 65535, or 0 for a free one: got {port}")
    if importlib.util.find_spec("prometheus_client") is None:
        raise UsageError(f"prometheus-client must be installed to serve metrics: {how_to_install('metrics')}")
    # Imported late, because it is not needed without the option.
    from prometheus_client import CollectorRegistry, make_wsgi_app  # pyright: ignore[reportUnknownVariableType]

    from tuner.web.server import Limits, Server

    registry = CollectorRegistry()
    registry.register(_Together(tuple(metrics)))  # pyright: ignore[reportArgumentType]: all it needs is `collect`
    app = cast("WSGIApplication", make_wsgi_app(registry))
    server = Server(host, port, app, Limits(), tell=_tell_error)
    try:
        server.prepare()
    except (OSError, UnicodeError) as error:
        # cheroot wraps it in its own sentence, with the error of the last address that it tried.
        reason = re.sub(r".*\[Errno -?\d+\] |\)*$", "", str(error))
        if isinstance(error, UnicodeError):
            reason = "not a valid host name"
        raise UsageError(
            f"cannot serve metrics on {host}:{port}: {reason}; use another `metrics_port` or `metrics_host`"
        ) from None
    thread = threading.Thread(target=server.serve, name="metrics", daemon=True)
    thread.start()
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{server.bound_port}/metrics"
    finally:
        server.stop()
        thread.join()


def _tell_error(message: str) -> None:
    tell(f"cannot serve metrics: {message}", "metrics", "warning")
