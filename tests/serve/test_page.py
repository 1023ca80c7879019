"""The page: one document that asks nobody for anything, used in a headless browser."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from raygpt.serve.admission import fingerprint
from raygpt.serve.app import AppSettings
from raygpt.serve.page import page
from tests.serve.browser import chromium
from tests.serve.served import served
from tests.serve.test_protocol import likeliest
from tests.serve.toy_engine import ToyEngine


def test_it_is_one_document_and_its_policy_allows_nothing_else() -> None:
    text, policy = page('a<b>"c', chat=False, needs_key=True)
    assert "{{" not in text.replace("{{ ", "") and "a&lt;b&gt;&quot;c" in text and "a<b>" not in text
    assert not re.findall(r"(?:src|href)=\"(?!data:)|@import|url\(|https?://", text)
    assert "default-src 'none'" in policy and policy.count("'sha256-") == 2 and "unsafe" not in policy
    assert 'for="prompt"' in text and all(f'for="{name}"' in text for name in ("temperature", "top_p", "seed", "key"))


class Page:
    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(url)

    def get(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def fill(self, name: str, text: str) -> None:
        self.get(name).clear()
        self.get(name).send_keys(text)

    def until(self, true: Callable[[], Any], seconds: float = 15) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, (self.get("status").text, self.get("error").text)
            time.sleep(0.03)

    @property
    def tokens(self) -> list[Any]:
        return self.driver.find_elements("css selector", ".answer .tok")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


def test_a_text_is_streamed_shown_stopped_and_looked_into(browser: Any) -> None:
    from selenium.webdriver import ActionChains, Keys

    engine = ToyEngine(0.02)
    with served(engine, AppSettings(max_tokens=400)) as url:
        shown = Page(browser, url)
        # completion: the text goes on after the prompt
        browser.find_element("css selector", "label[for=mode-completion]").click()
        shown.fill("temperature", "0")
        shown.fill("max_tokens", "12")
        shown.get("prompt").send_keys("hi", Keys.CONTROL, Keys.ENTER)
        shown.until(lambda: "Max tokens reached: 12 tokens" in shown.get("status").text)
        assert shown.get("output").text == "hi" + likeliest("hi", 12)
        assert "".join(token.text or " " for token in shown.tokens) == likeliest("hi", 12)
        # a token's probability and its alternatives
        ActionChains(browser).move_to_element(shown.tokens[0]).perform()
        rows = [row.text for row in shown.get("token").find_elements("css selector", "tr")]
        assert len(rows) == 5 and rows[0].startswith(likeliest("hi", 1)) and all(row.endswith("%") for row in rows)
        shown.get("output").send_keys(Keys.ARROW_RIGHT)
        assert "chosen" in shown.tokens[1].get_attribute("class")
        # chat: Enter sends, and Stop ends it here and in the engine
        browser.find_element("css selector", "label[for=mode-chat]").click()
        shown.fill("temperature", "1")
        shown.fill("max_tokens", "400")
        shown.get("prompt").send_keys("hello", Keys.ENTER)
        shown.until(lambda: len(shown.tokens) > 5)
        assert not shown.get("send").is_enabled()
        shown.get("stop").click()
        shown.until(lambda: "Stopped" in shown.get("status").text and engine.stats().active == 0)
        assert engine.cancelled == 1 and len(shown.tokens) < 200 and shown.get("error").text == ""
        # an error is shown, and the page goes on after it
        shown.fill("max_tokens", "9999")
        shown.get("prompt").send_keys("hello", Keys.ENTER)
        shown.until(lambda: "serve.max_tokens" in shown.get("error").text)
        shown.fill("max_tokens", "3")
        shown.get("send").click()
        shown.until(lambda: "Max tokens reached: 3 tokens" in shown.get("status").text)
        assert shown.get("error").text == ""
    # the server has gone
    shown.get("prompt").send_keys("hello", Keys.ENTER)
    shown.until(lambda: shown.get("error").text != "")
    problems = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert all("400 (Bad Request)" in line or "ERR_CONNECTION" in line for line in problems), problems


def test_a_key_is_asked_for_and_a_model_without_a_template_cannot_chat(browser: Any) -> None:
    with served(ToyEngine(template=False), AppSettings(key=fingerprint("k"))) as url:
        shown = Page(browser, url)
        assert not shown.get("mode-chat").is_enabled() and shown.get("mode-completion").is_selected()
        shown.get("prompt").send_keys("hi")
        shown.get("send").click()
        shown.until(lambda: "no key was sent" in shown.get("error").text)
        shown.fill("key", "k")
        shown.fill("max_tokens", "3")
        shown.get("send").click()
        shown.until(lambda: "3 tokens" in shown.get("status").text)
        # narrow: nothing has to be scrolled sideways
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True}
        )
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
