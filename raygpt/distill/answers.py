"""PURE. What is asked of a teacher, what it answered, and the key that a question is known by."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Question:
    """One thing to ask: `prompt` as plain text, or `messages` as a conversation. `fields` is the row it was made of,
    kept for the card and for filters; it does not enter the key. `sample` numbers the answers to one prompt."""

    prompt: str | None
    messages: tuple[tuple[str, str], ...] = ()  # (role, content)
    sample: int = 0
    fields: dict[str, Any] = field(default_factory=dict, compare=False)

    def key(self, generation: str) -> str:
        """32 hex digits: what was asked, and of whom and how (`generation`)."""
        asked = json.dumps([generation, self.prompt, self.messages, self.sample], ensure_ascii=True)
        return hashlib.sha256(asked.encode()).hexdigest()[:32]

    @property
    def asked(self) -> str:
        """The prompt, or the conversation's contents one after another."""
        return self.prompt if self.prompt is not None else "\n\n".join(content for _, content in self.messages)


def generation_name(model: str, sampling: dict[str, Any], template: str) -> str:
    """16 hex digits of all that decides an answer beside its prompt: model, sampling parameters, template version."""
    text = json.dumps([model, sampling, template], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Answer:
    """A stored answer. `text` is what the teacher wrote; `finish` is stop or length; tokens are the teacher's count."""

    key: str
    question: Question
    text: str
    finish: str
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Parked:
    """A question that could not be answered, and why in one sentence."""

    key: str
    question: Question
    reason: str
