"""Serves queries and a few changes to agents over the Model Context Protocol, on standard input and output."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from tuner.admin import edits
from tuner.admin.opened_study import OpenedStudy
from tuner.errors import TunerError, UsageError, how_to_install, nearest
from tuner.output.numbers import plain_json
from tuner.results.compare import compare_rows, importance_rows
from tuner.results.rows import best_rows, only_columns, show_row, study_rows, trial_rows
from tuner.storage import StorageURL, connected
from tuner.trial import Outcome

if TYPE_CHECKING:
    from mcp.server import MCPServer

P = ParamSpec("P")
T = TypeVar("T")
Rows = list[dict[str, Any]]
_INSTRUCTIONS = (
    "Reads hyperparameter studies of tuner, queues trials, and stops studies. Start with `studies`. With several "
    "objectives, `best` returns the Pareto front. The fields of all answers are described in docs/json.md of tuner."
)
MOST_TRIALS = 200
"""The maximum number of trials that `trials` returns by default, so that an answer fits an agent's context."""


class Tools:
    """The tools of the server; each docstring is what an agent reads.

    Args:
        url: The storage's URL.
    """

    def __init__(self, url: StorageURL) -> None:
        self._url = url

    def studies(self) -> Rows:
        """List the studies of the storage: state, objectives, directions, number of trials by outcome, best value."""
        with connected(self._url) as engine:
            return _plain(study_rows(engine))

    def trials(
        self,
        study: str,
        where: list[str] | None = None,
        outcomes: list[str] | None = None,
        sort: str | None = None,
        columns: list[str] | None = None,
        limit: int = MOST_TRIALS,
    ) -> Rows:
        """List the trials of a study.

        `where` has conditions such as `learning_rate<1e-3` or `optimizer=adam`; `outcomes` some of complete, pruned,
        diverged, out_of_memory, timed_out, failed, running, waiting, preempted; `sort` a column or hyperparameter, with
        `-` in front for the largest first; `columns` names such as `number`, `value`, `learning_rate`,
        `user_attrs.note`, or `values.NAME` for several objectives.
        """
        if limit < 1:
            raise UsageError(f"`limit` must be at least 1: got {limit}")
        known = [outcome.value for outcome in Outcome]
        unknown = [one for one in outcomes or [] if one not in known]
        if unknown:
            raise UsageError(f"`outcomes` must be some of {', '.join(known)}: got {unknown[0]!r}")
        chosen = [Outcome(one) for one in outcomes or []]
        with connected(self._url) as engine:
            rows = trial_rows(engine, study, where=where or (), outcomes=chosen, sort=sort, limit=limit)
        return _plain(rows if columns is None else only_columns(rows, columns))

    def best(self, study: str, count: int | None = None, prefer: str | None = None) -> Rows:
        """Return the best trials of a study, best first; one by default.

        With several objectives, the Pareto front; `prefer` orders it by one of the objectives or by `knee`, the balance
        of all, and is needed if `count` is given.
        """
        if count is not None and count < 1:
            raise UsageError(f"`count` must be at least 1: got {count}")
        with connected(self._url) as engine:
            rows = best_rows(engine, study, count or 1, prefer=prefer)
            if not rows or "values" not in rows[0]:
                return _plain(rows)
            if count is not None and prefer is None:
                raise UsageError(f"study {study!r} has several objectives: pass `prefer` with `count`, or neither")
            return _plain(best_rows(engine, study, count, prefer=prefer))

    def show(self, study: str, number: int) -> dict[str, Any]:
        """Return everything about one trial: hyperparameters, metrics by epoch, errors, workers, package versions."""
        with connected(self._url) as engine:
            return plain_json(show_row(engine, study, number))

    def compare(self, studies: list[str]) -> Rows:
        """Compare studies: best and median objective, number of trials, device hours, hours saved by pruning."""
        if not studies:
            raise UsageError("pass at least one study in `studies`")
        with connected(self._url) as engine:
            return _plain(compare_rows(engine, studies))

    def importance(self, study: str) -> Rows:
        """Rank the hyperparameters of a study by importance, with PED-ANOVA and fANOVA; needs 10 complete trials."""
        return _plain(importance_rows(self._url, study)[0])

    def enqueue(self, study: str, hparams: dict[str, str | int | float | bool]) -> dict[str, Any]:
        """Queue a trial with these hyperparameters for the next free worker; the others are sampled.

        Returns the hyperparameters as `hparams`, and in `note` what is needed for the trial to run, else null.
        """
        queued = edits.enqueue(self._url, study, {name: str(value) for name, value in hparams.items()})
        with connected(self._url) as engine:
            shortage = edits.find_shortage(engine, study)
        return {"hparams": queued, "note": None if shortage is None else shortage.describe(study)}

    def stop(self, study: str) -> str:
        """Stop a study on all machines: its workers give back their trials and exit. `tuner resume` undoes it."""
        OpenedStudy(study, self._url).stop()
        return f"study {study!r} is stopped"


_READING = ("studies", "trials", "best", "show", "compare", "importance")
_CHANGING = ("enqueue", "stop")


def make_server(url: StorageURL, *, may_change: bool = True) -> MCPServer:
    """Return a server with the tools.

    Args:
        url: The storage's URL.
        may_change: Whether to offer `enqueue` and `stop`.

    Raises:
        UsageError: the SDK of the protocol is not installed.
    """
    try:
        from mcp.server import MCPServer
        from mcp.types import ToolAnnotations
    except ImportError:
        raise UsageError(f"`tuner mcp` needs the SDK of the protocol: {how_to_install('mcp')}") from None
    tools = Tools(url)
    server = _checked(MCPServer)("tuner", instructions=_INSTRUCTIONS, log_level="WARNING")
    for name in (*_READING, *(_CHANGING if may_change else ())):
        about = ToolAnnotations(read_only_hint=name in _READING, destructive_hint=name == "stop")
        server.tool(name, annotations=about)(_told(getattr(tools, name)))
    return server


def _checked(kind: type[MCPServer]) -> type[MCPServer]:
    """Return a kind of server that refuses unknown and wrong arguments in one line."""
    from mcp.server.mcpserver.exceptions import ToolError
    from pydantic import ValidationError

    class Checked(kind):
        async def call_tool(self, name: str, arguments: dict[str, Any], context: Any = None) -> Any:
            tool = getattr(Tools, name) if name in (*_READING, *_CHANGING) else None
            known = [] if tool is None else [one for one in inspect.signature(tool).parameters if one != "self"]
            for given in arguments if tool is not None else ():
                if given not in known:
                    has = f"it has {', '.join(known)}" if known else "it has none"
                    raise ToolError(f"the tool {name!r} has no argument {given!r}: {has}{nearest(given, known)}")
            try:
                return await super().call_tool(name, arguments, context)
            except ToolError as error:
                if not isinstance(error.__cause__, ValidationError):
                    raise
                wrong = error.__cause__.errors()[0]
                place = ".".join(str(part) for part in wrong["loc"])
                raise ToolError(f"the argument {place!r} is wrong: {wrong['msg']}, got {wrong['input']!r}") from None

    return Checked


def _told(tool: Callable[P, T]) -> Callable[P, T]:
    """Return a tool whose errors reach the agent as one line."""
    from mcp.server.mcpserver.exceptions import ToolError

    @functools.wraps(tool)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return tool(*args, **kwargs)
        except TunerError as error:
            raise ToolError(str(error)) from None

    return call


def _plain(rows: object) -> Rows:
    return cast("Rows", plain_json(rows))
