"""Stored answers to documents: filtered, without duplicates and contamination, as token shards with a card.

    output/train/, output/val/   token shards; all answers to one prompt are on one side
    output/card.md               the data set's card
    output/quality.json          its numbers

What is kept depends on answers, options and tokenizer alone, whatever the number of cores; documents stand in the
order of the answers. A kill leaves the old shards or the new ones: new shards get numbers of their own beside the old,
and each manifest is replaced in one piece. What is there already is not made again.

The answers are read three or four times and never held. In memory per million documents that pass the filters: 60 MB,
and what raygpt.distill.dedup says.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from raygpt import storage
from raygpt.data import shards
from raygpt.data.shards import Manifest, ShardWriter, load_manifest
from raygpt.data.tokenizer import Tokenizer
from raygpt.distill import card
from raygpt.distill.answers import Answer
from raygpt.distill.dedup import NearDuplicates, banding, exact_duplicates
from raygpt.distill.examine import Draft, Examination, drafts, examine_all
from raygpt.distill.filters import EMPTY, Rules
from raygpt.distill.words import numbered, shingles, words_of
from raygpt.errors import UserError
from raygpt.storage import Location

VERSION = 1
QUALITY, CARD = "quality.json", "card.md"
TRAIN, VAL = "train", "val"
EXACT, NEAR = "exact duplicates", "near duplicates"
SAMPLES = 3
SAMPLE_CHARACTERS = 200
BATCH = 256  # documents tokenised at a time
_SHARD = re.compile(r"shard-(\d+)\.bin")

Answers = Callable[[], Iterator[Answer]]


@dataclass(frozen=True)
class QualityOptions:
    """Settings of the section `generate` that decide what is kept; as they are called there."""

    filters: tuple[str, ...] = ("length", "repetition", "language", "refusal")
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
) -> dict[str, Any]:
    """Write train/, val/, card.md and quality.json of `answers()`; gives what quality.json holds, with `reused`.

    `answers()` gives the same answers in the same order every time. `text_of` makes a document's text of an answer
    (prompt and answer, say). Raises UserError where fewer than two documents are left, naming the step that removed
    most.
    """
    before = _written(output)
    if before is not None and before["request"] == _request(answers, tokenizer, options, text_of):
        return {**before, "reused": True}
    making = _Making(answers, options, text_of)
    making.examine()
    if options.dedup != "none":
        making.drop_exact()
    if options.dedup == "minhash":
        making.drop_near()
    making.check_left()
    sides = making.write(output, tokenizer)
    request = _request(answers, tokenizer, options, text_of)
    quality = making.quality(request, sides, facts)
    storage.write_text(output / CARD, card.card(quality))
    storage.write_text(output / QUALITY, json.dumps(quality, indent=2, ensure_ascii=False) + "\n")
    for side, manifest in sides.items():
        _delete_unlisted(output / side, manifest)
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
    """Documents on their way. `at` are positions among the answers of those that are still in, with their keys, prompt
    groups and hashes beside them."""

    def __init__(self, answers: Answers, options: QualityOptions, text_of: Callable[[Answer], str]) -> None:
        self.answers, self.options, self.text_of = answers, options, text_of
        self.steps: dict[str, _Step] = {EMPTY: _Step(), **{name: _Step() for name in options.filters}}
        self.total = 0
        self.bands = banding(options.dedup_threshold) if options.dedup == "minhash" else None

    def drafts(self) -> Iterator[Draft]:
        return drafts(self.answers(), self.options.rules, self.text_of)

    def examine(self) -> None:
        at, keys, groups, exact, bands = [], [], [], [], []
        for found in examine_all(
            self.drafts(), Examination(self.options.rules, self.options.dedup != "none", self.bands)
        ):
            for position, key in enumerate(found.keys):
                if (said := found.objections.get(position)) is not None:
                    self.steps[said.step].add(key, self.total + position, said.why)
                    continue
                at.append(self.total + position)
                keys.append(key)
                groups.append(found.groups[position])
            exact.append(found.exact)
            bands.append(found.bands)
            self.total += len(found.keys)
        self.at = np.array(at, np.int64)
        self.keys = np.array(keys, "S")
        self.groups = np.array(groups, np.uint64)
        self.exact = np.concatenate(exact) if exact else np.empty((0, 2), np.uint64)
        self.band_hashes = np.concatenate(bands) if bands else np.empty((0, 0), np.uint64)

    def drop_exact(self) -> None:
        stays = exact_duplicates(self.exact, self.keys)
        mine = np.arange(len(stays))
        self._drop(EXACT, [(int(n), f"the same text as {_key(self.keys[stays[n]])}") for n in mine[stays != mine]])

    def drop_near(self) -> None:
        near = NearDuplicates(self.band_hashes, self.keys, self.options.dedup_threshold)
        wanted = {int(self.at[n]): int(n) for n in near.candidates}
        held = {
            wanted[at]: shingles(numbered(words_of(draft.document)))
            for at, draft in enumerate(self.drafts())
            if at in wanted
        }
        pairs = near.find(held.__getitem__)
        self._drop(
            NEAR,
            [(pair.removed, f"{pair.jaccard:.3f} of {_key(self.keys[pair.stays])}") for pair in pairs],
        )

    def _drop(self, name: str, removed: list[tuple[int, str]]) -> None:
        step = self.steps[name] = _Step()
        stays = np.ones(len(self.at), bool)
        for n, why in removed:
            step.add(_key(self.keys[n]), int(self.at[n]), why)
            stays[n] = False
        self.at, self.keys, self.groups = self.at[stays], self.keys[stays], self.groups[stays]
        self.exact, self.band_hashes = self.exact[stays], self.band_hashes[stays]

    def check_left(self) -> None:
        if len(self.at) >= 2:
            return
        left = "no document is" if not len(self.at) else "one document is"
        if not self.total:
            raise UserError("There is no answer to make documents of: see why the prompts were parked.")
        name, step = max(self.steps.items(), key=lambda item: item[1].removed)
        why = f" ({step.samples[0][2]})" if step.samples else ""
        raise UserError(
            f"Of {self.total:,} answers {left} left, and train/ and val/ need one each: {step.removed:,} went with the "
            f"step {name}{why}; ask more prompts, or set {_SETTING.get(name, 'generate.filters')} otherwise."
        )

    def validation(self) -> np.ndarray:
        """(left,) bool. By prompt, so that no side knows another answer to a prompt of the other; at least one each."""
        val = self.groups < np.uint64(min(self.options.val_fraction * 2**64, 2**64 - 1))
        if val.any() and not val.all():
            return val
        by = self.groups if len(np.unique(self.groups)) > 1 else np.argsort(np.argsort(self.keys))
        return by != by.max() if val.all() else by == by.min()

    def write(self, output: Location, tokenizer: Tokenizer) -> dict[str, Manifest]:
        """Shards of both sides; fills in the samples' texts."""
        side = dict(zip(self.at.tolist(), self.validation().tolist()))
        wanted = {at for step in self.steps.values() for _, at, _ in step.samples}
        self.texts: dict[int, str] = {}
        written = {name: _Side(output / name, tokenizer, self.options.shard_tokens) for name in (TRAIN, VAL)}
        batch: list[tuple[str, str]] = []
        for at, draft in enumerate(self.drafts()):
            if at in wanted:
                self.texts[at] = draft.document or draft.text
            if at in side:
                batch.append((VAL if side[at] else TRAIN, draft.document))
            if len(batch) == BATCH:
                _append(batch, written, tokenizer)
                batch = []
        _append(batch, written, tokenizer)
        for one in written.values():
            one.writer.close()
        return {name: one.finish() for name, one in written.items()}

    def quality(self, request: str, sides: dict[str, Manifest], facts: card.Facts) -> dict[str, Any]:
        left = self.total
        steps = []
        for name, step in self.steps.items():
            left -= step.removed
            samples = [{"key": key, "why": why, "text": self._sample(at)} for key, at, why in step.samples]
            steps.append({"step": name, "removed": step.removed, "kept": left, "samples": samples})
        manifests = list(sides.values())
        return {
            "version": VERSION,
            "request": request,
            "answers": self.total,
            "documents": sum(manifest.documents for manifest in manifests),
            "tokens": sum(manifest.tokens for manifest in manifests),
            "bytes": sum(manifest.bytes for manifest in manifests),
            "tokenizer": manifests[0].tokenizer.name,
            **{
                side: {"documents": manifest.documents, "tokens": manifest.tokens, "fingerprint": manifest.fingerprint}
                for side, manifest in sides.items()
            },
            "steps": steps,
            "options": asdict(self.options),
            "generation": facts.figures(),
        }

    def _sample(self, at: int) -> str:
        text = self.texts.get(at, "")
        return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + "…"


_SETTING = {EXACT: "generate.dedup", NEAR: "generate.dedup_threshold"}


def _key(key: Any) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)


class _Side:
    """One side's shards, beside those that a manifest there lists already."""

    def __init__(self, folder: Location, tokenizer: Tokenizer, shard_tokens: int) -> None:
        self.tokenizer = tokenizer
        before = _manifest(folder)
        numbers = (
            [int(match[1]) for shard in before.shards if (match := _SHARD.fullmatch(shard.name))] if before else []
        )
        self.writer = ShardWriter(folder, tokenizer.dtype, shard_tokens, max(numbers, default=-1) + 1)
        self.documents = self.bytes = 0

    def finish(self) -> Manifest:
        info = self.tokenizer.info
        return self.writer.finish(info, self.tokenizer.to_json(), self.documents, self.bytes, ("raygpt generate",))


def _append(batch: list[tuple[str, str]], written: dict[str, _Side], tokenizer: Tokenizer) -> None:
    for name, side in written.items():
        texts = [text for where, text in batch if where == name]
        if not texts:
            continue
        flat, lengths = tokenizer.encode_flat(texts)
        side.writer.append(np.insert(flat, np.cumsum(lengths), tokenizer.eot_id))
        side.documents += len(texts)
        side.bytes += sum(len(text.encode("utf-8")) for text in texts)


def _request(answers: Answers, tokenizer: Tokenizer, options: QualityOptions, text_of: Callable[[Answer], str]) -> str:
    """sha256 (hex) of all that decides the result."""
    digest = hashlib.sha256(json.dumps([VERSION, tokenizer.sha256, asdict(options)]).encode())
    for draft in drafts(answers(), options.rules, text_of):
        digest.update(json.dumps([draft.key, draft.text, draft.document]).encode())
    return digest.hexdigest()


def _written(output: Location) -> dict[str, Any] | None:
    """What quality.json says, where it and both sides are whole."""
    try:
        quality = json.loads(storage.read_text(output / QUALITY))
        for side in (TRAIN, VAL):
            if load_manifest(output / side).fingerprint != quality[side]["fingerprint"]:
                return None
        return quality if quality["version"] == VERSION else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, UserError):
        return None


def _manifest(folder: Location) -> Manifest | None:
    try:
        return shards.read_manifest(folder)
    except UserError:
        return None


def _delete_unlisted(folder: Location, manifest: Manifest) -> None:
    """Shards of what was there before, and of a making that was killed."""
    listed = {shard.name for shard in manifest.shards}
    for entry in storage.list_folder(folder):
        if _SHARD.fullmatch(entry.base_name) and entry.base_name not in listed:
            storage.delete(folder / entry.base_name)


def counts(quality: dict[str, Any]) -> Counter[str]:
    """Removed documents by step."""
    return Counter({step["step"]: step["removed"] for step in quality["steps"]})
