"""PURE. One answer on its way: what is left of its prompt, its random numbers, its text, and why it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from raygpt.errors import UserError
from raygpt.serve.requests import Delta, Finish, Request, TokenLogprob
from raygpt.serve.sampling import draw, generator, log_probabilities
from raygpt.serve.text_out import Detokenizer, StopTexts


class Coder(Protocol):
    """Text to token ids and back; quick, and safe from any thread."""

    eos_ids: frozenset[int]

    def encode(self, text: str) -> list[int]: ...

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]: ...

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Text of ids; special tokens are left out unless asked for."""


class Answer:
    """What the engine's thread knows of a request. `pieces` is the queue that it is waited for with, in `loop`."""

    def __init__(
        self, request: Request, coder: Coder, loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[Delta | Exception]
    ) -> None:
        self.request, self.loop, self.pieces = request, loop, pieces
        self.cancelled = False  # set from any thread; also once it has ended
        self.next_token: int | None = None  # chosen, and not yet fed to the model
        self._coder = coder
        self._numbers = generator(request.sampling)
        self._text = Detokenizer(coder.decode, request.prompt)
        self._stops = StopTexts(request.sampling.stop)
        self._read = 0
        self._made = 0
        self._prompt_logprobs: list[TokenLogprob] = []
        self._predicted: Tensor | None = None  # (V,) logits of the prompt's next token

    @property
    def unread(self) -> int:
        """Tokens of the prompt that the model has not seen."""
        return len(self.request.prompt) - self._read

    def next_part(self, size: int) -> Sequence[int]:
        return self.request.prompt[self._read : self._read + size]

    def read(self, part: Sequence[int], logits: Tensor) -> None:
        """The model has seen `part` of the prompt; with score_prompt `logits` are (len(part), V), after each token."""
        self._read += len(part)
        if not self.request.score_prompt:
            return
        for place, token in enumerate(part):
            before = logits[place - 1] if place else self._predicted
            if before is None:
                self._prompt_logprobs.append(TokenLogprob(token, self._token_text(token), None))
            else:
                self._prompt_logprobs.append(self._logprob(before, token))
        self._predicted = logits[-1].clone()  # the rest of the logits is not held

    def choose(self, logits: Tensor) -> Delta | UserError:
        """Take the next token from (V,) logits. The piece it makes, which may have no text yet."""
        sampling = self.request.sampling
        if not logits.amax().isfinite():
            self.cancelled = True
            return UserError(
                "the model's logits are not finite: its numbers are too large for teacher.precision, set bf16 or fp32."
            )
        token = draw(logits, sampling, self._numbers)
        logprobs = () if sampling.top_logprobs is None else (self._logprob(logits, token),)
        self._made += 1
        self.next_token = token
        if token in self._coder.eos_ids and not sampling.ignore_eos:
            return self.end("stop", 1, logprobs)
        text, stopped = self._stops.push(self._text.push(token))
        if stopped:
            return self._piece(text, 1, logprobs, "stop")
        if self._made == sampling.max_tokens:
            return self.end("length", 1, logprobs, text)
        return self._piece(text, 1, logprobs, None)

    def end(
        self, finish: Finish = "length", tokens: int = 0, logprobs: tuple[TokenLogprob, ...] = (), text: str = ""
    ) -> Delta:
        """The last piece, with what was held back."""
        rest, stopped = self._stops.push(self._text.flush())
        text += rest if stopped else rest + self._stops.flush()
        return self._piece(text, tokens, logprobs, "stop" if stopped else finish)

    def _piece(self, text: str, tokens: int, logprobs: tuple[TokenLogprob, ...], finish: Finish | None) -> Delta:
        if finish is not None:
            self.cancelled = True
        prompt, self._prompt_logprobs = tuple(self._prompt_logprobs), []
        return Delta(text, tokens, logprobs, prompt, finish)

    def _logprob(self, logits: Tensor, token: int) -> TokenLogprob:
        ((value, top),) = log_probabilities(logits[None], [token], self.request.sampling.top_logprobs or 0)
        alternatives = tuple((other, self._token_text(other), worth) for other, worth in top)
        return TokenLogprob(token, self._token_text(token), value, alternatives)

    def _token_text(self, token: int) -> str:
        return self._coder.decode([token], special=True)
