"""docs/json.md names the fields that the queries print: all of them, and no others."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from jsonschema import Draft202012Validator

import tuner
from tuner.admin.doctor import examine
from tuner.results.compare import compare_rows, importance_rows
from tuner.results.replay import replay_rows
from tuner.results.rows import best_rows, show_row, study_rows, trial_rows
from tuner.storage import connect
from tuner.storage.artifacts import artifacts_of
from tuner.storage.read.queries import BASELINE_KEY
from tuner.storage.sql.tables import reports, trial_system_attributes
from tuner.storage.worker import leases
from tuner.storage.worker.claims import Claimant, claim
from tuner.storage.worker.confirmations import store_confirmation
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import agree, join, register
from tuner.study.population import COPIES_KEY
from tuner.trial import Outcome, Report
from tuner.worker.rerun import Comparison

PAGE = (Path(__file__).parents[3] / "docs" / "json.md").read_text()
OPEN = ("hparams", "copies[].hparams", "user_attrs", "reports[].metrics", "ran_with")
"""Their keys are the user's, or are told in one row."""


def documented(command: str) -> set[str]:
    section = PAGE.split(f"## tuner {command}\n")[1].split("\n## ")[0]
    cells = [row.split("|")[1] for row in re.findall(r"(?m)^\| `.*$", section)]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def fields(rows: list[dict[str, Any]], prefix: str = "") -> Iterator[str]:
    for row in rows:
        for key, value in row.items():
            name = f"{prefix}{key}"
            yield name
            if name in OPEN:
                continue
            if isinstance(value, dict):
                yield from fields([value], f"{name}.")
            elif isinstance(value, list) and value and isinstance(value[0], dict):
                yield from fields(value, f"{name}[].")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("json")
    url = f"sqlite:///{folder / 'study.db'}"
    storage = tuner.open_storage(url)
    engine = connect(url)
    study = register(
        storage, engine, "ours", ["minimize"],
        {"objective": ["loss"], "epochs": 2, "baseline": {"x": 3.0}, "seeds": [2]},
    )  # fmt: skip
    agree(engine, study.study_id, BASELINE_KEY, {"number": 3})
    claimant = Claimant(study.study_id, "worker", trials=99, lease_s=300.0)
    join(engine, claimant, {"host": "here", "pid": 1, "devices": "cpu", "file": None, "git": None, "versions": {}})
    for at in range(12):
        lease = claim(engine, claimant)
        assert isinstance(lease, Lease)
        space = optuna.distributions.FloatDistribution(0.0, 20.0)
        storage.set_trial_param(lease.trial_id, "x", float(at), space)
        leases.report(engine, lease, [Report(1, 1, {"loss": 1.0}), Report(2, 2, {"loss": 1.0})], "loss")
        gpus = {"gpu_peak_bytes": 2, "gpu_mean_bytes": 1, "gpu_total_bytes": 3, "gpu_percent": 50.0}
        leases.tell(engine, lease, Outcome.COMPLETE, [float(at)], {"worker": "worker", **gpus})
        store_confirmation(engine, study.study_id, lease.trial_id, 1, 0.5)
    with engine.begin() as connection:  # so that the time of an epoch is known
        connection.execute(reports.update().values(reported_at_s=60.0 * reports.c.epoch))
    register(storage, engine, "pair", ["minimize", "maximize"], {"objective": ["a", "b"], "seeds": [2]})
    pair = optuna.load_study(study_name="pair", storage=storage)
    pair.tell(pair.ask(), [1.0, 2.0])
    replayed = replay_rows(engine, "ours", ["none"], orders=1)[0]  # before a trial copies another
    first = storage.get_all_trials(study.study_id)[0]._trial_id
    copies = json.dumps([{"epoch": 1, "trial": 1, "hparams": {"x": 2.0}}])
    with engine.begin() as connection:
        row = {"trial_id": first, "key": COPIES_KEY, "value_json": copies}
        connection.execute(trial_system_attributes.insert().values(row))
    found = {
        "studies": study_rows(engine),
        "trials": trial_rows(engine, "ours") + trial_rows(engine, "pair"),
        "best": best_rows(engine, "ours", None),
        "show": [show_row(engine, "ours", 0)],
        "compare": compare_rows(engine, ["ours"]),
        "replay": replayed,
        "importance": importance_rows(url, "ours")[0],
        "reproduce": [vars(Comparison("loss", 1, 0.5, 0.5, 0.0))],
        "doctor": examine(url, artifacts_of(folder)),
    }
    engine.dispose()
    storage.close()
    return found


@pytest.mark.parametrize("command", re.findall(r"(?m)^## tuner (\w+)$", PAGE))
def test_every_field_is_documented_and_no_other(rows: dict[str, list[dict[str, Any]]], command: str) -> None:
    inherited = documented("trials") - {"values", "stderrs", "objectives"} if command in ("best", "show") else set()
    assert set(fields(rows[command])) == documented(command) | inherited
    if command == "doctor":
        checks = re.search(r"\| `check` \| (.*) \|", PAGE)
        assert checks is not None
        assert {row["check"] for row in rows[command]} <= set(re.findall(r"`(\w+)`", checks[1]))


SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "json-schema.json").read_text())


@pytest.mark.parametrize("command", sorted(SCHEMA["properties"]))
def test_every_row_is_valid_against_the_schema(rows: dict[str, list[dict[str, Any]]], command: str) -> None:
    found = json.loads(json.dumps(rows["best" if command == "confirm" else command]))
    validator = Draft202012Validator({**SCHEMA["properties"][command], "$defs": SCHEMA["$defs"]})
    validator.check_schema(validator.schema)
    assert found
    validator.validate(found[0] if command == "show" else found)
    wrong = {name: {"not": "so"} for name in found[0]}
    assert not validator.is_valid(wrong if command == "show" else [wrong])
    assert not validator.is_valid({} if command == "show" else [{}])


def test_every_query_has_a_section() -> None:
    assert set(re.findall(r"(?m)^## tuner (\w+)$", PAGE)) == {
        "studies", "trials", "best", "show", "compare", "replay", "importance", "reproduce", "doctor",
    }  # fmt: skip
