"""`tuner mcp`, asked by the client of the protocol's SDK: over stdio once, otherwise in this process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from command_line import Tuner
from mcp import Client, StdioServerParameters

import tuner
from tuner.admin import edits
from tuner.admin.agent_server import make_server
from tuner.errors import UsageError
from tuner.results.compare import importance_rows
from tuner.results.rows import best_rows, show_row, study_rows, trial_rows
from tuner.storage import connected, parse_url
from tuner.storage.read.queries import read_standings
from tuner.storage.worker.studies import register

READING = {"studies", "trials", "best", "show", "compare", "importance"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{tmp_path_factory.mktemp('agent') / 'study.db'}"
    storage = tuner.open_storage(url)
    register(storage, storage.engine, "ours", ["minimize"], {"objective": ["loss"], "epochs": 2})
    study = optuna.load_study(study_name="ours", storage=storage, sampler=optuna.samplers.RandomSampler(seed=1))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 2), n_trials=12)
    pair = optuna.create_study(study_name="pair", storage=storage, directions=["minimize", "maximize"])
    for values in ((1.0, 2.0), (0.0, 1.0), (float("inf"), 3.0)):
        pair.tell(pair.ask(), values)
    storage.close()
    return url


def asked(server: Any, ask: Callable[[Client], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with Client(server, read_timeout_seconds=60) as client:
            return await ask(client)

    return asyncio.run(run())


def call(url: str, tool: str, **arguments: Any) -> Any:
    """Return what a tool returns, or the text of its error."""
    found = asked(make_server(parse_url(url)), lambda client: client.call_tool(tool, arguments))
    return found.content[0].text if found.is_error else found.structured_content


@pytest.mark.slow
def test_queries_return_the_rows_of_the_commands(url: str) -> None:
    with connected(url) as engine:
        assert call(url, "studies") == {"result": study_rows(engine)}
        expected = trial_rows(engine, "ours", where=["x<0.5"], sort="-value", limit=3)
        assert call(url, "trials", study="ours", where=["x<0.5"], sort="-value", limit=3) == {"result": expected}
        assert call(url, "best", study="ours", count=2) == {"result": best_rows(engine, "ours", 2)}
        front = best_rows(engine, "pair", None)
        assert call(url, "best", study="pair") == {"result": front}
        assert [row["values"] for row in front] == [[1.0, 2.0], [0.0, 1.0], ["inf", 3.0]]
        assert call(url, "show", study="ours", number=3) == show_row(engine, "ours", 3)
    (row,) = call(url, "trials", study="ours", columns=["number", "x"], limit=1)["result"]
    assert row.keys() == {"number", "x"}
    assert [row["study"] for row in call(url, "compare", studies=["ours", "pair"])["result"]] == ["ours", "pair"]


@pytest.mark.slow
def test_changes_are_stored(url: str) -> None:
    assert call(url, "enqueue", study="ours", hparams={"x": 0.25}) == {"hparams": {"x": 0.25}, "note": None}
    (waiting,) = call(url, "trials", study="ours", outcomes=["waiting"])["result"]
    assert waiting["number"] == 12
    assert call(url, "stop", study="ours") == {"result": "study 'ours' is stopped"}
    with connected(url) as engine:
        assert read_standings(engine)[1].is_stopped


def test_an_agent_is_told_what_a_queued_trial_needs(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "find_shortage", lambda engine, name: edits.Shortage(trials=6, used=6, needed=7))
    note = call(url, "enqueue", study="ours", hparams={"x": 0.5})["note"]
    assert note == "all 6 trials of 'ours' are used up: `tuner launch FILE --trials 7` runs what is queued"


@pytest.mark.slow
def test_importances_are_those_of_the_command(url: str) -> None:
    assert call(url, "importance", study="ours") == {"result": importance_rows(url, "ours")[0]}


@pytest.mark.parametrize(
    ("tool", "arguments", "expected"),
    [
        (
            "show",
            {"study": "our", "number": 0},
            "no study 'our' in this storage: it has ours, pair; did you mean ",
        ),
        ("enqueue", {"study": "ours", "hparams": {"z": 1}}, "study 'ours' has no hyperparameter 'z'"),
        ("trials", {"study": "ours", "outcomes": ["done"]}, "`outcomes` must be some of complete, "),
        ("trials", {"study": "ours", "where": ["x"]}, "`where` must have the form NAME<VALUE"),
        ("compare", {"studies": []}, "pass at least one study in `studies`"),
        ("best", {"study": "pair", "count": 1}, "study 'pair' has several objectives: pass `prefer` with `count`"),
    ],
)
def test_an_error_is_one_line(url: str, tool: str, arguments: dict[str, Any], expected: str) -> None:
    found = asked(make_server(parse_url(url)), lambda client: client.call_tool(tool, arguments))
    assert found.is_error
    (content,) = found.content
    assert expected in content.text
    assert "\n" not in content.text


@pytest.mark.slow
def test_an_agent_talks_to_the_command_over_stdio(url: str) -> None:
    command = StdioServerParameters(
        command=sys.executable, args=["-m", "tuner", "mcp", "--read-only", "--storage", url]
    )

    async def ask(client: Client) -> Any:
        return await client.list_tools(), await client.call_tool("studies", {}), client.server_info

    tools, found, server = asked(command, ask)
    assert {tool.name for tool in tools.tools} == READING
    assert all(tool.annotations.read_only_hint and tool.description for tool in tools.tools)
    assert [row["study"] for row in found.structured_content["result"]] == ["ours", "pair"]
    assert server.name == "tuner"


def test_a_missing_storage_or_sdk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Tuner(tmp_path, f"sqlite:///{tmp_path / 'none.db'}").run_here("mcp")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    monkeypatch.setitem(sys.modules, "mcp.server", None)
    with pytest.raises(UsageError, match=r"needs the SDK of the protocol: run `pip install -e '\.\[mcp\]'`"):
        make_server(parse_url(f"sqlite:///{tmp_path / 'none.db'}"))


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("trials", {"study": "ours", "limmit": 1}, "the tool 'trials' has no argument 'limmit': it has study, where, "),
        ("studies", {"study": "ours"}, "the tool 'studies' has no argument 'study': it has none"),
        ("trials", {"study": "ours", "where": "x<1"}, "the argument 'where' is wrong: Input should be a valid list"),
        ("best", {}, "the argument 'study' is wrong: Field required, got {}"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(url: str, tool: str, arguments: dict[str, Any], message: str) -> None:
    said = call(url, tool, **arguments)
    assert said.startswith(message)
    assert "\n" not in said
