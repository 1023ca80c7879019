"""What keeps a text out on its own: the steps `length`, `repetition`, `language` and `refusal`, in this order.

A text is judged by itself, so the result is the same in any order and on any core. The first step that objects is the
one that counts. Steps look at the answer, not at the prompt before it. An answer without text never stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from raygpt.distill.answers import Answer
from raygpt.distill.language import check_language, other_language
from raygpt.distill.refusal import refusal
from raygpt.distill.repetition import repetition
from raygpt.distill.words import Worded

EMPTY, LENGTH, REPETITION, LANGUAGE, REFUSAL = "empty", "length", "repetition", "language", "refusal"
IN_ORDER = (LENGTH, REPETITION, LANGUAGE, REFUSAL)
# A sentence's end with what closes it.
_END = re.compile(r"[.!?…][\"'”’)\]*_`]*(?=\s)|[。！？][」』”）]*")


@dataclass(frozen=True)
class Rules:
    """Which filters judge, and their limits: characters, and the ISO 639-1 code of the language that stays."""

    filters: tuple[str, ...]
    min_characters: int = 50
    max_characters: int = 100_000
    language: str = "en"

    def check(self) -> None:
        """UserError for what no text could be judged by."""
        if LANGUAGE in self.filters:
            check_language(self.language)


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
    ends = [match.end() for match in _END.finditer(answer.text + " ")]
    return answer.text[: ends[-1] if ends else max(answer.text.rfind("\n"), 0)]


def objection(text: str, counted: Callable[[], Worded], rules: Rules) -> Objection | None:
    """The first objection to an answer's text, None where it stays. `counted` gives its words."""
    if not text or text.isspace():
        return Objection(EMPTY, "no text, or one unfinished sentence")
    for step in IN_ORDER:
        if step in rules.filters and (why := _why(step, text, counted, rules)):
            return Objection(step, why)
    return None


def _why(step: str, text: str, counted: Callable[[], Worded], rules: Rules) -> str | None:
    if step == LENGTH:
        size = len(text.strip())
        if size < rules.min_characters:
            return f"{size:,} characters, fewer than {rules.min_characters:,}"
        return f"{size:,} characters, more than {rules.max_characters:,}" if size > rules.max_characters else None
    if step == REPETITION:
        return repetition(text, counted())
    if step == LANGUAGE:
        other = other_language(text, rules.language)
        return f"{other[0]} with probability {other[1]:.2f}" if other else None
    return refusal(text)
