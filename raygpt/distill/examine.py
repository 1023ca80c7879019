"""Answers judged one by one, on all cores of a Ray cluster where there is one: filters, contamination, hashes.

    answers -> drafts -> chunks -> Examined, in the order of the answers

Only counts, objections and hashes come back: 16 bytes and the bands of a document, never its text.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raygpt.distill.answers import Answer, Question
from raygpt.distill.dedup import Banding, band_hashes, exact_hash
from raygpt.distill.filters import LENGTH, Objection, Rules, objection, whole_sentences
from raygpt.distill.words import numbered, shingles, words_of

# Text of one task: about a second of a core. Ray's own cost is a millisecond.
CHUNK_CHARACTERS = 2**20
CHUNK_ANSWERS = 2_000


@dataclass(frozen=True)
class Draft:
    """What an answer would become: its `text` is judged, `document` is learned from; `group` numbers its prompt."""

    key: str
    text: str
    document: str
    group: int


@dataclass(frozen=True)
class Examination:
    """What is looked at: filters, whether exact hashes are wanted, the bands of near duplicates."""

    rules: Rules
    exact: bool
    bands: Banding | None


@dataclass(frozen=True)
class Examined:
    """A chunk's `drafts` (without text) and what was found: `objections` by position in the chunk; of the others, in
    order, `exact` (kept, 2) and `bands` (kept, bands) uint64."""

    keys: list[str]
    groups: list[int]
    objections: dict[int, Objection]
    exact: np.ndarray
    bands: np.ndarray


def drafts(answers: Iterable[Answer], rules: Rules, text_of: Callable[[Answer], str]) -> Iterator[Draft]:
    """Drafts in the order of the answers."""
    for answer in answers:
        text = whole_sentences(answer) if LENGTH in rules.filters else answer.text
        document = text_of(answer if text == answer.text else replace(answer, text=text))
        yield Draft(answer.key, text, document, prompt_group(answer.question))


def prompt_group(question: Question) -> int:
    """64 bits that all answers to one prompt share."""
    asked = json.dumps([question.prompt, question.messages])
    return int.from_bytes(hashlib.blake2b(asked.encode(), digest_size=8).digest(), "little")


def examine(chunk: list[Draft], examination: Examination) -> Examined:
    found: dict[int, Objection] = {}
    exact, bands = [], []
    for position, draft in enumerate(chunk):
        said = objection(draft.text, examination.rules)
        if said is not None:
            found[position] = said
            continue
        if examination.exact:
            exact.append(exact_hash(draft.document))
        if examination.bands is not None:
            bands.append(band_hashes(shingles(numbered(words_of(draft.document))), examination.bands))
    width = examination.bands.bands if examination.bands is not None else 0
    return Examined(
        [draft.key for draft in chunk],
        [draft.group for draft in chunk],
        found,
        np.array(exact, np.uint64).reshape(len(exact), 2),
        np.array(bands, np.uint64).reshape(len(bands), width),
    )


def examine_all(made: Iterable[Draft], examination: Examination) -> Iterator[Examined]:
    """Chunk after chunk in order; by tasks where Ray runs and has a core to give, else right here."""
    return in_order(examine, _chunks(made), examination)


def _chunks(made: Iterable[Draft]) -> Iterator[list[Draft]]:
    chunk: list[Draft] = []
    held = 0
    for draft in made:
        chunk.append(draft)
        held += len(draft.text) + len(draft.document)
        if held >= CHUNK_CHARACTERS or len(chunk) == CHUNK_ANSWERS:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def in_order(work: Callable[[Any, Any], Any], chunks: Iterable[Any], shared: Any) -> Iterator[Any]:
    """work(chunk, shared) of chunk after chunk. `shared` travels once to every node."""
    import ray

    cores = int(ray.available_resources().get("CPU", 0)) if ray.is_initialized() else 0
    if cores < 1:
        for chunk in chunks:
            yield work(chunk, shared)
        return
    # a teacher that is still up keeps its cores: only what is free is asked for
    task = ray.remote(num_cpus=1)(work)
    at_hand = ray.put(shared)
    running: deque[Any] = deque()
    for chunk in chunks:
        running.append(task.remote(chunk, at_hand))
        if len(running) >= 2 * cores:
            yield ray.get(running.popleft())
    while running:
        yield ray.get(running.popleft())
