"""Whole rows of a unit, every column: what prompts are made of. Text alone is `raygpt.data.documents`'s.

A row is a dict of its columns as JSON has them; in CSV and TSV they are texts. A document of a text file is the row
`{"text": document}`. Units, places and their faults are those of the reader of documents.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raygpt import storage
from raygpt.data import csvfile, decoding, hub
from raygpt.data.documents import PARQUET_ROWS, Reading, Unit, read_documents
from raygpt.data.lines import TooLong
from raygpt.errors import UserError, one_line

# One row may hold a document with all that is known of it.
MAX_ROW_BYTES = 256 * 10**6

Row = tuple[int, dict[str, Any]]  # (number, columns): the line of a JSONL or CSV file, else the row from 1


def read_rows(unit: Unit) -> Iterator[Row]:
    """Rows of a unit in file order. Raises UserError with file and line for what cannot be read."""
    if unit.kind in ("parquet", "arrow"):
        return _read_table(unit)
    if unit.kind == "jsonl":
        return _read_jsonl(unit)
    if unit.kind in ("csv", "tsv"):
        return _read_csv(unit)
    if unit.kind == "hub":
        return enumerate(map(dict, hub.stream(unit.uri, unit.subset, unit.part, unit.parts)), start=1)
    return enumerate(({"text": text} for text in read_documents(unit, Reading())), start=1)


def place(unit: Unit, number: int) -> str:
    """Where a row is, for a sentence: `prompts.jsonl, line 7`."""
    if unit.kind == "hub":
        return f"{unit.uri}, shard {unit.part}, row {number}"
    if unit.kind == "text":
        return f"{unit.uri}, document {number}"
    return f"{unit.uri}, {'line' if unit.kind in ('jsonl', 'csv', 'tsv') else 'row'} {number}"


def _read_table(unit: Unit) -> Iterator[Row]:
    where = hub.locate(unit.uri)
    number = 0
    try:
        with where.fs.open_input_file(where.path) as file:
            if unit.kind == "parquet":
                parquet = pq.ParquetFile(file, pre_buffer=not where.is_local)
                number = sum(parquet.metadata.row_group(group).num_rows for group in range(unit.part))
                batches = parquet.iter_batches(PARQUET_ROWS, row_groups=[unit.part], use_threads=False)
            else:
                batches = iter(pa.ipc.open_stream(file))
            for batch in batches:
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowInvalid as error:
        raise UserError(f"{where.uri} is a damaged {unit.kind} file ({one_line(error)}): copy it again.") from error
    except OSError as error:
        raise storage.explain(error, where) from error


def _read_jsonl(unit: Unit) -> Iterator[Row]:
    where = hub.locate(unit.uri)
    try:
        for number, line in enumerate(decoding.byte_lines(where, unit.compression, MAX_ROW_BYTES), start=1):
            if number == 1:
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise decoding.utf16(where)
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                row = json.loads(decoding.decode(line, "strict", place(unit, number)))
            except ValueError as error:
                raise UserError(
                    f"{place(unit, number)} is not JSON ({one_line(error)}): every line must be one JSON object."
                ) from error
            if not isinstance(row, dict):
                raise UserError(f"{place(unit, number)} is not a JSON object: every line must be one.")
            yield number, row
    except TooLong as error:
        raise UserError(f"{place(unit, error.line)}: longer than 256 MB: cut it into several lines.") from error


def _read_csv(unit: Unit) -> Iterator[Row]:
    where = hub.locate(unit.uri)
    names: list[str] | None = None
    try:
        rows = csvfile.rows(where, unit.compression, "\t" if unit.kind == "tsv" else ",", limit=MAX_ROW_BYTES)
        for line, fields in rows:
            if names is None:
                names = fields
                if twice := sorted({name for name in names if names.count(name) > 1}):
                    raise UserError(f"{where.uri} has several columns named {twice[0]!r}: rename all but one.")
                continue
            yield line, dict(zip(names, fields))
    except TooLong as error:
        raise UserError(f"{place(unit, error.line)}: longer than 256 MB: mend its quotes if one is missing.") from error
