"""Stored answers to documents: filtered, without contamination and duplicates, as token shards with a card.

    output/train/, output/val/   token shards; all answers to one prompt are on one side
    output/card.md               the data set's card, in the form of the Hugging Face hub
    output/quality.json          its numbers: what each step removed, samples, speed and cost; written last

What is kept depends on answers, options and tokenizer alone, whatever the number of cores; documents stand in the
order of the answers. The steps, in order: empty answers, the filters, contamination, exact and near duplicates, the
teacher's marks. A making that was killed leaves what was there, and what is there already is not made again.

The answers are read three to five times and never held. In memory per million documents that pass the filters: about
50 MB, and what raygpt.distill.dedup says.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from raygpt import storage
from raygpt.data.shards import Manifest, load_manifest
from raygpt.data.tokenizer import Tokenizer
from raygpt.distill import card
from raygpt.distill.answers import Answer, Question
from raygpt.distill.decontaminate import Forbidden, read_forbidden
from raygpt.distill.dedup import NearDuplicates, banding, exact_duplicates
from raygpt.distill.examine import (
    CONTAMINATION,
    Draft,
    Examination,
    chunks,
    drafts,
    examine,
    in_order,
    shingle_sets,
)
from raygpt.distill.filters import EMPTY, IN_ORDER, Rules
from raygpt.distill.score import mark, score_question
from raygpt.distill.sides import SIDES, delete_unlisted, write_sides
from raygpt.errors import UserError
from raygpt.storage import Location

VERSION = 1
QUALITY, CARD = "quality.json", "card.md"
EXACT, NEAR, SCORE = "exact duplicates", "near duplicates", "score"
SAMPLES = 3
SAMPLE_CHARACTERS = 200
# What to set when a step took too much.
_SETTINGS = {
    EXACT: "generate.dedup",
    NEAR: "generate.dedup_threshold",
    SCORE: "generate.min_score",
    CONTAMINATION: "generate.decontaminate_words",
    EMPTY: "generate.max_new_tokens",
}

Answers = Callable[[], Iterator[Answer]]
# Asks the teacher; answers may come in any order, and one that never came is missing.
Scorer = Callable[[Callable[[], Iterator[Question]]], Iterable[Answer]]
# What is being done, and how many answers are behind it.
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class QualityOptions:
    """Settings of the section `generate` that decide what is kept, as they are called there."""

    filters: tuple[str, ...] = IN_ORDER
    min_characters: int = 50
    max_characters: int = 100_000
    language: str = "en"
    min_score: float = 3.0
    dedup: Literal["none", "exact", "minhash"] = "minhash"
    dedup_threshold: float = 0.8
    decontaminate: tuple[str, ...] = ()
    decontaminate_words: int = 8
    val_fraction: float = 0.01
    shard_tokens: int = 2**24

    @property
    def rules(self) -> Rules:
        return Rules(self.filters, self.min_characters, self.max_characters, self.language)


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
    forbidden = read_forbidden(options.decontaminate, options.decontaminate_words) if options.decontaminate else None
    making = _Making(answers, options, text_of, forbidden, tokenizer, on_progress)
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
    manifests = making.write(output, facts.teacher)
    quality = making.quality(manifests, facts)
    storage.write_text(output / CARD, card.card(quality))
    storage.write_text(output / QUALITY, json.dumps(quality, indent=2, ensure_ascii=False) + "\n")
    delete_unlisted(output, manifests)
    return {**quality, "reused": False}


@dataclass
class _Step:
    """What a step removed: how many, and a few with the smallest keys: (key, position among the answers, why)."""

    removed: int = 0
    samples: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, key: str, at: int, why: str) -> None:
        self.removed += 1
        self.samples = heapq.nsmallest(SAMPLES, [*self.samples, (key, at, why)])


class _Making:
    """Documents on their way. `at` (n,) are the positions among the answers of those that are still in; `keys` (n,),
    `groups` (n,), `exact` (n, 2) and `bands` (n, bands) belong to them."""

    def __init__(
        self,
        answers: Answers,
        options: QualityOptions,
        text_of: Callable[[Answer], str],
        forbidden: Forbidden | None,
        tokenizer: Tokenizer,
        on_progress: Progress | None,
    ) -> None:
        self.answers, self.options, self.text_of = answers, options, text_of
        self.forbidden, self.tokenizer, self.on_progress = forbidden, tokenizer, on_progress
        self.banding = banding(options.dedup_threshold) if options.dedup == "minhash" else None
        named = [EMPTY, *(name for name in IN_ORDER if name in options.filters)]
        self.steps = {name: _Step() for name in [*named, *([CONTAMINATION] if forbidden else [])]}
        self.found = [{"contaminated": 0, "longest": 0} for _ in (forbidden.sources if forbidden else ())]
        self.total = 0
        self.request = ""

    def drafts(self, doing: str) -> Iterator[Draft]:
        for number, draft in enumerate(drafts(self.answers(), self.options.rules, self.text_of), start=1):
            yield draft
            if self.on_progress is not None and number % 1_000 == 0:
                self.on_progress(doing, number)

    def request_alone(self) -> str:
        """`request` without making anything."""
        for _ in self._digested(self.drafts("comparing")):
            pass
        return self.request

    def _digested(self, made: Iterable[Draft]) -> Iterator[Draft]:
        """The drafts; after the last, `request` is the sha256 (hex) of all that decides the result but marks."""
        settings = asdict(self.options) | {"decontaminate": self.forbidden.sha256 if self.forbidden else ""}
        digest = hashlib.sha256(json.dumps([VERSION, self.tokenizer.sha256, settings]).encode())
        for draft in made:
            digest.update(json.dumps([draft.key, draft.text, draft.document, draft.group]).encode())
            yield draft
        self.request = digest.hexdigest()

    def examine(self) -> None:
        wanted = Examination(self.options.rules, self.forbidden, self.options.dedup != "none", self.banding)
        parts = []
        for found in in_order(examine, chunks(self._digested(self.drafts("filtering"))), wanted):
            for position, (key, said) in found.objections.items():
                self.steps[said.step].add(key, self.total + position, said.why)
            for match in found.matches.values():
                source = self.found[match.source]
                source["contaminated"] += 1
                source["longest"] = max(source["longest"], match.words)
            parts.append((found.at + self.total, found.keys, found.groups, found.exact, found.bands))
            self.total += found.answers
        if not self.total:
            raise UserError("There is no answer to make documents of: see parked.jsonl for what became of the prompts.")
        self.at, self.keys, self.groups, self.exact, self.bands = map(np.concatenate, zip(*parts, strict=True))

    def drop_exact(self) -> None:
        stays = exact_duplicates(self.exact, self.keys)
        copies = np.flatnonzero(stays != np.arange(len(stays))).tolist()
        self._drop(EXACT, {n: f"the same text as {self._key(stays[n])}" for n in copies})

    def drop_near(self) -> None:
        near = NearDuplicates(self.bands, self.keys, self.options.dedup_threshold)
        mine = dict(zip(self.at[near.candidates].tolist(), near.candidates.tolist()))
        drafts = (draft for at, draft in enumerate(self.drafts("comparing documents")) if at in mine)
        sets = [one for part in in_order(shingle_sets, chunks(drafts), None) for one in part]
        held = dict(zip((mine[at] for at in sorted(mine)), sets, strict=True))
        pairs = near.find(held.__getitem__)
        self._drop(NEAR, {pair.removed: f"{pair.jaccard:.3f} in common with {self._key(pair.stays)}" for pair in pairs})

    def drop_low(self, scorer: Scorer) -> None:
        """By marks. What got none goes too: it is not known to be good."""
        at = set(self.at.tolist())

        def questions() -> Iterator[Question]:
            made = enumerate(self.drafts("asking for marks"))
            return (score_question(draft.document) for number, draft in made if number in at)

        # the question's own key, for any generation: answers come in any order
        marks = {answer.question.key(""): mark(answer.text) for answer in scorer(questions)}
        low = {}
        for n, question in enumerate(questions()):
            given = marks.get(question.key(""))
            if given is None or given < self.options.min_score:
                low[n] = "no mark" if given is None else f"mark {given:g}"
        self._drop(SCORE, low)

    def _drop(self, name: str, removed: dict[int, str]) -> None:
        step = self.steps[name] = _Step()
        for n, why in removed.items():
            step.add(self._key(n), int(self.at[n]), why)
        stays = np.ones(len(self.at), bool)
        stays[list(removed)] = False
        self.at, self.keys, self.groups = self.at[stays], self.keys[stays], self.groups[stays]
        self.exact, self.bands = self.exact[stays], self.bands[stays]

    def _key(self, n: int) -> str:
        return self.keys[n].decode()

    def check_left(self) -> None:
        if len(self.at) >= 2:
            return
        name, step = max(self.steps.items(), key=lambda item: item[1].removed)
        why = f", such as: {step.samples[0][2]}" if step.samples else ""
        raise UserError(
            f"Of {self.total:,} answers {'one' if len(self.at) else 'no'} document is left, and train/ and val/ need "
            f"one each: the step {name} removed most ({step.removed:,}{why}); set "
            f"{_SETTINGS.get(name, 'generate.filters')} otherwise, or ask more prompts."
        )

    def kept_sha256(self) -> str:
        return hashlib.sha256(self.at.tobytes()).hexdigest()

    def validation(self) -> np.ndarray:
        """(left,) bool. By prompt, so that neither side holds another answer to a prompt of the other; one at least."""
        val = self.groups < np.uint64(int(self.options.val_fraction * 2**64))
        if val.any() and not val.all():
            return val
        by = self.groups if len(np.unique(self.groups)) > 1 else np.argsort(np.argsort(self.keys))
        return by != by.max() if val.all() else by == by.min()

    def write(self, output: Location, teacher: str) -> dict[str, Manifest]:
        """Shards of both sides; fills in the samples' texts."""
        side = dict(zip(self.at.tolist(), self.validation().tolist()))
        wanted = {at for step in self.steps.values() for _, at, _ in step.samples}
        self.texts: dict[int, str] = {}

        def documents() -> Iterator[tuple[bool, str]]:
            for at, draft in enumerate(self.drafts("writing")):
                if at in wanted:
                    self.texts[at] = draft.document or draft.text
                if at in side:
                    yield side[at], draft.document

        source = f"raygpt generate, {teacher}"
        return write_sides(documents(), output, self.tokenizer, self.options.shard_tokens, source)

    def quality(self, manifests: dict[str, Manifest], facts: card.Facts) -> dict[str, Any]:
        """What quality.json holds."""
        left = self.total
        steps = []
        for name, step in self.steps.items():
            left -= step.removed
            samples = [{"key": key, "why": why, "text": _shown(self.texts[at])} for key, at, why in step.samples]
            steps.append({"step": name, "removed": step.removed, "kept": left, "samples": samples})
        both = list(manifests.values())
        return {
            "version": VERSION,
            "request": self.request,
            "kept": self.kept_sha256(),
            "answers": self.total,
            "documents": sum(manifest.documents for manifest in both),
            "tokens": sum(manifest.tokens for manifest in both),
            "bytes": sum(manifest.bytes for manifest in both),
            "tokenizer": both[0].tokenizer.name,
            **{
                side: {"documents": manifest.documents, "tokens": manifest.tokens, "fingerprint": manifest.fingerprint}
                for side, manifest in manifests.items()
            },
            "steps": steps,
            "options": asdict(self.options),
            "near_duplicates": {**asdict(self.banding), "missed": self.banding.missed} if self.banding else None,
            "decontaminated": [
                {"source": source.uri, "texts": source.texts, "too_short": source.short, **found}
                for source, found in zip(self.forbidden.sources, self.found, strict=True)
            ]
            if self.forbidden
            else [],
            "generation": facts.figures(),
        }


def _shown(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + "…"


def _written(output: Location) -> dict[str, Any] | None:
    """What quality.json says, where it is of this version and both sides are as it says."""
    try:
        quality = json.loads(storage.read_text(output / QUALITY))
        whole = all(load_manifest(output / side).fingerprint == quality[side]["fingerprint"] for side in SIDES)
        return quality if whole and quality["version"] == VERSION else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, UserError):
        return None
