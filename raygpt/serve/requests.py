"""PURE. What is asked of an engine, and what it answers, piece by piece. Token ids throughout; text beside them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Finish = Literal["stop", "length"]  # the protocol's words: an end or stop text, or the limit in tokens


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. `temperature` 0 takes the likeliest token. With a `seed` equal requests give equal
    answers, whoever shares the batch. `stop` texts end the answer and are no part of it; so does the model's end token
    unless `ignore_eos`. `top_logprobs` is None for no log-probabilities, else how many alternatives stand beside the
    chosen token's."""

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    ignore_eos: bool = False


@dataclass(frozen=True)
class Request:
    """One answer to one prompt of token ids, at least one. With `score_prompt` the prompt's own log-probabilities come
    before the answer's; then `max_tokens` may be 0."""

    prompt: tuple[int, ...]
    sampling: Sampling = Sampling()
    score_prompt: bool = False


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log-probability of a token under the model's own distribution (temperature 1, nothing cut off).
    `text` is what the token decodes to alone; `top` are (id, text, log-probability), likeliest first. `logprob` is None
    for a prompt's first token, which nothing predicts."""

    token: int
    text: str
    logprob: float | None
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """A piece of an answer. Joined, the `text`s are the answer, whole characters only. `tokens` is how many new tokens
    it stands for, `logprobs` theirs where asked for; `prompt_logprobs` come once, in the first piece. The last piece
    has `finish`."""

    text: str = ""
    tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None


class EngineDied(RuntimeError):
    """The engine is of no more use: its replica has to be replaced."""


@dataclass
class EngineStats:
    """Since the start. `steps` are passes that decoded; sequences per pass are `decoded` over `steps`."""

    requests: int = 0
    prompt_tokens: int = 0
    decoded: int = 0
    steps: int = 0
    active: int = 0
    waiting: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """A model that answers many requests at once. All methods but `generate` are quick and safe from any thread."""

    @property
    def name(self) -> str:
        """What the protocol calls the model."""

    @property
    def max_model_len(self) -> int:
        """Longest prompt and answer in tokens."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_ids(self) -> frozenset[int]: ...

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, after the beginning-of-text token of models whose tokenizer puts one there."""

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the assistant answers. UserError for a model without a template."""

    def decode(self, ids: Sequence[int]) -> str: ...

    def generate(self, request: Request) -> AsyncIterator[Delta]:
        """The answer, piece by piece; closing the iterator takes the sequence out of the batch. Raises UserError for a
        request that cannot be (too long, no token, an id beyond the vocabulary), EngineDied."""

    def stats(self) -> EngineStats: ...

    def check(self) -> None:
        """Raises EngineDied where it has died."""

    def close(self) -> None: ...
