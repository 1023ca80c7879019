"""PURE but for `read_items`. LAMBADA: the last word of a passage, which people guess only from all of it.

Paperno et al. (2016). The protocol is lm-evaluation-harness's task `lambada_openai` (version 1.0): OpenAI's passages,
which are not tokenized, split at the last space, the word with its space as continuation. `acc` is how often the word's
tokens were the model's first choice each, `perplexity` is exp of the mean cost of a word. The original release
(lambada_standard there) is another text with other figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from raygpt.scoring.hellaswag import INTERVAL, wilson
from raygpt.scoring.perplexity import figure
from raygpt.scoring.questions import Question, Scored

ProtocolName = Literal["lm_eval"]
PROTOCOLS: tuple[ProtocolName, ...] = ("lm_eval",)
HUB_ID = "EleutherAI/lambada_openai"
HUB_SPLIT = "test"
SOURCE = "EleutherAI/lm-evaluation-harness 0.4.13, task lambada_openai 1.0"


@dataclass(frozen=True)
class Item:
    """A passage. `id` is its number in what was read, from 0 on; `place` is where it stands, for errors."""

    id: str
    place: str
    context: str
    word: str


@dataclass(frozen=True)
class Judged:
    """A passage under a protocol: whether the word was guessed, ln p of it, and its tokens."""

    id: str
    protocol: ProtocolName
    correct: bool
    logprob: float
    tokens: int

    def record(self) -> dict[str, Any]:
        """A line of a per-item file."""
        return {
            "id": self.id,
            "protocol": self.protocol,
            "acc": int(self.correct),
            "logprob": self.logprob,
            "tokens": self.tokens,
        }


def read_items(uri: str, limit: int | None = None, *, setting: str = "eval.lambada") -> list[Item]:
    """Items of a file (JSONL, parquet, CSV …, packed too) with a column text, or of the test split of a hub's data set.

    Raises UserError that names the places of rows without a text, or whose text has no word after a space.
    """
    from raygpt.scoring.items import collect  # needs pyarrow

    form = "an item of LAMBADA has a text whose last word is to be guessed"
    return collect(uri, HUB_SPLIT, limit, setting, _item, form=form, published=f"LAMBADA, or {HUB_ID}")


def _item(name: str, place: str, row: Mapping[str, Any]) -> Item:
    """ValueError says what is wrong."""
    text = row.get("text")
    if not isinstance(text, str):
        raise ValueError("has no text")
    context, _, word = text.rpartition(" ")
    if not context.strip() or not word.strip():
        raise ValueError(f"has no {'context before its last word' if word.strip() else 'word at its end'}")
    return Item(name, place, context, word)


def questions(items: Sequence[Item], protocol: ProtocolName = "lm_eval") -> list[Question]:
    """What is asked, in the items' order."""
    return [Question(item.id, item.context, (f" {item.word}",), "whole") for item in items]


def judge(item: Item, protocol: ProtocolName, scored: Sequence[Scored]) -> Judged:
    """What the score of an item's word means."""
    (word,) = scored
    return Judged(item.id, protocol, word.greedy, word.logprob, word.tokens)


def summarise(judged: Sequence[Judged], *, bos: str | None = None) -> dict[str, Any]:
    """Accuracy and perplexity with their standard errors (None for one item; the perplexity's is of its logarithm) and
    95 % intervals. `bos` is the token that stands before each context, None where none does."""
    n, right = len(judged), sum(one.correct for one in judged)
    share = right / n
    cost = figure("word", np.array([-one.logprob for one in judged]), np.ones(n, np.int64))
    return {
        "items": n,
        "acc": share,
        "acc_stderr": (share * (1 - share) / (n - 1)) ** 0.5 if n > 1 else None,
        "acc_interval": list(wilson(right, n)),
        "interval": INTERVAL,
        "perplexity": cost.perplexity,
        "log_perplexity_stderr": cost.stderr,
        "perplexity_interval": None if cost.stderr is None else [cost.low, cost.high],
        "protocol": judged[0].protocol,
        "normaliser": "the last word",
        "shots": 0,
        "bos": bos,
        "source": SOURCE,
    }
