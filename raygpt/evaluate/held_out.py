"""Validation data as a model's evaluation reads it: token shards as they are, raw text tokenised on the spot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from raygpt import storage
from raygpt.data.corpus import held_out_units, read_documents
from raygpt.data.documents import Errors, Reading
from raygpt.data.reader import TokenReader
from raygpt.data.shards import MANIFEST, load_manifest
from raygpt.data.sources import is_path, raw_sources, shard_folders
from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError
from raygpt.evaluate.subject import Subject
from raygpt.train.evaluation import ArrayTokens, Evaluation, TokenSource, evaluate_tokens

# Text tokenised at a time, in characters.
BATCH_CHARACTERS = 4 * 2**20
# Tokens in one forward pass: keeps a GPU busy, and 16,384 x 50,257 logits are 3.3 GB in fp32.
BATCH_TOKENS = {"cuda": 16_384, "cpu": 4_096}
# Most tokens of a row or window unless data.seq_len says so: attention over 131,072 costs 256 times that over 8,192,
# which is longer than most of WikiText's pages.
LONGEST = 8192


@dataclass
class HeldOut:
    """`bytes` is the UTF-8 length of the documents' text; `fingerprint` is None for raw text."""

    reader: TokenSource
    uri: str
    documents: int
    bytes: int
    fingerprint: str | None = None


def open_held_out(
    uri: str,
    tokenizer: Tokenizer,
    *,
    subset: str | None = None,
    text_column: str = "text",
    encoding_errors: Errors = "strict",
    split_text: bool = False,
    max_document_mb: float = 256,
    cache_bytes: int = 0,
) -> HeldOut:
    """A shard folder, an output of `raygpt prepare` (its val/), or raw text in any form that `prepare` reads.

    Raw text is tokenised here and held in memory, 2 bytes a token: one end of text before each document, as between
    documents in shards. Raises UserError for shards of another tokenizer, and where nothing can be read.
    """
    folder = shard_folder(uri)
    if folder is None:
        reading = Reading(text_column, encoding_errors, split_text, max_document_mb)
        return _read_text(uri, tokenizer, subset, reading)
    reader = TokenReader(folder, cache_bytes)
    manifest = reader.manifest
    if manifest.tokenizer.sha256 != tokenizer.sha256:
        raise UserError(
            f"data.val={folder} was made with tokenizer {manifest.tokenizer.name} of {manifest.tokenizer.vocab_size:,} "
            f"but the model's own is {tokenizer.name} of {tokenizer.vocab_size:,}: name the raw text instead, or "
            "prepare it with the model's tokenizer."
        )
    return HeldOut(reader, folder, manifest.documents, manifest.bytes, manifest.fingerprint)


def evaluate_held_out(
    subject: Subject,
    held_out: HeldOut,
    seq_len: int,
    *,
    batch_rows: int | None = None,
    max_rows: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Loss of the model over the held-out tokens in rows of `seq_len`; `on_progress(tokens read, all tokens)`.

    Bits per byte are there whenever every token was predicted.
    """
    reader: TokenSource = held_out.reader
    if on_progress is not None:
        asked = reader.total_tokens if max_rows is None else min(reader.total_tokens, max_rows * seq_len)
        reader = _Watched(reader, asked, on_progress)
    rows = batch_rows or max(1, BATCH_TOKENS[subject.device.type] // seq_len)
    autocast = subject.precision.autocast
    result = evaluate_tokens(subject.model, reader, seq_len, rows, subject.device, autocast, max_rows=max_rows)
    if result.bits_per_byte is None and result.tokens == held_out.reader.total_tokens - 1 and held_out.bytes:
        bits = result.loss * result.tokens / math.log(2)
        result = replace(result, bits_per_byte=bits / held_out.bytes)
    return result


class _Watched:
    """A reader that tells how many tokens have been read through it."""

    def __init__(self, reader: TokenSource, asked: int, on_progress: Callable[[int, int], None]) -> None:
        self._reader, self._asked, self._on_progress = reader, asked, on_progress
        self.total_tokens = reader.total_tokens
        self.manifest = getattr(reader, "manifest", None)
        self._read = 0

    def read(self, start: int, stop: int) -> np.ndarray:
        self._add(stop - start)
        return self._reader.read(start, stop)

    def read_rows(self, starts: np.ndarray, length: int) -> np.ndarray:
        self._add(len(starts) * (length - 1))
        return self._reader.read_rows(starts, length)

    def _add(self, tokens: int) -> None:
        self._read += tokens
        self._on_progress(min(self._read, self._asked), self._asked)


def validation_uri(val: str | None, train: str | None, subject: Subject) -> str:
    """data.val as set, what lies beside data.train, or what the model's own run held out. UserError where none is."""
    if val is not None:
        return val
    if train is not None:
        return shard_folders(train, None)[1]
    trained = subject.trained
    if trained is None or trained.train is None:
        raise UserError("data.val is not set: name the shard folder or the text to evaluate on.")
    train, val = shard_folders(trained.train, trained.val)
    made_of = None if subject.state is None or subject.mixed else subject.state.fingerprint
    held = trained.val is None or storage.exists(storage.locate(train) / MANIFEST)  # else the text may be gone
    if made_of and held and load_manifest(train).fingerprint != made_of:
        raise UserError(
            f"data.val is not set, and {train} beside which the run's validation text lay holds other tokens now than "
            "those it was trained on: name data.val."
        )
    return val


def rows_of(seq_len: int | None, subject: Subject) -> int:
    """Tokens of a row: data.seq_len as set, what the model was trained on, or its context, LONGEST at most.
    UserError beyond the context."""
    longest = subject.model.config.seq_len
    found = seq_len or (subject.trained and subject.trained.seq_len) or min(longest, LONGEST)
    if found > longest:
        raise UserError(f"data.seq_len={found} exceeds the model's context of {longest}: lower it or leave it out.")
    return found


def most_rows(batches: int | None, global_batch_tokens: int, seq_len: int, subject: Subject) -> int | None:
    """Rows of eval.batches global batches, the run's own or those set; None: all."""
    if batches is None:
        return None
    batch = (subject.trained and subject.trained.global_batch_tokens) or global_batch_tokens
    return max(1, batches * batch // seq_len)


def shard_folder(uri: str) -> str | None:
    """The shard folder a URI means (itself or its val/), or None where it names text."""
    if not is_path(uri):
        return None
    where = storage.locate(uri)
    for folder in (where, where / "val"):
        if storage.exists(folder / MANIFEST):
            return folder.uri
    return None


def _read_text(uri: str, tokenizer: Tokenizer, subset: str | None, reading: Reading) -> HeldOut:
    if is_path(uri) and not storage.exists(storage.locate(uri)):
        raise UserError(f"data.val={uri} does not exist: name a shard folder or a file of text.")
    end = np.array([tokenizer.eot_id], tokenizer.dtype)
    parts: list[np.ndarray] = []
    documents, size = 0, 0
    for texts in _batches(uri, subset, reading):
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            parts += [end, ids]
            size += len(text.encode("utf-8"))
        documents += len(texts)
    if not documents:
        raise UserError(f"data.val={uri} holds no text: name a file that does.")
    return HeldOut(ArrayTokens(np.concatenate(parts)), uri, documents, size)


def _batches(uri: str, subset: str | None, reading: Reading) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for unit in held_out_units(raw_sources(uri), subset, "data.val"):
        for text in read_documents(unit, reading):
            batch.append(text)
            characters += len(text)
            if characters >= BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
    if batch:
        yield batch
