"""Stored answers to documents: filtered, without contamination and duplicates, as token shards with a card.

    output/train/, output/val/   token shards; all answers to one prompt are on one side
    output/card.md               the data set's card, in the form of the Hugging Face hub
    output/quality.json          its numbers: what each step removed, samples, speed and cost; written last

What is kept depends on answers, options and tokenizer alone, whatever the number of cores; documents stand in the
order of the answers. The steps, in order: empty answers, the filters, contamination, exact and near duplicates, the
teacher's marks. A making that was killed leaves what was there, and what is there already is not made again.

The answers are read three to five times and never held: raygpt.distill.making says what is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from raygpt import storage
from raygpt.data.shards import load_manifest
from raygpt.data.tokenizer import Tokenizer
from raygpt.distill import card
from raygpt.distill.answers import Answer
from raygpt.distill.making import SCORE, VERSION, Answers, Making, Progress, QualityOptions, Scorer
from raygpt.distill.sides import SIDES, delete_unlisted, write_sides
from raygpt.errors import UserError
from raygpt.storage import Location

__all__ = ["QualityOptions", "make_documents"]

QUALITY, CARD = "quality.json", "card.md"


def answer_text(answer: Answer) -> str:
    return answer.text


def make_documents(
    answers: Answers,
    output: Location,
    *,
    tokenizer: Tokenizer,
    options: QualityOptions,
    facts: card.Facts,
    text_of: Callable[[Answer], str] = answer_text,
    scorer: Scorer | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Write train/, val/, card.md and quality.json of `answers()`; gives what quality.json holds, and `reused`.

    `answers()` gives the same answers with distinct keys in the same order every time; what it raises ends the making.
    `text_of` makes a document's text of an answer, of prompt and answer for instance. `scorer` has to be there when
    `score` is a filter. Raises UserError for evaluation files that cannot be read, and where fewer than two documents
    are left, naming the step that removed most.
    """
    options.rules.check()
    making = Making(answers, options, text_of, options.forbidden(), tokenizer, on_progress)
    before = _written(output)
    if before is not None and scorer is None and before["request"] == making.request_alone():
        return {**before, "reused": True}
    making.examine()
    if options.dedup != "none":
        making.drop_exact()
    if options.dedup == "minhash":
        making.drop_near()
    if SCORE in options.filters:
        if scorer is None:
            raise ValueError("generate.filters has score, but nobody to ask for marks was given")
        making.drop_low(scorer)
    making.check_left()
    if before is not None and before["kept"] == making.kept_sha256() and before["request"] == making.request:
        return {**before, "reused": True}
    source = f"raygpt generate, {facts.teacher}"
    manifests = write_sides(making.documents(), output, tokenizer, options.shard_tokens, source)
    delete_unlisted(output, manifests)
    quality = making.quality(manifests, facts)
    storage.write_text(output / CARD, card.card(quality))
    written = json.dumps(quality, indent=2, ensure_ascii=False) + "\n"
    storage.write_text(output / QUALITY, written)
    return {**json.loads(written), "reused": False}


def _written(output: Location) -> dict[str, Any] | None:
    """What quality.json says, where it is of this version and both sides are as it says."""
    try:
        quality = json.loads(storage.read_text(output / QUALITY))
        whole = all(load_manifest(output / side).fingerprint == quality[side]["fingerprint"] for side in SIDES)
        return quality if whole and quality["version"] == VERSION else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, UserError):
        return None
