"""Held-out documents as texts: an evenly spaced part of them, so that models of any tokenizer read the same words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from raygpt import storage
from raygpt.data.corpus import held_out_units, read_documents
from raygpt.data.documents import Errors, Reading
from raygpt.data.reader import TokenReader
from raygpt.data.shards import TOKENIZER
from raygpt.data.sources import is_path, raw_sources
from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError
from raygpt.evaluate.held_out import shard_folder

# A longer document becomes several texts, about 2,000 tokens each: a novel must not outweigh a hundred abstracts, and a
# corpus in one line has to be usable too.
LONGEST = 8_000
# With fewer documents than this their texts stand for themselves in the bootstrap, and are cut shorter.
FEW = 20
SHORT = 1_000
BLOCK_TOKENS = 2**22

Item = TypeVar("Item")


@dataclass(frozen=True)
class Documents:
    """`texts` taken from the held-out text at `uri`; `units[i]` numbers what text i is part of.

    Units are what a bootstrap draws: documents, or the texts themselves (`by_text`) where there are only few documents.
    `total` counts all documents there are, `fingerprint` is that of token shards.
    """

    uri: str
    texts: list[str]
    units: np.ndarray
    total: int
    by_text: bool
    fingerprint: str | None = None

    @property
    def bytes(self) -> np.ndarray:
        """(texts,) int64 UTF-8 length of each."""
        return np.array([len(text.encode("utf-8")) for text in self.texts], dtype=np.int64)


def open_documents(
    uri: str,
    wanted: int,
    setting: str,
    *,
    subset: str | None = None,
    text_column: str = "text",
    encoding_errors: Errors = "strict",
    cache_bytes: int = 0,
    max_documents: int | None = None,
) -> Documents:
    """About `wanted` texts, evenly spaced over a shard folder, an output of `raygpt prepare` (its val/) or raw text.

    Raw text is read once from end to end (`max_documents` ends it earlier) and never held whole. Shards are decoded
    with the tokenizer they carry. Raises UserError naming `setting` where nothing usable lies there.
    """
    folder = shard_folder(uri)
    if folder is not None:
        reader = TokenReader(folder, cache_bytes)
        uri, fingerprint = folder, reader.manifest.fingerprint
        texts = _shard_texts(reader, wanted)
        total = reader.manifest.documents
    else:
        if is_path(uri) and not storage.exists(storage.locate(uri)):
            raise UserError(f"{setting}={uri} does not exist: name a shard folder or a file of text.")
        fingerprint = None
        counted = _Counted(_raw_texts(uri, subset, text_column, encoding_errors), max_documents)
        texts = evenly_spaced(_parts(counted), wanted)
        total = counted.total
    found = _documents(uri, texts, total, fingerprint)
    if len(found.texts) < 2:
        raise UserError(f"{setting}={uri} holds {'no' if not texts else 'too little'} text to compare on: name more.")
    return found


def evenly_spaced(items: Iterable[Item], wanted: int) -> list[Item]:
    """`wanted` of the items (all where there are fewer), evenly spaced, without holding more than twice as many."""
    kept: list[Item] = []
    stride = 1
    for number, item in enumerate(items):
        if number % stride:
            continue
        if len(kept) == 2 * wanted:
            kept = kept[::2]
            stride *= 2
            if number % stride:
                continue
        kept.append(item)
    if len(kept) <= wanted:
        return kept
    return [kept[at * len(kept) // wanted] for at in range(wanted)]


def cut(text: str, longest: int) -> list[str]:
    """The text in parts of at most `longest` characters that join to it; cut after a line or a word where there is one.

    Parts of white space alone are left out.
    """
    parts = []
    start = 0
    while start < len(text):
        stop = start + longest
        if stop < len(text):
            # not in the first half: a part of two words is no text
            half = start + longest // 2
            found = max(text.rfind("\n", half, stop), 0) or max(text.rfind(" ", half, stop), 0)
            stop = found + 1 if found else stop
        parts.append(text[start:stop])
        start = stop
    return [part for part in parts if not part.isspace()]


def document_bounds(reader: TokenReader, eot_id: int) -> np.ndarray:
    """(documents, 2) int64 begin and end of every document in the stream, without end of text; none is empty."""
    ends = [
        begin + np.flatnonzero(reader.read(begin, min(begin + BLOCK_TOKENS, reader.total_tokens)) == eot_id)
        for begin in range(0, reader.total_tokens, BLOCK_TOKENS)
    ]
    stops = np.concatenate([*ends, [reader.total_tokens]]).astype(np.int64)
    starts = np.concatenate([[0], stops[:-1] + 1])
    return np.stack([starts, stops], axis=1)[stops > starts]


def shard_tokenizer(reader: TokenReader) -> Tokenizer:
    """The tokenizer a shard folder carries."""
    info = reader.manifest.tokenizer
    return Tokenizer.from_json(storage.read_bytes(reader.folder / TOKENIZER), info.name, info.eot_id)


def _shard_texts(reader: TokenReader, wanted: int) -> list[tuple[int, str]]:
    tokenizer = shard_tokenizer(reader)
    bounds = document_bounds(reader, tokenizer.eot_id)
    # of few documents all parts are candidates; of many, reading the chosen ones is enough
    chosen = evenly_spaced(range(len(bounds)), wanted)
    documents = ((int(at), tokenizer.decode(reader.read(int(bounds[at, 0]), int(bounds[at, 1])))) for at in chosen)
    return evenly_spaced(_parts(documents), wanted)


class _Counted:
    """Documents with their numbers; `total` says how many came by."""

    def __init__(self, texts: Iterable[str], most: int | None) -> None:
        self._texts, self._most = texts, most
        self.total = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        for text in self._texts:
            if self._most is not None and self.total >= self._most:
                return
            self.total += 1
            yield self.total - 1, text


def _raw_texts(uri: str, subset: str | None, text_column: str, errors: Errors) -> Iterator[str]:
    for unit in held_out_units(raw_sources(uri), subset, "compare"):
        yield from read_documents(unit, Reading(text_column, errors))


def _parts(documents: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    for number, text in documents:
        for part in cut(text, LONGEST):
            yield number, part


def _documents(uri: str, texts: list[tuple[int, str]], total: int, fingerprint: str | None) -> Documents:
    numbers = np.array([number for number, _ in texts], dtype=np.int64)
    found = [text for _, text in texts]
    by_text = len(np.unique(numbers)) < FEW
    if by_text:
        if len(found) < FEW:
            found = [part for text in found for part in cut(text, SHORT)]
        numbers = np.arange(len(found))
    return Documents(uri, found, numbers, total, by_text, fingerprint)
