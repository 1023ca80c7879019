"""Ray Data turns units of a corpus into tokens on all cores and gives them back in the order of the corpus.

    read tasks                        tokenising tasks           driver
    units -> fragments of text  --->  fragments -> token ids --> TokenBlock after TokenBlock, in order

A fragment is a document's part for one side of the train/validation split, or a piece of it where the document is
long. Which fragments there are, and their order, depends on the corpus and the plan alone; how they are grouped
into blocks depends on Ray and does not show in the tokens. Errors travel as rows, so the first one in corpus order
is the one raised.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata

from raygpt.data.corpus import Unit, read_documents
from raygpt.data.documents import Reading, Rows
from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError

# Text per block: one tokenising task, about a second of one core. Ray's own cost per task is 10-20 ms.
BLOCK_BYTES = 4 * 2**20
# Longer documents travel as several fragments, so that one book neither fills a block nor waits for one core.
FRAGMENT_CHARACTERS = 2**20
# Units per read task: by weight, and never so many that files on S3 are opened one after another for long.
READ_TASK_BYTES = 32 * 2**20
READ_TASK_UNITS = 64
# Ray puts every read task into the object store up front; beyond this many the groups grow instead.
MAX_READ_TASKS = 2000
# A reader gives 50-200 MB/s of text, a tokenising core takes 4-5 MB/s.
CORES_PER_READER = 8

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
class TokenBlock:
    """Tokens of some consecutive fragments.

    `train` and `val` are (n,) ids in corpus order, every document closed by end of text; `documents` and `bytes` are
    (train, val); `completed` counts source documents that ended here, `read` rows of the source and `empty` those of
    white space; `cursor` is the place after this block; `from_val` says that it comes from `val_from` or later.
    """

    train: np.ndarray
    val: np.ndarray
    documents: tuple[int, int]
    bytes: tuple[int, int]
    completed: int
    read: int
    empty: int
    cursor: Cursor
    from_val: bool = False


def token_blocks(plan: ReadPlan, tokenizer: Tokenizer, start: Cursor, completed: int = 0) -> Iterator[TokenBlock]:
    """Tokens of the corpus from `start` on, in order, where `completed` documents came before.

    Raises the UserError of the first fragment in corpus order that has one. Needs a running Ray.
    """
    shipped = _Shipped(tokenizer)
    trained = plan.train_units
    if start.unit < trained and (plan.max_documents is None or completed < plan.max_documents):
        yield from _blocks(replace(plan, units=plan.units[:trained]), shipped, tokenizer.dtype, start, completed)
    if trained < len(plan.units):
        rest = start if start.unit >= trained else Cursor(trained)
        for block in _blocks(replace(plan, max_documents=None), shipped, tokenizer.dtype, rest, 0):
            yield replace(block, from_val=True)


def _blocks(plan: ReadPlan, shipped: _Shipped, dtype: np.dtype, start: Cursor, completed: int) -> Iterator[TokenBlock]:
    """Units from `start` to the last one, or until `max_documents`, `completed` counted."""
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    source = CorpusDatasource(plan, shipped, start)
    if not source.groups:
        return
    readers = min(math.ceil(cores / CORES_PER_READER) + 1, len(source.groups))
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.target_max_block_size = BLOCK_BYTES
    # the caller shows progress: Ray Data's bars and sentences about itself would break into it
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with DataContext.current(context):
        # no CPU for readers: they idle behind tokenising tasks most of the time, and on a small machine must not
        # take a core from them; the difference also keeps Ray from fusing both into one task per unit
        dataset = ray.data.read_datasource(
            source, num_cpus=0, concurrency=readers, override_num_blocks=len(source.groups)
        ).map_batches(partial(tokenize_fragments, shipped=shipped), batch_size=None, batch_format="pyarrow", num_cpus=1)
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            left = None if plan.max_documents is None else plan.max_documents - completed
            block = _to_block(table, dtype, left)
            completed += block.completed
            yield block
            if plan.max_documents is not None and completed >= plan.max_documents:
                return


class CorpusDatasource(Datasource):
    """Ray Data's view of a plan: one read task per group of neighbouring units."""

    def __init__(self, plan: ReadPlan, shipped: _Shipped, start: Cursor) -> None:
        self.plan = plan
        self.shipped = shipped
        self.start = start
        self.groups = group_units(plan.units, start.unit)

    def get_name(self) -> str:
        return "Corpus"

    def estimate_inmemory_data_size(self) -> int | None:
        return sum(unit.bytes for unit in self.plan.units[self.start.unit :])

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        tasks = []
        for group in self.groups:
            skip = self.start.rows if group.start == self.start.unit else 0
            # a task carries its own units only
            plan = replace(self.plan, units=self.plan.units[group.start : group.stop])
            size = sum(unit.bytes for unit in plan.units)
            metadata = BlockMetadata(num_rows=None, size_bytes=size, exec_stats=None)
            tasks.append(ReadTask(partial(read_fragments, plan, group.start, skip, self.shipped), metadata))
        return tasks


def group_units(units: Sequence[Unit], first: int = 0) -> list[range]:
    """Indices of `units` from `first` on, cut into ranges that one task reads."""
    weight = max(READ_TASK_BYTES, sum(unit.bytes for unit in units) // MAX_READ_TASKS)
    count = max(READ_TASK_UNITS, math.ceil(len(units) / MAX_READ_TASKS))
    groups, begin, held = [], first, 0
    for index in range(first, len(units)):
        held += units[index].bytes
        if held >= weight or index + 1 - begin >= count or index + 1 == len(units):
            groups.append(range(begin, index + 1))
            begin, held = index + 1, 0
    return groups


def read_fragments(plan: ReadPlan, first_unit: int, skip: int, shipped: _Shipped) -> Iterator[pa.Table]:
    """Tables of FRAGMENT with about BLOCK_BYTES of text; `skip` fragments of the first unit are left out."""
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
                    if held >= BLOCK_BYTES:
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


def tokenize_fragments(table: pa.Table, shipped: _Shipped) -> pa.Table:
    """FRAGMENT rows with `tokens` (little-endian ids as binary, end of text included) in place of `text`."""
    # one task per core already: the library's own threads would only compete with them
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = shipped.load()
    flat, lengths = tokenizer.encode_flat(table["text"].to_pylist())
    end = table["end"].to_numpy()
    flat = np.insert(flat, np.cumsum(lengths)[end], tokenizer.eot_id)
    offsets = np.concatenate([[0], np.cumsum(lengths + end)]).astype(np.int64) * flat.itemsize
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(flat))]
    tokens = pa.Array.from_buffers(pa.large_binary(), table.num_rows, buffers)
    return table.drop_columns(["text"]).append_column("tokens", tokens)


def _to_block(table: pa.Table, dtype: np.dtype, documents_left: int | None) -> TokenBlock:
    if documents_left is not None:
        finals = np.flatnonzero(table["final"].to_numpy())
        if finals.size >= documents_left:
            table = table.slice(0, int(finals[documents_left - 1]) + 1)
    error = next((text for text in table["error"].to_pylist() if text), None)
    if error:
        raise UserError(error)
    column: dict[str, Any] = {
        name: table[name].to_numpy() for name in ("val", "end", "final", "read", "empty", "bytes")
    }
    tokens = table["tokens"].combine_chunks()
    offsets = np.frombuffer(tokens.buffers()[1], np.int64)[tokens.offset : tokens.offset + len(tokens) + 1]
    data = tokens.buffers()[2]
    flat = np.frombuffer(data, dtype)[offsets[0] // dtype.itemsize : offsets[-1] // dtype.itemsize]
    val = column["val"]
    in_val = np.repeat(val, np.diff(offsets) // dtype.itemsize)
    unit, row = table["unit"][-1].as_py(), table["row"][-1].as_py()
    return TokenBlock(
        train=flat if not val.any() else flat[~in_val],
        val=flat[in_val],
        documents=(int((column["end"] & ~val).sum()), int((column["end"] & val).sum())),
        bytes=(int(column["bytes"][~val].sum()), int(column["bytes"][val].sum())),
        completed=int(column["final"].sum()),
        read=int(column["read"].sum()),
        empty=int(column["empty"].sum()),
        cursor=Cursor(unit, row + 1),
    )
