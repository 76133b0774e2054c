"""Our pages and actions in a real browser: over a study of 5,000 trials, and over one that real workers run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import DESKTOP, NEEDS_CHROMIUM, PHONE, Browser, By
from command_line import Tuner
from dashboard_server import make_users, serve
from databases import new_database
from large_study import TIED, best_of, write_large_study

from tuner.results.rows import study_row
from tuner.storage import connected

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]
TRIALS = 5_000
PAGES = {
    "studies": "/studies",
    "study": "/study?study=large",
    "trial": "/trial?study=large&trial=4999",
    "curves": "/curves?study=large&count=8",
    "workers": "/workers?study=large",
    "checkpoints": "/checkpoints",
    "plots": "/plots?study=small",
    "logs": "/logs?study=large&trial=4999",
    "refusal": "/study?study=none",
}


@pytest.fixture(scope="module")
def storage(postgres_server: str, postgres_with_tables: str) -> str:
    made = new_database(postgres_server, postgres_with_tables).replace("+psycopg2", "")
    write_large_study(made, "large", TRIALS)
    write_large_study(made, "small", 100)
    return made


@pytest.fixture(scope="module")
def shared(storage: str, tmp_path_factory: pytest.TempPathFactory, wait_until: Callable[..., Any]) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("browser")
    words = ("--users", str(make_users(folder / "users")), "--prefix", "/tuner")
    with serve(folder, storage, *words, prefix="/tuner") as dashboard:
        made = Browser(folder, dashboard, wait_until)
        yield made
        made.driver.quit()


@pytest.fixture
def browser(shared: Browser) -> Browser:
    """The browser at the window of a desktop, with an editor who is logged in."""
    shared.resize(DESKTOP)
    shared.use_colors("light")
    enter(shared, "ann")
    shared.complaints()
    return shared


def enter(browser: Browser, name: str) -> None:
    browser.driver.delete_all_cookies()
    browser.go("/login")
    browser.log_in(name)
    browser.until(lambda: browser.path == "/tuner/studies")


def click(browser: Browser, button: str) -> None:
    browser.find(By.ID, button).click()


def said(browser: Browser) -> str:
    return browser.find(By.CSS_SELECTOR, "p.done").text


def curves_are_drawn(browser: Browser) -> Any:
    return browser.driver.execute_script("return window.tunerCurves && tunerCurves.drawn.size")


def test_every_page_is_accessible_at_each_width_and_fits(browser: Browser) -> None:
    for scheme, size in (("light", DESKTOP), ("dark", DESKTOP), ("light", PHONE)):
        browser.use_colors(scheme)
        browser.resize(size)
        for name, path in PAGES.items():
            browser.go(path)
            if name in ("curves", "trial"):
                browser.until(lambda: curves_are_drawn(browser) == 3)
            assert browser.findings() == [], (name, scheme, size)
            assert browser.width() <= size[0], (name, size)
            if scheme == "light" and name in ("studies", "study", "trial", "curves"):
                browser.picture(f"{name}{'-phone' if size == PHONE else ''}")
    browser.driver.execute_script("document.querySelector('main').append(document.createElement('img'))")
    assert [line.partition(" ")[0] for line in browser.findings()] == ["image-alt"], "what has no text is found"
    browser.go("/dashboard/studies/2")
    browser.find(By.ID, "tuner-bar")
    assert browser.findings("document.getElementById('tuner-bar')") == []
    assert browser.driver.execute_script("return window.hacked") is None
    complaints = [line for line in browser.complaints() if "status of 404" not in line]
    assert complaints == []


def test_the_first_screen_says_how_a_study_is_doing(browser: Browser, storage: str) -> None:
    browser.go("/study?study=large")
    tiles = {tile.get_attribute("id"): tile.text for tile in browser.driver.find_elements(By.CLASS_NAME, "tile")}
    bottom = (
        "return Math.max(...[...document.querySelectorAll('.tile')].map(one => one.getBoundingClientRect().bottom))"
    )
    assert browser.driver.execute_script(bottom) < DESKTOP[1], "without scrolling"
    with connected(storage) as engine:
        row = study_row(engine, "large")
    used = row["complete"] + row["pruned"]
    assert "running" in tiles["tile-state"]
    assert f"{used} of {TRIALS + 200} trials" in tiles["tile-budget"]
    assert "2 at work" in tiles["tile-workers"]
    # By hand: `write_large_study` has stored deviations of -0.002, 0.003, 0.0005 and -0.0015 from 0.951. Half the
    # 95 % t interval of three degrees of freedom is 3.1824 / 2 times the standard deviation sqrt(15.5e-6 / 3).
    assert "0.951 [0.94738, 0.95462]" in tiles["tile-best"]
    assert f"trial {best_of(TRIALS)}" in tiles["tile-best"]
    assert [int(word) for word in tiles["tile-tied"].split() if word.isdecimal()] == [2, *TIED]
    assert "trial 0" in tiles["tile-baseline"]
    assert "better by" in tiles["tile-baseline"]
    assert "not known" not in tiles["tile-savings"]
    assert "<script>hacked = 1</script>" in browser.find(By.ID, "note").text
    assert browser.driver.execute_script("return window.hacked") is None


def test_each_action_of_an_editor(browser: Browser, storage: str, wait_until: Callable[..., Any]) -> None:
    from tuner.storage.read.queries import find_study, read_standings, read_trial

    with connected(storage) as engine:
        study = find_study(engine, "small")

        browser.go("/study?study=small")
        field = browser.find(By.ID, "trials")
        field.clear()
        field.send_keys("321")
        click(browser, "change-trials")
        browser.until(lambda: said(browser).startswith("The number of trials is changed."))
        assert read_standings(engine)[study.study_id].trials == 321

        click(browser, "stop")
        browser.until(lambda: said(browser).startswith("The study is stopped:"))
        assert read_standings(engine)[study.study_id].is_stopped
        assert "stopped" in browser.find(By.ID, "tile-state").text
        click(browser, "resume")
        browser.until(lambda: said(browser) == "The study can be launched again.")
        assert not read_standings(engine)[study.study_id].is_stopped

        # A trial like another one, with one hyperparameter changed, then with one that cannot be.
        browser.go("/study?study=small&like=5")
        assert browser.find(By.NAME, "hparam:width").get_attribute("value") == "256"
        for text, message in (("0.5", "learning_rate must be in [0.0001, 0.1]: got '0.5'"), ("0.003", "")):
            browser.go("/study?study=small&like=5")
            field = browser.find(By.NAME, "hparam:learning_rate")
            field.clear()
            field.send_keys(text)
            browser.find(By.CSS_SELECTOR, "#enqueue form button").click()
            if message:
                browser.until(lambda message=message: message in browser.find(By.CSS_SELECTOR, "main p").text)
        browser.until(lambda: said(browser) == "The trial is queued.")
        assert read_trial(engine, study, 100).outcome == "waiting"

        # A trial in the queue, one that runs, and one that failed.
        for number, outcome in ((100, "failed"), (99, "pruned")):
            browser.go(f"/trial?study=small&trial={number}")
            click(browser, "end")
            browser.driver.switch_to.alert.accept()
            browser.until(lambda: not browser.driver.find_elements(By.ID, "end"))
            assert read_trial(engine, study, number).outcome == outcome
        browser.go("/trial?study=small&trial=96")
        click(browser, "retry")
        browser.until(lambda: said(browser) == "The trial is queued.")
        assert read_trial(engine, study, 101).user_attrs == {"retry_of": 96}

        for path in ("/study?study=small", "/trial?study=small&trial=7"):
            browser.go(path)
            browser.find(By.CSS_SELECTOR, "#change-note summary").click()
            field = browser.find(By.ID, "note-text")
            field.clear()
            field.send_keys("<b>wide</b> & <script>hacked = 1</script>")
            click(browser, "save-note")
            browser.until(lambda: said(browser) == "The note is saved.")
            assert browser.find(By.ID, "note").text == "<b>wide</b> & <script>hacked = 1</script>"
        assert browser.driver.execute_script("return window.hacked") is None

    lines = [line for line in browser.dashboard.lines() if line["event"] == "change"]
    done = [(line["user"], line["path"].rpartition("/")[2], line["status"]) for line in lines]
    names = ["trials", "stop", "resume", "enqueue", "enqueue", "end", "end", "retry", "note", "note"]
    assert done == [("ann", name, 400 if at == 3 else 303) for at, name in enumerate(names)]
    assert [line for line in browser.complaints() if "status of 400" not in line] == []

    enter(browser, "rob")
    for path in ("/study?study=small", "/trial?study=small&trial=101"):
        browser.go(path)
        assert browser.texts("main form[method=post], #actions") == [], "a reader sees no buttons"


def test_curves_of_200_trials_are_drawn_on_every_kind_of_axis(browser: Browser) -> None:
    run = browser.driver.execute_script
    browser.go("/curves?study=large&count=200")
    browser.until(lambda: curves_are_drawn(browser) == 3)
    assert [figure.get_attribute("data-metric") for figure in browser.driver.find_elements(By.TAG_NAME, "figure")] == [
        *("accuracy", "loss", "train_loss"),
    ]
    assert browser.find(By.ID, "curves-said").text == "200 trials."
    assert len(browser.texts("#curves-legend li")) == 200
    # By hand: 0.5 of the old mean and 0.5 of the new value, divided by 1 - 0.5^n.
    assert run("return tunerCurves.smoothed([1, null, 2, 4], 0.5)") == [1, None, (0.25 + 1) / 0.75, (0.625 + 2) / 0.875]
    assert run("return tunerCurves.smoothed([1, 2], 0)") == [1, 2]
    joined = run("return tunerCurves.joined([[[1, 3], [10, 30]], [[2, 3], [20, 33]]]).map(one => [...one])")
    assert joined == [[1, 2, 3], [10, None, 30], [None, 20, 33]]

    first = (
        "const plot = tunerCurves.drawn.get('loss').plot; return [plot.series.length, ...plot.data.map(one => one[0])]"
    )
    series, epoch, before = run(first)[:3]
    assert (series, epoch) == (201, 1)
    slider = "const one = document.getElementById(arguments[0]); one.value = arguments[1]; " \
        "one.dispatchEvent(new Event('input'))"  # fmt: skip
    run(slider, "curves-x", "step")
    assert run(first)[1] == 100
    run(slider, "curves-x", "time")
    assert run("return tunerCurves.drawn.get('loss').plot.data[0][0]") == 1
    run(slider, "curves-smoothing", "0.9")
    assert run(first)[2] == pytest.approx(before), "the first value is itself"
    at_end = "const one = tunerCurves.drawn.get('loss').plot.data[1]; return one[one.length - 1]"
    smooth = run(at_end)
    run(slider, "curves-smoothing", "0")
    assert smooth > run(at_end), "the loss falls, so its mean is above it"
    for control in ("curves-log-x", "curves-log-y"):
        click(browser, control)
    assert run("const s = tunerCurves.drawn.get('loss').plot.scales; return [s.x.distr, s.y.distr]") == [3, 3]
    # uPlot draws in a microtask, which is done before the script continues.
    milliseconds = browser.driver.execute_async_script(
        "const done = arguments[0], plot = tunerCurves.drawn.get('loss').plot, from = performance.now(); "
        "(async () => { for (let i = 0; i < 10; i += 1) { plot.redraw(true, true); await null; } "
        "done((performance.now() - from) / 10); })()"
    )
    print(f"a chart of 200 trials is drawn in {milliseconds:.0f} ms")
    assert milliseconds < 500, f"a chart of 200 trials: {milliseconds} ms"
    assert browser.complaints() == []


def test_a_click_ends_two_workers_whose_curves_are_seen_live(
    browser: Browser, storage: str, tmp_path: Path, tiny_function: Path, wait_until: Callable[..., Any]
) -> None:
    tuner = Tuner(tmp_path, storage)
    try:
        slow = {"TINY_PAUSE_S": "0.3", "TINY_EPOCHS": "1000", "TINY_TRIALS": "50"}
        workers = [tuner.start("worker", str(tiny_function), **slow) for _ in range(2)]
        running = "return window.tunerCurves ? [...tunerCurves.known.values()].map(one => one.epoch.length) : []"

        def lengths() -> list[int]:
            browser.go("/curves?study=tiny&show=running")
            browser.until(lambda: browser.texts("#curves-said") != ["Loading."])
            return browser.driver.execute_script(running)

        wait_until(lambda: browser.dashboard.ask("GET", "/study?study=tiny", Authorization="Bearer ci").status == 200)
        wait_until(lambda: len([one for one in lengths() if one]) == 2)
        before = browser.driver.execute_script(running)
        # Without a reload, the curves grow.
        browser.until(lambda: min(browser.driver.execute_script(running)) > max(before))

        browser.go("/study?study=tiny")
        browser.until(lambda: "2 at work" in browser.find(By.ID, "tile-workers").text)
        click(browser, "stop")
        for worker in workers:  # benchmarks/dashboard_pages.py measures the seconds
            worker.wait(timeout=60)
        assert len(tuner.rows("trials", "tiny", "--outcome", "preempted")) == 2, "given back, not ended"
        browser.until(lambda: "0 at work" in browser.find(By.ID, "tile-workers").text)
        browser.until(lambda: "stopped" in browser.find(By.ID, "tile-state").text)
        assert browser.complaints() == []
    finally:
        tuner.end()
