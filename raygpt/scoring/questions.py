"""PURE. What is asked of a model that is measured by likelihood, and what it answers, wherever it computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

# How a context and its continuation become tokens. apart: each by itself, as build-nanogpt does. whole: both in one,
# cut where the context's own tokens end, its trailing blanks counted to the continuation, as
# lm-evaluation-harness does.
Joining = Literal["apart", "whole"]


@dataclass(frozen=True)
class Question:
    """A context and the continuations that are scored after it; none is empty. `id` names it in per-item files."""

    id: str
    context: str
    continuations: tuple[str, ...]
    joining: Joining = "whole"


@dataclass(frozen=True)
class Scored:
    """One continuation: the sum of its tokens' log-probabilities in nats, how many tokens those are, and whether each
    was the model's first choice."""

    logprob: float
    tokens: int
    greedy: bool


class Scorer(Protocol):
    """A model that answers: in this process, or behind an endpoint that gives log-probabilities."""

    name: str
    # Most tokens read at once. Of context and continuation together the last `context` + 1 count, since nobody reads
    # the very last; older ones are left away, as in lm-evaluation-harness.
    context: int

    def ask(self, questions: Sequence[Question]) -> list[tuple[Scored, ...]]:
        """What every continuation scores, in the order asked. The same whatever is asked beside it."""
