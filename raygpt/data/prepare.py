"""Documents to token shards: `<output>/train` and `<output>/val`, tokenised on all cores of the Ray cluster.

- Order and bytes of the shards depend on the inputs and options only, never on cores, machines or interruptions.
- Every document that holds text is in exactly one side (`val_split="tail"`: every character is), and every row read is
  accounted for: it became a training document or a validation document, or it was white space.
- Interrupted, a rerun continues after the last journal entry, which is at most a minute old.
- Finished, a rerun with the same inputs and options does nothing and says so.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any, Literal

import ray

from raygpt import storage
from raygpt.data import journal, shards
from raygpt.data.corpus import read_documents
from raygpt.data.journal import Account, Journal
from raygpt.data.pipeline import Cursor, ReadPlan, TokenBlock, token_blocks
from raygpt.data.request import TRAIN, VAL, Inputs, PrepareOptions, check_options, check_same, describe_request, expand
from raygpt.data.shards import Manifest, finish_folder
from raygpt.data.tokenizer import Tokenizer, train_tokenizer
from raygpt.data.writing import SideWriter
from raygpt.errors import UserError
from raygpt.storage import Location

__all__ = ["Account", "PrepareOptions", "PrepareProgress", "PrepareResult", "prepare", "tokenizer_texts"]

RECORD = "prepare.json"
ENDS_OF_FEW = "documents, of which there are too few"  # what a journal says where their ends are held out instead
# Besides every finished train shard, the journal is written this often: the most work a kill can cost.
COMMIT_SECONDS = 60.0
# Text a new tokenizer is trained on, spread evenly over the units. More changes merges in the tail only.
TOKENIZER_CHARACTERS = 64 * 10**6


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
    `tokens_per_second` are this call's own, 0 when `reused` says that the output was already there.

    `train` or `val` is None, and its fingerprint empty, where that side was not asked for. `account` says what became
    of the rows of `sources`, `val_account` of those of `val_sources` (None where there are none). `inputs` are the
    files read and not read; `val_split` is "tail" also where the options say "documents" and all of these few would
    have fallen to one side.
    """

    documents: int
    tokens: int
    tokens_per_second: float
    train: str | None
    val: str | None
    train_fingerprint: str
    val_fingerprint: str
    train_tokens: int
    val_tokens: int
    train_documents: int
    val_documents: int
    empty_documents: int
    account: Account
    val_account: Account | None
    bytes: int
    tokenizer: str
    vocab_size: int
    seconds: float
    reused: bool
    resumed: bool
    inputs: Inputs
    val_split: str


class TooFewDocuments(UserError):
    """A side got no text. `documents` is how many there are with text, `split` how they were held out."""

    def __init__(self, sentence: str, documents: int, split: str) -> None:
        super().__init__(sentence)
        self.documents, self.split = documents, split


def prepare(options: PrepareOptions, on_progress: Callable[[PrepareProgress], None] | None = None) -> PrepareResult:
    """Tokenise the corpus into `<output>/train` and `<output>/val`. Ray must be running.

    Where `val_split="documents"` would leave a side empty, the end of every document is held out as with "tail".
    Raises UserError for sources, options, an output that holds something else, and a corpus without text.
    """
    check_options(options)
    output = storage.locate(options.output)
    inputs = expand(options)
    tokenizer = options.load_tokenizer()
    request = describe_request(options, inputs.units, inputs.val_units, tokenizer)
    if (record := _read_record(output)) is not None:
        check_same(output, record["request"], request, "holds")
        return _reuse(options, inputs, output, record)
    storage.check_writable(output, "prepare.output")
    ends = {**request, "settings": {**request["settings"], "val_split": ENDS_OF_FEW}}
    if options.val_split == "documents" and journal.read_request(output) == ends:
        return _prepare(options, inputs, output, tokenizer, request, ends, "tail", on_progress)
    try:
        return _prepare(options, inputs, output, tokenizer, request, request, options.val_split, on_progress)
    except TooFewDocuments as error:
        if error.documents == 0 or error.split == "tail":
            raise
    # what is there is small: a second pass over it takes no time
    return _prepare(options, inputs, output, tokenizer, request, ends, "tail", on_progress)


def _prepare(
    options: PrepareOptions,
    inputs: Inputs,
    output: Location,
    tokenizer: Tokenizer | None,
    request: dict[str, Any],
    begun_with: dict[str, Any],
    val_split: Literal["documents", "tail", "none"],
    on_progress: Callable[[PrepareProgress], None] | None,
) -> PrepareResult:
    """`begun_with` is what the journal says of itself; `val_split` in place of the options'."""
    started = time.monotonic()
    units = [*inputs.units, *inputs.val_units]
    plan = ReadPlan(
        tuple(units),
        options.val_fraction,
        val_split,
        options.max_documents,
        len(inputs.units) if inputs.val_units else None,
        options.reading,
    )
    progress = journal.Progress()
    resumed = False
    if (before := journal.read_request(output)) is not None:
        check_same(output, before, begun_with, "was begun with")
        tokenizer = journal.saved_tokenizer(output)
        resumed = True
    if tokenizer is None:
        assert options.trained_vocabulary is not None
        tokenizer = _trained_tokenizer(plan, options.trained_vocabulary)
    writers = {side: SideWriter(output / side, tokenizer.dtype, options.shard_tokens) for side in (TRAIN, VAL)}
    log = Journal(output, begun_with, tokenizer, writers)
    if resumed:
        progress = log.restore()
    on_the_way = _bytes_on_the_way(options.shard_tokens * tokenizer.dtype.itemsize)
    had = sum(writer.total_tokens for writer in writers.values())

    def report() -> None:
        if on_progress:
            tokens = sum(writer.total_tokens for writer in writers.values())
            rate = (tokens - had) / max(time.monotonic() - started, 1e-9)
            on_progress(PrepareProgress(_fraction(before_unit, progress, unit_bytes), progress.completed, tokens, rate))

    recorded = time.monotonic()
    before_unit = list(accumulate((unit.bytes for unit in units), initial=0))
    unit_bytes = 0  # text taken from the unit the cursor is in
    for block in token_blocks(plan, tokenizer, progress.cursor, progress.completed):
        at = progress.cursor.unit
        unit_bytes = sum(block.counts.bytes) + (unit_bytes if block.counts.cursor.unit == at else 0)
        completed_shards = _take(block, writers, progress)
        if completed_shards or time.monotonic() - recorded >= COMMIT_SECONDS:
            log.record(progress)
            recorded = time.monotonic()
        log.settle(on_the_way)
        report()
    _check_sides(options, output, progress, val_split)
    _check_accounts(val_split, progress)
    manifests = {}
    for side in options.sides:
        total = progress.train if side == TRAIN else progress.val
        sources = options.val_sources if side == VAL and options.val_sources else options.sources
        manifests[side] = finish_folder(
            output / side,
            tokenizer.dtype,
            writers[side].finish(),
            tokenizer.info,
            tokenizer.to_json(),
            total.documents,
            total.bytes,
            sources,
        )
    progress.cursor = Cursor(len(units), 0)
    report()
    record: dict[str, Any] = {
        "version": 1,
        "request": request,
        "documents": progress.completed,
        "empty_documents": progress.sources.empty + progress.val_sources.empty,
        "rows": {"sources": asdict(progress.sources)},
    }
    if val_split != options.val_split:
        record["val_split"] = val_split
    if options.val_sources:
        record["rows"]["val_sources"] = asdict(progress.val_sources)
    storage.write_text(output / RECORD, json.dumps(record, indent=2) + "\n")
    journal.remove(output)
    return _result(options, inputs, output, manifests, record, time.monotonic() - started, resumed=resumed, had=had)


def _take(block: TokenBlock, writers: dict[str, SideWriter], progress: journal.Progress) -> int:
    """Put a block into the writers and the totals; returns how many train shards it completed."""
    counts = block.counts
    completed = writers[TRAIN].append(block.refs[0], counts.tokens[0])
    writers[VAL].append(block.refs[1], counts.tokens[1])
    for side, total in enumerate((progress.train, progress.val)):
        total.documents += counts.documents[side]
        total.bytes += counts.bytes[side]
    progress.completed += counts.completed
    account = progress.val_sources if block.from_val else progress.sources
    account.read += counts.read
    account.train += counts.documents[0]
    account.val += counts.documents[1]
    account.empty += counts.empty
    progress.cursor = counts.cursor
    return completed


def _bytes_on_the_way(shard_bytes: int) -> int:
    """How many bytes of shards may be in writing: one a core, within a quarter of the object store."""
    resources = ray.cluster_resources()
    store = int(resources.get("object_store_memory", 0))
    return max(shard_bytes, min(int(resources.get("CPU", 1)) * shard_bytes, store // 4))


def _check_sides(options: PrepareOptions, output: Location, progress: journal.Progress, val_split: str) -> None:
    sentence = None
    documents = progress.completed
    for sources, setting, account in (
        (options.sources, options.sources_setting, progress.sources),
        (options.val_sources, options.val_setting, progress.val_sources),
    ):
        if sources and not account.train + account.val and sentence is None:
            documents = 0
            sentence = (
                f"{setting}: no document with text in {', '.join(sources)} (rows read: {account.read:,}, empty ones: "
                f"{account.empty:,})."
            )
    if sentence is None and not options.val_sources and val_split != "none":
        of = "the ends of the" if val_split == "tail" else "the"
        way_out = f"({options.val_fraction}), or name validation text with {options.val_setting}"
        if not progress.val.documents:
            sentence = f"None of {of} {documents:,} documents fell to validation: raise prepare.val_fraction {way_out}."
        elif not progress.train.documents:
            sentence = f"All of {of} {documents:,} documents fell to validation: lower prepare.val_fraction {way_out}."
    if sentence is not None:
        # other options are the way out: what these left must not stand in their way
        journal.remove(output)
        raise TooFewDocuments(sentence, documents, val_split)


def _check_accounts(val_split: str, progress: journal.Progress) -> None:
    """No row was lost: a fault of this program otherwise."""
    if val_split == "tail":
        account = progress.sources
        whole = account.read == progress.completed + account.empty
    else:
        accounts = (progress.sources, progress.val_sources)
        whole = all(account.read == account.train + account.val + account.empty for account in accounts)
    if not whole:
        raise RuntimeError(f"rows and documents do not add up: {progress}")


def _fraction(before_unit: Sequence[int], progress: journal.Progress, unit_bytes: int) -> float:
    """Share of the input taken; `before_unit` (units + 1,) are the bytes before each unit, then the total."""
    at = progress.cursor.unit
    inside = 0
    if at + 1 < len(before_unit):
        inside = min(unit_bytes, int(0.99 * (before_unit[at + 1] - before_unit[at])))
    return (before_unit[at] + inside) / (before_unit[-1] or 1)


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
    units = plan.units[: plan.train_units]
    share = max(1, characters // max(1, len(units)))
    documents = 0
    for number, unit in enumerate(units):
        taken = 0
        for text in read_documents(unit, plan.reading):
            if plan.max_documents is not None and documents >= plan.max_documents:
                return
            documents += 1
            if plan.val_from is None and plan.val_split == "tail":
                text = text[: int(len(text) * (1 - plan.val_fraction))]
            elif plan.is_validation(number, text.encode("utf-8")):
                continue
            yield text[: share - taken]
            taken += len(text)
            if taken >= share:
                break


def _read_record(output: Location) -> dict[str, Any] | None:
    try:
        record = json.loads(storage.read_text(output / RECORD))
        if not isinstance(record, dict) or not isinstance(record.get("request"), dict):
            raise ValueError("it names no request")
        return record
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{(output / RECORD).uri} is damaged ({error}): delete prepare.output={output.uri} and start again."
        ) from error


def _reuse(options: PrepareOptions, inputs: Inputs, output: Location, record: dict[str, Any]) -> PrepareResult:
    manifests = {side: shards.load_manifest(output / side) for side in options.sides}
    found = _result(options, inputs, output, manifests, record, 0.0, resumed=False, had=0)
    return replace(found, tokens_per_second=0.0, reused=True)


def _result(
    options: PrepareOptions,
    inputs: Inputs,
    output: Location,
    manifests: dict[str, Manifest],
    record: dict[str, Any],
    seconds: float,
    resumed: bool,
    had: int,
) -> PrepareResult:
    train, val = manifests.get(TRAIN), manifests.get(VAL)
    written = list(manifests.values())
    tokens = sum(manifest.tokens for manifest in written)
    rows = record.get("rows")
    if rows is None:  # written before accounts were
        read = record["documents"] + record["empty_documents"]
        parts = (train.documents if train else 0, val.documents if val else 0)
        rows = {"sources": asdict(Account(read, *parts, record["empty_documents"]))}
    return PrepareResult(
        documents=record["documents"],
        tokens=tokens,
        tokens_per_second=(tokens - had) / max(seconds, 1e-9),
        train=(output / TRAIN).uri if train else None,
        val=(output / VAL).uri if val else None,
        train_fingerprint=train.fingerprint if train else "",
        val_fingerprint=val.fingerprint if val else "",
        train_tokens=train.tokens if train else 0,
        val_tokens=val.tokens if val else 0,
        train_documents=train.documents if train else 0,
        val_documents=val.documents if val else 0,
        empty_documents=record["empty_documents"],
        account=Account(**rows["sources"]),
        val_account=Account(**rows["val_sources"]) if "val_sources" in rows else None,
        bytes=sum(manifest.bytes for manifest in written),
        tokenizer=written[0].tokenizer.name,
        vocab_size=written[0].tokenizer.vocab_size,
        seconds=seconds,
        reused=False,
        resumed=resumed,
        inputs=inputs,
        val_split=record.get("val_split", options.val_split),
    )
