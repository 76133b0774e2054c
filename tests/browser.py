"""A real browser, headless Chromium, that looks at a dashboard. `TUNER_PICTURES=FOLDER` keeps screenshots."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dashboard_server import PASSWORD, DashboardServer

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.common.exceptions import WebDriverException  # noqa: E402
from selenium.webdriver.common.by import By as By  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs Chromium: apt-get install chromium chromium-driver"
)
AXE = Path(__file__).parent / "data" / "axe-core" / "axe-4.14.1.min.js.gz"
"""The accessibility checks of https://github.com/dequelabs/axe-core, under the MPL 2.0 beside it."""
DESKTOP, PHONE = (1280, 860), (390, 844)


class Browser:
    """Headless Chromium, looking at one dashboard."""

    def __init__(self, folder: Path, dashboard: DashboardServer, wait: Callable[..., Any]) -> None:
        options = webdriver.ChromeOptions()
        for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
            options.add_argument(word)
        options.add_argument(f"--user-data-dir={folder / 'profile'}")
        options.add_argument("--window-size=1240,840")
        options.binary_location = str(CHROMIUM)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.driver.set_page_load_timeout(120)
        self.dashboard = dashboard
        self.wait = wait

    def go(self, path: str) -> None:
        self.driver.get(self.dashboard.origin + self.dashboard.prefix + path)

    @property
    def path(self) -> str:
        return self.driver.current_url.removeprefix(self.dashboard.origin)

    def find(self, how: str, what: str) -> Any:
        """Wait for an element and return it."""
        return self.wait(lambda: next(iter(self.driver.find_elements(how, what)), None), 120.0)

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until a condition on the page holds; it may be looked at while the page changes.

        If it never does, the error has the text of the page.
        """

        def holds() -> Any:
            try:
                return condition()
            except WebDriverException:
                return None

        try:
            return self.wait(holds, 120.0)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.path}\n{self.texts('body')}") from None

    def texts(self, css: str) -> list[str]:
        return [element.text for element in self.driver.find_elements(By.CSS_SELECTOR, css)]

    def log_in(self, name: str, password: str = PASSWORD) -> None:
        self.find(By.NAME, "name").send_keys(name)
        self.find(By.NAME, "password").send_keys(password)
        self.find(By.CSS_SELECTOR, "main button").click()

    def picture(self, name: str) -> None:
        folder = os.environ.get("TUNER_PICTURES")
        if folder:
            self.driver.save_screenshot(str(Path(folder) / f"dashboard-{name}.png"))

    def complaints(self) -> list[str]:
        """What the browser complained of, but for refused requests."""
        lines = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        return [line for line in lines if "status of 401" not in line and "status of 403" not in line]

    def resize(self, size: tuple[int, int]) -> None:
        """Give the page this width and height in CSS pixels, with touch for a narrow one."""
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def use_colors(self, scheme: str) -> None:
        """Prefer `light` or `dark` colours."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def width(self) -> int:
        """Return the width of the page, which is larger than the window's if one must scroll sideways."""
        return self.driver.execute_script("return document.documentElement.scrollWidth")

    def findings(self, context: str = "document") -> list[str]:
        """Return what axe-core finds that is serious or critical."""
        source = gzip.decompress(AXE.read_bytes()).decode()
        # Not by a script element, which the page's policy forbids.
        self.driver.execute_script(f"if (!window.axe) {{ {source} }}")
        found = self.driver.execute_async_script(
            f"const done = arguments[0]; axe.run({context}, {{resultTypes: ['violations']}}).then("
            "found => done(found.violations), error => done([{id: String(error), impact: 'critical', nodes: []}]))"
        )
        return [
            f"{one['id']} ({one['impact']}): {node['target']} {node['failureSummary']}"
            for one in found
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"] or [{"target": "", "failureSummary": ""}]
        ]
