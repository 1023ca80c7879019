"""Files of answers: Parquet, in the order of their keys, each there whole or not at all.

A row is an answer, or a question that was parked (`reason`, without text). A key that stands in several files counts
once: an answer before a reason, what came first before what came later.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raygpt import storage
from raygpt.data.decoding import without_surrogates
from raygpt.distill.answers import Answer, Parked, Question
from raygpt.errors import UserError, one_line
from raygpt.storage import Location

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("prompt", pa.large_string()),
        ("messages", pa.large_string()),  # JSON: [[role, content], ...]
        ("sample", pa.int32()),
        ("fields", pa.large_string()),  # JSON object
        ("text", pa.large_string()),
        ("finish", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("answer_tokens", pa.int32()),
        ("reason", pa.large_string()),
    ]
)
# Rows held of each file while files are merged: about half a megabyte of answers.
MERGE_ROWS = GROUP_ROWS = 256
KEY_ROWS = 65_536

Result = Answer | Parked


def as_row(result: Result) -> dict[str, Any]:
    """What is stored of a result: plain types, the same in a line of JSON and in a row of Parquet."""
    question = result.question
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    row |= {"key": result.key, "prompt": question.prompt, "sample": question.sample}
    row["messages"] = json.dumps(question.messages, ensure_ascii=False) if question.messages else None
    row["fields"] = json.dumps(question.fields, ensure_ascii=False, sort_keys=True) if question.fields else None
    if isinstance(result, Parked):
        return {**row, "reason": result.reason}
    named = {"text": result.text, "finish": result.finish}
    return {**row, **named, "prompt_tokens": result.prompt_tokens, "answer_tokens": result.answer_tokens}


def from_row(row: dict[str, Any]) -> Result:
    messages = tuple((role, content) for role, content in json.loads(row["messages"] or "[]"))
    question = Question(row["prompt"], messages, row["sample"], json.loads(row["fields"] or "{}"))
    if row["reason"] is not None:
        return Parked(row["key"], question, row["reason"])
    return Answer(row["key"], question, row["text"], row["finish"], row["prompt_tokens"], row["answer_tokens"])


def sort_key(row: dict[str, Any]) -> tuple[str, bool]:
    return row["key"], row["reason"] is not None


def without_halves(row: dict[str, Any]) -> dict[str, Any]:
    """The same with U+FFFD for halves of surrogate pairs: an answer cut off within an emoji has one, Parquet none."""
    return {
        name: without_surrogates(value, "replace", name) if isinstance(value, str) else value
        for name, value in row.items()
    }


def write_part(where: Location, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows that are in order; returns how many. The file appears when it is whole."""
    aside = where.parent / f".{where.name}.{os.getpid()}" if where.is_local else where
    count = 0
    try:
        if where.is_local:
            where.fs.create_dir(where.parent.path, recursive=True)
        with where.fs.open_output_stream(aside.path, compression=None) as sink:
            with pq.ParquetWriter(sink, SCHEMA, compression="zstd") as writer:
                for batch in _batches(rows, GROUP_ROWS):
                    writer.write_table(pa.Table.from_pylist(batch, SCHEMA))
                    count += len(batch)
        if where.is_local:
            with open(aside.path, "rb") as file:
                os.fsync(file.fileno())
            os.replace(aside.path, where.path)
    except OSError as error:
        raise storage.explain(error, where) from error
    finally:
        if where.is_local:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside.path)
    return count


def read_keys(where: Location) -> Iterator[tuple[list[str], list[str]]]:
    """(keys of answers, keys of what was parked), KEY_ROWS at a time; the texts are not read."""
    with _opened(where) as file:
        for batch in file.iter_batches(KEY_ROWS, columns=["key", "finish"], use_threads=False):
            keys, parked = batch.column("key"), batch.column("finish").is_null()
            yield keys.filter(pc.invert(parked)).to_pylist(), keys.filter(parked).to_pylist()


def read_tokens(where: Location) -> tuple[int, int]:
    """(prompt tokens, answer tokens) of a file's answers."""
    with _opened(where) as file:
        table = file.read(["prompt_tokens", "answer_tokens"], use_threads=False)
    read, written = (pc.sum(column).as_py() or 0 for column in table.columns)
    return read, written


def merged(parts: Sequence[Location], columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of all files by key, each key once. Memory holds MERGE_ROWS of each file."""
    held: dict[str, Any] | None = None
    # heapq.merge is stable: of equal rows the one of the earlier file comes first. An answer stands before what was
    # parked; of what was parked twice the later reason holds.
    for row in heapq.merge(*(_rows(part, columns) for part in parts), key=sort_key):
        if held is not None and row["key"] != held["key"]:
            yield held
            held = None
        if held is None or held["reason"] is not None:
            held = row
    if held is not None:
        yield held


def _rows(where: Location, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    with _opened(where) as file:
        for batch in file.iter_batches(MERGE_ROWS, columns=columns, use_threads=False):
            yield from batch.to_pylist()


@contextlib.contextmanager
def _opened(where: Location) -> Iterator[pq.ParquetFile]:
    try:
        source: Any = where.fs.open_input_file(where.path)
        with source, pq.ParquetFile(source, pre_buffer=False) as file:
            yield file
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{where.uri} is damaged ({one_line(error)}): delete it, its answers are asked again."
        ) from error
    except OSError as error:
        raise storage.explain(error, where) from error


def _batches(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def is_part(entry: pafs.FileInfo) -> bool:
    return entry.type == pafs.FileType.File and entry.base_name.endswith(".parquet") and entry.base_name[0] != "."
