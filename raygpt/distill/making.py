"""The steps from stored answers to documents: one pass over the answers judges each, the others go by what is left.

What stays in memory of a document is its place among the answers, its key, its prompt's number and its hashes: 48
bytes and what raygpt.distill.dedup says. At most 0.5 GB per million documents were measured (20,000 beside 60,000 of
60 words, threshold 0.8). Marks of the teacher take some 150 bytes more while they are looked at.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from raygpt.data.shards import Manifest
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
from raygpt.errors import UserError

VERSION = 1
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

    def forbidden(self) -> Forbidden | None:
        return read_forbidden(self.decontaminate, self.decontaminate_words) if self.decontaminate else None

    def check(self) -> None:
        """UserError, before a teacher is paid, for a language that the filter does not know and for evaluation files
        that cannot be read."""
        self.rules.check()
        self.forbidden()


@dataclass
class Step:
    """What a step removed: how many, and a few with the smallest keys: (key, position among the answers, why)."""

    removed: int = 0
    samples: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, key: str, at: int, why: str) -> None:
        self.removed += 1
        self.samples = heapq.nsmallest(SAMPLES, [*self.samples, (key, at, why)])


class Making:
    """Documents on their way. `at` (n,) are the positions among the answers, ascending, of those that are still in;
    `keys` (n,), `groups` (n,), `exact` (n, 2) and `bands` (n, bands) belong to them."""

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
        self.steps = {name: Step() for name in [*named, *([CONTAMINATION] if forbidden else [])]}
        self.found = [{"contaminated": 0, "longest": 0} for _ in (forbidden.sources if forbidden else ())]
        self.total = 0
        self.request = ""

    def drafts(self, doing: str) -> Iterator[Draft]:
        for number, draft in enumerate(drafts(self.answers(), self.options.rules, self.text_of), start=1):
            yield draft
            if self.on_progress is not None and number % 1_000 == 0:
                self.on_progress(doing, number)

    def drafts_at(self, positions: np.ndarray, doing: str) -> Iterator[tuple[int, Draft]]:
        """(position, draft) of these (n,) ascending positions."""
        wanted = iter(positions)
        next_at = next(wanted, -1)
        for at, draft in enumerate(self.drafts(doing)):
            if at == next_at:
                yield at, draft
                next_at = next(wanted, -1)

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
        self.exact = self.exact[:, :0]  # no longer needed
        copies = np.flatnonzero(stays != np.arange(len(stays))).tolist()
        self._drop(EXACT, {n: f"the same text as {self._key(stays[n])}" for n in copies})

    def drop_near(self) -> None:
        near = NearDuplicates(self.bands, self.keys, self.options.dedup_threshold)
        alike = (draft for _, draft in self.drafts_at(self.at[near.candidates], "comparing documents"))
        sets = (one for part in in_order(shingle_sets, chunks(alike), None) for one in part)
        held = dict(zip(near.candidates.tolist(), sets, strict=True))
        pairs = near.find(held.__getitem__)
        self.bands = self.bands[:, :0]  # no longer needed
        self._drop(NEAR, {pair.removed: f"{pair.jaccard:.3f} in common with {self._key(pair.stays)}" for pair in pairs})

    def drop_low(self, scorer: Scorer) -> None:
        """By marks. What got none goes too: it is not known to be good."""

        def questions() -> Iterator[Question]:
            return (score_question(draft.document) for _, draft in self.drafts_at(self.at, "asking for marks"))

        # the question's own key, for any generation: answers come in any order
        marks = {answer.question.key(""): mark(answer.text) for answer in scorer(questions)}
        low = {}
        for n, question in enumerate(questions()):
            given = marks.get(question.key(""))
            if given is None or given < self.options.min_score:
                low[n] = "no mark" if given is None else f"mark {given:g}"
        self._drop(SCORE, low)

    def _drop(self, name: str, removed: dict[int, str]) -> None:
        step = self.steps[name] = Step()
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

    def documents(self) -> Iterator[tuple[bool, str]]:
        """(is validation, text) of what is left; takes the samples' texts as they come by."""
        self.texts: dict[int, str] = {}
        wanted = np.array([at for step in self.steps.values() for _, at, _ in step.samples], np.int64)
        left = zip(self.at, self.keys, self.validation())
        next_at, key, val = next(left)
        for at, draft in self.drafts_at(np.union1d(self.at, wanted), "writing"):
            if at != next_at:
                self.texts[at] = _shown(draft.document or draft.text)
                continue
            if draft.key.encode() != key:
                raise RuntimeError(f"answers changed while they were read: {draft.key} is where {key.decode()} was")
            yield bool(val), draft.document
            next_at, key, val = next(left, (np.int64(-1), b"", False))

    def quality(self, manifests: dict[str, Manifest], facts: card.Facts) -> dict[str, Any]:
        """What quality.json holds."""
        left = self.total
        steps = []
        for name, step in self.steps.items():
            left -= step.removed
            samples = [{"key": key, "why": why, "text": self.texts[at]} for key, at, why in step.samples]
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
