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
from functools import lru_cache
from typing import Any

import numpy as np

from raygpt.data.decoding import without_surrogates
from raygpt.distill.answers import Answer, Question
from raygpt.distill.decontaminate import Forbidden, Match
from raygpt.distill.dedup import Banding, band_hashes, exact_hash
from raygpt.distill.filters import LENGTH, Objection, Rules, objection, whole_sentences
from raygpt.distill.words import shingles, worded

CONTAMINATION = "contamination"
# Text of one task: about a second of a core. Ray's own cost is a millisecond.
CHUNK_CHARACTERS = 2 * 2**20
CHUNK_ANSWERS = 5_000


@dataclass(frozen=True)
class Draft:
    """What an answer would become: its `text` is judged, `document` is learned from; `group` numbers its prompt."""

    key: str
    text: str
    document: str
    group: int


@dataclass(frozen=True)
class Examination:
    """What is looked at: filters, texts not to be learned from, exact hashes, the bands of near duplicates."""

    rules: Rules
    forbidden: Forbidden | None = None
    exact: bool = True
    bands: Banding | None = None


@dataclass(frozen=True)
class Examined:
    """What was found in a chunk of `answers`: `objections` by position in it, with `matches` of the contaminated.

    Of the others, in order: `at` (kept,) positions, `keys` (kept,) bytes, `groups` (kept,) uint64, `exact` (kept, 2)
    uint64 and `bands` (kept, bands) uint64.
    """

    answers: int
    objections: dict[int, tuple[str, Objection]]  # position -> key, objection
    matches: dict[int, Match]
    at: np.ndarray
    keys: np.ndarray
    groups: np.ndarray
    exact: np.ndarray
    bands: np.ndarray


def drafts(answers: Iterable[Answer], rules: Rules, text_of: Callable[[Answer], str]) -> Iterator[Draft]:
    """Drafts in the order of the answers."""
    for answer in answers:
        text = whole_sentences(answer) if LENGTH in rules.filters else answer.text
        document = text_of(answer if text == answer.text else replace(answer, text=text))
        # half a surrogate pair, as JSON can escape it, is no text that a tokenizer takes
        text, document = (without_surrogates(part, "replace", answer.key) for part in (text, document))
        yield Draft(answer.key, text, document, prompt_group(answer.question))


def prompt_group(question: Question) -> int:
    """64 bits that all answers to one prompt share."""
    asked = json.dumps([question.prompt, question.messages])
    return int.from_bytes(hashlib.blake2b(asked.encode(), digest_size=8).digest(), "little")


def examine(chunk: list[Draft], examination: Examination) -> Examined:
    """Judge a chunk, and hash what stays."""
    found: dict[int, tuple[str, Objection]] = {}
    staying = []
    for position, draft in enumerate(chunk):
        of_document = lru_cache(1)(lambda text=draft.document: worded(text))
        of_text = of_document if draft.text == draft.document else lambda text=draft.text: worded(text)
        said = objection(draft.text, of_text, examination.rules)
        if said is not None:
            found[position] = draft.key, said
        else:
            staying.append((position, of_document))
    matches = {}
    if examination.forbidden is not None:
        looked = examination.forbidden.matches([counted() for _, counted in staying])
        matches = {position: match for (position, _), match in zip(staying, looked, strict=True) if match is not None}
        for position, match in matches.items():
            uri = examination.forbidden.sources[match.source].uri
            why = f"{match.words} words in a row of {uri}: {match.shown!r}"
            found[position] = chunk[position].key, Objection(CONTAMINATION, why)
        staying = [(position, counted) for position, counted in staying if position not in matches]
    kept = [chunk[position] for position, _ in staying]
    exact = [exact_hash(draft.document) for draft in kept] if examination.exact else []
    plan = examination.bands
    bands = [band_hashes(shingles(counted().numbers), plan) for _, counted in staying] if plan is not None else []
    return Examined(
        len(chunk),
        found,
        matches,
        np.array([position for position, _ in staying], np.int64),
        np.array([draft.key.encode() for draft in kept], "S"),
        np.array([draft.group for draft in kept], np.uint64),
        np.array(exact, np.uint64).reshape(len(kept), 2 if examination.exact else 0),
        np.array(bands, np.uint64).reshape(len(kept), plan.bands if plan is not None else 0),
    )


def shingle_sets(chunk: list[Draft], shared: None) -> list[np.ndarray]:
    return [shingles(worded(draft.document).numbers) for draft in chunk]


def chunks(made: Iterable[Draft]) -> Iterator[list[Draft]]:
    """Drafts by CHUNK_CHARACTERS."""
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


def in_order(work: Callable[[Any, Any], Any], parts: Iterable[Any], shared: Any) -> Iterator[Any]:
    """work(part, shared) of part after part: by tasks where Ray runs and has a core to give, else right here.

    `shared` travels once to every node.
    """
    import ray

    # a teacher that is still up keeps its cores: only what is free is asked for
    cores = int(ray.available_resources().get("CPU", 0)) if ray.is_initialized() else 0
    if cores < 1:
        for part in parts:
            yield work(part, shared)
        return
    task = ray.remote(num_cpus=1)(work)
    at_hand = ray.put(shared)
    running: deque[Any] = deque()
    for part in parts:
        running.append(task.remote(part, at_hand))
        if len(running) >= 2 * cores:
            yield ray.get(running.popleft())
    while running:
        yield ray.get(running.popleft())
