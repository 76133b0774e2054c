"""What a launch counts, from events by hand, and the page that lists it."""

import socket
import urllib.request
from collections.abc import Callable

import pytest
from attackers import PLAIN, attacked
from launch_output import documented

import tuner.launch.prometheus
from tuner.errors import UsageError
from tuner.launch.progress import Snapshot
from tuner.launch.prometheus import LaunchMetrics, served
from tuner.trial import Outcome
from tuner.trial.events import TrialDeadly, TrialEnded, TrialLost, TrialReleased, TrialRetried

SNAPSHOT = Snapshot(study="tiny", counts=dict.fromkeys(Outcome, 4), best_value=-0.5)


def samples(metrics: LaunchMetrics) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *list(sample.labels.values())[1:]): sample.value
        for family in metrics.collect()
        for sample in family.samples
    }


def test_events_add_up_by_place() -> None:
    metrics = LaunchMetrics(["gpu 0", "gpu 1,2"])
    metrics.observe(SNAPSHOT, 2)
    ends = ["complete", "pruned", "complete", "diverged", "out_of_memory", "timed_out", "failed"]
    spent = {"training": 2.0, "compiling": 0.5}
    for outcome in ends:
        metrics.take(0, TrialEnded(1, Outcome(outcome), None, 9.0, 9.0, seconds=spent))
    metrics.take(0, TrialReleased(1, seconds=spent))
    metrics.take(1, TrialDeadly(1, "died", seconds={"database": 0.25}))
    metrics.take(1, TrialLost(1, "lost"))
    metrics.take(1, TrialRetried(1, "error", seconds={"training": 1.0}))
    metrics.add_death(1)

    found = samples(metrics)

    assert {outcome: found["tuner_trials_total", outcome] for outcome in ends} == {
        "complete": 2,
        "pruned": 1,
        "diverged": 1,
        "out_of_memory": 1,
        "timed_out": 1,
        "failed": 2,
    }
    assert found["tuner_seconds_total", "0", "training"] == found["tuner_device_busy_seconds_total", "0", "gpu 0"] == 16
    assert found["tuner_seconds_total", "0", "compiling"] == 4.0
    assert found["tuner_seconds_total", "1", "database"] == 0.25
    assert found["tuner_seconds_total", "1", "waiting"] == 0, "there from the start, or increase() misses the first"
    assert found["tuner_device_busy_seconds_total", "1", "gpu 1,2"] == 1
    assert [found["tuner_lease_losses_total", place] for place in "01"] == [0, 1]
    assert [found["tuner_worker_deaths_total", place] for place in "01"] == [0, 1]
    assert found["tuner_workers",] == 2
    assert found["tuner_study_trials", "running"] == 4
    assert found["tuner_best_value",] == -0.5


def test_the_page_lists_every_metric() -> None:
    metrics = LaunchMetrics(["cpu 0"])
    assert samples(metrics) == {}, "before the study is known"
    metrics.observe(SNAPSHOT, 1)
    assert {name for name, *_ in samples(metrics)} == documented("metric", 1)


def test_an_address_of_ipv6_is_told_as_one() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    metrics = LaunchMetrics(["cpu 0"])
    metrics.observe(SNAPSHOT, 1)
    with served([metrics], "::1", 0) as url:
        assert url.startswith("http://[::1]:")
        assert b'tuner_workers{study="tiny"} 1.0\n' in urllib.request.urlopen(url, timeout=300).read()


def test_without_the_library_it_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner.launch.prometheus.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError,
        match=r"must be installed to serve metrics: run `pip install -e '\.\[metrics\]'` in the clone of tuner$",
    ):
        served([LaunchMetrics(["cpu 0"])], "127.0.0.1", 0).__enter__()


@pytest.mark.parametrize("begin", PLAIN)
def test_clients_that_wait_do_not_stop_the_metrics(begin: Callable[[socket.socket], None]) -> None:
    metrics = LaunchMetrics(["cpu 0"])
    metrics.observe(SNAPSHOT, 1)
    with served([metrics], "127.0.0.1", 0) as url, attacked(int(url.split(":")[2].split("/")[0]), begin, 40):
        for _ in range(3):
            with urllib.request.urlopen(url, timeout=300) as answer:
                assert b"tuner_best_value" in answer.read()
