"""What must not be learned from: evaluation sets and validation text, and the longest run of words shared with them.

Texts are compared by their words (raygpt.distill.words), exactly: a document is contaminated when `words` of its words
in a row stand in one of these texts too, and the longest such run is reported. A text with fewer words cannot be
found, and how many there are is said. What only means the same is not found either. Good text shares 8 words with
HellaSwag or MRPC by chance ("the U.S. Centers for Disease Control and Prevention") in 0.1 % of web pages and 0.7 % of
textbook sections, 10 words in none and 0.04 %, 13 words never; a tenth of MRPC's sentences are shorter than 13 words.

HellaSwag's rows (`ctx`, `endings`) become the context with its right ending, and the others with the context's last
words before them. Of other tables every text of a row counts by itself: both sentences of MRPC, question and choices.

In memory: 8 bytes per word of these texts, nothing per word of the corpus.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raygpt.data.corpus import expand_sources
from raygpt.data.documents import Reading, read_documents
from raygpt.data.reader import TokenReader
from raygpt.data.rows import read_rows
from raygpt.distill.words import Worded, worded, words_of
from raygpt.errors import UserError
from raygpt.evaluate.overlap import longest_overlaps

SETTING = "generate.decontaminate"
SHOWN_WORDS = 20
# No word has this number: it ends a run.
BORDER = np.zeros(1, np.int64)
# HellaSwag's marks: [header], [title], [step], [substeps]
_MARKS = re.compile(r"\[(?:header|title|step|substeps)\]")


@dataclass(frozen=True)
class Source:
    """One file or folder: its `texts`, how many of them are `short`, and the number of the first word after it."""

    uri: str
    texts: int
    short: int
    end: int


@dataclass(frozen=True)
class Match:
    """The longest run that a document shares with source number `source`: `words` of them, the first ones `shown`."""

    words: int
    source: int
    shown: str


class Forbidden:
    """Texts not to be learned from, as one stream (n,) int64 of numbered words with borders between them."""

    def __init__(self, stream: np.ndarray, sources: Sequence[Source], words: int) -> None:
        self.stream, self.sources, self.words = stream, tuple(sources), words
        self.total_tokens = len(stream)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.stream[start:stop]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.stream.tobytes()).hexdigest()

    def matches(self, documents: Sequence[Worded]) -> list[Match | None]:
        """Of each document the longest run of `words` or more; None where there is none."""
        found = longest_overlaps([document.numbers for document in documents], self, self.words)
        ends = [source.end for source in self.sources]
        return [
            Match(
                overlap.tokens,
                int(np.searchsorted(ends, overlap.position, "right")),
                " ".join(document.words[overlap.start : overlap.start + min(overlap.tokens, SHOWN_WORDS)]),
            )
            if overlap.tokens
            else None
            for overlap, document in zip(found, documents, strict=True)
        ]


def read_forbidden(uris: Sequence[str], words: int) -> Forbidden:
    """Texts of files, folders, Hugging Face data sets and token shards. UserError where one has none that is long
    enough to be found."""
    parts: list[np.ndarray] = []
    sources: list[Source] = []
    end = 0
    for uri in uris:
        texts = short = 0
        for text in _texts(uri, words):
            numbers = worded(text).numbers
            texts += 1
            if len(numbers) < words:
                short += 1
                continue
            parts += [numbers, BORDER]
            end += len(numbers) + 1
        if texts == short:
            raise UserError(
                f"{SETTING}: {uri} has no text of {words} words or more: name another file, or lower "
                "generate.decontaminate_words."
            )
        sources.append(Source(uri, texts, short, end))
    return Forbidden(np.concatenate([*parts, np.empty(0, np.int64)]), sources, words)


def _texts(uri: str, words: int) -> Iterator[str]:
    # imports torch, which tasks that only look for matches need not wait for
    from raygpt.evaluate.held_out import shard_folder

    folder = shard_folder(uri)
    if folder is not None:
        yield from _shard_texts(folder)
        return
    for unit in expand_sources([uri], setting=SETTING, whole=True):
        if unit.kind == "text":
            yield from read_documents(unit, Reading(errors="replace"))
            continue
        try:
            for _, row in read_rows(unit, "replace"):
                yield from row_texts(row, words)
        except UserError as error:
            raise UserError(f"{SETTING}: {error}") from error


def _shard_texts(folder: str) -> Iterator[str]:
    from raygpt.evaluate.documents import document_bounds, shard_tokenizer

    reader = TokenReader(folder)
    tokenizer = shard_tokenizer(reader)
    for start, stop in document_bounds(reader, tokenizer.eot_id).tolist():
        yield tokenizer.decode(reader.read(start, stop))


def row_texts(row: dict[str, Any], words: int) -> Iterator[str]:
    """Texts of one row of a table."""
    if isinstance(row.get("ctx"), str) and isinstance(row.get("endings"), list):
        context = _MARKS.sub(" ", row["ctx"])
        endings = [_MARKS.sub(" ", ending) for ending in row["endings"]]
        label = str(row.get("label"))
        right = int(label) if label.isdecimal() and int(label) < len(endings) else 0
        before = " ".join(words_of(context)[-(words - 1) :])
        yield f"{context} {endings[right]}"
        yield from (f"{before} {ending}" for number, ending in enumerate(endings) if number != right)
        return
    for value in row.values():
        for text in value if isinstance(value, list) else [value]:
            # names and labels are no texts, and would be counted as too short
            if isinstance(text, str) and " " in text.strip():
                yield text
