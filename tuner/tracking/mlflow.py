"""MLflow: a parent run for the study, and a child run for each trial."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import posixpath
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from tuner.errors import TrackerLost, TrackerRefused, UsageError
from tuner.output.sanitize import hide_password
from tuner.tracking.tracker import TrackedReport, TrackedStudy, TrackedTrial
from tuner.trial import Outcome

_MOST_METRICS, _MOST_PARAMS = 1000, 100  # in one request
_LONGEST_NAME, _LONGEST_PARAM, _LONGEST_TAG, _LONGEST_EXPERIMENT = 250, 6000, 5000, 500
_NOT_ALLOWED = re.compile(r"[^\w\-. :/]", re.ASCII)
_STATUS = {Outcome.COMPLETE: "FINISHED", Outcome.PRUNED: "KILLED"}
_REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST"}
_ITSELF = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    # A request that timed out may have succeeded: this is checked before it is repeated.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def allowed_name(name: str) -> str:
    """Return a name that MLflow accepts for a parameter, a metric or a tag.

    Invalid characters become `_`, and six digits make the name unique.
    """
    allowed = _NOT_ALLOWED.sub("_", name)
    if posixpath.normpath(allowed) != allowed or allowed.startswith(("/", "..")) or allowed == ".":
        allowed = allowed.replace("/", "_").replace("..", "__").strip(".") or "_"
    if allowed == name and len(name) <= _LONGEST_NAME:
        return name
    return f"{allowed[: _LONGEST_NAME - 7]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def address(uri: str) -> str:
    """Return an MLflow URI without user and password.

    Raises:
        UsageError: it is not the address of a server or a database.
    """
    parts, must = urlsplit(uri), "an MLflow URI must be http(s)://HOST:PORT, or the URL of MLflow's database"
    if parts.scheme not in ("http", "https") and not re.match(r"(sqlite|postgresql|mysql|mssql)\b", parts.scheme):
        shown = repr(hide_password(uri)) if "@" not in uri else "a URL with a password"
        raise UsageError(f"{must}: got {shown}")
    try:
        _ = parts.port
    except ValueError:
        # `http://me:pass/word@host`: the part after the / would be parsed as the path, and shown.
        shown = "a URL whose port is not a number; in a password escape / ? # as %2F %3F %23"
        raise UsageError(f"{must}: got {shown}") from None
    return hide_password(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())


class MlflowTracker:
    """Sends to an MLflow server.

    Args:
        uri: Its address; it may contain user and password, or MLflow's environment variables set them.

    Raises:
        UsageError: it is not a valid address.
    """

    def __init__(self, uri: str) -> None:
        self._uri, self._address = uri, address(uri).rstrip("/")
        self.target = f"mlflow {self._address}"[:300]
        os.environ.update({name: os.environ.get(name, value) for name, value in _ITSELF.items()})
        from mlflow import MlflowClient

        self.client = MlflowClient(uri, uri)
        self._experiment = self._parent = ""
        self._runs: dict[str, str] = {}  # trial number -> run
        self._study: TrackedStudy | None = None

    # --- The study

    def open_study(self, study: TrackedStudy, place: str | None, known: Collection[str]) -> str:
        with self._answering():
            self._study = study
            self._experiment = self._find_experiment(study.name[:_LONGEST_EXPERIMENT])
            self._parent = self._find_parent(study, place)
            of_study = self._search(f"tags.`mlflow.parentRunId` = '{self._parent}'")
            self._runs = {}
            for run in sorted(of_study, key=lambda run: run.info.run_id not in known):
                number, run_id = run.data.tags["tuner.trial"], run.info.run_id
                if self._runs.setdefault(number, run_id) != run_id:
                    self.client.delete_run(run_id)
            self.client.update_run(self._parent, status="RUNNING")
        return self._parent

    def _find_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found: Any = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name))
            except MlflowException:  # another process may have created it
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise TrackerLost(
                f"the MLflow experiment {name!r} at {self._address} was deleted: restore it with "
                f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
            )
        return str(found.experiment_id)

    def _find_parent(self, study: TrackedStudy, place: str | None) -> str:
        found = self._search(f"tags.`tuner.identity` = '{study.identity}' and tags.`tuner.kind` = 'study'")
        ids = [run.info.run_id for run in found]
        if not ids:
            settings = {f"tuner.{name}": value for name, value in study.settings.items()}
            tags = {"tuner.kind": "study", "tuner.identity": study.identity, "tuner.study": study.name, **settings}
            made = self.client.create_run(self._experiment, run_name=study.name[:_LONGEST_NAME], tags=_tags(tags))
            return str(made.info.run_id)
        kept = place if place is not None and place in ids else str(ids[0])
        for run_id in ids:
            if run_id != kept:
                self.client.delete_run(run_id)
        return kept

    def _search(self, query: str) -> list[Any]:
        """Return the runs of the experiment that a query finds, the oldest first."""
        found, token = [], None
        while True:
            page = self.client.search_runs(
                [self._experiment], query, max_results=1000, order_by=["attributes.start_time ASC"], page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found

    def end_study(self) -> None:
        with self._answering():
            self.client.set_terminated(self._parent, "FINISHED")

    # --- Its trials

    def open_trial(self, trial: TrackedTrial, run: str | None) -> str:
        run = run or self._runs.get(str(trial.number))
        with self._answering():
            if run is None:
                assert self._study is not None
                tags = {
                    "mlflow.parentRunId": self._parent,
                    "tuner.trial": str(trial.number),
                    "tuner.study": self._study.name,
                    "tuner.identity": self._study.identity,
                }
                made = self.client.create_run(
                    self._experiment,
                    start_time=_ms(trial.began_s),
                    run_name=f"{self._study.name[:200]} {trial.number}",
                    tags=_tags(tags),
                )
                run = self._runs[str(trial.number)] = made.info.run_id
            if trial.ended_s is None:  # otherwise `end_trial` sends it
                self._describe(run, trial, [])
        return run

    def _describe(self, run: str, trial: TrackedTrial, metrics: Sequence[Any]) -> None:
        """Send hyperparameters, tags and metrics in as few requests as MLflow allows."""
        from mlflow.entities import Param, RunTag

        params = [
            Param(allowed_name(name), str(value)[:_LONGEST_PARAM]) for name, value in sorted(trial.hparams.items())
        ]
        told = {"outcome": trial.outcome.value, **trial.tags}
        if trial.log:
            told["log"] = trial.log[-_LONGEST_TAG:]
        tags = [RunTag(key, value) for key, value in _tags({f"tuner.{key}": told[key] for key in told}).items()]
        parts = itertools.zip_longest(
            _batches(metrics, _MOST_METRICS - 2 * _MOST_PARAMS),
            _batches(params, _MOST_PARAMS),
            _batches(tags, _MOST_PARAMS),
            fillvalue=(),
        )
        for some_metrics, some_params, some_tags in parts:
            self.client.log_batch(run, metrics=some_metrics, params=some_params, tags=some_tags)

    def log(self, run: str, reports: Sequence[TrackedReport]) -> None:
        with self._answering():
            for some in _batches(_metrics(reports), _MOST_METRICS):
                self.client.log_batch(run, metrics=some)

    def end_trial(self, run: str, trial: TrackedTrial, reports: Sequence[TrackedReport]) -> None:
        from mlflow.entities import Metric

        assert trial.ended_s is not None
        results = _named({f"tuner.{name}": value for name, value in trial.results.items()})
        metrics = _metrics(reports)
        metrics += [Metric(name, value, _ms(trial.ended_s), trial.step) for name, value in results.items()]
        with self._answering():
            self._describe(run, trial, metrics)
            self.client.set_terminated(run, _STATUS.get(trial.outcome, "FAILED"), end_time=_ms(trial.ended_s))

    def drop_trial(self, run: str) -> None:
        self._runs = {number: known for number, known in self._runs.items() if known != run}
        with self._answering():
            self.client.delete_run(run)

    def close(self) -> None:
        pass  # nothing to close

    # --- Its models

    def register(self, run: str, folder: str, name: str, tags: Mapping[str, str]) -> str:
        """Upload a model's folder to a trial's run and register it as a model version; return its URI.

        Args:
            run: The result of `open_trial`.
            folder: A folder written by MLflow's `save_model`.
            name: The registered model; created if it does not exist.
            tags: Tags of the version by name.
        """
        from mlflow.exceptions import MlflowException

        with self._answering():
            self.client.log_artifacts(run, folder, "model")
            try:
                self.client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            source = f"runs:/{run}/model"
            made = self.client.create_model_version(name, source, run, tags=_tags(tags))
        return f"models:/{name}/{made.version}"

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Convert errors of MLflow's client to `TrackerLost` and `TrackerRefused`."""
        from mlflow.exceptions import MlflowException
        from requests import RequestException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except MlflowException as error:
            kind = TrackerRefused if error.error_code in _REFUSALS else TrackerLost
            raise kind(self._line(error)) from None
        except (RequestException, SQLAlchemyError, OSError) as error:
            raise TrackerLost(self._line(error)) from None

    def _line(self, error: Exception) -> str:
        """Return an error in one line, without the login in the URI."""
        login = urlsplit(self._uri).netloc.rpartition("@")[0]
        text = " ".join(str(error).split()) or type(error).__name__
        password = login.partition(":")[2]
        for secret in filter(None, (f"{login}@" if login else "", password, unquote(password))):
            text = text.replace(secret, "")
        return f"MLflow at {self._address}: {hide_password(text)[:500]}"


def _metrics(reports: Sequence[TrackedReport]) -> list[Any]:
    """Convert reports to MLflow's metrics."""
    from mlflow.entities import Metric

    return [
        Metric(name, value, _ms(report.at_s), report.step)
        for report in reports
        for name, value in _named({**report.metrics, "tuner.epoch": float(report.epoch)}).items()
    ]


def _ms(seconds: float) -> int:
    return round(1000 * seconds)


def _tags(given: Mapping[str, str]) -> dict[str, str]:
    return {allowed_name(name): value[:_LONGEST_TAG] for name, value in given.items()}


def _named(given: Mapping[str, float]) -> dict[str, float]:
    return {allowed_name(name): value for name, value in given.items()}


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
