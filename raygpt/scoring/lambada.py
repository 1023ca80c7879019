"""PURE but for the readers of rows. LAMBADA: the last word of a passage that people guess only from all of it.

Paperno et al. (2016). The task is lm-evaluation-harness's `lambada_openai` (version 1.0): OpenAI's untokenized passages
(EleutherAI/lambada_openai on the hub), split at the last space, the word with its space as continuation. `acc` is how
often the word's tokens are the model's first choice each, `perplexity` is exp of the mean cost of a word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from raygpt.data import rows
from raygpt.data.sources import find_sources
from raygpt.errors import UserError
from raygpt.scoring.questions import Question, Scored

HUB_ID = "EleutherAI/lambada_openai"
PROTOCOLS = ("lm_eval",)


@dataclass(frozen=True)
class Item:
    """A passage; `id` is its number in its file, from 1."""

    id: str
    context: str
    word: str


@dataclass(frozen=True)
class Judged:
    """One passage: whether the word was guessed (`acc`), ln p of it, and its tokens."""

    id: str
    acc: bool
    logprob: float
    tokens: int

    def record(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)
