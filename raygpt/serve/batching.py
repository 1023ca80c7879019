"""PURE. Continuous batching: an engine whose answers join and leave a running batch between two tokens.

One thread makes all passes. Between two steps of decoding it takes in waiting requests where a slot is free, and reads
at most `prefill_tokens` of their prompts, so that a long prompt holds nobody up for long. Requests come from any
asyncio loop; what a step brings is handed to each loop at once. A sequence's logits do not depend on who shares the
batch (see raygpt.model.slots), and its random numbers are its own: nor does its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence

import torch
from torch import Tensor

from raygpt.errors import UserError, one_line
from raygpt.serve.answer import Answer, Coder
from raygpt.serve.decoder import Decoder
from raygpt.serve.requests import Delta, EngineDied, EngineStats, Request

# Prompt tokens between two steps of decoding, and at most in one pass: on two CPU cores 128 take as long as two steps
# of SmolLM2-135M with 8 sequences.
PREFILL_TOKENS = {"cpu": 128, "cuda": 512}


class BatchingEngine:
    """An `Engine` over a decoder and a tokenizer. `threads` are torch's, in the thread that makes the passes."""

    def __init__(self, name: str, decoder: Decoder, coder: Coder, *, threads: int | None = None) -> None:
        self._name, self._decoder, self._coder, self._threads = name, decoder, coder, threads
        self._prefill_tokens = PREFILL_TOKENS.get(decoder.network.device.type, 512)
        self._lock = threading.Condition()
        self._waiting: deque[Answer] = deque()
        self._active: dict[int, Answer] = {}  # by slot
        self._free = list(reversed(range(decoder.slots)))
        self._closing = False
        self._death: BaseException | None = None
        self._requests = self._prompt_tokens = self._decoded = self._steps = 0
        self._memory = decoder.memory(self._prefill_tokens)
        self._out: list[tuple[Answer, Delta | Exception]] = []  # what the thread has for the loops
        self._thread = threading.Thread(target=self._run, name="raygpt-engine", daemon=True)
        self._thread.start()

    # --- what an Engine answers ------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._name

    @property
    def max_model_len(self) -> int:
        return self._decoder.capacity

    @property
    def vocab_size(self) -> int:
        return self._decoder.network.vocab_size

    @property
    def eos_ids(self) -> frozenset[int]:
        return self._coder.eos_ids

    def encode(self, text: str) -> list[int]:
        return self._coder.encode(text)

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return self._coder.encode_chat(messages)

    def decode(self, ids: Sequence[int]) -> str:
        return self._coder.decode(ids)

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        check_request(request, self.max_model_len, self.vocab_size)
        pieces: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        answer = Answer(request, self._coder, asyncio.get_running_loop(), pieces)
        with self._lock:
            self._raise_if_dead()
            self._waiting.append(answer)
            self._requests += 1
            self._lock.notify()
        try:
            while True:
                piece = await pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.finish is not None:
                    return
        finally:
            answer.cancelled = True
            with self._lock, contextlib.suppress(ValueError):
                self._waiting.remove(answer)

    def stats(self) -> EngineStats:
        with self._lock:
            return EngineStats(
                requests=self._requests,
                prompt_tokens=self._prompt_tokens,
                decoded=self._decoded,
                steps=self._steps,
                active=len(self._active),
                waiting=len(self._waiting),
                extra=dict(self._memory),
            )

    def check(self) -> None:
        with self._lock:
            self._raise_if_dead()

    def close(self) -> None:
        """End the thread after its step. Those who still wait get EngineDied."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        self._thread.join()

    # --- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self._threads is not None:
                torch.set_num_threads(self._threads)
            with torch.inference_mode():
                while self._take_in():
                    self._prefill()
                    self._step()
                    self._hand_over()
            self._end(EngineDied("the engine was closed"))
        except BaseException as error:  # whatever it is, those who wait must hear of it
            self._end(EngineDied(f"the engine died of {type(error).__name__}: {one_line(error)}"), error)

    def _end(self, why: EngineDied, cause: BaseException | None = None) -> None:
        why.__cause__ = cause
        with self._lock:
            self._death = why
            left = [*self._active.values(), *self._waiting]
            self._active.clear()
            self._waiting.clear()
        self._out += [(answer, EngineDied(str(why))) for answer in left]
        self._hand_over()

    def _raise_if_dead(self) -> None:
        if self._death is None and not self._thread.is_alive():
            self._death = EngineDied("the engine's thread is gone")
        if self._death is not None:
            raise EngineDied(str(self._death)) from self._death.__cause__

    def _take_in(self) -> bool:
        """Let those leave who are done or no longer wanted, and those join for whom there is room; waits for the first
        one. False once the engine is closed."""
        for slot in [slot for slot, answer in self._active.items() if answer.cancelled]:
            self._decoder.clear(slot)
            with self._lock:
                del self._active[slot]
            self._free.append(slot)
        with self._lock:
            while True:
                while self._waiting and self._free:
                    answer = self._waiting.popleft()
                    if not answer.cancelled:
                        self._active[self._free.pop()] = answer
                if self._closing or self._active:
                    return not self._closing
                self._lock.wait()

    def _prefill(self) -> None:
        """Read prompts in parts, oldest first. Where a prompt is cut hangs on the prompt alone and not on who came with
        it: the shape of a pass decides its last bits."""
        budget = self._prefill_tokens
        for slot, answer in self._active.items():
            while answer.unread:
                part = answer.next_part(self._prefill_tokens)
                if len(part) > budget:
                    return
                budget -= len(part)
                self._read(slot, answer, part)

    def _read(self, slot: int, answer: Answer, part: Sequence[int]) -> None:
        finished = len(part) == answer.unread
        logits = self._decoder.extend(slot, part, len(part) if answer.request.score_prompt else int(finished))
        self._prompt_tokens += len(part)
        answer.read(part, logits)
        if finished and answer.request.sampling.max_tokens == 0:
            self._out.append((answer, answer.end()))
        elif finished:
            self._choose(answer, logits[-1])

    def _step(self) -> None:
        """One token more for every sequence whose prompt has been read."""
        ready = {
            slot: answer
            for slot, answer in self._active.items()
            if answer.next_token is not None and not answer.cancelled
        }
        if not ready:
            return
        logits = self._decoder.step({slot: int(answer.next_token or 0) for slot, answer in ready.items()})
        self._steps += 1
        for slot, answer in ready.items():
            self._choose(answer, logits[slot])
        self._decoded += len(ready)

    def _choose(self, answer: Answer, logits: Tensor) -> None:
        self._out.append((answer, answer.choose(logits)))

    def _hand_over(self) -> None:
        """One call per asyncio loop for all it gets."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Answer, Delta | Exception]]] = {}
        for answer, piece in self._out:
            by_loop.setdefault(answer.loop, []).append((answer, piece))
        self._out = []
        for loop, pieces in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, pieces)
            except RuntimeError:  # the loop was closed: nobody waits there any more
                for answer, _ in pieces:
                    answer.cancelled = True


def _deliver(pieces: list[tuple[Answer, Delta | Exception]]) -> None:
    for answer, piece in pieces:
        answer.pieces.put_nowait(piece)


def check_request(request: Request, max_model_len: int, vocab_size: int) -> None:
    """UserError for what no engine can answer."""
    prompt, sampling = request.prompt, request.sampling
    if not prompt:
        raise UserError("the prompt has no tokens: give at least one, such as the end-of-text token.")
    if not 0 <= min(prompt) <= max(prompt) < vocab_size:
        odd = next(token for token in prompt if not 0 <= token < vocab_size)
        raise UserError(f"the prompt holds token {odd}, and the model knows 0 to {vocab_size - 1}: encode it again.")
    if sampling.max_tokens < (0 if request.score_prompt else 1):
        raise UserError(f"max_tokens is {sampling.max_tokens}: ask for at least 1.")
    if len(prompt) + sampling.max_tokens > max_model_len:
        raise UserError(
            f"the prompt's {len(prompt)} tokens and max_tokens={sampling.max_tokens} do not fit into the "
            f"{max_model_len} tokens of teacher.max_model_len: shorten the prompt or ask for fewer tokens."
        )
    if not 0 <= sampling.temperature < float("inf"):
        raise UserError(f"temperature is {sampling.temperature}: it must be 0 (the likeliest token) or more.")
    if not 0 < sampling.top_p <= 1:
        raise UserError(f"top_p is {sampling.top_p}: it must be above 0 and at most 1.")
    if sampling.top_k is not None and sampling.top_k < 1:
        raise UserError(f"top_k is {sampling.top_k}: it must be at least 1, or left out.")
    if sampling.top_logprobs is not None and sampling.top_logprobs < 0:
        raise UserError(f"top_logprobs is {sampling.top_logprobs}: it must be at least 0, or left out.")
