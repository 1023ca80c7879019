"""Units of a corpus become tokens on all cores of the Ray cluster, in the order of the corpus.

    reading tasks                     tokenising tasks           driver
    units -> fragments of text  --->  fragments -> token ids --> TokenBlock after TokenBlock, in order

A fragment is a document's part for one side of the train/validation split, or a piece of it where the document is
long. Which fragments there are, and their order, depends on the corpus and the plan alone; how they are grouped
into blocks does not show in the tokens. Text and tokens stay in the object store: the driver sees counts. Errors
travel as rows, so the first one in corpus order is the one raised.

These are plain Ray tasks: Ray Data's executor spins in the driver while finished blocks wait for their turn. The quick
start's corpus took 13.1 s of CPU time through Ray Data and takes 6.7 s, processes and the new tokenizer included.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
from ray import ObjectRef

from raygpt.data.documents import Reading, Rows, Unit, read_documents
from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError

# Text per block: one tokenising task, about a second of one core. Ray's own cost per task is about a millisecond.
BLOCK_BYTES = 4 * 2**20
# Longer documents travel as several fragments, so that one book neither fills a block nor waits for one core.
FRAGMENT_CHARACTERS = 2**20
# Units per reading task: by weight, and never so many that files on S3 are opened one after another for long.
READ_TASK_BYTES = 32 * 2**20
READ_TASK_UNITS = 64
# A reader gives 50-200 MB/s of text, a tokenising core takes 4-5 MB/s.
CORES_PER_READER = 8
# Blocks that a reader is ahead of its turn, twice what a task of small units gives: the next ones wait complete.
READ_AHEAD_BLOCKS = 16
# Blocks tokenised or waiting for a core, per core: the next task is there when one ends.
BLOCKS_PER_CORE = 2
COUNT_CORES_SECONDS = 5.0  # a cluster that grows is used

FRAGMENT = pa.schema(
    [
        ("unit", pa.int32()),  # index into the plan's units
        ("row", pa.int32()),  # index of the fragment in its unit
        ("val", pa.bool_()),  # side of the split
        ("end", pa.bool_()),  # end of text follows
        ("final", pa.bool_()),  # the source document ends here
        ("read", pa.int32()),  # rows of the source read since the fragment before, this one's included
        ("empty", pa.int32()),  # of those, rows of white space
        ("bytes", pa.int64()),  # UTF-8 bytes of the text
        ("error", pa.large_string()),  # a UserError's sentence; nothing follows it
        ("text", pa.large_string()),
    ]
)


@dataclass(frozen=True)
class Cursor:
    """How far the corpus was taken: all units before `unit`, and `rows` fragments of it."""

    unit: int = 0
    rows: int = 0


@dataclass(frozen=True)
class ReadPlan:
    """What decides the fragments of a corpus.

    From unit `val_from` on everything is validation, and everything before it training; None: `val_split` and
    `val_fraction` decide. `max_documents` counts those before `val_from`.
    """

    units: tuple[Unit, ...]
    val_fraction: float
    val_split: Literal["documents", "tail", "none"]
    max_documents: int | None = None
    val_from: int | None = None
    reading: Reading = field(default_factory=Reading)

    @property
    def train_units(self) -> int:
        """How many units hold what may be trained on."""
        return len(self.units) if self.val_from is None else self.val_from

    def is_validation(self, unit: int, text: bytes) -> bool:
        """Side of a whole document (UTF-8) of unit number `unit`."""
        if self.val_from is not None:
            return unit >= self.val_from
        return self.val_split != "none" and is_validation(text, self.val_fraction)


@dataclass(frozen=True)
class Counts:
    """What a block holds. Pairs are (train, val).

    `completed` counts source documents that ended here, `read` rows of the source and `empty` those of white space;
    `cursor` is the place after the block; `error` a UserError's sentence.
    """

    tokens: tuple[int, int]
    documents: tuple[int, int]
    bytes: tuple[int, int]
    completed: int
    read: int
    empty: int
    cursor: Cursor
    error: str | None = None


@dataclass(frozen=True)
class TokenBlock:
    """Tokens of some consecutive fragments: `refs` to (n,) ids of train and of val in corpus order, every document
    closed by end of text. `from_val` says that it comes from `val_from` or later."""

    counts: Counts
    refs: tuple[ObjectRef, ObjectRef]
    from_val: bool = False


def token_blocks(plan: ReadPlan, tokenizer: Tokenizer, start: Cursor, completed: int = 0) -> Iterator[TokenBlock]:
    """Tokens of the corpus from `start` on, in order, where `completed` documents came before.

    Raises the UserError of the first fragment in corpus order that has one. Needs a running Ray.
    """
    shipped = _Shipped(tokenizer)
    trained = plan.train_units
    if start.unit < trained and (plan.max_documents is None or completed < plan.max_documents):
        yield from _blocks(replace(plan, units=plan.units[:trained]), shipped, start, completed)
    if trained < len(plan.units):
        rest = start if start.unit >= trained else Cursor(trained)
        for block in _blocks(replace(plan, max_documents=None), shipped, rest, 0):
            yield replace(block, from_val=True)


def _blocks(plan: ReadPlan, shipped: _Shipped, start: Cursor, completed: int) -> Iterator[TokenBlock]:
    """Units from `start` to the last one, or until `max_documents`, `completed` counted."""
    left = None if plan.max_documents is None else plan.max_documents - completed
    for text, (found, *refs) in _tokenised(plan, shipped, start):
        counts: Counts = ray.get(found)
        if left is not None and counts.completed >= left:
            found, *refs = _tokenize.remote(text, shipped, left)
            counts = ray.get(found)
        if counts.error:
            raise UserError(counts.error)
        yield TokenBlock(counts, (refs[0], refs[1]))
        if left is not None:
            left -= counts.completed
            if left <= 0:
                return


def _tokenised(
    plan: ReadPlan, shipped: _Shipped, start: Cursor
) -> Iterator[tuple[ObjectRef, tuple[ObjectRef, ObjectRef, ObjectRef]]]:
    """(text, (counts, train, val)) of block after block, their counts ready."""
    groups = deque(group_units(plan.units, start.unit))
    readers: deque[Any] = deque()
    running: deque[tuple[ObjectRef, Any]] = deque()
    cores, counted = _cores(), time.monotonic()
    try:
        while groups or readers or running:
            if time.monotonic() - counted >= COUNT_CORES_SECONDS:
                cores, counted = _cores(), time.monotonic()
            while groups and len(readers) <= math.ceil(cores / CORES_PER_READER):
                group = groups.popleft()
                skip = start.rows if group.start == start.unit else 0
                # a task carries its own units only
                part = replace(plan, units=plan.units[group.start : group.stop])
                readers.append(_read.remote(part, group.start, skip, shipped, BLOCK_BYTES))
            head = running[0][1][0] if running else None
            wanted: list[Any] = [head] if running else []
            if readers and len(running) < BLOCKS_PER_CORE * cores:
                wanted.insert(0, readers[0])  # keep cores busy first
            ready, _ = ray.wait(wanted, num_returns=1, fetch_local=False)
            if ready[0] is not head:
                try:
                    text = next(readers[0])
                except StopIteration:
                    readers.popleft()
                else:
                    running.append((text, _tokenize.remote(text, shipped)))
            else:
                yield running.popleft()
    finally:
        for reader in readers:
            ray.cancel(reader)


def _cores() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


# No CPU for readers: they wait behind tokenising tasks most of the time, and on a small machine must not take a core
# from them.
@ray.remote(  # type: ignore[call-overload]  # backpressure is missing in Ray's own types
    num_cpus=0,
    num_returns="streaming",
    scheduling_strategy="SPREAD",
    _generator_backpressure_num_objects=READ_AHEAD_BLOCKS,
)
def _read(plan: ReadPlan, first_unit: int, skip: int, shipped: _Shipped, block_bytes: int) -> Iterator[pa.Table]:
    yield from read_fragments(plan, first_unit, skip, shipped, block_bytes)


@ray.remote(num_cpus=1, num_returns=3)
def _tokenize(
    table: pa.Table, shipped: _Shipped, documents: int | None = None
) -> tuple[Counts, np.ndarray, np.ndarray]:
    """Counts, train tokens and val tokens of a table of FRAGMENT, or of its first `documents`."""
    if documents is not None:
        finals = np.flatnonzero(table["final"].to_numpy())
        table = table.slice(0, int(finals[documents - 1]) + 1)
    return tokenize_fragments(table, shipped.load())


def group_units(units: Sequence[Unit], first: int = 0) -> list[range]:
    """Indices of `units` from `first` on, cut into ranges that one task reads."""
    groups, begin, held = [], first, 0
    for index in range(first, len(units)):
        held += units[index].bytes
        if held >= READ_TASK_BYTES or index + 1 - begin >= READ_TASK_UNITS or index + 1 == len(units):
            groups.append(range(begin, index + 1))
            begin, held = index + 1, 0
    return groups


def read_fragments(
    plan: ReadPlan, first_unit: int, skip: int, shipped: _Shipped, block_bytes: int = BLOCK_BYTES
) -> Iterator[pa.Table]:
    """Tables of FRAGMENT with about `block_bytes` of text; `skip` fragments of the first unit are left out."""
    rows: list[tuple] = []
    held = 0
    documents = 0
    for offset, unit in enumerate(plan.units):
        index, row, count = first_unit + offset, 0, Rows()
        try:
            for text in read_documents(unit, plan.reading, count):
                for fragment in _fragments(text, index, plan, shipped):
                    if offset > 0 or row >= skip:
                        about = (*fragment[:-1], count.read, count.empty, len(fragment[-1]), None)
                        rows.append((index, row, *about, fragment[-1]))
                        held += len(fragment[-1])
                        count.read = count.empty = 0
                    row += 1
                    if offset == 0 and row == skip:
                        count.read = count.empty = 0  # counted before the interruption
                    if held >= block_bytes:
                        yield _table(rows)
                        rows, held = [], 0
                documents += 1
                if plan.max_documents is not None and documents >= plan.max_documents:
                    break
        except UserError as error:
            rows.append((index, row, False, False, False, 0, 0, 0, str(error), b""))
            break
        # a row without text closes each unit: it carries the last empty documents and moves the cursor on
        rows.append((index + 1, -1, False, False, False, count.read, count.empty, 0, None, b""))
        if plan.max_documents is not None and documents >= plan.max_documents:
            break
    yield _table(rows)


def _table(rows: list[tuple]) -> pa.Table:
    columns = zip(*rows, strict=True)
    arrays = [
        pa.array(values, pa.large_binary()).view(pa.large_string())
        if field.name == "text"
        else pa.array(values, field.type)
        for field, values in zip(FRAGMENT, columns, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=FRAGMENT)


def _fragments(text: str, unit: int, plan: ReadPlan, shipped: _Shipped) -> Iterator[tuple[bool, bool, bool, bytes]]:
    """(val, end, final, UTF-8 text) of a document's fragments in order."""
    if plan.val_from is None and plan.val_split == "tail":
        cut = int(len(text) * (1 - plan.val_fraction))
        sides = [(val, part) for val, part in ((False, text[:cut]), (True, text[cut:])) if part]
    else:
        data = text.encode("utf-8")
        val = plan.is_validation(unit, data)
        if len(text) <= FRAGMENT_CHARACTERS:
            yield val, True, True, data
            return
        sides = [(val, text)]
    for number, (val, part) in enumerate(sides, start=1):
        long = len(part) > FRAGMENT_CHARACTERS
        pieces = shipped.load().pieces(part, FRAGMENT_CHARACTERS) if long else [part]
        for piece in pieces[:-1]:
            yield val, False, False, piece.encode("utf-8")
        yield val, True, number == len(sides), pieces[-1].encode("utf-8")


def is_validation(text: bytes, val_fraction: float) -> bool:
    """Side of a document by a hash of its UTF-8 text: copies of a document are always on the same side."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") < val_fraction * 2**64


class _Shipped:
    """A tokenizer on its way to tasks: its definition travels once, through the object store, and each worker
    process builds it once (0.3 s for gpt2's vocabulary)."""

    _built: dict[str, Tokenizer] = {}  # noqa: RUF012 - one per process on purpose

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.key = tokenizer.sha256
        self._arguments = (ray.put(tokenizer.to_json()), tokenizer.name, tokenizer.eot_id)

    def load(self) -> Tokenizer:
        if self.key not in self._built:
            definition, name, eot_id = self._arguments
            self._built[self.key] = Tokenizer.from_json(ray.get(definition), name, eot_id)
        return self._built[self.key]


def tokenize_fragments(table: pa.Table, tokenizer: Tokenizer) -> tuple[Counts, np.ndarray, np.ndarray]:
    """Counts, (n,) train ids and (m,) val ids of FRAGMENT rows, end of text included."""
    # one task per core already: the library's own threads would only compete with them
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    column: dict[str, Any] = {
        name: table[name].to_numpy() for name in ("val", "end", "final", "read", "empty", "bytes")
    }
    val, end = column["val"], column["end"]
    flat, lengths = tokenizer.encode_flat(table["text"].to_pylist())
    flat = np.insert(flat, np.cumsum(lengths)[end], tokenizer.eot_id)
    in_val = np.repeat(val, lengths + end)
    sides = (flat[~in_val] if val.any() else flat, flat[in_val])
    counts = Counts(
        tokens=(sides[0].size, sides[1].size),
        documents=(int((end & ~val).sum()), int((end & val).sum())),
        bytes=(int(column["bytes"][~val].sum()), int(column["bytes"][val].sum())),
        completed=int(column["final"].sum()),
        read=int(column["read"].sum()),
        empty=int(column["empty"].sum()),
        cursor=Cursor(table["unit"][-1].as_py(), table["row"][-1].as_py() + 1),
        error=next((text for text in table["error"].to_pylist() if text), None),
    )
    return counts, *sides
