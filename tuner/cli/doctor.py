"""`tuner doctor`."""

from __future__ import annotations

import typer

from tuner.cli.arguments import ArtifactsOption, DebugOption, Format, FormatOption, StorageOption
from tuner.cli.printing import emit
from tuner.storage import storage_url
from tuner.storage.artifacts import artifacts_of


def doctor(
    storage: StorageOption = None,
    artifacts: ArtifactsOption = None,
    format: FormatOption = Format.TABLE,
    debug: DebugOption = False,
) -> None:
    """Check this machine's setup: Python, devices, storage, clock, disk, tracking.

    Changes nothing, except that it writes an empty object to object storage and removes it. Exit status 1 if a check
    fails.
    For example: tuner doctor --storage postgresql+psycopg2://tuner@db/tuner
    """
    from tuner.admin.doctor import examine

    rows = examine(storage_url(storage), artifacts_of(artifacts))
    emit(rows, format)
    if any(row["status"] == "fail" for row in rows):
        raise typer.Exit(1)
