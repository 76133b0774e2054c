"""TensorBoard: a folder of event files for each trial, with its curves and (for the HPARAMS page) hyperparameters."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.errors import TrackerLost, UsageError
from tuner.output.sanitize import folder_name
from tuner.tracking.tracker import TrackedReport, TrackedStudy, TrackedTrial
from tuner.trial import Outcome

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

_IDENTITY = ".tuner-mirror"


class TensorboardTracker:
    """Writes event files below a folder: `FOLDER/STUDY-IDENTITY/NUMBER`.

    TensorBoard keeps scalars with 32 bits.

    Args:
        folder: The folder; created if it does not exist.

    Raises:
        UsageError: the folder cannot be created.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder).absolute()
        try:
            # The same path may be another folder on another machine.
            self.target = f"tensorboard {str(self._folder)[:250]} {identity(self._folder)}"
        except OSError as error:
            raise UsageError(f"cannot write to the folder of `tensorboard`: {folder}: {error.strerror}") from None
        self._study = self._folder
        self._writers: dict[str, EventFileWriter] = {}
        self._fresh: set[str] = set()  # runs whose files were created in this process

    def open_study(self, study: TrackedStudy, place: str | None, known: Collection[str]) -> str:
        self._study = self._folder / folder_name(study.name, study.identity)
        with _writing():
            self.close()
            self._fresh.clear()
            try:
                found = identity(self._study)
            except UsageError as error:
                raise TrackerLost(str(error)) from None
            # Unknown runs were started by a process that died: they are written again.
            for path in self._study.iterdir():
                if path.is_dir() and not (found == place and path.name in known):
                    shutil.rmtree(path)
        return found

    def open_trial(self, trial: TrackedTrial, run: str | None) -> str:
        with _writing():
            if run is None:
                run = str(trial.number)
                self._fresh.add(run)
            if not (self._study / run).exists():
                from tensorboard.plugins.hparams.summary_v2 import hparams_pb

                hparams: Any = {name: _hparam(value) for name, value in trial.hparams.items()}
                if hparams:
                    name = f"{self._study.name}/{run}"
                    self._add(run, trial.began_s, 0, hparams_pb(hparams, trial_id=name, start_time_secs=trial.began_s))
        return run

    def log(self, run: str, reports: Sequence[TrackedReport]) -> None:
        with _writing():
            self._forget_from(run, reports[0].at_s, reports[0].step)
            for report in reports:
                metrics = {**report.metrics, "tuner/epoch": float(report.epoch)}
                self._add(run, report.at_s, report.step, _scalars(metrics))
            self._writers[run].flush()

    def end_trial(self, run: str, trial: TrackedTrial, reports: Sequence[TrackedReport]) -> None:
        if reports:
            self.log(run, reports)
        assert trial.ended_s is not None
        told = {"outcome": trial.outcome.value, **trial.tags}
        summaries = [
            _scalars({f"tuner/{name}": value for name, value in trial.results.items()}),
            _text("tuner/about", "\n".join(f"{name}: {value}  " for name, value in told.items())),
            *([_text("tuner/log", _as_code(trial.log))] if trial.log else []),
            _ending(trial.ended_s, is_success=trial.outcome in (Outcome.COMPLETE, Outcome.PRUNED)),
        ]
        with _writing():
            self._forget_from(run, trial.ended_s, trial.step + 1)
            for summary in summaries:
                self._add(run, trial.ended_s, trial.step + 1, summary)
            self._writers.pop(run).close()

    def drop_trial(self, run: str) -> None:
        with _writing():
            if run in self._writers:
                self._writers.pop(run).close()
            shutil.rmtree(self._study / run, ignore_errors=True)

    def end_study(self) -> None:
        pass  # TensorBoard has no data of the study itself

    def close(self) -> None:
        while self._writers:
            self._writers.popitem()[1].close()

    def _add(self, run: str, at_s: float, step: int, summary: object) -> None:
        self._writer(run).add_event(_proto("event").Event(wall_time=at_s, step=step, summary=summary))

    def _writer(self, run: str) -> EventFileWriter:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if run not in self._writers:
            self._writers[run] = EventFileWriter(str(self._study / run))
        return self._writers[run]

    def _forget_from(self, run: str, at_s: float, step: int) -> None:
        """Make readers drop steps that an earlier process wrote but did not save as sent before it died."""
        if run not in self._writers and run not in self._fresh:
            proto = _proto("event")
            again = proto.SessionLog(status=proto.SessionLog.START)
            self._writer(run).add_event(proto.Event(wall_time=at_s, step=step, session_log=again))


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrackerLost(f"cannot write TensorBoard files: {error}") from None


def identity(folder: Path) -> str:
    """Return a permanent identifier of a folder; the first caller creates the folder and the identifier.

    Raises:
        UsageError: the folder cannot be created.
    """
    path = folder / _IDENTITY
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            scratch = folder / f"{_IDENTITY}-{uuid.uuid4().hex}"
            scratch.write_text(uuid.uuid4().hex[:16])
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(scratch)  # unlike `replace`, this keeps an existing file
            scratch.unlink()
        return path.read_text()
    except OSError as error:
        raise UsageError(f"cannot write to the folder of `tensorboard`: {folder}: {error.strerror}") from None


def _proto(name: str) -> Any:
    """Return one of TensorBoard's protobuf modules, whose names type checkers do not know."""
    return importlib.import_module(f"tensorboard.compat.proto.{name}_pb2")


def _hparam(value: object) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _scalars(metrics: Mapping[str, float]) -> Any:
    summary = _proto("summary").Summary
    return summary(value=[summary.Value(tag=name, simple_value=value) for name, value in metrics.items()])


def _text(tag: str, text: str) -> Any:
    from tensorboard.plugins.text.summary import text_pb

    return text_pb(tag, text)


def _as_code(text: str) -> str:
    """Return a text as a block of code in Markdown."""
    return "\n".join(f"    {line}" for line in text.split("\n"))


def _ending(at_s: float, *, is_success: bool) -> Any:
    """Return a trial's status for the HPARAMS page."""
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    messages: Any = plugin_data_pb2
    status = "STATUS_SUCCESS" if is_success else "STATUS_FAILURE"
    ending = messages.HParamsPluginData(session_end_info=messages.SessionEndInfo(status=status, end_time_secs=at_s))
    about = metadata.create_summary_metadata(ending)
    summary = _proto("summary").Summary
    value = summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR)
    return summary(value=[value])
