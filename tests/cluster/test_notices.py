"""What counts as notice that a machine will be taken away, and that nothing else does."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raygpt.cluster import notices
from raygpt.cluster.notices import InstanceMetadata, file_notice, preempted
from tests.cluster.metadata_service import ACTION, REBALANCE, MetadataService, aws_time, metadata_service


@pytest.fixture
def service() -> Iterator[MetadataService]:
    with metadata_service() as server:
        yield server


def source(service: MetadataService, **more: str) -> InstanceMetadata:
    return InstanceMetadata({"AWS_EC2_METADATA_SERVICE_ENDPOINT": service.url, **more})


def test_a_spot_notice_says_what_and_when(service: MetadataService) -> None:
    ask, goes = source(service), time.time() + 119
    assert ask() is None
    service.answers[ACTION] = json.dumps({"action": "terminate", "time": aws_time(goes)}).encode()
    notice = ask()
    assert notice is not None and notice.certain and "terminate" in notice.why
    assert abs(notice.deadline - goes) < 1 and 117 < notice.seconds_left < 120
    # one token for all questions, and none without it
    assert [method for method, *_ in service.asked].count("PUT") == 1
    assert all(token in service.tokens for method, _, token in service.asked if method == "GET")


def test_a_token_that_ran_out_is_renewed(service: MetadataService) -> None:
    ask = source(service)
    assert ask() is None
    service.take_back_tokens()
    service.answers[ACTION] = json.dumps({"action": "stop", "time": aws_time(time.time())}).encode()
    notice = ask()
    assert notice is not None and "stop" in notice.why


def test_a_recommendation_is_no_certain_notice(service: MetadataService) -> None:
    service.answers[REBALANCE] = json.dumps({"noticeTime": aws_time(time.time())}).encode()
    notice = source(service)()
    assert notice is not None and not notice.certain


@pytest.mark.parametrize(
    "answer",
    [b"", b"<html>", b"{}", b"[]", b'"terminate"', b'{"action": "stop"}', b'{"action": "stop", "time": "soon"}',
     b'{"action": "stop", "time": 7}', b'{"action": "stop", "time": "2026-11-27T14:00:00"}', b"\xff\xfe"],
)  # fmt: skip
def test_what_is_no_notice_is_none(service: MetadataService, answer: bytes) -> None:
    service.answers[ACTION] = answer
    ask = source(service)
    assert ask() is None
    # and does not make it deaf
    service.answers[ACTION] = json.dumps({"action": "terminate", "time": aws_time(time.time())}).encode()
    assert ask() is not None


def test_a_machine_without_the_service_is_asked_once_a_minute(service: MetadataService, monkeypatch) -> None:
    monkeypatch.setattr(notices, "ANSWER_SECONDS", 0.1)
    service.delay = 0.5
    ask = source(service)
    began = time.monotonic()
    assert [ask() for _ in range(5)] == [None] * 5
    assert time.monotonic() - began < 0.4 and len(service.asked) == 1


def test_nobody_is_asked_where_the_user_says_so_nor_through_a_proxy(service: MetadataService, monkeypatch) -> None:
    service.answers[ACTION] = json.dumps({"action": "terminate", "time": aws_time(time.time())}).encode()
    assert source(service, AWS_EC2_METADATA_DISABLED="true")() is None and not service.asked
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert source(service)() is not None


def test_a_file_is_notice_while_it_is_there(tmp_path: Path) -> None:
    ask = file_notice(str(tmp_path / "leave"))
    assert ask() is None
    (tmp_path / "leave").touch()
    notice = ask()
    assert notice is not None and notice.certain and notice.seconds_left > 60


def test_machines_that_lambda_lists_as_preempted_are_found_by_each_of_their_addresses() -> None:
    listed = [
        {"id": "a", "status": "active", "ip": "198.51.100.1", "private_ip": "10.0.0.1"},
        {"id": "b", "status": "preempted", "ip": "198.51.100.2", "private_ip": "10.0.0.2"},
        {"id": "c", "status": "preempted", "ip": ""},  # either address may be missing
        {"id": "d", "status": "preempted", "private_ip": "10.0.0.4"},
    ]
    found = preempted(listed)
    assert set(found) == {"198.51.100.2", "10.0.0.2", "10.0.0.4"}
    assert all(notice.certain for notice in found.values())
    assert preempted([]) == {}
