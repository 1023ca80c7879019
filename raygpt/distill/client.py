"""Asks a teacher through the OpenAI protocol until a question is answered, or is known to have no answer.

| what comes back | what it means |
|---|---|
| an answer in the protocol's form | answered |
| 400, 413, 422; an answer held back by the teacher's own filter | this question has no answer: parked at once |
| 500, a time-out, a broken connection, anything that is no answer | asked again up to `retries` times, then parked |
| 429, 503, no connection | the endpoint rests (Retry-After, else longer each time); no try is counted |
| 401, 403, 404, a used-up account | UserError: nothing else will be answered either |

Streaming stays off: it costs Ray Serve a tenth of its tokens a second under load and brings nothing to a file.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from raygpt.distill.answers import Answer, Parked, Question
from raygpt.distill.endpoints import Endpoint, Endpoints, refused
from raygpt.distill.limits import Pace, most_prompt_tokens
from raygpt.errors import UserError, one_line
from raygpt.http import LONGEST_RETRY_AFTER, backoff, retry_after, said

DOWN_SECONDS = 600.0  # a replica of a large model takes minutes to start: endpoints silent for longer are gone


@dataclass(frozen=True)
class Asking:
    """How a teacher is asked. `rate` and `tokens_per_minute` are this client's own share of the limits."""

    model: str
    endpoints: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...] = ()
    concurrency: int = 64
    timeout_seconds: float = 300.0
    retries: int = 6
    rate: float | None = None
    tokens_per_minute: float | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """What decides how answers are drawn, as it goes into a generation's name."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p if self.temperature else 1.0,
            "stop": list(self.stop),
        }


@dataclass(frozen=True)
class Outcome:
    """What became of a question: an answer or the reason for none; how often it was asked; tokens of replies that were
    of no use; requests that may have been answered without our seeing it."""

    result: Answer | Parked
    attempts: int
    wasted_prompt_tokens: int = 0
    wasted_answer_tokens: int = 0
    lost: int = 0


class Stopped(Exception):
    """The run stops: this question is left for the next one."""


class _Again(Exception):
    """Not answered, and worth asking again. `fault` says whose it may be: the endpoint's alone (gone, busy), which
    counts no try, or anybody's; `lost`: it may have been answered without our seeing it."""

    def __init__(self, why: str, fault: str = "any", *, after: float | None = None, lost: bool = False) -> None:
        super().__init__(why)
        self.fault, self.after, self.lost = fault, after, lost


class _Never(Exception):
    """Not answered, and never will be."""


class Client:
    """Use as `async with`; `ask` from as many tasks as there is `concurrency`. `close_soon` ends all waiting."""

    def __init__(self, asking: Asking, api_key: str | None) -> None:
        self.asking = asking
        self.endpoints = Endpoints(asking.endpoints)
        self._api_key = api_key
        self._requests = Pace(asking.rate)
        self._tokens = Pace(None if asking.tokens_per_minute is None else asking.tokens_per_minute / 60)
        self._closing = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None
        self._heard = time.monotonic()  # when an endpoint last answered anything at all

    async def __aenter__(self) -> Client:
        headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self.asking.concurrency, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=self.asking.timeout_seconds, sock_connect=30),
            headers={"Content-Type": "application/json", **headers},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    def close_soon(self) -> None:
        """Requests under way go on; whoever waits to ask raises Stopped."""
        self._closing.set()

    async def ask(self, question: Question, key: str) -> Outcome:
        """Raises UserError where no question can be answered any more, Stopped after `close_soon`."""
        path, body = request_of(self.asking, question, key)
        data = json.dumps(body).encode()
        most = most_prompt_tokens(question) + self.asking.max_new_tokens
        tries = attempts = lost = 0
        wasted = [0, 0]
        last: Endpoint | None = None
        while True:
            endpoint = await self._paced(last, most)
            attempts += 1
            used = 0
            try:
                reply = await self._post(endpoint, path, data)
                answer, usage = read_reply(reply, question, key, self.asking.model)
                used = sum(usage)
                if isinstance(answer, Answer):
                    endpoint.answered()
                    return Outcome(answer, attempts, wasted[0], wasted[1], lost)
                wasted = [wasted[0] + usage[0], wasted[1] + usage[1]]
                raise answer
            except _Never as error:
                endpoint.answered()
                return Outcome(Parked(key, question, str(error)), attempts, wasted[0], wasted[1], lost)
            except _Again as error:
                lost += error.lost
                last = endpoint
                # what was told to wait has been heard of until then
                rest = min(error.after or 0.0, LONGEST_RETRY_AFTER)
                self._heard = max(self._heard, time.monotonic() + rest) if rest else self._heard
                if error.fault == "busy":
                    endpoint.throttled(error.after)
                    continue
                if error.fault == "gone":
                    endpoint.failed(error.after)
                    self._check_alive(str(error))
                    continue
                endpoint.stumbled()
                self._check_alive(str(error))
                tries += 1
                if tries > self.asking.retries:
                    reason = f"no answer in {tries} tries, at last: {error}"
                    return Outcome(Parked(key, question, reason), attempts, wasted[0], wasted[1], lost)
                await self._pause(backoff(tries))
            finally:
                self._tokens.give_back(most - used)

    async def _paced(self, last: Endpoint | None, tokens: int) -> Endpoint:
        """An endpoint, at its turn: whoever waits for one that rests holds no turn, else all would come at once."""
        while True:
            endpoint = await self._awake(last)
            wait = max(self._requests.take(), self._tokens.take(tokens))
            await self._pause(wait)
            if wait == 0 or endpoint.wait == 0:
                return endpoint
            self._requests.give_back(1)
            self._tokens.give_back(tokens)

    async def _awake(self, last: Endpoint | None) -> Endpoint:
        while True:
            endpoint, wait = self.endpoints.choose(last)
            if wait == 0:
                return endpoint
            await self._pause(wait + backoff(0))  # not all at once when it wakes

    async def _post(self, endpoint: Endpoint, path: str, data: bytes) -> Any:
        """The reply's JSON. Raises _Again, _Never, UserError by its status."""
        assert self._session is not None
        if self._closing.is_set():
            raise Stopped
        endpoint.under_way += 1
        try:
            async with self._session.post(f"{endpoint.url}/{path}", data=data, proxy=endpoint.proxy) as reply:
                status, text = reply.status, await reply.read()
                after = retry_after(reply.headers.get("Retry-After"))
        except aiohttp.ClientConnectorError as error:
            raise _Again(f"{endpoint.url} cannot be reached ({one_line(error, 120)})", "gone") from error
        except TimeoutError as error:
            raise _Again(
                f"no answer within generate.timeout_seconds={self.asking.timeout_seconds:g}", lost=True
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Again(f"the connection broke ({one_line(error, 120) or type(error).__name__})", lost=True) from error
        finally:
            endpoint.under_way -= 1
        if status == 200:
            self._heard = time.monotonic()
            try:
                return json.loads(text)
            except ValueError as error:
                raise _Again("the answer is not JSON", lost=True) from error
        words = said(text)
        if status in (401, 403):
            raise refused(endpoint.url, status, self._api_key is not None)
        if status == 404:
            raise UserError(f"{endpoint.url}/{path} answers 404 for teacher.model={self.asking.model}: {words}.")
        if status == 429:
            if b"insufficient_quota" in text:
                raise UserError(f"{endpoint.url}: the account is used up: {words}.")
            self._heard = time.monotonic()
            raise _Again(f"429: {words}", "busy", after=after)
        if status in (400, 413, 422):
            self._heard = time.monotonic()
            raise _Never(f"{status}: {words}")
        if status == 503:
            raise _Again(f"503: {words}", "gone", after=after)
        raise _Again(f"{status}: {words}", after=after)

    def _check_alive(self, why: str) -> None:
        silent = max(DOWN_SECONDS, 2 * self.asking.timeout_seconds)
        if time.monotonic() - self._heard > silent:
            raise UserError(
                f"teacher.endpoints: none has answered for {silent / 60:.0f} minutes ({why}): start the teacher "
                "again and give this command again; what was answered is kept."
            )

    async def _pause(self, seconds: float) -> None:
        if self._closing.is_set():
            raise Stopped
        if seconds <= 0:
            return
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except TimeoutError:
            return
        raise Stopped


def request_of(asking: Asking, question: Question, key: str) -> tuple[str, dict[str, Any]]:
    """(path, body) of a request. The seed follows from the key, which holds generate.seed, so that an answer does not
    hang on when or by whom it is asked for."""
    body: dict[str, Any] = {"model": asking.model, "max_tokens": asking.max_new_tokens}
    body["temperature"] = asking.temperature
    if asking.temperature > 0:
        body |= {"top_p": asking.top_p, "seed": int(key[:8], 16) & 0x7FFFFFFF}
    if asking.stop:
        body["stop"] = list(asking.stop)
    if question.prompt is not None:
        return "completions", {**body, "prompt": question.prompt}
    messages = [{"role": role, "content": content} for role, content in question.messages]
    return "chat/completions", {**body, "messages": messages}


def read_reply(reply: Any, question: Question, key: str, model: str) -> tuple[Answer | Exception, tuple[int, int]]:
    """(the answer or what is wrong, (prompt tokens, answer tokens) as far as the reply says them)."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    counts = [
        usage.get(name) if isinstance(usage, Mapping) else None for name in ("prompt_tokens", "completion_tokens")
    ]
    used = tuple(count if isinstance(count, int) and count >= 0 else 0 for count in counts)
    pair = (used[0], used[1])
    try:
        choice = reply["choices"][0]
        text = choice["text"] if question.prompt is not None else choice["message"]["content"]
        finish = choice["finish_reason"]
    except (KeyError, IndexError, TypeError):
        return _Again("the answer is not in the protocol's form"), pair
    if finish == "content_filter":
        return _Never("the teacher's own filter held the answer back"), pair
    if not isinstance(text, str) or finish not in ("stop", "length") or any(not isinstance(n, int) for n in counts):
        return _Again("the answer lacks its text, its end or its count of tokens"), pair
    named = reply.get("model")
    # a dated snapshot answers to its plain name
    if isinstance(named, str) and named != model and not named.startswith(f"{model}-"):
        return _Again(f"the answer is of another model, {named[:80]!r}"), pair
    return Answer(key, question, text, finish, *pair), pair
