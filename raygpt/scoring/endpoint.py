"""PURE but for aiohttp. A model behind an OpenAI endpoint, scored by the log-probabilities that it gives to a prompt.

A request is a prompt to /v1/completions with `echo`, `logprobs` and no new token (`max_tokens` 0), or one where the
endpoint wants one, whose log-probability is left out: what lm-evaluation-harness's `local-completions` sends. With the
model's tokenizer a prompt is token ids and everything is what `ModelScorer` computes, long texts cut into windows
too; without, or where the endpoint takes no ids, it is text: the context's tokens are counted by asking for it alone,
nothing is cut, and long texts cannot be had.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
import numpy as np

from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError, one_line
from raygpt.http import LONGEST_RETRY_AFTER, backoff, listed_models, proxy_for, retry_after, said
from raygpt.scoring.encoding import beginning, encode, split
from raygpt.scoring.questions import Question, Scored
from raygpt.scoring.rolling import Windows

DOWN_SECONDS = 600.0  # a replica of a large model takes minutes to start: an endpoint silent for longer is gone
PROBE = "The quick brown fox"
AT_ONCE = 8  # requests under way for each of `concurrency` before their answers are looked at

Prompt = str | list[int]


@dataclass(frozen=True)
class Echo:
    """What an endpoint says of a prompt's tokens: their texts, ln p of each (None: nothing predicts it), and ln p of
    the likeliest token at each place."""

    text: str
    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]
    best: tuple[float | None, ...]

    def scored(self, first: int) -> Scored:
        """The tokens from `first` on; each has something before it."""
        logprobs = [value for value in self.logprobs[first:] if value is not None]
        greedy = all(one == best for one, best in zip(self.logprobs[first:], self.best[first:]))
        return Scored(float(np.sum(logprobs, dtype=np.float64)), len(self.tokens) - first, greedy)


class _Again(Exception):
    """Worth asking again: `counted` among the tries unless the endpoint is only busy or not there yet."""

    def __init__(self, why: str, *, counted: bool = True, after: float | None = None) -> None:
        super().__init__(why)
        self.counted, self.after = counted, after


class Refused(Exception):
    """The endpoint will not answer this request (400, 413, 422)."""


class EndpointScorer:
    """A `Scorer`, and the `RowLosses` of long texts, over one endpoint; `concurrency` requests under way at a time.

    `url` ends in /v1. `model` may be left out where the endpoint has one. `api_key_env` names the variable that holds
    the key. `context` is the most tokens of a prompt; without, what the endpoint says of itself. It reads the last
    token as well, which a model of this process need not, and so looks back a token less far where a question is cut.
    Asks the endpoint at once what it can do, and raises UserError where it gives no log-probabilities of a prompt, or
    its tokens are not the tokenizer's.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api_key_env: str | None = None,
        tokenizer: Tokenizer | None = None,
        context: int | None = None,
        concurrency: int = 16,
        timeout_seconds: float = 300.0,
        retries: int = 6,
    ) -> None:
        self.url = url.rstrip("/")
        self._proxy = proxy_for(self.url)
        self._key = _key(api_key_env)
        self._tokenizer = tokenizer
        self._concurrency, self._timeout, self._retries = concurrency, timeout_seconds, retries
        self._heard = time.monotonic()
        self._new_tokens = 0
        asyncio.run(self._connect(model, context))

    async def _connect(self, model: str | None, context: int | None) -> None:
        async with self._session() as session:
            self.name, length = await self._look(session, model)
            text = await self._probe(session)
            if self._tokenizer is not None:
                await self._probe_ids(session, self._tokenizer, text)
        if context is None and length is None:
            raise UserError(f"{self.url} does not say how long its context is: set data.seq_len to it.")
        most = context if length is None else min(context or length, length)
        assert most is not None
        self.context = most - self._new_tokens
        self.bos: str | None = None  # unknown where it is asked by text
        if (reads := self._tokenizer) is not None:
            self.bos = "".join(str(reads.backend.id_to_token(token)) for token in beginning(reads)) or None

    # --- Scorer -----------------------------------------------------------------------------------------------

    def ask(self, questions: Sequence[Question]) -> list[tuple[Scored, ...]]:
        """As `Scorer.ask`. Raises UserError for what the endpoint refuses, such as a text beyond its context."""
        answer = self._ask_ids if self._tokenizer is not None else self._ask_text
        return asyncio.run(self._all([partial(answer, question) for question in questions]))

    async def _ask_ids(self, question: Question, session: aiohttp.ClientSession) -> tuple[Scored, ...]:
        assert self._tokenizer is not None
        found = []
        for continuation in question.continuations:
            before, after = encode(self._tokenizer, question, continuation)
            if not after:
                raise UserError(f"question {question.id}: a continuation has no tokens of its own: leave it out.")
            if len(after) >= self.context:
                raise UserError(
                    f"question {question.id}: a continuation of {len(after):,} tokens does not fit into the "
                    f"{self.context:,} of {self.url}: leave it out."
                )
            row = (before + after)[-self.context :]
            found.append((await self._echo(row, session)).scored(len(row) - len(after)))
        return tuple(found)

    async def _ask_text(self, question: Question, session: aiohttp.ClientSession) -> tuple[Scored, ...]:
        context, _ = split(question)
        if not context:
            raise UserError(f"question {question.id} has an empty context: {_WANTS_TOKENIZER}")
        alone = (await self._echo(context, session)).tokens
        found = []
        for continuation in question.continuations:
            echo = await self._echo(question.context + continuation, session)
            if question.joining == "apart" and echo.tokens[: len(alone)] != alone:
                raise UserError(
                    f"question {question.id}: context and continuation share a token, but are asked for apart: "
                    f"{_WANTS_TOKENIZER}"
                )
            found.append(echo.scored(len(alone)))
        return tuple(found)

    # --- RowLosses --------------------------------------------------------------------------------------------

    def check(self, windows: Windows, largest: int) -> None:
        if self._tokenizer is None:
            raise UserError(f"{self.url} is asked by text, and long texts are cut by tokens: {_WANTS_TOKENIZER}")
        if windows.row > self.context:
            raise UserError(
                f"windows of {windows.row:,} tokens are more than the {self.context:,} that {self.url} reads at once: "
                f"ask for a context of {windows.context - windows.row + self.context:,} at most."
            )

    def losses(self, rows: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        step = AT_ONCE * self._concurrency
        for begin in range(0, len(rows), step):
            some = [row.tolist() for row in rows[begin : begin + step]]
            echoes = asyncio.run(self._all([partial(self._echo, row) for row in some]))
            for n, echo in enumerate(echoes, begin):
                yield n, -np.array(echo.logprobs[1:], np.float32)

    # --- requests ---------------------------------------------------------------------------------------------

    def _session(self) -> aiohttp.ClientSession:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._concurrency, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=30),
            headers={"Content-Type": "application/json", **headers},
        )

    async def _all(self, works: Sequence[Callable[[aiohttp.ClientSession], Any]]) -> list[Any]:
        """What each brings, in their order; the first that fails ends the others."""
        gate = asyncio.Semaphore(self._concurrency)
        self._heard = time.monotonic()  # nothing was asked since it was heard of last
        async with self._session() as session:

            async def one(work: Callable[[aiohttp.ClientSession], Any]) -> Any:
                async with gate:
                    return await work(session)

            tasks = [asyncio.create_task(one(work)) for work in works]
            try:
                return await asyncio.gather(*tasks)
            except Refused as error:
                raise UserError(f"{self.url} refuses a prompt ({error}): shorten it, or leave it out.") from error
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _echo(self, prompt: Prompt, session: aiohttp.ClientSession) -> Echo:
        """Raises Refused, UserError."""
        body = {
            "model": self.name,
            "prompt": prompt,
            "max_tokens": self._new_tokens,
            "echo": True,
            "logprobs": 1,
            "temperature": 0,
        }
        data = json.dumps(body).encode()
        tries = 0
        while True:
            try:
                return read_echo(await self._send(session, "POST", "completions", data), prompt, self._new_tokens)
            except _Again as error:
                tries += error.counted
                silent = time.monotonic() - self._heard
                if tries > self._retries or silent > max(DOWN_SECONDS, 2 * self._timeout):
                    raise UserError(
                        f"{self.url} has not answered in {max(tries, 1)} tries and {silent:.0f} seconds ({error}): see "
                        "to it, and give this command again."
                    ) from error
                wait = min(error.after or 0.0, LONGEST_RETRY_AFTER)
                self._heard = max(self._heard, time.monotonic() + wait) if wait else self._heard
                await asyncio.sleep(wait + backoff(tries + 1))
            except NoLogprobs as error:
                raise UserError(
                    f"{self.url} gives no log-probabilities of a prompt ({error}): name an endpoint that does, such as "
                    "`raygpt serve` or vLLM's /v1/completions, or evaluate the model itself."
                ) from error

    async def _send(self, session: aiohttp.ClientSession, method: str, path: str, data: bytes | None) -> Any:
        """The reply's JSON. Raises _Again, Refused, UserError."""
        url = f"{self.url}/{path}"
        try:
            async with session.request(method, url, data=data, proxy=self._proxy) as reply:
                status, text = reply.status, await reply.read()
                after = retry_after(reply.headers.get("Retry-After"))
        except aiohttp.InvalidURL as error:
            raise UserError(f"{self.url} is no URL: give one such as http://127.0.0.1:8000/v1.") from error
        except aiohttp.ClientConnectorError as error:
            raise _Again(f"it cannot be reached ({one_line(error, 120)})", counted=False) from error
        except TimeoutError as error:
            raise _Again(f"no answer within {self._timeout:g} seconds") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Again(f"the connection broke ({one_line(error, 120)})") from error
        if status in (401, 403):
            # without the endpoint's own words: some repeat the key
            if self._key:
                raise UserError(f"{self.url} refuses the key (HTTP {status}): check the variable it is read from.")
            raise UserError(f"{self.url} wants a key (HTTP {status}): name the variable that holds it.")
        if status != 503:
            self._heard = max(self._heard, time.monotonic())
        if status == 200:
            try:
                return json.loads(text)
            except ValueError as error:
                raise _Again("the answer is not JSON") from error
        # some endpoints repeat the key; taken out before the words are cut short
        words = said(text.replace(self._key.encode(), b"...") if self._key else text)
        if status == 404:
            raise UserError(f"{url} answers 404 ({words}): mend the URL, which ends in /v1, or the model's name.")
        if status in (400, 413, 422):
            raise Refused(words)
        if status == 429 and b"insufficient_quota" in text:
            raise UserError(f"{self.url}: the account is used up: {words}.")
        raise _Again(f"{status}: {words}", counted=status not in (429, 503), after=after)

    # --- what it can do ---------------------------------------------------------------------------------------

    async def _look(self, session: aiohttp.ClientSession, model: str | None) -> tuple[str, int | None]:
        """(model, its context where the endpoint says it)."""
        try:
            models: Mapping[str, int | None] = listed_models(await self._send(session, "GET", "models", None))
        except (_Again, Refused, ValueError) as error:
            if model is None or isinstance(error, _Again):
                raise UserError(
                    f"{self.url} does not say which models it has ({one_line(error)}): start it, mend the URL (it ends "
                    "in /v1), or name its model."
                ) from error
            return model, None
        if model is None and len(models) == 1:
            model = next(iter(models))
        if model is None or model not in models:
            has = ", ".join(sorted(models)[:10])
            raise UserError(f"{self.url} has {has}{f', not {model}' if model else ''}: name one of them.")
        return model, models[model]

    async def _probe(self, session: aiohttp.ClientSession) -> Echo:
        """Finds out whether prompts are scored, without new tokens or with one."""
        for self._new_tokens in (0, 1):
            try:
                return await self._echo(PROBE, session)
            except Refused as error:
                why = error
        raise UserError(
            f"{self.url} gives no log-probabilities of a prompt (it answers: {why}): name an endpoint that does, such "
            "as `raygpt serve` or vLLM's /v1/completions, or evaluate the model itself."
        )

    async def _probe_ids(self, session: aiohttp.ClientSession, tokenizer: Tokenizer, text: Echo) -> None:
        """Finds out whether token ids are taken, and mean the same there."""
        ids = tokenizer.encode(PROBE).tolist()
        try:
            echo = await self._echo(ids, session)
        except Refused:
            self._tokenizer = None
            return
        # a beginning-of-text token may stand before the text
        if not echo.text.startswith(PROBE) or echo.tokens != text.tokens[-len(ids) :]:
            raise UserError(
                f"{self.url} reads other tokens than tokenizer {tokenizer.name} writes: name the model's own tokenizer."
            )


_WANTS_TOKENIZER = "give the model's tokenizer, and an endpoint that takes token ids (`raygpt serve`, vLLM)."


class NoLogprobs(Exception):
    """An answer without log-probabilities of the prompt."""


def read_echo(reply: Any, prompt: Prompt, new_tokens: int) -> Echo:
    """The prompt's tokens in a reply, without those that were written. Raises NoLogprobs, _Again for what is no
    answer."""
    try:
        choice = reply["choices"][0]
        text, logprobs = choice["text"], choice.get("logprobs")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _Again("the answer is not in the protocol's form") from error
    if not isinstance(logprobs, dict) or not isinstance(logprobs.get("token_logprobs"), list):
        raise NoLogprobs("the answer has none")
    tokens, tops, values = logprobs.get("tokens"), logprobs.get("top_logprobs"), logprobs["token_logprobs"]
    if not isinstance(tokens, list) or not isinstance(tops, list) or not len(tokens) == len(tops) == len(values):
        raise NoLogprobs("the answer has no tokens or no alternatives beside them")
    usage = reply.get("usage")
    counted = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if not isinstance(prompt, str):
        counted = len(prompt)
    count = counted if isinstance(counted, int) else len(values) - new_tokens
    if len(values) < max(count, 1) or any(value is None for value in values[1:count]):
        raise NoLogprobs("the answer has those of new tokens alone")
    if not all(isinstance(value, int | float) and value == value for value in values[1:count]):
        raise NoLogprobs("the answer has something that is no number among them")
    best = [max(top.values()) if top else None for top in tops[:count]]
    return Echo(str(text), tuple(map(str, tokens[:count])), tuple(values[:count]), tuple(best))


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"the variable {variable}, which is to hold an endpoint's key, is not set: set it.")
    if not key.isascii() or not key.isprintable():
        raise UserError(f"the variable {variable} holds what no HTTP header can: set it to the key alone.")
    return key
