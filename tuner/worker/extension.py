"""Continues an ended trial as a new one: brings its last state to the new trial's folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from tuner.errors import ArtifactsLost, ArtifactsURLError, CheckpointError, UsageError
from tuner.storage.artifacts import SEEDS, local_checkpoint
from tuner.trial.extension import EXTENSION_KEY, Extension

_LATEST, _SCRATCH = "latest", ".tmp-"


def extension_of(system_attrs: Any) -> Extension | None:
    """Return how a trial continues another one, from its system attributes; None if it does not."""
    stored = system_attrs.get(EXTENSION_KEY)
    return None if stored is None else Extension.of_json(stored)


def bring_last(extension: Extension, root: Path) -> None:
    """Bring the last state of the continued trial to the folder of the new one, unless that has a state already.

    Raises:
        CheckpointError: the state is not there any more, or cannot be read.
    """
    if _has_state(root):
        return
    name = f"trial {extension.of}, which this trial continues,"
    try:
        last = local_checkpoint(extension.state, name, "last state")
    except (UsageError, ArtifactsLost, ArtifactsURLError) as error:
        raise CheckpointError(str(error)) from None
    copy_last(last, root)


def copy_last(last: Path, root: Path) -> None:
    """Copy the states in a folder that `write_last` has written to the folder of a trial, the trial's own at last.

    Raises:
        CheckpointError: a state cannot be copied.
    """
    seeds = sorted((last / SEEDS).glob("*")) if (last / SEEDS).is_dir() else []
    scratch = root / f"{_SCRATCH}{uuid.uuid4().hex}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        for folder in (*(seed.relative_to(last) for seed in seeds), Path()):
            shutil.copytree(last / folder / _LATEST, scratch)
            target = root / folder / _LATEST
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch.rename(target)
    except OSError as error:
        raise CheckpointError(f"cannot copy the last state {last}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _has_state(root: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(name.isdecimal() for name in os.listdir(root / _LATEST))
    return False
