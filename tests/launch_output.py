"""A launch as Prometheus and a log collector see it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import tuner
from tuner.storage import connect
from tuner.storage.read.queries import TrialRow, find_study, read_trials
from tuner.storage.worker import leases
from tuner.storage.worker.claims import Claimant, claim
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import register
from tuner.study import load_study


class Scrape:
    """The samples of one scrape: name and labels, without the study, -> value."""

    def __init__(self, url: str) -> None:
        with urllib.request.urlopen(url, timeout=300) as response:
            text = response.read().decode()
        self.kinds = {}
        self.samples: dict[tuple[str, ...], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = dict(sample.labels)
                assert labels.pop("study") == "tiny"
                self.samples[sample.name, *labels.values()] = sample.value
                self.kinds[sample.name] = family.type

    def sum(self, *names: str) -> float:
        """Return the sum of the samples whose name, and whose labels' values, are among these."""
        head, *wanted = names
        return sum(
            value for (name, *labels), value in self.samples.items() if name == head and set(wanted) <= set(labels)
        )

    def counters(self) -> dict[tuple[str, ...], float]:
        return {key: value for key, value in self.samples.items() if self.kinds[key[0]] == "counter"}


def address_of(launcher: subprocess.Popen[str]) -> str:
    """Read a launcher's output up to where it says where its metrics are."""
    assert launcher.stdout is not None
    for line in launcher.stdout:
        if found := re.fullmatch(r"tuner: metrics on (http://\S+:\d+/metrics)\n", line):
            return found[1]
    pytest.fail("the launcher ended without metrics")


@contextlib.contextmanager
def held_trial(tiny_study: Path, url: str) -> Iterator[Callable[[], None]]:
    """Keep a launch of the tiny study from ending: hold its trial 0; yields what gives it back."""
    study = load_study(str(tiny_study))
    storage: Any = tuner.open_storage(url)
    try:
        registered = register(storage, storage.engine, study.name, study.all_directions, study.record())
        lease = claim(storage.engine, Claimant(registered.study_id, "the test", trials=1, lease_s=600.0))
        assert isinstance(lease, Lease)
        yield lambda: leases.release(storage.engine, lease)
    finally:
        storage.close()


def rows_of(url: str, launcher: subprocess.Popen[str] | None = None) -> list[TrialRow]:
    """Return the trials of the tiny study, or those that workers of a launcher ended."""
    engine = connect(url)
    try:
        rows = read_trials(engine, find_study(engine, "tiny"))
    finally:
        engine.dispose()
    if launcher is None:
        return rows
    return [row for row in rows if f":{launcher.pid}:" in (row.record.worker or "")]


def listening(pid: int) -> set[tuple[str, int]]:
    """Return the addresses that a process listens on, from the kernel: hexadecimal as it has them, and the port."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            sockets.add(str(descriptor.readlink()))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                host, port = words[1].split(":")
                found.add((host, int(port, 16)))
    return found


PAGE = (Path(__file__).parents[1] / "docs" / "observability.md").read_text()


def documented(heading: str, column: int) -> set[str]:
    """Return the names in a column of the table of the page whose first heading is this."""
    table = PAGE.split(f"\n| {heading} |")[1].split("\n\n")[0]
    cells = [row.split("|")[column] for row in table.splitlines() if row.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def json_lines(text: str) -> list[dict[str, Any]]:
    """Return the lines of a JSON log; fails where one is not, or has what the page does not tell."""
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    fields = documented("field", 1) | documented("event", 3)
    for line in lines:
        assert {"time", "level", "event"} <= line.keys() <= fields
        assert line["event"] in documented("event", 1)
    return lines
