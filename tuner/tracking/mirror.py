"""The mirror: follows a study in the database and sends new data to trackers. Workers do not wait for it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine

from tuner.errors import TrackerLost, TrackerRefused, TunerError
from tuner.output.log import say
from tuner.output.sanitize import hide_password
from tuner.storage import AnyURL, StorageURL, connected, mirroring, parse_url
from tuner.storage.mirroring import Sent, StoredReport, Unsent
from tuner.storage.read.queries import StudyRow, TrialRow, find_study
from tuner.storage.sql.backoff import Backoff
from tuner.storage.sql.encoding import decode_metric
from tuner.storage.sql.retry import Patience, patient
from tuner.storage.sql.schema import prepare
from tuner.storage.worker.studies import identify
from tuner.tracking import TrackedReport, TrackedStudy, TrackedTrial, Tracker
from tuner.trial.environment import process_name

LEASE_S = 30.0
_POLL_S = 3.0  # so that a short trial is sent once and completely
_LONGEST_PAUSE_S = 30.0
_ONCE_PATIENCE_S = 30.0
_STORAGE_PATIENCE_S = 600.0
_TRIALS, _EPOCHS = 20, 200  # sent between two renewals of the lease
_RECORDED = ("train_s", "compile_s", "compilations", "gpu_peak_bytes", "gpu_mean_bytes", "gpu_percent")
_NUMBERS = 2000  # metrics sent in one call of a tracker, so that each call is short


@dataclass
class Ending:
    """When the mirror ends; set by a signal handler or another thread."""

    now: bool = False
    """Whether to end immediately, even if data is left to send."""
    by_s: float | None = None
    """The time on the monotonic clock by which to end, or earlier if all is sent."""
    grace_s: float = 0.0
    """Seconds by which `by_s` is extended whenever a tracker accepts data."""
    on_progress: Callable[[], None] = lambda: None
    """Called when sending starts, and when a tracker accepts data."""
    progressed_s: float = -math.inf
    """The time of the last such call."""

    def ask(self, grace_s: float, start_s: float) -> None:
        """End when all is sent, or when no tracker has accepted data for `grace_s`.

        Args:
            grace_s: Seconds.
            start_s: Seconds that the start may take, if sending has not started.
        """
        self.grace_s = grace_s
        self.by_s = time.monotonic() + (start_s if self.progressed_s == -math.inf else grace_s)

    def note_progress(self) -> None:
        """Note that sending has started, or that a tracker has accepted data."""
        self.progressed_s = time.monotonic()
        if self.by_s is not None:
            self.by_s = self.progressed_s + self.grace_s if self.grace_s else self.by_s
        self.on_progress()

    def is_over(self) -> bool:
        """Return whether the time is up."""
        return self.now or (self.by_s is not None and time.monotonic() >= self.by_s)


def follow(url: AnyURL, name: str, trackers: Sequence[Tracker], *, once: bool, ending: Ending) -> None:
    """Send a study to trackers until it is finished.

    Args:
        url: The storage's URL.
        name: The study.
        trackers: Where to send it.
        once: End when all current data is sent.
        ending: Ends the mirror earlier.

    Raises:
        UnknownStudy: there is no such study.
        StorageLost: the database cannot be reached.
        TrackerLost: a tracker does not answer, and does not have all data.
        TrackerRefused: a tracker rejected some trials.

    Concurrency: any number of processes; one at a time sends to each tracker, the others wait.
    """
    url = parse_url(url)
    with connected(url) as engine:
        prepare(engine)
        engine = patient(engine, Patience(_STORAGE_PATIENCE_S, ending.is_over))
        study = find_study(engine, name)
        card = describe_study(study, identify(engine, study.study_id), url)
        mirrors = [Mirror(engine, study, card, tracker, ending) for tracker in trackers]
        try:
            ending.note_progress()
            _work(engine, study, mirrors, once=once, ending=ending)
        finally:
            for mirror in mirrors:
                mirror.close()
    refused = [line for mirror in mirrors for line in mirror.refused.values()]
    if refused:
        raise TrackerRefused(f"cannot send {len(refused)} of the trials; the first: {refused[0]}")


def _work(engine: Engine, study: StudyRow, mirrors: Sequence[Mirror], *, once: bool, ending: Ending) -> None:
    began_s = time.monotonic()
    while not ending.now:
        # Checked before the passes, which send all data that existed then.
        is_last = once or ending.by_s is not None
        is_finished = mirroring.is_finished(engine, study.study_id)
        for mirror in mirrors:
            mirror.step()
        behind = [mirror for mirror in mirrors if not mirror.is_up_to_date]
        if (is_last or is_finished) and not behind:
            if is_finished:
                for mirror in mirrors:
                    mirror.finish()
            return
        gives_up = once and time.monotonic() > max(began_s, ending.progressed_s) + _ONCE_PATIENCE_S
        if behind and ending.by_s is not None:
            # The waiting launcher does not wait for a tracker that is down, or for another process that sends.
            gives_up = ending.is_over() or all(mirror.trouble or not mirror.is_held for mirror in behind)
        troubled = [mirror.trouble for mirror in behind if mirror.trouble]
        if gives_up and troubled:
            raise TrackerLost(f"{troubled[0]}; send the missing data of {study.name!r} later with `tuner track`")
        if gives_up and ending.by_s is not None:
            if any(mirror.is_held for mirror in behind):
                raise TrackerLost(
                    f"not all data of {study.name!r} was sent in time; send the rest later with `tuner track`"
                )
            return
        _pause(_POLL_S, ending)


def _pause(seconds: float, ending: Ending) -> None:
    end_s = time.monotonic() + seconds
    asked = ending.by_s
    while time.monotonic() < end_s and not ending.now and ending.by_s == asked:
        time.sleep(0.05)


@dataclass
class Mirror:
    """Sends a study to one tracker.

    Attributes:
        is_held: Whether this process is the one that sends.
        is_up_to_date: Whether the tracker has all data of the last step.
        trouble: Why the last step failed; empty if it did not.
        refused: The trials that the tracker rejects, and why.
    """

    engine: Engine
    study: StudyRow
    card: TrackedStudy
    tracker: Tracker
    ending: Ending
    owner: str = field(default_factory=process_name)
    is_held: bool = False
    is_up_to_date: bool = False
    trouble: str = ""
    refused: dict[int, str] = field(default_factory=dict)
    _is_open: bool = False
    _was_away: bool = False
    _after: int = 0
    _next_s: float = 0.0
    _pauses: Backoff = field(default_factory=lambda: Backoff(2.0, _LONGEST_PAUSE_S))
    _renewed_s: float = -math.inf
    _said: dict[int, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def _key(self) -> tuple[Engine, int, str]:
        return self.engine, self.study.study_id, self.tracker.target

    def step(self) -> None:
        """Send new data, if this process has the lease and the tracker answers; never raises errors of the tracker."""
        if time.monotonic() < self._next_s and self.ending.by_s is None:
            return
        if not self._hold():
            self._next_s = time.monotonic() + LEASE_S / 6
            self.is_up_to_date = not self._unsent_ids()
            return
        try:
            if not self._is_open:
                self._open()
            self._send_all(self._unsent_ids())
            if self._was_away and self.is_up_to_date:
                # Requests that timed out may have succeeded since.
                self._open()
                self._was_away = False
        except (TrackerLost, TrackerRefused) as error:
            self._note_trouble(error)
        else:
            if self.trouble:
                say(f"{self.tracker.target} answers again")
            self.trouble = ""
            self._pauses.reset()

    def _hold(self) -> bool:
        """Take or keep the lease; return whether this process has it."""
        if self.is_held and time.monotonic() < self._renewed_s + LEASE_S / 3:
            return True
        was_held, self.is_held = self.is_held, mirroring.hold(*self._key, self.owner, LEASE_S)
        self._renewed_s = time.monotonic()
        if not self.is_held:
            if was_held or not self._next_s:
                say(
                    f"another process is sending {self.study.name!r} to {self.tracker.target}; waiting for it to finish"
                )
            self._is_open = False
        return self.is_held

    def _open(self) -> None:
        place, known = mirroring.place_of(*self._key)
        found = self.tracker.open_study(self.card, place, known)
        if found != place:
            mirroring.enter_place(*self._key, self.owner, found)
            self._after = 0
        self._is_open = True
        self.ending.note_progress()

    def _unsent_ids(self) -> list[int]:
        found = mirroring.unsent_ids(*self._key, self._after)
        if found:
            self._after = found[0] - 1
        return found

    def _note_trouble(self, error: TunerError) -> None:
        if not self.trouble:
            say(f"{error}; trials continue; missing data is sent when the tracker answers")
        self.trouble, self._was_away = str(error), True
        self.is_up_to_date = self._is_open = False
        self._next_s = time.monotonic() + self._pauses.next_s()

    def _send_all(self, ids: Sequence[int]) -> None:
        self.is_up_to_date = False
        ids = [trial_id for trial_id in ids if trial_id not in self.refused]
        for start in range(0, len(ids), _TRIALS):
            if self.ending.is_over():
                return
            lacking = mirroring.read_unsent(self.engine, self.study, self.tracker.target, ids[start : start + _TRIALS])
            accepted: dict[int, Sent] = {}
            try:
                for unsent in lacking:
                    if not self._keeps(accepted):
                        return
                    self._send(unsent, accepted)
            finally:
                self._remember(accepted)
            if not self.is_held or self.ending.now:
                return
        self.is_up_to_date = True

    def _keeps(self, accepted: dict[int, Sent]) -> bool:
        """Return whether this process may continue sending; progress is saved when the lease is renewed."""
        if time.monotonic() > self._renewed_s + LEASE_S / 3:
            self._remember(accepted)
        return self.is_held and not self.ending.now

    def _remember(self, accepted: dict[int, Sent]) -> None:
        """Save the progress and renew the lease; accepted data that was not saved is sent again."""
        self.is_held = mirroring.save(*self._key, self.owner, list(accepted.values()), lease_s=LEASE_S)
        self._renewed_s = time.monotonic()
        accepted.clear()

    def _send(self, unsent: Unsent, accepted: dict[int, Sent]) -> None:
        """Send the missing data of a trial."""
        try:
            sent = self._kept(unsent)
            trial = describe_trial(self.study, unsent)
            standing = (trial.outcome, len(unsent.attempts), len(trial.hparams))
            trial_id = unsent.row.trial_id
            if sent is None or self._said.get(trial_id) != standing:
                run = self.tracker.open_trial(trial, sent.run if sent else None)
                sent = accepted[trial_id] = sent or Sent(trial_id, run)
                self._said[trial_id] = standing
                self.ending.note_progress()
            new = [report for report in unsent.reports if report.epoch > sent.epoch]
            widest = max((report.metrics.count(":") for report in new), default=0)
            size = max(1, min(_EPOCHS, _NUMBERS // max(1, widest)))
            pieces = [new[start : start + size] for start in range(0, len(new), size)]
            with_end = pieces.pop() if unsent.is_ended and pieces else []
            for piece in pieces:
                if not self._keeps(accepted):
                    return
                self.tracker.log(sent.run, [describe_report(report, trial.began_s) for report in piece])
                sent = accepted[trial_id] = sent.after(piece)
                self.ending.note_progress()
            if unsent.is_ended:
                if not self._keeps(accepted):
                    return
                reports = [describe_report(report, trial.began_s) for report in with_end]
                try:
                    self.tracker.end_trial(sent.run, trial, reports)
                except TrackerRefused:  # possibly because of the trial's tags: its curves are kept
                    self.tracker.log(sent.run, reports)
                    raise
                accepted[trial_id] = dataclasses.replace(sent.after(with_end), is_ended=True)
                self._said.pop(trial_id, None)
                self.ending.note_progress()
        except TrackerRefused as error:
            self.refused[unsent.row.trial_id] = f"trial {unsent.row.number}: {error}"
            say(f"cannot send trial {unsent.row.number}, skipping it: {error}")

    def _kept(self, unsent: Unsent) -> Sent | None:
        """Return the data of a trial that the tracker has; none if the data has changed and must be sent again.

        A trial that started again, for example on other devices, has other numbers for epochs that were sent before.
        """
        sent = unsent.sent
        if sent is None or not unsent.is_ended:
            return sent
        before = [report for report in unsent.reports if report.epoch <= sent.epoch]
        if mirroring.digest("", before) == sent.digest:
            return sent
        self.tracker.drop_trial(sent.run)
        return None

    def finish(self) -> None:
        """Tell the tracker that the study is finished."""
        if self.is_held:
            with contextlib.suppress(TrackerLost, TrackerRefused):  # it has all the numbers
                self.tracker.end_study()

    def close(self) -> None:
        """Close the tracker and release the lease."""
        self.tracker.close()
        if self.is_held:
            with contextlib.suppress(TunerError):
                mirroring.let_go(*self._key, self.owner)


# --- Data for trackers


def describe_study(study: StudyRow, identity: str, url: StorageURL) -> TrackedStudy:
    """Return a study in the form for trackers."""
    record = study.record
    settings = {
        "storage": str(url),
        "objective": ", ".join(record.get("objective", [])),
        "direction": ", ".join(study.directions),
        **{name: str(record[name]) for name in ("epochs", "seed") if name in record},
        **{f"space.{name}": str(domain) for name, domain in record.get("space", {}).items()},
    }
    return TrackedStudy(study.name, identity, settings)


def describe_trial(study: StudyRow, unsent: Unsent) -> TrackedTrial:
    """Return a trial in the form for trackers."""
    row, reports = unsent.row, unsent.reports
    began_s = _seconds(row.started) or (unsent.attempts[0]["started_at_s"] if unsent.attempts else 0.0)
    ended_s = _seconds(row.completed)
    return TrackedTrial(
        number=row.number,
        outcome=row.outcome,
        hparams=row.hparams,
        began_s=began_s,
        ended_s=max(ended_s, began_s) if _has_unknown_zone(row) and ended_s is not None else ended_s,
        step=reports[-1].step if reports else 0,
        results=_results(study, unsent) if unsent.is_ended else {},
        tags=_tags(unsent),
        log=hide_password(unsent.log),
    )


def _results(study: StudyRow, unsent: Unsent) -> dict[str, float]:
    row = unsent.row
    values = row.values or []
    found = {"value": values[0]} if len(values) == 1 else {}
    if len(values) > 1:
        found = {f"value.{name}": value for name, value in zip(study.objectives, values, strict=True)}
    took = {
        "seconds": row.seconds,
        **{name: getattr(row.record, name) for name in _RECORDED},
    }
    return {**found, **{name: float(value) for name, value in took.items() if value is not None}}


def _tags(unsent: Unsent) -> dict[str, str]:
    worker, about = unsent.worker, unsent.worker.get("about", {})
    last: Mapping[str, Any] = unsent.attempts[-1] if unsent.attempts else {}
    git = about.get("git") or {}
    found = {
        "worker": last.get("worker"),
        "attempts": len(unsent.attempts) or None,
        "endings": ", ".join(str(one["ending"]) for one in unsent.attempts if one["ending"]) or None,
        "host": worker.get("host"),
        "devices": worker.get("devices"),
        "file": about.get("file"),
        "git.commit": git.get("commit"),
        "git.is_changed": git.get("is_changed"),
        **{f"versions.{name}": version for name, version in about.get("versions", {}).items()},
        "is_feasible": unsent.row.is_feasible,
        "checkpoint": unsent.row.record.checkpoint,
        "error": unsent.row.record.error,
        "time_zone": "unknown" if _has_unknown_zone(unsent.row) else None,
    }
    return {name: str(value) for name, value in found.items() if value not in (None, "")}


def describe_report(report: StoredReport, began_s: float) -> TrackedReport:
    """Return a report in the form for trackers; a report without a time gets the start time of its trial."""
    metrics = {name: decode_metric(value) for name, value in json.loads(report.metrics).items()}
    at_s = began_s if report.reported_at_s is None else report.reported_at_s
    return TrackedReport(report.epoch, report.step, at_s, metrics)


def _seconds(moment: datetime.datetime | None) -> float | None:
    """Return a trial's time as seconds since 1970; a time of an unknown zone is treated as UTC."""
    return None if moment is None else moment.replace(tzinfo=datetime.UTC).timestamp()


def _has_unknown_zone(row: TrialRow) -> bool:
    return any(time is not None and time.tzinfo is None for time in (row.started, row.completed))
