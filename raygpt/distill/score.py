"""PURE. The score filter: the teacher marks texts from 1 to 5, and low ones go."""

from __future__ import annotations

import re

from raygpt.distill.answers import Question

# Of a longer text its beginning is marked: about 1,000 tokens, so that it fits every teacher's context.
MARKED_CHARACTERS = 4_000
_INSTRUCTION = (
    "Judge the text between the lines of dashes as reading matter to learn from. Give one mark:\n"
    "1 - unusable: broken, meaningless or made up of phrases\n"
    "2 - poor: hard to follow, mostly wrong or mostly padding\n"
    "3 - fair: understandable, with some substance, some faults\n"
    "4 - good: clear, correct and informative\n"
    "5 - excellent: as a careful author would write it\n"
    "Answer with the number alone.\n"
)
# The first number of the answer, with what follows "out of" left aside: 4, 4/5, Mark: 4.5
_MARK = re.compile(r"(?<![\d.,])(\d+(?:\.\d+)?)")


def score_question(text: str) -> Question:
    """What the teacher is asked about a text, by the chat protocol."""
    asked = f"{_INSTRUCTION}\n-----\n{text[:MARKED_CHARACTERS]}\n-----\n\nMark:"
    return Question(None, (("user", asked),))


def mark(answer: str) -> float | None:
    """The mark that an answer begins with, None where there is none from 1 to 5."""
    match = _MARK.search(answer)
    found = float(match[1]) if match else 0.0
    return found if 1 <= found <= 5 else None
