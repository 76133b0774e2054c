"""The command line: one module per group of commands. A command parses its arguments, calls one function and prints.

Results go to stdout, progress and logs to stderr. Exit statuses, the same for all commands:

- 0: done; of `launch` and `worker`: the budget is used up, or a user stopped the study;
- 1: failed, or crashed;
- 2: invalid input;
- 3: the study fails: the same error ended several trials in a row, or workers died again and again;
- 75: the database cannot be reached, or the study's file cannot be used while other workers run it: try again later;
- 130: interrupted by a signal; a worker has given back its trial.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import gc
import importlib.metadata
import io
import os
import sys
from typing import Annotated

import typer

from tuner.cli import (
    control,
    dashboard,
    database,
    doctor,
    export,
    init,
    jobs,
    launch,
    mcp,
    migrate,
    plot,
    replay,
    rerun,
    run,
    tracking,
    watch,
)
from tuner.cli import show as queries
from tuner.cli.arguments import DEBUG_VARIABLE
from tuner.cli.explain import Command, explained
from tuner.errors import DISTRIBUTION, TunerError, UsageError, is_interrupted
from tuner.output.log import clean_traces, drop, tell

app = typer.Typer(
    name="tuner",
    help="Tune hyperparameters of JAX and Flax models, and of any other training code.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if not is_asked:
        return
    try:
        print(f"tuner {importlib.metadata.version(DISTRIBUTION)}")
    except importlib.metadata.PackageNotFoundError:
        raise UsageError(
            f"{DISTRIBUTION} is not installed, so the version is unknown: tuner runs from a folder"
        ) from None
    raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


app.command(cls=Command)(init.init)
app.command(cls=Command)(launch.launch)
app.command(cls=Command)(run.worker)
app.command(cls=Command)(queries.studies)
app.command(cls=Command)(queries.trials)
app.command(cls=Command)(queries.best)
app.command(cls=Command)(queries.show)
app.command(cls=Command)(watch.watch)
app.command(cls=Command)(queries.compare)
app.command(cls=Command)(queries.importance)
app.command(cls=Command)(replay.replay)
app.command(cls=Command)(plot.plot)
app.command(cls=Command)(export.export)
app.command(cls=Command)(rerun.reproduce)
app.command(cls=Command)(rerun.confirm)
app.command(cls=Command)(jobs.scale)
app.command(cls=Command)(jobs.logs)
app.command(cls=Command)(control.label)
app.command(cls=Command)(control.enqueue)
app.command(cls=Command)(control.retry)
app.command(cls=Command)(control.extend)
app.command(cls=Command)(control.stop)
app.command(cls=Command)(control.resume)
app.command(cls=Command)(control.delete)
app.command(cls=Command)(control.gc)
app.command(cls=Command)(doctor.doctor)
app.command(cls=Command)(migrate.migrate)
app.command(cls=Command)(control.upgrade)
app.command(cls=Command)(dashboard.dashboard)
app.command(cls=Command)(database.database)
app.command(cls=Command)(tracking.track)
app.command(cls=Command)(tracking.register)
app.command(cls=Command)(mcp.mcp)
app.add_typer(dashboard.user)


def main() -> None:
    """Run the command line; every `TunerError` is printed as one line on stderr."""
    atexit.register(_keep_garbage)
    try:
        _main()
    finally:
        _leave_stalled_writes()


def _keep_garbage() -> None:
    """Write the files that a study has not closed, and prevent the garbage collection at exit.

    The collection goes through all imported modules, which takes a quarter of a short command's time.
    """
    for found in gc.get_objects():
        if type(found) in (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom):
            with contextlib.suppress(OSError, ValueError):
                found.flush()
    if "torch" not in sys.modules:  # PyTorch warns of objects that are not collected
        gc.freeze()


def _main() -> None:
    _open_standard_streams()
    clean_traces()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not support UTF-8
    try:
        _run()
    except TunerError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe, for example `head`, has exited.
        drop(sys.stdout)
        sys.exit(0)
    except Exception as error:
        if is_interrupted(error):
            sys.exit(130)
        known = explained(error)
        if known is None:
            raise
        _fail(known)


def _leave_stalled_writes() -> None:
    """Exit at once, with the status of the command, if a checkpoint is being written that will never be complete."""
    files = sys.modules.get("tuner.training.saved.files")  # nothing is imported for it
    if files is None or not files.has_stalled():
        return
    error, status = sys.exception(), 1
    if error is None:
        status = 0
    elif not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)
    elif error.code is None or isinstance(error.code, int):
        status = error.code or 0
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _run() -> None:
    """Run the command; a closed pipe on stdout does not change its exit status."""
    try:
        _app_for(sys.argv[1:])()
    except SystemExit:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            drop(sys.stdout)
        raise


def _app_for(words: list[str]) -> typer.Typer:
    """Return an app with only the command that is asked for, because Typer builds every command of an app.

    Without one, return the whole app.
    """
    asked = [one for one in app.registered_commands if one.callback and [one.callback.__name__] == words[:1]]
    if not asked:  # --help, a wrong name, shell completion
        return app
    alone = copy.copy(app)
    alone.registered_commands, alone.registered_groups = asked, []
    return alone


def _fail(error: TunerError) -> None:
    """Print an error in one line and exit; with --debug raise it instead, with its traceback."""
    if os.environ.get(DEBUG_VARIABLE):
        raise
    level = "error" if error.exit_status else "warning"
    tell(str(error), "error", level, exit_status=error.exit_status)
    sys.exit(error.exit_status)


def _open_standard_streams() -> None:
    """Open standard streams that were closed, as by `2>&-`, so that no database file gets descriptor 0, 1 or 2."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 (for the life of the process)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 (for the life of the process)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
