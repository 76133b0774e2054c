"""Opening a study in the dashboard: our answer against that of optuna-dashboard on `RDBStorage`, word for word."""

from __future__ import annotations

import io
import json
import math
import random
import sys
from typing import Any

import optuna
import optuna_dashboard
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from optuna_dashboard.preferential._system_attrs import report_skip

from tuner.dashboard import study_detail as opening
from tuner.dashboard.study_detail import StudyDetail
from tuner.storage import open_storage, parse_url

pytestmark = [pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"), pytest.mark.with_tables]

SPACE = {
    "rate": FloatDistribution(1e-5, 1.0, log=True),
    "rounded": FloatDistribution(0.0, 1.0, step=0.25),
    "width": IntDistribution(8, 64, step=8),
    'nasty "<name>"\u2028é': CategoricalDistribution(["a", 'b"\\', None, True, 3, 0.5]),
}


def ask(app: Any, path: str, query: str = "") -> tuple[str, Any]:
    told: list[str] = []
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
    }
    body = b"".join(app(environ, lambda status, headers, *_: told.append(status)))
    return told[0], json.loads(body)


def comparable(detail: dict[str, Any]) -> dict[str, Any]:
    """Sort the choices of joint search spaces, which optuna-dashboard has in the order of a set, another each time."""
    for name in ("union_search_space", "intersection_search_space"):
        for param in detail.get(name, []):
            if "choices" in param["distribution"]:
                param["distribution"]["choices"].sort(key=str)
    return detail


class Sides:
    """The same database through our storage and through Optuna's."""

    def __init__(self, url: str) -> None:
        self.storage = open_storage(url)
        self.plain_storage = optuna.storages.RDBStorage(parse_url(url).for_optuna)

    def compare(self, study: optuna.Study, query: str = "") -> dict[str, Any]:
        path = f"/api/studies/{study._study_id}"
        ours = StudyDetail(optuna_dashboard.wsgi(self.storage), self.storage)
        status, plain = ask(optuna_dashboard.wsgi(self.plain_storage), path, query)
        our_status, found = ask(ours, path, query)
        assert our_status == status
        assert comparable(found) == comparable(plain)
        return found

    def close(self) -> None:
        self.storage.close()
        self.plain_storage.remove_session()
        self.plain_storage.engine.dispose()


@pytest.fixture
def sides(storage_url: str) -> Any:
    made = Sides(storage_url)
    yield made
    made.close()


def fill(study: optuna.Study, count: int, objectives: int = 1, seed: int = 0) -> None:
    """Add trials of all states, with all that may belong to one."""
    chance = random.Random(seed)
    special = [math.nan, math.inf, -math.inf]
    trials = []
    for number in range(count):
        names = list(SPACE)[: chance.choice([1, 3, 4])]
        chosen = {
            "rate": chance.uniform(1e-5, 1.0),
            "rounded": chance.choice([0.0, 0.25, 1.0]),
            "width": chance.choice([8, 64]),
            list(SPACE)[3]: chance.choice(list(SPACE.values())[3].choices),
        }
        state = chance.choice([TrialState.COMPLETE] * 4 + [TrialState.PRUNED, TrialState.FAIL])
        # With several objectives an infinite one leaves no front to speak of; 0.5 makes ties.
        others = [math.inf, -math.inf] if objectives == 1 else [chance.random(), 0.5]
        values = [chance.choice([chance.random(), *others]) for _ in range(objectives)]
        attributes = {"outcome": "complete", "n": number, "is_new": True, "list": [1, "é"], "long": ["x" * 2000]}
        trials.append(
            create_trial(
                state=state,
                values=values if state is TrialState.COMPLETE else None,
                params={name: chosen[name] for name in names},
                distributions={name: SPACE[name] for name in names},
                user_attrs=dict(chance.sample(sorted(attributes.items()), chance.choice([0, 1, 5]))),
                intermediate_values={step: chance.choice([0.5, *special]) for step in range(chance.choice([0, 3]))},
            )
        )
    study.add_trials(trials)


@pytest.mark.slow
@pytest.mark.timezone
def test_a_study_with_everything_is_told_alike(sides: Sides) -> None:
    study = optuna.create_study(storage=sides.storage, study_name="all", direction="maximize")
    fill(study, 60)
    study.set_user_attr("who", ["us"])
    study.set_metric_names(["accuracy"])
    running = study.ask(SPACE)
    running.report(0.5, 3)
    study.enqueue_trial({"rate": 0.1}, user_attrs={"from": "us"})
    optuna_dashboard.save_note(study, "of the study")
    optuna_dashboard.save_note(optuna.trial.Trial(study, study.trials[7]._trial_id), "*7*")
    constrained = create_trial(
        value=1.0,
        params={"rate": 0.5},
        distributions={"rate": SPACE["rate"]},
        system_attrs={"constraints": [1.0, -1.0], "artifacts:1": json.dumps({"artifact_id": "1", "filename": "f"})},
    )
    study.add_trial(constrained)

    found = sides.compare(study)

    assert len(found["trials"]) == 63
    assert found["trials"][7]["note"]["body"] == "*7*"
    assert found["trials"][61]["fixed_params"]
    assert found["trials"][62]["constraints"] == [1.0, -1.0]
    for after in ("0", "5", "62", "63", "1000"):
        assert len(sides.compare(study, f"after={after}")["trials"]) == max(0, 63 - int(after))
    running.set_user_attr("new", 1.5)
    study.tell(running, 2.0)
    assert sides.compare(study)["trials"][60]["state"] == "Complete", "what has changed since is told"


@pytest.mark.parametrize(
    "directions",
    [["minimize", "maximize"], pytest.param(["maximize", "minimize", "maximize"], marks=pytest.mark.slow)],
)
def test_a_pareto_front_is_told_alike(sides: Sides, directions: Any) -> None:
    study = optuna.create_study(storage=sides.storage, study_name="several", directions=directions)
    fill(study, 70, len(directions))
    assert len(sides.compare(study)["best_trials"]) > 1


@pytest.mark.slow
@pytest.mark.parametrize("directions", [["minimize"], ["maximize"], ["minimize", "maximize"]])
def test_an_infeasible_trial_is_not_told_to_be_the_best(sides: Sides, directions: Any) -> None:
    """Where optuna-dashboard says that it is, and knows nothing of the constraints of Optuna 5."""
    study = optuna.create_study(storage=sides.storage, study_name="some", directions=directions)
    chance = random.Random(2)
    constraints: list[Any] = [{"constraints:memory": 1.0, "constraints:time": -1.0}, {"constraints": [0.5]}, {}]
    constraints += [{"constraints:memory": math.inf}, {"constraints:memory": -1.0}, {"constraints": None}]
    for at in range(24):
        attributes, bad = constraints[at % 6], at % 6 in (0, 1, 3)
        values = [chance.random() + (bad and (9 if one == "maximize" else -9)) for one in directions]
        study.add_trial(create_trial(values=values, system_attrs=attributes))
    best = study.best_trials if len(directions) > 1 else [study.best_trial]

    status, found = ask(
        StudyDetail(optuna_dashboard.wsgi(sides.storage), sides.storage), f"/api/studies/{study._study_id}"
    )
    _, plain = ask(optuna_dashboard.wsgi(sides.plain_storage), f"/api/studies/{study._study_id}")

    assert status.startswith("200")
    assert [trial["number"] for trial in found["best_trials"]] == [trial.number for trial in best]
    assert all(trial == found["trials"][trial["number"]] for trial in found["best_trials"])
    told = [trial["constraints"] for trial in found["trials"][:6]]
    assert told == [[1.0, -1.0], [0.5], [], [sys.float_info.max], [-1.0], []]
    for trial in (*found["trials"], *plain["trials"]):
        del trial["constraints"]
    assert found["trials"] == plain["trials"]
    assert {**found, "best_trials": None} == {**plain, "best_trials": None}


@pytest.mark.slow
def test_few_trials_and_none_and_no_study_are_told_alike(sides: Sides) -> None:
    study = optuna.create_study(storage=sides.storage, study_name="few")
    assert sides.compare(study)["trials"] == []
    fill(study, 1)
    assert len(sides.compare(study)["trials"]) == 1
    for query in ("after=-1", "after=x", "other=1"):
        sides.compare(study, query)
    study._study_id = 999
    assert sides.compare(study) == {"reason": "study_id=999 is not found"}


@pytest.mark.slow
def test_a_preferential_study_is_told_alike(sides: Sides) -> None:
    study = optuna.create_study(storage=sides.storage, study_name="liked")
    # As `optuna_dashboard.preferential.create_study` does, which needs PyTorch.
    sides.storage.set_study_system_attr(study._study_id, "preference:is_preferential", True)
    for number in range(3):
        study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs={"n": number}))
    report_skip(study._study_id, study.trials[1]._trial_id, sides.storage)
    assert sides.compare(study)["skipped_trial_numbers"] == [1]


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_blocks_join(sqlite_url: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_BLOCK", 4)
    sides = Sides(sqlite_url)
    study = optuna.create_study(storage=sides.storage, study_name="many")
    study.add_trials([create_trial(value=float(number)) for number in range(count)])
    assert len(sides.compare(study)["trials"]) == count
    sides.close()


def test_of_very_many_trials_the_front_end_draws_no_curves(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(sqlite_url)
    study = optuna.create_study(storage=storage, study_name="many")
    study.add_trials([create_trial(value=1.0, intermediate_values={1: 0.5}) for _ in range(4)])
    app, path = StudyDetail(optuna_dashboard.wsgi(storage), storage), f"/api/studies/{study._study_id}"
    told = {}
    for most in (4, 3):
        monkeypatch.setattr(opening, "MOST_CURVES", most)
        told[most] = ask(app, path)[1]

    assert told[4].pop("has_intermediate_values") is True
    assert told[3].pop("has_intermediate_values") is False
    assert told[3] == told[4]
    storage.close()


@pytest.mark.slow
def test_a_hundred_trials_are_written_after_a_few(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes it quick: optuna-dashboard itself is shown no more than the kinds of trials."""
    storage, shown = open_storage(sqlite_url), []
    study = optuna.create_study(storage=storage, study_name="many")
    distributions = {"rate": SPACE["rate"]}
    study.add_trials(
        [create_trial(value=x / 100, params={"rate": 0.5}, distributions=distributions) for x in range(100)]
    )
    make = optuna_dashboard.wsgi

    def watched(sampled: Any) -> Any:
        shown.extend(sampled.get_all_trials(study._study_id, deepcopy=False))
        return make(sampled)

    app = make(storage)
    monkeypatch.setattr(optuna_dashboard, "wsgi", watched)
    _, found = ask(StudyDetail(app, storage), f"/api/studies/{study._study_id}")

    assert [trial.number for trial in shown] == [0, 99]
    assert [trial["values"] for trial in found["trials"]] == [[x / 100] for x in range(100)]
    storage.close()
