"""PURE. Answers in the protocol's form: whole ones, and the pieces of streamed ones."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from raygpt.serve.protocol import Ask
from raygpt.serve.requests import Delta, TokenLogprob

LOWEST = -9999.0  # the protocol's number for a probability of nothing: JSON has no infinity
_UNKNOWN = "�"


@dataclass
class Answer:
    """One answer, gathered from its pieces."""

    text: str = ""
    tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.tokens += delta.tokens
        self.logprobs += delta.prompt_logprobs
        self.logprobs += delta.logprobs
        self.finish = delta.finish or self.finish


class Reply:
    """What goes back for one Ask: `whole` of finished answers, or `first`, `piece` and `last` as they come."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._offsets = [0] * len(ask.requests)
        self._tokens = [0] * len(ask.requests)
        self._begun: set[int] = set()  # answers of which a piece has gone out
        kind = ("chat.completion.chunk" if ask.stream else "chat.completion") if ask.chat else "text_completion"
        prefix = "chatcmpl-" if ask.chat else "cmpl-"
        self._head = {
            "id": prefix + uuid.uuid4().hex,
            "object": kind,
            "created": int(time.time()),
            "model": ask.model,
        }

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        choices = []
        for index, answer in enumerate(answers):
            self._tokens[index] = answer.tokens
            text = self._ask.echoes[index] + answer.text
            choice: dict[str, Any] = {"index": index, "finish_reason": answer.finish}
            choice["logprobs"] = self._logprobs(index, answer.logprobs)
            if self._ask.chat:
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            else:
                choice["text"] = text
            choices.append(choice)
        return {**self._head, "choices": choices, "usage": self.usage()}

    def first(self) -> Iterator[dict[str, Any]]:
        """Pieces before any answer: who speaks, or the echo of the prompt where its log-probabilities do not follow."""
        for index, echo in enumerate(self._ask.echoes):
            if self._ask.chat:
                yield self._chunk(index, {"delta": {"role": "assistant", "content": "", "refusal": None}})
            elif self._ask.echo and not self._ask.logprobs:
                yield self._chunk(index, {"text": echo})

    def piece(self, index: int, delta: Delta) -> dict[str, Any] | None:
        """The piece for `delta`, None where it has nothing to say."""
        self._tokens[index] += delta.tokens
        text = delta.text
        logprobs = [*delta.prompt_logprobs, *delta.logprobs]
        if self._ask.logprobs and index not in self._begun:
            text = self._ask.echoes[index] + text
        self._begun.add(index)
        if not text and not logprobs and delta.finish is None:
            return None
        choice: dict[str, Any] = {"logprobs": self._logprobs(index, logprobs), "finish_reason": delta.finish}
        if self._ask.chat:
            choice["delta"] = {"content": text} if text or logprobs else {}
        else:
            choice["text"] = text
        return self._chunk(index, choice)

    def last(self) -> dict[str, Any] | None:
        """The closing piece with the usage, where that was asked for."""
        return {**self._head, "choices": [], "usage": self.usage()} if self._ask.include_usage else None

    def usage(self) -> dict[str, int]:
        prompt, answer = self._ask.prompt_tokens, sum(self._tokens)
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def _chunk(self, index: int, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self._head, "choices": [{"index": index, "logprobs": None, "finish_reason": None, **choice}]}
        if self._ask.include_usage:
            chunk["usage"] = None
        return chunk

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._ask.logprobs or (self._ask.stream and not tokens):
            return None
        if self._ask.chat:
            return {"content": [_chat_token(token) for token in tokens], "refusal": None}
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [None if token.logprob is None else _finite(token.logprob) for token in tokens],
            "top_logprobs": [None if token.logprob is None else _alternatives(token) for token in tokens],
            "text_offset": offsets,
        }


def _chat_token(token: TokenLogprob) -> dict[str, Any]:
    """One token of a chat's log-probabilities. Bytes are unknown of a token that is only a part of a character."""
    return {
        **_named(token.text, token.logprob if token.logprob is not None else LOWEST),
        "top_logprobs": [_named(text, logprob) for _, text, logprob in token.top],
    }


def _named(text: str, logprob: float) -> dict[str, Any]:
    return {
        "token": text,
        "logprob": _finite(logprob),
        "bytes": None if _UNKNOWN in text else list(text.encode("utf-8", "replace")),
    }


def _alternatives(token: TokenLogprob) -> dict[str, float]:
    """{text: log-probability}, the chosen token among them; of several tokens that read the same the likeliest."""
    found: dict[str, float] = {}
    for _, text, logprob in (*token.top, (token.token, token.text, token.logprob or 0.0)):
        found.setdefault(text, _finite(logprob))
    return found


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)
