"""The dashboard in a real browser, over a study that real workers run. `TUNER_PICTURES=FOLDER` keeps screenshots."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import NEEDS_CHROMIUM, Browser, By
from dashboard_server import make_users, serve

from tuner.results.plots import KINDS

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]


@pytest.fixture
def browser(tuner_on_postgres: Any, tmp_path: Path, wait_until: Callable[..., Any]) -> Iterator[Browser]:
    words = ("--users", str(make_users(tmp_path / "users")), "--prefix", "/tuner")
    with serve(tmp_path, tuner_on_postgres.env["TUNER_STORAGE"], *words, prefix="/tuner") as dashboard:
        made = Browser(tmp_path, dashboard, wait_until)
        yield made
        made.driver.quit()


def test_a_person_looks_at_a_study_and_leaves(tuner_on_postgres: Any, tiny_function: Path, browser: Browser) -> None:
    done = tuner_on_postgres.run("launch", str(tiny_function), "--workers", "2", "--trials", "24")
    assert done.returncode == 0, done.stderr
    trials = tuner_on_postgres.rows("trials", "tiny")
    values = {row["number"]: row["value"] for row in trials if row["outcome"] == "complete"}
    ended = len([row for row in trials if row["outcome"] in ("complete", "pruned")])
    driver = browser.driver

    browser.go("/dashboard/studies/1")
    assert browser.path == "/tuner/login?next=/dashboard/studies/1", "first a login"
    browser.picture("login")
    browser.log_in("ann", "wrong password")
    assert browser.find(By.CSS_SELECTOR, "p.wrong").text == "Wrong name or password."
    browser.log_in("ann")
    browser.until(lambda: browser.path.startswith("/tuner/dashboard/studies/1"))
    assert driver.get_cookies()[0]["httpOnly"] is True
    assert driver.get_cookies()[0]["sameSite"] == "Strict"
    assert driver.execute_script("return document.cookie") == ""

    # The history: a point for each trial with a value, plotted by the front-end.
    points = "return Math.max(0, ...document.getElementById('plot-history').data.filter(" \
        "trace => trace.mode === 'markers').map(trace => trace.x.length))"  # fmt: skip
    browser.until(lambda: driver.execute_script(points) == ended)
    assert browser.find(By.ID, "tuner-bar").text.split() == [
        *("Studies", "Curves", "Workers", "Checkpoints", "Plots", "Logs", "Optuna", "ann", "(editor)", "Log", "out"),
    ]
    browser.picture("study")

    # The table of trials, sorted by value.
    browser.find(By.CSS_SELECTOR, "a[href='/tuner/dashboard/studies/1/smartSelection']").click()
    browser.until(lambda: len(browser.texts("tbody tr")) > 5)

    def table() -> list[tuple[int, float]]:
        rows = [row.split("\t") for row in driver.execute_script(shown)]
        return [(int(number), float(value)) for number, value in rows if number.isdecimal()]

    shown = "return [...document.querySelectorAll('tbody tr')].filter(row => row.cells.length > 3)" \
        ".map(row => row.cells[0].innerText + '\\t' + row.cells[2].innerText)"  # fmt: skip
    assert [number for number, _ in table()] == sorted(number for number, _ in table())
    for is_falling in (True, False):
        before = table()
        heads = driver.find_elements(By.CSS_SELECTOR, "th [role=button]")
        driver.execute_script("arguments[0].click()", next(head for head in heads if "Value" in head.text))
        browser.until(lambda before=before: table() != before)
        assert table() == sorted(values.items(), key=lambda row: row[1], reverse=is_falling)[: len(before)]

    browser.go("/checkpoints")
    assert len(browser.texts("table.checkpoints tr")) > 1
    assert driver.execute_script("return document.querySelector('svg polyline').points.numberOfItems") == 3
    browser.picture("checkpoints")

    browser.go("/plots?study=tiny")
    widths = "return [...document.querySelectorAll('img.plot')].map(made => made.complete ? made.naturalWidth : 0)"
    driver.execute_script("document.querySelectorAll('img.plot').forEach(made => { made.loading = 'eager'; })")
    browser.until(lambda: min(driver.execute_script(widths)) > 0)
    assert len(driver.execute_script(widths)) == len(KINDS)
    browser.picture("plots")

    # Out, and refused: by a page, and by what an open page asks for.
    browser.go("/dashboard/studies/1")
    browser.find(By.ID, "tuner-log-out").click()
    browser.until(lambda: browser.path == "/tuner/login")
    browser.go("/dashboard/studies/1")
    browser.until(lambda: browser.path == "/tuner/login?next=/dashboard/studies/1")
    browser.log_in("rob")
    browser.until(lambda: driver.execute_script(points) == ended)
    asked = "const done = arguments[0]; fetch('/tuner/api/studies/1', {method: 'DELETE'}).then(a => done(a.status))"
    assert driver.execute_async_script(asked) == 403, "a reader"
    driver.delete_all_cookies()
    driver.execute_script("fetch('/tuner/api/studies')")
    browser.until(lambda: browser.path.startswith("/tuner/login?next="))
    assert browser.complaints() == []
    assert [row["study"] for row in tuner_on_postgres.rows("studies")] == ["tiny"]


def test_workers_are_seen_at_work_and_dead(
    tuner_on_postgres: Any, tiny_study: Path, browser: Browser, wait_until: Callable[..., Any]
) -> None:
    browser.go("/workers")
    browser.log_in("rob")
    # A trial takes 13 s; the page looks every 5 s. Were both alike, it could see only the first epoch of each trial.
    slow = {"TINY_PAUSE_S": "0.4", "TINY_EPOCHS": "32", "TINY_TRIALS": "100", "TINY_LEASE_S": "10"}
    workers = [tuner_on_postgres.start("worker", str(tiny_study), **slow) for _ in range(2)]

    def cells() -> list[list[str]]:
        # In one script: the page changes every five seconds, sooner than single requests may take on a busy machine.
        rows = "[...document.querySelectorAll('#workers tr')].slice(1)"
        return browser.driver.execute_script(f"return {rows}.map(row => [...row.cells].map(cell => cell.innerText))")

    def shown() -> list[list[str]] | None:
        rows = cells()
        seen = [row[2] == "at work" and "loss" in row[7] and int(row[6]) > 1 for row in rows]
        return rows if seen == [True, True] else None

    # By itself the page comes to show both, with trial, epoch and metrics: those that the storage has.
    rows = browser.until(shown)
    assert len({row[5] for row in rows}) == 2
    for worker, trial, epoch, metrics in ((row[0], row[5], row[6], row[7]) for row in rows):
        stored = tuner_on_postgres.rows("show", "tiny", trial)
        assert stored["attempts"][-1]["worker"] == worker
        report = next(one for one in stored["reports"] if one["epoch"] == int(epoch))
        assert f"{report['metrics']['loss']:.5g}" in metrics, (report, metrics)
    first = {row[5] for row in rows}

    def later() -> bool:
        return all(
            int(row[9]) > 1 and row[6] and row[5] not in first and float(row[12].removesuffix(" s")) > 0
            for row in cells()
        )

    # And later other trials, what has ended, and what a trial saved that compiled nothing.
    browser.until(later)
    browser.picture("workers")

    for worker in workers:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    browser.until(lambda: {row[2] for row in cells()} <= {"idle", "lost"} and len(cells()) == 2)

    bug = tuner_on_postgres.run("worker", str(tiny_study), TINY_MODE="bug", **slow)
    assert bug.returncode == 3
    browser.until(lambda: "RuntimeError: planted bug" in browser.texts("#failures summary"))
    browser.driver.find_element(By.CSS_SELECTOR, "#failures summary").click()
    assert "Traceback (most recent call last)" in browser.find(By.CSS_SELECTOR, "#failures pre").text
    assert browser.complaints() == []
