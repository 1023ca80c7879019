"""The protocol over the toy engine, whose probabilities are known: answers, log-probabilities, refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from raygpt.serve.admission import fingerprint
from raygpt.serve.app import AppSettings, build_app
from tests.serve.toy_engine import EOS, VOCAB, ToyEngine, table


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    settings = AppSettings(max_concurrent=16, max_tokens=64, max_body_bytes=50_000)
    with TestClient(build_app(ToyEngine(max_model_len=100), settings), base_url="http://127.0.0.1") as client:
        yield client


def complete(client: TestClient, **body: Any) -> dict[str, Any]:
    reply = client.post("/v1/completions", json={"model": "toy", **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def refusal(client: TestClient, path: str = "completions", status: int = 400, **body: Any) -> dict[str, Any]:
    reply = client.post(f"/v1/{path}", json={"model": "toy", **body})
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def likeliest(prompt: str, count: int) -> str:
    """The greedy answer, from the table alone."""
    scores, last, text = table(), prompt.encode()[-1], ""
    for _ in range(count):
        last = int(scores[last].argmax())
        if last == EOS:
            break
        text += chr(last)
    return text


def events(client: TestClient, path: str, **body: Any) -> list[dict[str, Any]]:
    with client.stream("POST", f"/v1/{path}", json={"model": "toy", "stream": True, **body}) as reply:
        assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_greedy_completion_is_the_likeliest_text(client: TestClient) -> None:
    answer = complete(client, prompt="hi", max_tokens=12, temperature=0)
    (choice,) = answer["choices"]
    assert choice["text"] == likeliest("hi", 12) and choice["finish_reason"] == "length" and choice["logprobs"] is None
    assert answer["object"] == "text_completion" and answer["model"] == "toy" and answer["id"].startswith("cmpl-")
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14}
    assert len(complete(client, prompt="hi", ignore_eos=True)["choices"][0]["text"]) == 16  # the protocol's default


def test_prompts_are_texts_or_ids_one_or_many(client: TestClient) -> None:
    ways: list[Any] = ["hi", [104, 105], ["hi", "yo"], [[104, 105], [121, 111]]]
    texts = [
        [one["text"] for one in complete(client, prompt=way, max_tokens=5, temperature=0)["choices"]] for way in ways
    ]
    one, other = likeliest("hi", 5), likeliest("yo", 5)
    assert texts == [[one], [one], [one, other], [one, other]]


def test_several_answers_are_numbered_prompt_by_prompt_and_seeds_repeat_them(client: TestClient) -> None:
    asked = dict(prompt=["a", "b"], n=3, seed=7, max_tokens=8, ignore_eos=True)
    first, second = complete(client, **asked), complete(client, **asked)
    assert [one["index"] for one in first["choices"]] == list(range(6))
    texts = [one["text"] for one in first["choices"]]
    assert texts == [one["text"] for one in second["choices"]] and len(set(texts)) == 6
    assert first["usage"] == {"prompt_tokens": 2, "completion_tokens": 48, "total_tokens": 50}
    # an answer of a list is what it is alone
    alone = complete(client, prompt="b", n=3, seed=7, max_tokens=8, ignore_eos=True)["choices"]
    assert [one["text"] for one in alone] == texts[3:]


def test_log_probabilities_are_the_tables(client: TestClient) -> None:
    scores = table()
    answer = complete(client, prompt="hi", max_tokens=3, temperature=0, logprobs=2)["choices"][0]
    found, text = answer["logprobs"], answer["text"]
    chain = "i" + text
    assert found["tokens"] == list(text) and found["text_offset"] == [0, 1, 2]
    expected = [scores[ord(one), ord(two)] for one, two in pairwise(chain)]
    assert found["token_logprobs"] == pytest.approx(expected)
    for before, top in zip(chain, found["top_logprobs"]):
        best = np.argsort(-scores[ord(before)])[:2]
        assert top == pytest.approx({chr(one) if one < EOS else "": scores[ord(before), one] for one in best})
    none = complete(client, prompt="hi", max_tokens=3, temperature=0, logprobs=0)["choices"][0]["logprobs"]
    assert none["token_logprobs"] == found["token_logprobs"]
    assert none["top_logprobs"] == [{token: score} for token, score in zip(none["tokens"], none["token_logprobs"])]


def test_echo_scores_the_prompt_too(client: TestClient) -> None:
    scores = table()
    for prompt in ("hello", list(b"hello")):
        answer = complete(client, prompt=prompt, max_tokens=1, temperature=0, logprobs=1, echo=True)["choices"][0]
        assert answer["text"] == "hello" + likeliest("hello", 1)
        found = answer["logprobs"]
        assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        expected = [scores[one, two] for one, two in zip(b"hello", b"ello")]
        assert found["token_logprobs"][1:5] == pytest.approx(expected) and len(found["tokens"]) == 6
        assert found["text_offset"] == list(range(6))
    only = complete(client, prompt="hello", max_tokens=0, echo=True, logprobs=1)
    assert only["choices"][0]["text"] == "hello" and only["usage"]["completion_tokens"] == 0
    plain = complete(client, prompt="hello", max_tokens=2, temperature=0, echo=True)["choices"][0]
    assert plain["text"] == "hello" + likeliest("hello", 2) and plain["logprobs"] is None


def test_stop_texts_end_the_answer_and_are_no_part_of_it(client: TestClient) -> None:
    text = likeliest("hi", 12)
    stop = text[4]
    answer = complete(client, prompt="hi", max_tokens=12, temperature=0, stop=[stop, "never"])["choices"][0]
    assert answer["text"] == text[: text.index(stop)] and answer["finish_reason"] == "stop"
    assert complete(client, prompt="hi", max_tokens=12, temperature=0, stop=stop)["choices"][0] == answer


def test_a_streamed_completion_says_the_same_piece_by_piece(client: TestClient) -> None:
    asked = dict(prompt=["hi", "yo"], n=2, seed=3, max_tokens=6, logprobs=1, ignore_eos=True, echo=True)
    whole = complete(client, **asked)
    pieces = events(client, "completions", **asked, stream_options={"include_usage": True})
    assert pieces[-1]["choices"] == [] and pieces[-1]["usage"] == whole["usage"]
    assert all(piece["usage"] is None and piece["object"] == "text_completion" for piece in pieces[:-1])
    assert len({piece["id"] for piece in pieces}) == 1
    for choice in whole["choices"]:
        own = [piece["choices"][0] for piece in pieces[:-1] if piece["choices"][0]["index"] == choice["index"]]
        assert "".join(one["text"] for one in own) == choice["text"]
        for key in ("tokens", "token_logprobs", "text_offset"):
            found = [value for one in own if one["logprobs"] for value in one["logprobs"][key]]
            assert found == choice["logprobs"][key]
        assert [one["finish_reason"] for one in own] == [None] * (len(own) - 1) + ["length"]
    plain = events(client, "completions", prompt="hi", max_tokens=2, temperature=0, echo=True)
    assert [one["choices"][0]["text"] for one in plain] == ["hi", *likeliest("hi", 2)] and "usage" not in plain[0]


def test_a_chat_speaks_through_the_template(client: TestClient) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
    ]
    asked = dict(messages=messages, max_completion_tokens=4, temperature=0, logprobs=True, top_logprobs=2)
    answer = client.post("/v1/chat/completions", json={"model": "toy", **asked}).json()
    prompt = "system: be brief\nuser: hello\nassistant: "
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion" and answer["usage"]["prompt_tokens"] == len(prompt)
    assert choice["message"] == {"role": "assistant", "content": likeliest(" ", 4), "refusal": None}
    first = choice["logprobs"]["content"][0]
    assert first["logprob"] == pytest.approx(table()[32].max()) and len(first["top_logprobs"]) == 2
    assert bytes(first["bytes"]).decode() == first["token"] == choice["message"]["content"][0]
    pieces = events(client, "chat/completions", **asked)
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant"
    said = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    assert said == choice["message"]["content"] and pieces[-1]["choices"][0]["finish_reason"] == "length"
    scored = [one for piece in pieces if (found := piece["choices"][0]["logprobs"]) for one in found["content"]]
    assert scored == choice["logprobs"]["content"]


def test_an_answer_without_a_limit_has_what_room_there_is(client: TestClient) -> None:
    message = [{"role": "user", "content": "x" * 60}]  # 78 tokens of a context of 100
    body = {"model": "toy", "messages": message, "ignore_eos": True}
    assert client.post("/v1/chat/completions", json=body).json()["usage"]["completion_tokens"] == 22


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (dict(prompt="x", temprature=1), "temprature", "no setting"),
        (dict(prompt=3), "prompt", "a list of token ids"),
        (dict(prompt=[]), "prompt", "empty"),
        (dict(prompt=""), "prompt", "empty"),
        (dict(prompt=["a", ""]), "prompt", "empty"),
        (dict(), "prompt", "missing"),
        (dict(prompt=[1, VOCAB]), "prompt", "outside the vocabulary of 257"),
        (dict(prompt=[-1]), "prompt", "outside"),
        (dict(prompt=[1, "a"]), "prompt", "a list of token ids"),
        (dict(prompt="x", temperature=2.5), "temperature", "less than or equal to 2"),
        (dict(prompt="x", temperature="0.5"), "temperature", "valid number"),
        (dict(prompt="x", top_p=0), "top_p", "greater than 0"),
        (dict(prompt="x", max_tokens=0), "max_tokens", "only with echo"),
        (dict(prompt="x", max_tokens=65), "max_tokens", "serve.max_tokens"),
        (dict(prompt="x", max_tokens=True), "max_tokens", "integer"),
        (dict(prompt="x", n=0), "n", "greater than or equal to 1"),
        (dict(prompt="x", n=17), "n", "serve.max_concurrent"),
        (dict(prompt="x", logprobs=21), "logprobs", "less than or equal to 20"),
        (dict(prompt="x", best_of=2), "best_of", "not supported"),
        (dict(prompt="x", suffix="y"), "suffix", "not supported"),
        (dict(prompt="x", frequency_penalty=0.5), "frequency_penalty", "not supported"),
        (dict(prompt="x", logit_bias={"5": 3}), "logit_bias", "not supported"),
        (dict(prompt="x", stop=["a"] * 17), "stop", "at most 16"),
        (dict(prompt="x", stop=""), "stop", "empty"),
        (dict(prompt="x", seed=2**70), "seed", "less than"),
        (dict(prompt="x", stream_options={"include_usage": True}), "stream_options", "stream=true"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    client: TestClient, body: dict[str, Any], param: str, words: str
) -> None:
    error = refusal(client, **body)
    assert error["param"] == param and words in error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (dict(messages=[]), "messages"),
        (dict(messages=[{"role": "tool", "content": "x"}]), "messages"),
        (dict(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]), "messages"),
        (dict(messages=[{"role": "user", "content": "x"}], tools=[{}]), "tools"),
        (dict(messages=[{"role": "user", "content": "x"}], top_logprobs=3), "top_logprobs"),
        (dict(messages=[{"role": "user", "content": "x"}], response_format={"type": "json_object"}), "response_format"),
    ],
)
def test_so_it_is_in_a_chat(client: TestClient, body: dict[str, Any], param: str) -> None:
    assert refusal(client, "chat/completions", **body)["param"] == param


def test_settings_that_change_nothing_are_taken(client: TestClient) -> None:
    complete(client, prompt="x", user="somebody", best_of=1, frequency_penalty=0, stop=None, n=None, top_k=-1)


def test_a_context_that_is_too_long_has_its_own_code(client: TestClient) -> None:
    for body in (dict(prompt="x" * 101), dict(prompt="x" * 90, max_tokens=11)):
        error = refusal(client, **body)
        assert error["code"] == "context_length_exceeded" and "maximum context length is 100 tokens" in error["message"]


def test_another_model_is_not_found(client: TestClient) -> None:
    error = refusal(client, status=404, model="gpt-4", prompt="x")
    assert error["code"] == "model_not_found" and "'toy'" in error["message"]
    assert client.get("/v1/models/gpt-4").status_code == 404
    (model,) = client.get("/v1/models").json()["data"]
    assert model == client.get("/v1/models/toy").json() and model["id"] == "toy" and model["max_model_len"] == 100


def test_a_model_without_a_template_says_so_in_a_chat() -> None:
    with TestClient(build_app(ToyEngine(template=False), AppSettings()), base_url="http://127.0.0.1") as client:
        error = refusal(client, "chat/completions", messages=[{"role": "user", "content": "x"}])
        assert "no chat template" in error["message"]


def test_lists_that_are_no_prompt_and_halves_of_characters_are_told_so(client: TestClient) -> None:
    assert "more than 100" in refusal(client, prompt=[1] * 101)["message"]
    assert "more than 100" in refusal(client, prompt=[[1] * 101])["message"]
    reply = client.post(
        "/v1/completions",
        content=b'{"model": "toy", "prompt": "x", "\\ud800": 1}',
        headers={"Content-Type": "application/json"},
    )
    assert reply.status_code == 400 and reply.json()["error"]["type"] == "invalid_request_error"


def test_malformed_and_oversized_bodies_are_told_so(client: TestClient) -> None:
    def post(body: bytes, kind: str = "application/json") -> tuple[int, str]:
        reply = client.post("/v1/completions", content=body, headers={"Content-Type": kind})
        return reply.status_code, reply.json()["error"]["message"]

    assert post(b"{")[0] == 400 and post(b"\xff\xfe")[0] == 400 and post(b"[1]")[0] == 400
    assert "NaN" in post(b'{"model": "toy", "prompt": "x", "temperature": NaN}')[1]
    assert "nested" in post(b'{"a":' + b"[" * 40_000)[1]
    assert post(b"x" * 50_001)[0] == 413
    json_header = {"Content-Type": "application/json"}
    without_a_length = client.post("/v1/completions", content=iter([b"x" * 30_000] * 3), headers=json_header)
    assert without_a_length.status_code == 413
    # a foreign page may send bytes of no type without asking first
    assert client.post("/v1/completions", content=b'{"model": "toy", "prompt": "x"}').status_code == 415
    assert post(b'{"model": "toy", "prompt": "x"}', "text/plain")[0] == 415
    assert client.get("/v1/completions").status_code == 405 and client.get("/nowhere").status_code == 404
    assert client.get("/nowhere").json()["error"]["message"] == "there is nothing at /nowhere"


def test_a_bug_is_a_500_that_tells_nothing_of_the_request(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    error = refusal(client, status=500, prompt="BREAK 8831")
    assert error["type"] == "server_error" and "8831" not in error["message"]
    assert "ValueError" in caplog.text and "toy_engine.py" in caplog.text and "8831" not in caplog.text


def test_a_dead_engine_is_a_503_and_is_told() -> None:
    deaths: list[int] = []
    with TestClient(
        build_app(ToyEngine(), AppSettings(), lambda: deaths.append(1)), base_url="http://127.0.0.1"
    ) as client:
        assert client.get("/health").json()["status"] == "ok"
        reply = client.post("/v1/completions", json={"model": "toy", "prompt": "DIE", "max_tokens": 9})
        assert reply.status_code == 503 and reply.headers["retry-after"] and deaths
        assert client.get("/health").status_code == 503
        # in a stream it is the last event
    with TestClient(build_app(ToyEngine(), AppSettings()), base_url="http://127.0.0.1") as client:
        body = {"model": "toy", "prompt": "DIE", "max_tokens": 9, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "engine_died" and len(lines) == 3


def test_a_key_is_asked_for_where_there_is_one() -> None:
    with TestClient(
        build_app(ToyEngine(), AppSettings(key=fingerprint("s3cret"))), base_url="http://127.0.0.1"
    ) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            for reply in (
                client.get("/v1/models", headers=headers),
                client.post("/v1/completions", json={"model": "toy", "prompt": "x"}, headers=headers),
            ):
                assert reply.status_code == 401 and reply.json()["error"]["code"] == "invalid_api_key"
                assert reply.headers["www-authenticate"] == "Bearer"
        right = {"Authorization": "Bearer s3cret"}
        assert client.post("/v1/completions", json={"model": "toy", "prompt": "x"}, headers=right).status_code == 200
        assert client.get("/health").status_code == 200 and client.get("/").status_code == 200


def test_a_server_of_this_machine_answers_to_no_other_name() -> None:
    with TestClient(build_app(ToyEngine(), AppSettings(local=True)), base_url="http://127.0.0.1") as client:
        for host in ("evil.example:8000", "127.evil.example:8000", "127.0.0.1.example"):
            assert client.get("/v1/models", headers={"Host": host}).status_code == 403
        for host in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000"):
            assert client.get("/v1/models", headers={"Host": host}).status_code == 200
    with TestClient(build_app(ToyEngine(), AppSettings(local=False)), base_url="http://127.0.0.1") as client:
        assert client.get("/v1/models", headers={"Host": "teacher.example"}).status_code == 200


def test_the_toy_engine_is_what_it_says() -> None:
    """The reference of these tests, checked: sampled frequencies are the table's."""
    from raygpt.serve.requests import Request, Sampling

    async def draw() -> list[str]:
        engine = ToyEngine()
        texts = []
        for seed in range(3000):
            async for delta in engine.generate(Request((104,), Sampling(max_tokens=1, seed=seed))):
                texts.append(delta.text)
        return texts

    texts = asyncio.run(draw())
    best = chr(int(table()[104].argmax()))
    assert texts.count(best) / 3000 == pytest.approx(np.exp(table()[104].max()), abs=0.03)
