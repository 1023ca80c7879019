"""A quick, deterministic engine: a bigram model over bytes, whose every probability can be worked out by hand.

`logits[a]` are a fixed random table, so that the distribution after a token hangs on that token alone. Some prompts
make it fail: a prompt that begins with DIE ends the engine, one that begins with BREAK makes a bug.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence

import numpy as np

from raygpt.errors import UserError
from raygpt.serve.requests import Delta, EngineDied, EngineStats, Request, TokenLogprob

EOS = 256
VOCAB = 257
WRITES = [*range(97, 123), 32, EOS]  # small letters, a space, the end


def table() -> np.ndarray:
    """(VOCAB, VOCAB) float64 log-probabilities of the token after each token."""
    logits = np.full((VOCAB, VOCAB), -30.0)
    logits[:, WRITES] = np.random.default_rng(5).normal(0, 2, (VOCAB, len(WRITES)))
    logits[:, EOS] -= 4
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


class ToyEngine:
    """`seconds` pass per token of an answer; at most `slots` answers are written at once, the rest wait."""

    def __init__(
        self, seconds: float = 0.0, *, slots: int = 8, max_model_len: int = 512, template: bool = True
    ) -> None:
        self.seconds, self._slots, self._max, self._template = seconds, slots, max_model_len, template
        self._gate: asyncio.Semaphore | None = None
        self._dead = False
        self._stats = EngineStats()
        self._table = table()
        self._greedy = self._table.argmax(1)
        self.cancelled = 0
        self.closed = False

    name = "toy"
    vocab_size = VOCAB
    eos_ids = frozenset({EOS})

    @property
    def max_model_len(self) -> int:
        return self._max

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        if not self._template:
            raise UserError("toy has no chat template: use completions.")
        return self.encode("".join(f"{one['role']}: {one['content']}\n" for one in messages) + "assistant: ")

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(one for one in ids if one < EOS).decode(errors="replace")

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        start = self.decode(request.prompt[:8])
        self.check()
        if start.startswith("BREAK"):
            raise ValueError(f"a bug at {self.decode(request.prompt)}")
        if start.startswith("EXIT"):
            os._exit(1)
        if self._gate is None:
            self._gate = asyncio.Semaphore(self._slots)
        self._stats.requests += 1
        self._stats.waiting += 1
        try:
            await self._gate.acquire()
        finally:
            self._stats.waiting -= 1
        self._stats.active += 1
        try:
            async for delta in self._write(request, dies=start.startswith("DIE")):
                yield delta
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self._stats.active -= 1
            self._gate.release()

    async def _write(self, request: Request, dies: bool) -> AsyncGenerator[Delta, None]:
        wanted = request.sampling
        if request.score_prompt:
            scores = [self._scored(None, request.prompt[0], wanted.top_logprobs or 0)]
            scores += [
                self._scored(one, two, wanted.top_logprobs or 0) for one, two in zip(request.prompt, request.prompt[1:])
            ]
            yield Delta(prompt_logprobs=tuple(scores), finish=None if wanted.max_tokens else "length")
            if not wanted.max_tokens:
                return
        random = np.random.default_rng(None if wanted.seed is None else abs(wanted.seed))
        last, text = request.prompt[-1], ""
        for count in range(1, wanted.max_tokens + 1):
            await asyncio.sleep(self.seconds)
            if dies and count == 3:
                self._dead = True
            self.check()
            token = self._next(last, wanted.temperature, random)
            piece = self.decode([token])
            scores = [self._scored(last, token, wanted.top_logprobs)] if wanted.top_logprobs is not None else []
            self._stats.decoded += 1
            found = [at for stop in wanted.stop if (at := (text + piece).find(stop)) >= 0]
            if found:
                kept = (text + piece)[: min(found)][len(text) :]
                yield Delta(kept, 1, tuple(scores), finish="stop")
                return
            if token == EOS and not wanted.ignore_eos:
                yield Delta("", 1, tuple(scores), finish="stop")
                return
            text, last = text + piece, token
            yield Delta(piece, 1, tuple(scores), finish="length" if count == wanted.max_tokens else None)

    def _next(self, last: int, temperature: float, random: np.random.Generator) -> int:
        if temperature == 0:
            return int(self._greedy[last])
        weights = np.exp(self._table[last] / temperature)
        return int(random.choice(VOCAB, p=weights / weights.sum()))

    def _scored(self, before: int | None, token: int, top: int) -> TokenLogprob:
        if before is None:
            return TokenLogprob(token, self.decode([token]), None)
        row = self._table[before]
        best = sorted(range(VOCAB), key=lambda one: -row[one])[:top]
        alternatives = tuple((one, self.decode([one]), float(row[one])) for one in best)
        return TokenLogprob(token, self.decode([token]), float(row[token]), alternatives)

    def stats(self) -> EngineStats:
        return self._stats

    def check(self) -> None:
        if self._dead:
            raise EngineDied("the toy engine was told to die")

    def close(self) -> None:
        self.closed = True


def make(*, use_gpu: bool = False) -> ToyEngine:
    """What a Serve replica calls; a process of its own is told by its environment."""
    return ToyEngine(float(os.environ.get("TOY_SECONDS", "0.01")), slots=int(os.environ.get("TOY_SLOTS", "8")))
