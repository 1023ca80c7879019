"""Answers as a run stores them, made of plain texts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from raygpt.distill.answers import Answer, Question


def answer(text: str, prompt: str, finish: str = "stop") -> Answer:
    question = Question(prompt)
    return Answer(question.key("g"), question, text, finish, 5, len(text.split()))


def stored(texts: Sequence[str], finish: str = "stop") -> Callable[[], Iterator[Answer]]:
    """`answers()` of these texts, one prompt each; the key follows from text and prompt, not from the place."""
    answers = [answer(text, f"prompt of {text}", finish) for text in texts]
    return lambda: iter(answers)


def random_texts(count: int, words: int = 100, seed: int = 0) -> list[str]:
    """Texts that have next to nothing in common."""
    generator = random.Random(seed)
    return [" ".join(f"w{generator.randrange(5_000)}" for _ in range(words)) for _ in range(count)]
