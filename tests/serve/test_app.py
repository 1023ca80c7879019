"""The app on a real socket: OpenAI's own client, and clients that vanish, dawdle, pour, or come too many at once."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from raygpt.serve import admission, app
from raygpt.serve.admission import fingerprint
from raygpt.serve.app import AppSettings
from tests.serve.served import served
from tests.serve.test_protocol import likeliest
from tests.serve.toy_engine import ToyEngine

KEY = "a key for tests"


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with served(ToyEngine(), AppSettings(key=fingerprint(KEY))) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)))


def head(length: int) -> bytes:
    lines = ["POST /v1/completions HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def until(true: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def test_openais_client_completes(client: openai.OpenAI) -> None:
    made = client.completions.create(model="toy", prompt="hi", max_tokens=6, temperature=0, logprobs=2, seed=1)
    assert made.choices[0].text == likeliest("hi", 6) and made.choices[0].finish_reason == "length"
    assert made.choices[0].logprobs is not None and len(made.choices[0].logprobs.token_logprobs or []) == 6
    assert made.usage is not None and made.usage.total_tokens == 8
    pieces = list(client.completions.create(model="toy", prompt="hi", max_tokens=6, temperature=0, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == likeliest("hi", 6)


def test_openais_client_chats(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = dict(model="toy", messages=[{"role": "user", "content": "hello"}], temperature=0, n=2)
    made = client.chat.completions.create(**asked, max_completion_tokens=4, logprobs=True, top_logprobs=3)
    assert [one.message.content for one in made.choices] == [likeliest(" ", 4)] * 2
    assert made.choices[0].logprobs is not None and made.choices[0].logprobs.content is not None
    assert len(made.choices[0].logprobs.content[0].top_logprobs) == 3
    options = {"include_usage": True}
    pieces = list(client.chat.completions.create(**asked, max_tokens=4, stream=True, stream_options=options))
    said = [
        "".join(p.choices[0].delta.content or "" for p in pieces if p.choices and p.choices[0].index == i)
        for i in (0, 1)
    ]
    assert said == [likeliest(" ", 4)] * 2
    assert pieces[-1].usage is not None and pieces[-1].usage.completion_tokens == 8


def test_openais_client_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["toy"]
    assert client.models.retrieve("toy").owned_by == "raygpt"


def test_openais_client_knows_the_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="toy", prompt="x", max_tokens=10_000)
    assert refused.value.param == "max_tokens" and refused.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "x"}])
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model="toy", prompt="BREAK")


def test_openais_client_hears_of_an_engine_that_dies_within_a_stream() -> None:
    with served(ToyEngine()) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="started anew"):
            list(client.completions.create(model="toy", prompt="DIE", max_tokens=9, stream=True))
        with pytest.raises(openai.InternalServerError):
            client.completions.create(model="toy", prompt="x")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_who_vanishes_frees_its_place(stream: bool) -> None:
    engine = ToyEngine(0.01, slots=1)
    with served(engine) as url:
        body = json.dumps({"model": "toy", "prompt": "x", "max_tokens": 400, "stream": stream, "ignore_eos": True})
        with connect(url) as connection:
            connection.sendall(head(len(body)) + body.encode())
            until(lambda: engine.stats().decoded > 3)
            if stream:
                assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        until(lambda: engine.stats().active == 0)
        assert engine.cancelled == 1 and engine.stats().decoded < 200
        assert httpx.post(f"{url}/v1/completions", json={"model": "toy", "prompt": "x"}).status_code == 200


def test_a_client_who_reads_nothing_holds_no_slot_and_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "SEND_SECONDS", 3.0)
    engine = ToyEngine(slots=1, max_model_len=100_000)
    with served(engine, AppSettings(max_tokens=50_000, max_concurrent=1)) as url:
        host, _, port = url.removeprefix("http://").rpartition(":")
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect((host, int(port)))
        asked = {"model": "toy", "prompt": "x", "max_tokens": 6_000, "ignore_eos": True, "logprobs": 20}
        body = json.dumps({**asked, "stream": True})
        connection.sendall(head(len(body)) + body.encode())
        # 6,000 events are some 6 MB, more than the sockets hold: the answer is written nevertheless
        until(lambda: engine.stats().decoded == 6_000, 20)
        assert httpx.post(f"{url}/v1/completions", json={"model": "toy", "prompt": "x"}).status_code == 200
        time.sleep(3.5)
        received = b""
        while part := connection.recv(1 << 20):
            received += part
        assert b"[DONE]" not in received
        connection.close()


def test_more_than_may_wait_are_told_when_to_come_again() -> None:
    engine = ToyEngine(0.01, slots=2)
    with served(engine, AppSettings(max_concurrent=8)) as url:

        async def burst() -> list[httpx.Response]:
            limits = httpx.Limits(max_connections=200)
            async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60, trust_env=False) as client:
                body = {"model": "toy", "prompt": "x", "max_tokens": 5}
                return await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(100)))

        replies = asyncio.run(burst())
        refused = [one for one in replies if one.status_code == 429]
        assert len(refused) >= 50 and len(refused) + sum(one.status_code == 200 for one in replies) == 100
        assert all(1 <= int(one.headers["retry-after"]) <= 30 for one in refused)
        assert refused[0].json()["error"]["type"] == "rate_limit_error"
        # OpenAI's client comes again by itself, and all are served in the end
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=5)
        assert client.completions.create(model="toy", prompt="x", max_tokens=2).choices[0].text


def test_ill_mannered_clients_do_not_disturb_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "BODY_SECONDS", 1.0)
    with served(ToyEngine(), AppSettings(max_body_bytes=1_000_000)) as url:
        idle, slow = [connect(url) for _ in range(300)], [connect(url) for _ in range(20)]
        for connection in slow:
            connection.sendall(head(5000) + b'{"model":')
        for body, status in ((b"x" * 10_000_000, 413), (b"\x00garbage", 400)):
            reply = httpx.post(f"{url}/v1/completions", content=body, headers={"Content-Type": "application/json"})
            assert reply.status_code == status
        began = time.monotonic()
        for _ in range(20):
            body = {"model": "toy", "prompt": "x", "max_tokens": 2}
            assert httpx.post(f"{url}/v1/completions", json=body, timeout=5).status_code == 200
        assert time.monotonic() - began < 5
        for connection in slow:  # half a request is waited for as long as that may take
            connection.settimeout(5)
            assert connection.recv(100).startswith(b"HTTP/1.1 408")
        for connection in idle + slow:
            connection.close()


def test_bodies_that_are_still_coming_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "BODIES_AT_ONCE", 2)
    with served(ToyEngine(), AppSettings(max_body_bytes=100_000)) as url:
        half = []
        for _ in range(3):
            connection = connect(url)
            connection.sendall(head(90_000) + b"x" * 80_000)
            half.append(connection)
        half[-1].settimeout(5)
        replies = []
        for connection in half:
            connection.settimeout(0.5)
            try:
                replies.append(connection.recv(30)[:12])
            except TimeoutError:
                replies.append(b"")
        assert sorted(replies) == [b"", b"", b"HTTP/1.1 429"]
        for connection in half:
            connection.close()
        until(lambda: httpx.post(f"{url}/v1/completions", json={"model": "toy", "prompt": "x"}).status_code == 200)
