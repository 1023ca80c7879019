"""Documents to token shards: `<output>/train` and `<output>/val`, tokenised on all cores of the Ray cluster.

- Order and bytes of the shards depend on the inputs and options only, never on cores, machines or interruptions.
- Every document that holds text is in exactly one side (`val_split="tail"`: every character is).
- Interrupted, a rerun continues after the last journal entry, which is at most a minute old.
- Finished, a rerun with the same inputs and options does nothing and says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import ray

from raygpt import storage
from raygpt.data import journal, shards
from raygpt.data.corpus import Unit, expand_sources, read_documents
from raygpt.data.documents import Errors
from raygpt.data.pipeline import Cursor, ReadPlan, TokenBlock, is_validation, token_blocks
from raygpt.data.shards import Manifest, ShardWriter
from raygpt.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from raygpt.errors import UserError
from raygpt.storage import Location

TRAIN, VAL = "train", "val"
RECORD = "prepare.json"
# Besides every finished train shard, the journal is written this often: the most work a kill can cost.
COMMIT_SECONDS = 60.0
# Text a new tokenizer is trained on, spread evenly over the units. More changes merges in the tail only.
TOKENIZER_CHARACTERS = 64 * 10**6


@dataclass(frozen=True)
class PrepareOptions:
    """Settings of the section `prepare`, and `data.tokenizer`.

    `val_split`: "documents" puts a document on one side by a hash of its text, about `val_fraction` of them into
    validation; "tail" puts the last `val_fraction` of every document's characters there. `text_column` names the
    text in parquet, JSONL and CSV. `encoding_errors="replace"` reads invalid UTF-8 as U+FFFD instead of stopping.
    """

    sources: Sequence[str]
    output: str
    tokenizer: str = "gpt2"
    subset: str | None = None
    text_column: str = "text"
    val_fraction: float = 0.005
    val_split: Literal["documents", "tail"] = "documents"
    shard_tokens: int = 2**24
    max_documents: int | None = None
    encoding_errors: Errors = "strict"


@dataclass(frozen=True)
class PrepareProgress:
    """Where a running preparation is: `fraction` of the input (0..1, an estimate), totals, tokens/s since start."""

    fraction: float
    documents: int
    tokens: int
    tokens_per_second: float


@dataclass(frozen=True)
class PrepareResult:
    """What was prepared. `documents` counts source documents, `bytes` their UTF-8 text; `seconds` and
    `tokens_per_second` are this call's own, 0 when `reused` says that the output was already there."""

    documents: int
    tokens: int
    tokens_per_second: float
    train: str
    val: str
    train_fingerprint: str
    val_fingerprint: str
    train_tokens: int
    val_tokens: int
    train_documents: int
    val_documents: int
    empty_documents: int
    bytes: int
    tokenizer: str
    vocab_size: int
    seconds: float
    reused: bool
    resumed: bool


def prepare(options: PrepareOptions, on_progress: Callable[[PrepareProgress], None] | None = None) -> PrepareResult:
    """Tokenise the corpus into `<output>/train` and `<output>/val`. Ray must be running.

    Raises UserError for sources, options, an output that holds something else, a corpus without text, and a split
    that leaves a side without documents.
    """
    check_options(options)
    output = storage.locate(options.output)
    units = expand_sources(options.sources, options.subset)
    tokenizer = None if options.tokenizer.startswith("train:") else load_tokenizer(options.tokenizer)
    request = describe_request(options, units, tokenizer)
    if (record := _read_record(output)) is not None:
        _check_same(output, record["request"], request, "holds")
        return _reuse(output, record)
    storage.check_writable(output, "prepare.output")

    started = time.monotonic()
    plan = ReadPlan(
        tuple(units),
        options.text_column,
        options.encoding_errors,
        options.val_fraction,
        options.val_split,
        options.max_documents,
    )
    progress = journal.Progress()
    resumed = False
    if (before := journal.read_request(output)) is not None:
        _check_same(output, before, request, "was begun with")
        tokenizer = journal.saved_tokenizer(output)
        resumed = True
    if tokenizer is None:
        tokenizer = _trained_tokenizer(plan, int(options.tokenizer.removeprefix("train:")))
    writers = {side: ShardWriter(output / side, tokenizer.dtype, options.shard_tokens) for side in (TRAIN, VAL)}
    if resumed:
        progress = journal.restore(output, writers)
    had = sum(writer.total_tokens for writer in writers.values())

    def report() -> None:
        if on_progress:
            tokens = sum(writer.total_tokens for writer in writers.values())
            rate = (tokens - had) / max(time.monotonic() - started, 1e-9)
            on_progress(PrepareProgress(_fraction(units, progress, unit_bytes), progress.completed, tokens, rate))

    committed = time.monotonic()
    unit_bytes = 0  # text taken from the unit the cursor is in
    for block in token_blocks(plan, tokenizer, progress.cursor, progress.completed):
        unit_bytes = sum(block.bytes) + (unit_bytes if block.cursor.unit == progress.cursor.unit else 0)
        completed_shards = _take(block, writers, progress)
        if completed_shards or time.monotonic() - committed >= COMMIT_SECONDS:
            journal.commit(output, request, tokenizer, progress, writers)
            committed = time.monotonic()
        report()
    _check_sides(options, output, progress)
    manifests = {
        side: writers[side].finish(tokenizer.info, tokenizer.to_json(), total.documents, total.bytes, options.sources)
        for side, total in ((TRAIN, progress.train), (VAL, progress.val))
    }
    progress.cursor = Cursor(len(units), 0)
    report()
    record = {"version": 1, "request": request, "documents": progress.completed, "empty_documents": progress.empty}
    storage.write_text(output / RECORD, json.dumps(record, indent=2) + "\n")
    journal.remove(output)
    return _result(output, manifests, record, time.monotonic() - started, resumed=resumed, had=had)


def check_options(options: PrepareOptions) -> None:
    """UserError with all settings that cannot be, in one sentence each."""
    problems = []
    if not 0 < options.val_fraction < 1:
        problems.append(
            f"prepare.val_fraction is {options.val_fraction}: give a fraction between 0 and 1, such as 0.005."
        )
    if options.shard_tokens < 1:
        problems.append(f"prepare.shard_tokens is {options.shard_tokens}: give at least 1.")
    if options.max_documents is not None and options.max_documents < 1:
        problems.append(f"prepare.max_documents is {options.max_documents}: give at least 1, or none for all.")
    if options.val_split not in ("documents", "tail"):
        problems.append(f"prepare.val_split is {options.val_split!r}: choose documents or tail.")
    if options.encoding_errors not in ("strict", "replace"):
        problems.append(f"prepare.encoding_errors is {options.encoding_errors!r}: choose strict or replace.")
    if options.tokenizer.startswith("train:") and not options.tokenizer.removeprefix("train:").isdecimal():
        problems.append(f"data.tokenizer={options.tokenizer}: write train:<vocab_size>, such as train:8192.")
    if problems:
        raise UserError(" ".join(problems))


def describe_request(options: PrepareOptions, units: Sequence[Unit], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What decides the result, as JSON: equal requests give equal shards."""
    settings = asdict(options)
    for name in ("sources", "output"):
        del settings[name]
    if tokenizer is not None:
        settings["tokenizer"] = tokenizer.sha256
    files = sorted({(unit.uri, unit.stamp) for unit in units})
    parts = [(unit.uri, unit.part, unit.parts, unit.stamp) for unit in units]
    return {
        "settings": settings,
        "files": len(files),
        "inputs": hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
    }


def _check_same(output: Location, before: dict[str, Any], now: dict[str, Any], verb: str) -> None:
    was, wants = before["settings"], now["settings"]
    differences = [f"{name}={was.get(name)!r}, now {wants[name]!r}" for name in wants if was.get(name) != wants[name]]
    if was.get("encoding_errors") == "strict":
        # what was read strictly had nothing to replace
        differences = [text for text in differences if not text.startswith("encoding_errors=")]
    if before["inputs"] != now["inputs"]:
        differences.append(
            f"other input files ({before['files']}, now {now['files']}; a file counts as changed with its size or time)"
        )
    if differences:
        raise UserError(
            f"prepare.output={output.uri} {verb} other data: {'; '.join(differences)}. Choose another prepare.output, "
            "or delete that folder to prepare it anew."
        )


def _take(block: TokenBlock, writers: dict[str, ShardWriter], progress: journal.Progress) -> int:
    """Put a block into the writers and the totals; returns how many train shards it completed."""
    completed = writers[TRAIN].append(block.train)
    writers[VAL].append(block.val)
    for side, total in enumerate((progress.train, progress.val)):
        total.documents += block.documents[side]
        total.bytes += block.bytes[side]
    progress.completed += block.completed
    progress.empty += block.empty
    progress.cursor = block.cursor
    return completed


def _check_sides(options: PrepareOptions, output: Location, progress: journal.Progress) -> None:
    if progress.train.documents and progress.val.documents:
        return
    if not progress.completed:
        sentence = (
            f"prepare.sources: no document with text in {', '.join(options.sources)} (empty ones: {progress.empty})."
        )
    elif not progress.val.documents:
        sentence = (
            f"None of the {progress.completed:,} documents fell to validation: raise prepare.val_fraction "
            f"({options.val_fraction}), or set prepare.val_split=tail to take the end of every document instead."
        )
    else:
        sentence = (
            f"All of the {progress.completed:,} documents fell to validation: lower prepare.val_fraction "
            f"({options.val_fraction}), or set prepare.val_split=tail to take only the end of every document."
        )
    # other options are the way out: what these left must not stand in their way
    journal.remove(output)
    raise UserError(sentence)


def _fraction(units: Sequence[Unit], progress: journal.Progress, unit_bytes: int) -> float:
    at = progress.cursor.unit
    total = sum(unit.bytes for unit in units) or 1
    inside = min(unit_bytes, int(0.99 * units[at].bytes)) if at < len(units) else 0
    return (sum(unit.bytes for unit in units[:at]) + inside) / total


def _trained_tokenizer(plan: ReadPlan, vocab_size: int) -> Tokenizer:
    """Byte-level BPE from training documents taken from all over the corpus, by one task of the cluster."""
    if vocab_size < 257:
        raise UserError(f"data.tokenizer=train:{vocab_size}: a byte-level vocabulary needs at least 257 entries.")
    definition, eot_id, error = ray.get(_train_task.remote(plan, vocab_size))
    if error:
        raise UserError(error)
    return Tokenizer.from_json(definition, f"bpe-{vocab_size}", eot_id)


@ray.remote(num_cpus=1)
def _train_task(plan: ReadPlan, vocab_size: int) -> tuple[bytes, int, str | None]:
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        tokenizer = train_tokenizer(tokenizer_texts(plan), vocab_size)
    except UserError as error:
        return b"", 0, str(error)
    return tokenizer.to_json(), tokenizer.eot_id, None


def tokenizer_texts(plan: ReadPlan, characters: int = TOKENIZER_CHARACTERS) -> Iterator[str]:
    """Training text from the beginning of every unit, about `characters` in all; validation text is left out."""
    share = max(1, characters // max(1, len(plan.units)))
    documents = 0
    for unit in plan.units:
        taken = 0
        for text in read_documents(unit, plan.text_column, plan.errors):
            if plan.max_documents is not None and documents >= plan.max_documents:
                return
            documents += 1
            if plan.val_split == "tail":
                text = text[: int(len(text) * (1 - plan.val_fraction))]
            elif is_validation(text.encode("utf-8"), plan.val_fraction):
                continue
            yield text[: share - taken]
            taken += len(text)
            if taken >= share:
                break


def _read_record(output: Location) -> dict[str, Any] | None:
    try:
        return json.loads(storage.read_text(output / RECORD))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{(output / RECORD).uri} is damaged ({error}): delete prepare.output={output.uri} and start again."
        ) from error


def _reuse(output: Location, record: dict[str, Any]) -> PrepareResult:
    manifests = {side: shards.load_manifest(output / side) for side in (TRAIN, VAL)}
    return replace(_result(output, manifests, record, 0.0, resumed=False, had=0), tokens_per_second=0.0, reused=True)


def _result(
    output: Location, manifests: dict[str, Manifest], record: dict[str, Any], seconds: float, resumed: bool, had: int
) -> PrepareResult:
    train, val = manifests[TRAIN], manifests[VAL]
    tokens = train.tokens + val.tokens
    return PrepareResult(
        documents=record["documents"],
        tokens=tokens,
        tokens_per_second=(tokens - had) / max(seconds, 1e-9),
        train=(output / TRAIN).uri,
        val=(output / VAL).uri,
        train_fingerprint=train.fingerprint,
        val_fingerprint=val.fingerprint,
        train_tokens=train.tokens,
        val_tokens=val.tokens,
        train_documents=train.documents,
        val_documents=val.documents,
        empty_documents=record["empty_documents"],
        bytes=train.bytes + val.bytes,
        tokenizer=train.tokenizer.name,
        vocab_size=train.tokenizer.vocab_size,
        seconds=seconds,
        reused=False,
        resumed=resumed,
    )
