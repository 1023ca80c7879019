"""The report in a headless browser: no errors, nothing asked of the network, hover, zoom, dark, pictures to keep."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raygpt.cli import main
from tests.serve.browser import chromium
from tests.track.test_findings import clean

OUTSIDE = ("http:", "https:", "ws:", "ftp:")


def write_run(folder: Path, *, seed: int, steps: int = 1200, **config: str) -> Path:
    """A run with a record per step, one restart, and a jump in its speed."""
    rows = clean(steps, log_every=1, seed=seed)
    for row in rows:
        if row["step"] > 600:
            row["tokens_per_second"] *= 2.6
        if row["step"] == 400:
            row["restarts"] = 1
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(json.dumps({"run": {"name": folder.name}, "optim": config}))
    summary = {"steps": steps, "val_loss": 3.25, "samples": ["<script>alert(1)</script>"]}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def until(true: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_a_page_is_looked_at(tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains

    write_run(tmp_path / "first", seed=1, lr="0.001")
    write_run(tmp_path / "second", seed=2, lr="0.0003")
    target = tmp_path / "both.html"
    assert main(["report", "first", "second", f"--run.storage={tmp_path}", f"--output={target}"]) == 0
    assert target.stat().st_size < 3e6
    with chromium() as browser:
        browser.execute_cdp_cmd("Network.enable", {})
        browser.get(target.as_uri())
        asked = browser.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
        assert not [name for name in asked if name.startswith(OUTSIDE)]
        figures = browser.find_elements("css selector", "figure[data-chart]")
        assert len(figures) >= 6 and all(figure.find_elements("css selector", "canvas") for figure in figures[:6])
        text = browser.find_element("tag name", "body").text
        assert re.search(r"Speed rose 2\.[5-8]-fold between steps 600 and 601", text)
        assert "optim.lr" in text and "<script>alert(1)</script>" in text

        # hover: the legend of every chart says the values at the cursor
        over = browser.find_element("css selector", "figure[data-chart='0'] .u-over")
        ActionChains(browser).move_to_element(over).perform()
        values = browser.find_elements("css selector", "figure[data-chart='0'] .u-legend tr:not(.raw) .u-value")
        shown = [each.text for each in values]
        assert 595 <= int(shown[0]) <= 606 and len(shown) == 5 and all(3 < float(each) < 4 for each in shown[1:]), shown
        other = browser.find_element("css selector", "figure[data-chart='2'] .u-value").text
        assert other == shown[0]

        # zoom: dragged in one chart, all follow, and all of it comes back
        pixels = (
            "return [...document.querySelectorAll('figure[data-chart] canvas')].slice(0, 3).map((c) => c.toDataURL())"
        )
        before = browser.execute_script(pixels)
        ActionChains(browser).move_to_element_with_offset(over, -200, 0).click_and_hold().move_by_offset(
            300, 0
        ).release().perform()
        until(lambda: browser.find_element("id", "whole").is_displayed())
        after = browser.execute_script(pixels)
        assert all(one != other for one, other in zip(before, after))
        browser.find_element("id", "whole").click()
        until(lambda: not browser.find_element("id", "whole").is_displayed())

        # a finding shows where it is; another axis; dark
        browser.find_element("css selector", "button[data-from='600']").click()
        until(lambda: browser.find_element("id", "whole").is_displayed())
        browser.find_element("css selector", "button[data-axis='tokens']").click()
        assert not browser.find_element("id", "whole").is_displayed()
        paper = "return getComputedStyle(document.body).backgroundColor"
        assert browser.execute_script(paper) == "rgb(255, 255, 255)"
        browser.find_element("id", "theme").click()
        assert browser.execute_script(paper) == "rgb(20, 24, 30)"

        # pictures to keep
        browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
        for kind in ("svg", "png"):
            button = browser.find_element("css selector", f"figure[data-chart='0'] button[data-keep='{kind}']")
            browser.execute_script("arguments[0].click()", button)
            until(lambda kind=kind: (tmp_path / f"loss.{kind}").exists())
        assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
        svg = (tmp_path / "loss.svg").read_text()
        assert svg.startswith("<svg") and svg.count("<path") > 10 and "first: restart" in svg
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        )
        until(lambda: browser.execute_script("return document.documentElement.scrollWidth") <= 380)  # drawn anew
        assert errors(browser) == []

        # a sweep, whose axis is its own, beside a run, on a phone: "show" goes to the steps
        browser.get(sweep_and_run(tmp_path).as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 380
        (pressed,) = browser.find_elements("css selector", "#axis button[aria-pressed='true']")
        loss = "figure[data-chart='1'] .u-legend .u-label"
        assert (pressed.get_attribute("data-axis"), browser.find_element("css selector", loss).text) == ("step", "step")
        bars = browser.find_element("css selector", "figure svg[aria-label='Where the time went']")
        widths = [float(bar.get_attribute("width")) for bar in bars.find_elements("css selector", "rect[rx]")]
        assert max(widths) >= 40
        assert re.search(r"evaluation and \w*…", bars.text)  # it would not fit
        title = bars.find_element("css selector", "title").get_attribute("innerHTML")
        assert re.search(r"%, [0-9hms ]+, \$[0-9.]+$", title)
        browser.find_element("css selector", "button[data-axis='tokens']").click()
        browser.execute_script("document.querySelector('button[data-from]').click()")
        assert browser.find_element("css selector", loss).text == "step"

        # a run that knows nothing but steps: there are no buttons to choose an axis with
        metrics = tmp_path / "costly" / "metrics.jsonl"
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
        kept = [{name: value for name, value in row.items() if name not in ("tokens", "time")} for row in rows]
        metrics.write_text("".join(json.dumps(row) + "\n" for row in kept))
        assert main(["report", "swept", "costly", f"--run.storage={tmp_path}", f"--output={target}"]) == 0
        browser.get(target.as_uri())
        browser.execute_script("document.querySelector('button[data-from]').click()")
        assert browser.find_element("id", "whole").is_displayed()
        assert errors(browser) == []


def errors(browser: Any) -> list[str]:
    return [line["message"] for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]


def sweep_and_run(folder: Path) -> Path:
    """A page of a sweep and of a run that cost something and was killed once."""
    run = write_run(folder / "costly", seed=3)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    begin, killed, end = rows[0]["time"] - 60, rows[398]["time"] + 20, rows[-1]["time"] + 930
    for row in rows[399:]:
        row["time"] += 900
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    about = {"machine": "p4d.24xlarge", "market": "on-demand", "usd_per_hour": 21.96, "node": "n", "to": None}
    attempts = [
        {"started": begin, "last_seen": killed, "outcome": None, "paid": [{**about, "from": begin}]},
        {"started": killed + 800, "last_seen": end, "outcome": "finished", "paid": [{**about, "from": killed}]},
    ]
    (run / "attempts.json").write_text(json.dumps(attempts))
    (folder / "swept").mkdir()
    trials = [
        {
            "id": f"t{n}",
            "params": {"optim.lr": n / 100},
            "status": "finished",
            "metric": "val_loss",
            "score": 3 + n / 10,
        }
        | {"history": [{"epoch": epoch, "val_loss": 3 + n / 10 + 1 / epoch} for epoch in range(1, 6)]}
        for n in range(4)
    ]
    (folder / "swept" / "sweep.json").write_text(json.dumps(trials))
    target = folder / "mixed.html"
    assert main(["report", "swept", "costly", f"--run.storage={folder}", f"--output={target}"]) == 0
    return target
