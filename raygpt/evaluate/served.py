"""Which model answers behind a URL: asked before anything is measured, for the URL says nothing of it.

A served model is known by its name, its context, the tokenizer it is asked with, and by what it gives a few texts that
are always the same. These figures differ in their last digits from call to call, so that they are held against those
of models that were met before, in served.json beside the parts, and one that is close to them is the same model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from raygpt import storage
from raygpt.scoring.questions import Question
from raygpt.storage import Location

if TYPE_CHECKING:
    from raygpt.evaluate.answering import ModelSource

MET = "served.json"
# Nats per token by which a model may differ from itself. bf16 has 8 bits of a logit, of which a mean over tokens keeps
# more; whether a model of another training step is further away than this is not measured.
TOLERANCE = 0.005
_TEXTS = (  # short: a context of 32 tokens has to hold one of bytes
    ("The river rises", " in the hills"),
    ("1, 2, 3, 5, 8,", " 13, 21, 34"),
    ("def add(a, b):", "\n  return a + b"),
    ("Once upon a", " time there was"),
)


def connect(source: ModelSource) -> ModelSource:
    """The served model of `source` as it is now: its name, and `identity`. Raises UserError where it cannot be
    reached, or gives no log-probabilities of prompts."""
    from raygpt.evaluate.answering import OpenModel

    assert source.served is not None
    model = OpenModel(source)
    scorer = model.served
    questions = [Question(f"probe {n}", head, (tail,)) for n, (head, tail) in enumerate(_TEXTS)]
    found = [one for (one,) in scorer.ask(questions)]
    tokenizer = model.served_tokenizer
    known = (
        source.served.url,
        scorer.name,
        scorer.context,
        tokenizer.sha256 if tokenizer is not None else None,
        tuple(one.tokens for one in found),
    )
    probes = tuple(round(one.logprob / one.tokens, 4) for one in found)
    return replace(source, served=replace(source.served, model=scorer.name, known=json.dumps(known), probes=probes))


def recognise(source: ModelSource, folder: Location) -> ModelSource:
    """`source` with the probes of the model met before in `folder` that it is; a new one is written down there."""
    served = source.served
    assert served is not None and served.known is not None
    where = folder / MET
    try:
        met = json.loads(storage.read_text(where))
    except FileNotFoundError:
        met = []
    for each in met:
        if each["known"] == served.known and _close(each["probes"], served.probes):
            return replace(source, served=replace(served, probes=tuple(each["probes"])))
    met.append({"known": served.known, "probes": list(served.probes)})
    storage.write_text(where, json.dumps(met, indent=2) + "\n")
    return source


def _close(first: Sequence[float], second: Sequence[float]) -> bool:
    return len(first) == len(second) and all(abs(a - b) <= TOLERANCE for a, b in zip(first, second))
