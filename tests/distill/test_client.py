"""The client against a real HTTP endpoint with every fault there is: what is asked again, parked, or ends the run."""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from raygpt.distill import client as client_module
from raygpt.distill import endpoints as endpoints_module
from raygpt.distill.answers import Answer, Parked, Question
from raygpt.distill.client import Asking, Client, Outcome, request_of
from raygpt.distill.endpoints import Endpoint as Known
from raygpt.distill.endpoints import Endpoints, choose_model, look
from raygpt.distill.limits import Pace, Spend, TokenPrice, most_prompt_tokens
from raygpt.errors import UserError
from raygpt.http import retry_after
from tests.distill.endpoint import Endpoint, Orders, answer_to

GREEDY = Asking("teacher", (), 64, 0.0, 1.0, concurrency=8, timeout_seconds=5.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of hundredths of a second."""
    monkeypatch.setattr(client_module, "backoff", lambda attempt: 0.01)
    monkeypatch.setattr(endpoints_module, "REST_SECONDS", 0.05)
    monkeypatch.setattr(endpoints_module, "TRIAL_SECONDS", 0.02)


def ask(asking: Asking, prompts: list[str | Question], key: str | None = None) -> list[Outcome]:
    async def run() -> list[Outcome]:
        async with Client(asking, key) as client:
            questions = [Question(each) if isinstance(each, str) else each for each in prompts]
            return await asyncio.gather(*(client.ask(each, each.key("g")) for each in questions))

    return asyncio.run(run())


def at(*endpoints: Endpoint, **more: Any) -> Asking:
    return replace(GREEDY, endpoints=tuple(each.url for each in endpoints), **more)


def test_completions_and_conversations_are_answered() -> None:
    with Endpoint() as endpoint:
        chat = Question(None, (("system", "s"), ("user", "Hello")), sample=3)
        one, other = ask(at(endpoint), ["Once upon", chat])
    key = Question("Once upon").key("g")
    assert one.result == Answer(key, Question("Once upon"), answer_to("Once upon"), "stop", 2, 12)
    assert isinstance(other.result, Answer) and other.result.text == answer_to("Hello")
    assert one.attempts == other.attempts == 1


def test_greedy_asks_for_no_seed_and_sampling_for_one_that_follows_from_the_key() -> None:
    question = Question("p", sample=1)
    key = question.key("g")
    assert request_of(GREEDY, question, key)[1] == {
        "model": "teacher",
        "max_tokens": 64,
        "temperature": 0.0,
        "prompt": "p",
    }
    drawn = replace(GREEDY, temperature=0.7, top_p=0.9, stop=("\n",))
    seeds = {request_of(drawn, Question("p", sample=n), Question("p", sample=n).key("g"))[1]["seed"] for n in range(5)}
    body = request_of(drawn, question, key)[1]
    assert len(seeds) == 5 and body["seed"] == int(key[:8], 16) & 0x7FFFFFFF and body["stop"] == ["\n"]
    with Endpoint() as endpoint:
        (one,) = ask(at(endpoint, temperature=0.7), [question])
    assert isinstance(one.result, Answer) and one.result.text == answer_to("p", body["seed"])


@pytest.mark.parametrize(
    "fault", ["500", "drop", "half", "garbage", "fields", "empty", "model", "429", "503", "timeout"]
)
def test_a_fault_is_followed_by_the_right_answer(fault: str) -> None:
    timeout = 0.3 if fault == "timeout" else 5.0
    with Endpoint(Orders(faults=(fault,), share=1.0, most_faults=2)) as endpoint:
        outcomes = ask(at(endpoint, timeout_seconds=timeout), [f"p{n}" for n in range(2)])
        assert endpoint.teacher.faulted[fault] == 4 and set(endpoint.teacher.answered.values()) == {1}
    for n, outcome in enumerate(outcomes):
        assert isinstance(outcome.result, Answer) and outcome.result.text == answer_to(f"p{n}")
        assert outcome.attempts == 3


def test_faults_that_do_not_end_park_the_prompt_with_the_last_reason() -> None:
    with Endpoint(Orders(faults=("garbage",), share=1.0, most_faults=99)) as endpoint:
        (outcome,) = ask(at(endpoint, retries=2), ["p"])
        assert endpoint.teacher.requests == 3
    assert isinstance(outcome.result, Parked)
    assert outcome.result.reason == "no answer in 3 tries, at last: the answer is not JSON"


def test_what_has_no_answer_is_parked_at_once() -> None:
    with Endpoint(Orders(refuse_words=3)) as endpoint:
        outcomes = ask(at(endpoint), ["short", "much too long a prompt"])
        assert endpoint.teacher.requests == 2
    assert isinstance(outcomes[0].result, Answer) and isinstance(outcomes[1].result, Parked)
    assert "400: maximum context length is 3 context_length_exceeded" in outcomes[1].result.reason
    with Endpoint(Orders(faults=("filter",), share=1.0)) as endpoint:
        (outcome,) = ask(at(endpoint), ["p"])
    assert isinstance(outcome.result, Parked) and "own filter" in outcome.result.reason
    assert outcome.wasted_answer_tokens == 12  # the endpoint counted them, and bills them


def test_a_busy_endpoint_is_left_alone_for_as_long_as_it_says() -> None:
    with Endpoint(Orders(faults=("429",), share=1.0, most_faults=1, retry_after="0.4")) as endpoint:
        began = time.monotonic()
        (outcome,) = ask(at(endpoint, retries=0), ["p"])  # being told to wait counts no try
        assert 0.4 <= time.monotonic() - began < 3
    assert isinstance(outcome.result, Answer) and outcome.attempts == 2


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after("7") == 7.0 and retry_after(None) is retry_after("soon") is None
    later = retry_after(email.utils.formatdate(time.time() + 30, usegmt=True))
    assert later is not None and 28 <= later <= 30
    assert retry_after(email.utils.formatdate(time.time() - 30, usegmt=True)) == 0.0


def test_another_endpoint_takes_over_and_a_dead_one_is_remembered() -> None:
    with Endpoint() as dead:
        pass
    with Endpoint() as live:
        outcomes = ask(at(dead, live, concurrency=2, retries=0), [f"p{n}" for n in range(50)])
        assert live.teacher.requests == 50
    assert all(isinstance(outcome.result, Answer) for outcome in outcomes)
    assert sum(outcome.attempts for outcome in outcomes) < 100


def test_an_endpoint_that_comes_back_is_waited_for() -> None:
    with Endpoint() as first:
        port = first.port

    async def run() -> Outcome:
        async with Client(at(first, retries=0), None) as client:
            asking = asyncio.create_task(client.ask(Question("p"), Question("p").key("g")))
            await asyncio.sleep(0.5)
            assert not asking.done()
            with Endpoint(port=port):
                return await asking

    assert isinstance(asyncio.run(run()).result, Answer)


def test_endpoints_that_stay_away_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "DOWN_SECONDS", 0.3)
    with Endpoint() as gone:
        pass
    with pytest.raises(UserError, match=r"none has answered for .*cannot be reached.*what was answered is kept"):
        ask(at(gone, timeout_seconds=0.2), ["p"])  # twice as long is no silence yet


@pytest.mark.parametrize(
    ("orders", "more", "said"),
    [
        (Orders(api_key="sesame"), {}, "wants a key .HTTP 401.: set teacher.api_key_env"),
        (Orders(model="other"), {}, "answers 404 for teacher.model=teacher"),
    ],
)
def test_what_no_prompt_gets_past_ends_the_run_at_once(orders: Orders, more: dict[str, Any], said: str) -> None:
    with Endpoint(orders) as endpoint:
        with pytest.raises(UserError, match=said):
            ask(at(endpoint, **more), ["p"])
        assert endpoint.teacher.requests <= 1


def test_a_refused_key_is_never_repeated() -> None:
    with Endpoint(Orders(api_key="sesame")) as endpoint:
        with pytest.raises(UserError) as told:
            ask(at(endpoint), ["p"], key="open-up-4711")
        assert "refuses the key" in str(told.value) and "4711" not in str(told.value)
        (outcome,) = ask(at(endpoint), ["p"], key="sesame")
    assert isinstance(outcome.result, Answer)


def test_models_and_contexts_are_looked_at() -> None:
    with Endpoint(Orders(max_model_len=100)) as first, Endpoint(Orders(max_model_len=80)) as second:
        served, silent = asyncio.run(look([first.url, second.url, "http://127.0.0.1:9/v1"], None))
        assert len(served) == 2 and len(silent) == 1 and "127.0.0.1:9" in silent[0]
        assert choose_model("teacher", served) == choose_model(None, served) == ("teacher", 80)
        with pytest.raises(UserError, match=r"teacher.model=llama: .* does not have it \(it has teacher\)"):
            choose_model("llama", served)
        with pytest.raises(UserError, match="does not answer"):
            asyncio.run(look(["http://127.0.0.1:9/v1"], None))


def test_the_least_busy_endpoint_is_next_and_a_failing_one_is_tried_alone() -> None:
    now = [0.0]
    endpoints = Endpoints(["http://a/v1", "http://b/v1"], clock=lambda: now[0])
    first, second = endpoints.all
    first.under_way = 3
    assert endpoints.choose() == (second, 0.0) and endpoints.choose(but=second) == (first, 0.0)
    second.failed()
    assert endpoints.choose(but=first) == (first, 0.0)
    now[0] = 1.0
    assert endpoints.choose() == (second, 0.0)
    second.under_way = 1  # the trial
    assert endpoints.choose() == (first, 0.0)
    second.answered()
    assert endpoints.choose() == (second, 0.0)
    # rests grow with failures in a row, and a run of faults is one
    rests = []
    for _ in range(8):
        now[0] += 1000
        for _ in range(endpoints_module.STUMBLES):
            first.stumbled()
        first.under_way = 0
        rests.append(first.wait)
    assert rests == sorted(rests) and rests[0] < rests[-1] <= endpoints_module.LONGEST_REST


def test_answers_that_were_under_way_do_not_end_the_rest_that_an_endpoint_asked_for() -> None:
    now = [0.0]
    (endpoint,) = Endpoints(["http://a/v1"], clock=lambda: now[0]).all
    endpoint.throttled(60.0)
    endpoint.answered()
    assert endpoint.wait == 60.0
    now[0] = 60.0
    assert endpoint.wait == 0.0
    endpoint.failed()
    endpoint.answered()
    assert endpoint.wait == 0.0


def test_a_used_up_account_ends_the_run_however_long_its_words() -> None:
    with (
        Endpoint(Orders(faults=("used up",), share=1.0)) as endpoint,
        pytest.raises(UserError, match="account is used up"),
    ):
        ask(at(endpoint), ["x"])


def test_a_pace_lets_through_what_it_says() -> None:
    now = [0.0]
    pace = Pace(50.0, burst=0.1, clock=lambda: now[0])
    for _ in range(500):
        now[0] += pace.take()
    assert 500 / 50 - 0.2 <= now[0] <= 500 / 50
    tokens = Pace(1000.0, burst=0.0, clock=lambda: now[0])
    tokens.take(500)
    tokens.give_back(400)
    assert tokens.take(1) == pytest.approx(0.1)
    assert Pace(None).take(1e9) == 0.0


def test_requests_keep_their_rate_at_the_endpoint() -> None:
    with Endpoint() as endpoint:
        ask(at(endpoint, rate=40.0), [f"p{n}" for n in range(40)])
        times = endpoint.teacher.times
    assert times[-1] - times[0] >= 0.7 and len(times) == 40


def test_a_limit_holds_with_what_is_under_way() -> None:
    async def run() -> tuple[int, Spend]:
        spend, asked = Spend(TokenPrice(1.0, 10.0), limit=1e-3), 0

        async def one() -> None:
            nonlocal asked
            while await spend.reserve(spend.most(Question("abcdefgh"), 10)):  # 8 + 100 millionths at most
                asked += 1
                await asyncio.sleep(0)
                assert spend.spent + spend.under_way <= 1e-3
                spend.settle(spend.most(Question("abcdefgh"), 10), 52e-6)

        await asyncio.gather(*(one() for _ in range(20)))
        return asked, spend

    asked, spend = asyncio.run(run())
    # 17 of 52 millionths each: after them 108 would not fit any more
    assert asked == 18 and spend.spent <= 1e-3 and spend.spent + 108e-6 > 1e-3 and spend.under_way == 0


def test_no_tokenizer_makes_more_of_a_prompt_than_its_bytes() -> None:
    assert most_prompt_tokens(Question("äöü")) == 6
    assert most_prompt_tokens(Question(None, (("system", "ab"), ("user", "cd")))) == 4 + 2 * 32


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield


def test_a_proxy_of_the_environment_is_used_but_not_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    assert Known("https://api.example.com/v1").proxy == "http://proxy:3128"
    assert Known("https://127.0.0.1:8000/v1").proxy is None
