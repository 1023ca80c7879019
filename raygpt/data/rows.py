"""Whole rows of a unit, every column: what prompts are made of. Text alone is `raygpt.data.documents`'s.

A row is a dict of its columns as JSON has them; in CSV and TSV they are texts. A document of a text file is the row
`{"text": document}`. Units, places and their faults are those of the reader of documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from raygpt.data import csvfile, hub, records
from raygpt.data.corpus import expand_sources
from raygpt.data.decoding import Errors
from raygpt.data.documents import PARQUET_ROWS, Reading, Unit, read_documents
from raygpt.data.lines import TooLong
from raygpt.errors import UserError
from raygpt.storage import Location

# One row may hold a document with all that is known of it.
MAX_ROW_BYTES = 256 * 10**6

Row = tuple[int, dict[str, Any]]  # (number, columns): the line of a JSONL or CSV file, else the row from 1


def read_rows(unit: Unit, errors: Errors = "strict") -> Iterator[Row]:
    """Rows of a unit in file order. Raises UserError with file and line for what cannot be read."""
    if unit.kind in ("parquet", "arrow"):
        return _read_table(unit)
    if unit.kind in ("jsonl", "json"):
        return _read_json(unit, errors)
    if unit.kind in ("csv", "tsv"):
        return _read_csv(unit, errors)
    if unit.kind == "hub":
        return enumerate(map(dict, hub.stream(unit.uri, unit.subset, unit.part, unit.parts)), start=1)
    return enumerate(({"text": text} for text in read_documents(unit, Reading(errors=errors))), start=1)


def read_split(uri: str, split: str, setting: str, subset: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, columns) of every row of a file or folder, or of that split of a hub's data set (of its `subset`).

    Raises UserError, naming `setting`, for what is not there or cannot be read.
    """
    if hub.is_hub_id(uri):
        rows = enumerate(hub.stream_split(uri, split, setting, subset), start=1)
        return ((f"{uri}, {split} row {number}", row) for number, row in rows)
    units = expand_sources([uri], setting=setting)
    return ((place(unit, number), row) for unit in units for number, row in read_rows(unit))


def place(unit: Unit, number: int) -> str:
    """Where a row is, for a sentence: `prompts.jsonl, line 7`."""
    if unit.kind == "hub":
        return f"{unit.uri}, shard {unit.part}, row {number}"
    if unit.kind == "text":
        return f"{unit.uri}, document {number}"
    return f"{unit.uri}, {'line' if unit.kind in ('jsonl', 'json', 'csv', 'tsv') else 'row'} {number}"


def _read_table(unit: Unit) -> Iterator[Row]:
    where = hub.locate(unit.uri)
    number = 0
    if unit.kind == "parquet":
        with records.parquet_file(where) as parquet:
            number = sum(parquet.metadata.row_group(group).num_rows for group in range(unit.part))
            _check_names(parquet.schema_arrow.names, where)
            batches = parquet.iter_batches(PARQUET_ROWS, row_groups=[unit.part], use_threads=False)
            yield from _numbered(batches, number)
    else:
        with records.arrow_batches(where) as (names, batches):
            _check_names(names, where)
            yield from _numbered(batches, 0)


def _check_names(names: list[str], where: Location) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{where.uri} has several columns named {twice[0]!r}: rename all but one.")


def _numbered(batches: Iterable[pa.RecordBatch], number: int) -> Iterator[Row]:
    for batch in batches:
        batch.validate(full=True)  # what is damaged must not be followed
        for row in batch.to_pylist():
            number += 1
            yield number, row


def _read_json(unit: Unit, errors: Errors) -> Iterator[Row]:
    read = records.json_lines if unit.kind == "jsonl" else records.json_values
    try:
        yield from read(hub.locate(unit.uri), unit.compression, errors, MAX_ROW_BYTES)
    except TooLong as error:
        raise UserError(f"{place(unit, error.line)}: longer than 256 MB: cut it into several.") from error


def _read_csv(unit: Unit, errors: Errors) -> Iterator[Row]:
    where = hub.locate(unit.uri)
    names: list[str] | None = None
    try:
        rows = csvfile.rows(where, unit.compression, unit.kind, errors, MAX_ROW_BYTES)
        for line, fields in rows:
            if names is None:
                names = fields
                _check_names(names, where)
                continue
            yield line, dict(zip(names, fields))
    except TooLong as error:
        raise UserError(f"{place(unit, error.line)}: longer than 256 MB: mend its quotes if one is missing.") from error
