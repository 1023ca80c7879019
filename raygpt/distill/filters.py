"""What keeps a text out on its own: the steps `length`, `repetition`, `language` and `refusal`.

A text is judged by itself, so the result is the same in any order and on any core. The first step that objects is the
one that counts. What a step looks at is the answer, not the prompt before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from raygpt.distill.answers import Answer

EMPTY, LENGTH, REPETITION, LANGUAGE, REFUSAL = "empty", "length", "repetition", "language", "refusal"
# A sentence's end with what closes it.
_END = re.compile(r"[.!?…][\"'”’)\]*_`]*(?=\s)|[。！？][」』”）]*")


@dataclass(frozen=True)
class Rules:
    """Which filters judge, and their limits: characters, ISO 639-1 code."""

    filters: tuple[str, ...]
    min_characters: int = 50
    max_characters: int = 100_000
    language: str = "en"


@dataclass(frozen=True)
class Objection:
    """Why a text is kept out, and by which step."""

    step: str
    why: str


def whole_sentences(answer: Answer) -> str:
    """Text of an answer; one that the token limit ended (finish=length) without its last, unfinished sentence.

    Where no sentence ends, its last line goes; a single unfinished line becomes an empty text.
    """
    if answer.finish != "length":
        return answer.text
    ends = [match.end() for match in _END.finditer(answer.text)]
    return answer.text[: ends[-1] if ends else max(answer.text.rfind("\n"), 0)]


def objection(text: str, rules: Rules) -> Objection | None:
    """The first objection to an answer's text, None where it stays."""
    if not text or text.isspace():
        return Objection(EMPTY, "no text")
    if LENGTH in rules.filters:
        size = len(text.strip())
        if size < rules.min_characters:
            return Objection(LENGTH, f"{size:,} characters, fewer than {rules.min_characters:,}")
        if size > rules.max_characters:
            return Objection(LENGTH, f"{size:,} characters, more than {rules.max_characters:,}")
    return None
