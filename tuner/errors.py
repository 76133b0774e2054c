"""The exceptions of tuner.

```text
TunerError                      exit status 1
├── UsageError                  exit status 2: invalid input
│   ├── StudyFileError          the study file is missing, does not import, or has no study or several
│   ├── StudyBusy               exit status 75: the file is broken or has changed, and other workers run the study
│   ├── StudyError              a setting of a study or trainer is wrong
│   │   └── StudyChanged        the study differs from what it was at its first launch
│   ├── SpaceError              the search space is wrong, or a value is outside of it
│   │   └── MissingHParam       the training reads a hyperparameter that the space does not have
│   ├── UnknownStudy            the storage has no study or trial of that name
│   ├── StorageURLError         not a valid storage URL
│   ├── ArtifactsURLError       not a valid URL of artifacts, or the object store refuses the calls
│   ├── StorageSchemaError      the storage's tables belong to another version
│   ├── StorageDenied           the database user may not read or write the tables
│   └── DeviceError             a device that this machine does not have
├── StorageLost                 exit status 75: the database cannot be reached; try again later
│   └── StorageMissing          exit status 2: the file does not exist, or is not a database
├── ArtifactsLost               exit status 75: the object storage of the artifacts cannot be reached; try again later
├── NonFinite                   with debug=True: the origin of the first NaN or infinity
├── TrialPruned                 raised by a trainer's hook to stop the trial
├── CheckpointError             a checkpoint is damaged, missing or from another training, or cannot be written
├── TrackerLost                 a tracker does not answer; missing data is sent when it does
├── TrackerRefused              a tracker rejects one trial
├── RankLost                    a process of a worker that spans hosts has ended, or cannot be reached
├── LeaseLost                   another worker has taken over the trial; this one must drop it
└── StudyStopped                exit status 0: the study was stopped
    └── StudyFailed             exit status 3: the same error several times, or its workers died; do not try again
```
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from typing import TypeGuard

from tuner.output.sanitize import hide_password

__all__ = [
    "ArtifactsLost",
    "ArtifactsURLError",
    "CheckpointError",
    "DeviceError",
    "LeaseLost",
    "MissingHParam",
    "NonFinite",
    "RankLost",
    "SpaceError",
    "StorageDenied",
    "StorageLost",
    "StorageMissing",
    "StorageSchemaError",
    "StorageURLError",
    "StudyBusy",
    "StudyChanged",
    "StudyError",
    "StudyFailed",
    "StudyFileError",
    "StudyStopped",
    "TrackerLost",
    "TrackerRefused",
    "TrialPruned",
    "TunerError",
    "UnknownStudy",
    "UsageError",
]

PACKAGE = os.path.dirname(os.path.abspath(__file__))
"""The folder of this package; frames of a traceback in it belong to tuner."""


TRY_AGAIN = 75
"""The exit status for an error that may pass by itself, as `EX_TEMPFAIL` of sysexits.h."""


class TunerError(Exception):
    """Base class of all errors that `tuner` raises on purpose. Messages never show a password."""

    exit_status = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(hide_password(one) if isinstance(one, str) else one for one in args))


class UsageError(TunerError):
    """Invalid input: a command, a study file, a setting or a URL."""

    exit_status = 2


class StudyFileError(UsageError):
    """A study file is missing, does not import, or does not define exactly one study."""


class StudyBusy(UsageError):
    """The study's file cannot be used as it is now, but other workers run the study: it may be repaired."""

    exit_status = TRY_AGAIN


class StudyError(UsageError):
    """A study's settings are wrong."""


class StudyChanged(StudyError):
    """A study's settings differ from those it was first launched with."""


class SpaceError(UsageError):
    """A search space is wrong, or a value is outside of it."""


class MissingHParam(SpaceError, AttributeError):
    """The trainer reads a hyperparameter that the search space does not have."""


class UnknownStudy(UsageError):
    """The storage has no study of that name, or the study has no trial of that number."""


class StorageURLError(UsageError):
    """Not a valid storage URL."""


class ArtifactsURLError(UsageError):
    """Not a valid URL of artifacts, or the object store refuses the calls: no such bucket, missing credentials."""


class StorageSchemaError(UsageError):
    """The storage's tables belong to an older or a newer version."""


class StorageDenied(UsageError):
    """The database user does not have a right that the command needs."""

    @classmethod
    def because(cls, reason: str) -> StorageDenied:
        """Return the error for a message of the database."""
        return cls(
            f"the database user is not allowed to read and write the storage's tables: {reason!r}; "
            "connect as the tables' owner, or have the owner grant the rights that docs/storage.md lists"
        )


class DeviceError(UsageError):
    """The command asks for a device that this machine does not have."""


class StorageLost(TunerError):
    """The database cannot be reached."""

    exit_status = TRY_AGAIN


class StorageMissing(StorageLost):
    """The storage's file does not exist, or is not a database: to try again does not help."""

    exit_status = 2


class ArtifactsLost(TunerError):
    """The object storage of the artifacts cannot be reached."""

    exit_status = TRY_AGAIN


class NonFinite(TunerError):
    """Raised with `debug=True`; says where the first NaN or infinity was computed."""


class TrialPruned(TunerError):
    """Raised by a trainer's hook to stop the trial; the trial counts as pruned."""


class CheckpointError(TunerError):
    """A checkpoint is damaged, missing or from another training, or cannot be written."""


class TrackerLost(TunerError):
    """A tracker (MLflow, W&B) does not answer."""


class TrackerRefused(TunerError):
    """A tracker rejects the data of one trial."""


class RankLost(TunerError):
    """A process of a worker that spans hosts has ended, or cannot be reached; the others end as well."""


class LeaseLost(TunerError):
    """Another worker has taken over the trial; this one must drop it without writing."""


class StudyStopped(TunerError):
    """The study ended before its budget was used up: a user stopped it."""

    exit_status = 0


class StudyFailed(StudyStopped):
    """The same error ended several trials in a row, or workers died again and again."""

    exit_status = 3


DISTRIBUTION = "tuner-jax"
"""Name of the package on the package index; `tuner` is another project there."""


def how_to_install(extra: str) -> str:
    """Return the command that installs one of the project's extras.

    This project is not on the public package index yet, so it is installed from a clone.
    """
    return f"run `pip install -e '.[{extra}]'` in the clone of tuner"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest known name, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def is_interrupted(error: BaseException) -> bool:
    """Return whether an error was raised while an interrupt was handled, as by a second Ctrl-C.

    `threading` makes such errors: an interrupt can keep a waiting thread from taking its lock back, and the lock then
    cannot be released.
    """
    context, seen = error.__context__, set[int]()
    while context is not None and id(context) not in seen:
        if isinstance(context, KeyboardInterrupt):
            return True
        seen.add(id(context))
        context = context.__context__
    return False


def is_int(value: object) -> TypeGuard[int]:
    """Return whether a setting is an integer; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a setting is an integer or a float; True and False are neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)
