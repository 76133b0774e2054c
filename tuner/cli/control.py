"""`tuner stop`, `resume` and `upgrade`: safe while workers run, unless they say otherwise."""

from __future__ import annotations

import sys

from tuner.cli.options import DebugOption, StorageOption, StudyArgument
from tuner.storage import connect, storage_url


def stop(study: StudyArgument, storage: StorageOption = None, debug: DebugOption = False) -> None:
    """Stop a study on all machines.

    Its workers save their trials, give them back, and end within seconds; none starts before `tuner resume`.
    """
    from tuner.storage.queries import find_study
    from tuner.storage.studies import stop as stop_study

    engine = connect(storage_url(storage))
    was_running = stop_study(engine, find_study(engine, study).study_id)
    print(f"tuner: study {study!r} {'is stopped' if was_running else 'was stopped already'}", file=sys.stderr)


def resume(study: StudyArgument, storage: StorageOption = None, debug: DebugOption = False) -> None:
    """Let a stopped study be launched again, on any machine."""
    from tuner.storage.queries import find_study
    from tuner.storage.studies import resume as resume_study

    engine = connect(storage_url(storage))
    was_stopped = resume_study(engine, find_study(engine, study).study_id)
    words = "may be launched again" if was_stopped else "was not stopped"
    print(f"tuner: study {study!r} {words}", file=sys.stderr)


def upgrade(storage: StorageOption = None, debug: DebugOption = False) -> None:
    """Bring a storage's tables to this version.

    Nothing may work on them meanwhile. Optuna's own tables are upgraded as well: older versions of Optuna can then not
    use them any more.
    """
    from tuner.storage.schema import upgrade as upgrade_tables

    for line in upgrade_tables(storage_url(storage)):
        print(f"tuner: {line}", file=sys.stderr)
