"""A headless Chromium for the page's tests."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
)


@contextmanager
def chromium(*, dark: bool = False, width: int = 1200, height: int = 800) -> Iterator[Any]:
    """A selenium driver. Skips the test, loudly, where no browser is installed."""
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if not all(programs):
        warnings.warn("chromium or chromedriver is not installed: the page is not tested", stacklevel=2)
        pytest.skip("no browser")
    from selenium import webdriver

    with tempfile.TemporaryDirectory() as folder:
        options = webdriver.ChromeOptions()
        options.binary_location = programs[0]
        for option in (*OPTIONS, f"--user-data-dir={folder}", f"--window-size={width},{height}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
        try:
            if dark:
                scheme = [{"name": "prefers-color-scheme", "value": "dark"}]
                driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
            yield driver
        finally:
            driver.quit()
