"""A node's watcher: what it tells of, and how often."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raygpt.cluster import preemption
from raygpt.cluster.preemption import SIGNAL, NodeWatcher
from tests.cluster.metadata_service import ACTION, REBALANCE, aws_time, metadata_service


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(preemption, "ASK_SECONDS", 0.05)
    before = signal.getsignal(SIGNAL)
    yield
    signal.signal(SIGNAL, before)


def test_a_watcher_waits_for_its_file(tmp_path: Path) -> None:
    watcher = NodeWatcher(str(tmp_path / "leave"))
    threading.Timer(0.2, (tmp_path / "leave").touch).start()
    began = time.monotonic()
    notice = watcher.wait()
    assert 0.15 < time.monotonic() - began < 5 and "leave is there" in notice.why


def test_a_signal_is_a_notice() -> None:
    watcher = NodeWatcher(None)
    threading.Timer(0.2, os.kill, (os.getpid(), SIGNAL)).start()
    notice = watcher.wait()
    assert notice.certain and "SIGUSR1" in notice.why and notice.seconds_left > 60


def test_a_recommendation_is_told_once_and_the_notice_after_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with metadata_service() as service:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
        service.answers[REBALANCE] = json.dumps({"noticeTime": aws_time(time.time())}).encode()
        watcher = NodeWatcher(None)
        assert not watcher.wait().certain
        goes = json.dumps({"action": "terminate", "time": aws_time(time.time() + 120)}).encode()
        threading.Timer(0.3, service.answers.__setitem__, (ACTION, goes)).start()
        asked = len(service.asked)
        assert watcher.wait().certain
        assert len(service.asked) > asked + 2  # it asked on, and said nothing of the recommendation again
