"""Reading one unit of a corpus as a stream of documents, in file order, without holding the file.

Text is given as it stands in the file, with two exceptions: a byte order mark at the start is dropped, and line
ends inside CSV fields become `\\n`. Documents of white space alone are skipped and counted. Whatever is wrong with a
file ends in a UserError that names the file, the place in it and the way out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raygpt.data import csvfile, decoding, hub, records, splitting
from raygpt.data.decoding import Errors
from raygpt.data.lines import RETURN, TooLong
from raygpt.errors import UserError
from raygpt.storage import Location

# Rows decoded from parquet at a time: documents average a few KB, so about a megabyte; fewer where they are long.
PARQUET_ROWS = 256
PARQUET_BYTES = 64 * 2**20
COLUMN_HELP = "set data.text_column (or prepare.text_column)"
_WINDOWS_END = re.compile(RETURN)


@dataclass(frozen=True)
class Unit:
    """What one task reads.

    `kind` is a value of FORMATS or "hub"; `part` is the row group or dataset shard out of `parts`; `bytes` is about
    how much the part weighs in storage; `stamp` changes when the file does.
    """

    kind: str
    uri: str
    part: int = 0
    parts: int = 1
    bytes: int = 0
    stamp: str = ""
    compression: str | None = None
    subset: str | None = None


@dataclass(frozen=True)
class Reading:
    """How documents are taken from files: settings `prepare.text_column`, `encoding_errors`, `split_text` and
    `max_document_mb`."""

    text_column: str = "text"
    errors: Errors = "strict"
    split_text: bool = False
    max_document_mb: float = 256

    @property
    def limit(self) -> float:
        """Largest document in UTF-8 bytes."""
        return self.max_document_mb * 1e6

    def check(self, text: str, place: str, way_out: str) -> str:
        """The text. UserError when it is longer than `limit`."""
        # no character takes more than 4 bytes: most texts need no counting
        if len(text) * 4 > self.limit and len(text.encode("utf-8", "surrogatepass")) > self.limit:
            raise self.too_long(place, way_out)
        return text

    def too_long(self, place: str, way_out: str) -> UserError:
        limit = f"prepare.max_document_mb={self.max_document_mb:g}"
        return UserError(f"{place}: longer than {limit} allows: {way_out}, or raise that limit.")


@dataclass
class Rows:
    """What a reader took from files: rows (documents, in text files) read, and those of white space alone."""

    read: int = 0
    empty: int = 0


def read_documents(unit: Unit, reading: Reading | None = None, count: Rows | None = None) -> Iterator[str]:
    """Documents of one unit in file order; adds to `count` what was read, white space included.

    `<|endoftext|>` separates documents wherever it stands, within a cell as in a text file.
    """
    count = count or Rows()
    reading = reading or Reading()
    for whole in _READERS[unit.kind](unit, reading):
        parts = [whole]
        if unit.kind != "text" and splitting.MARK in whole:
            parts = [text for text, gap in splitting.documents([whole], False, reading.limit) if text or gap]
        for text in parts:
            count.read += 1
            if text and not text.isspace():
                yield text
            else:
                count.empty += 1


def _read_parquet(unit: Unit, reading: Reading) -> Iterator[str]:
    where = hub.locate(unit.uri)
    with records.parquet_file(where) as parquet:
        _check_column(reading.text_column, parquet.schema_arrow.names, where)
        row = sum(parquet.metadata.row_group(group).num_rows for group in range(unit.part))
        batches = parquet.iter_batches(
            _batch_rows(parquet.metadata.row_group(unit.part), reading.text_column),
            row_groups=[unit.part],
            columns=[reading.text_column],
            use_threads=False,
        )
        for batch in batches:
            yield from _texts(batch.column(0), where, row, reading)
            row += batch.num_rows


def _batch_rows(group: pq.RowGroupMetaData, column: str) -> int:
    """Rows of about PARQUET_BYTES, at most PARQUET_ROWS."""
    chunks = (group.column(index) for index in range(group.num_columns))
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)
    return max(1, min(PARQUET_ROWS, PARQUET_BYTES * group.num_rows // max(size, 1)))


def _read_arrow(unit: Unit, reading: Reading) -> Iterator[str]:
    where = hub.locate(unit.uri)
    row = 0
    with records.arrow_batches(where) as (names, batches):
        _check_column(reading.text_column, names, where)
        for batch in batches:
            yield from _texts(batch.column(reading.text_column), where, row, reading)
            row += batch.num_rows


def _texts(values: pa.Array, where: Location, first_row: int, reading: Reading) -> Iterator[str]:
    if pa.types.is_dictionary(values.type):
        words = values.dictionary
        if pa.types.is_string_view(words.type):
            words.validate(full=True)
            values = pa.DictionaryArray.from_arrays(values.indices, words.cast(pa.large_string()))
        values.validate(full=True)
        values = values.dictionary_decode()
    if pa.types.is_string_view(values.type):
        values.validate(full=True)  # what is damaged must not be followed
        values = values.cast(pa.large_string())
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type) or pa.types.is_null(values.type)):
        raise UserError(
            f"{where.uri}: column {reading.text_column!r} holds {values.type}, not text; {COLUMN_HELP} to a text "
            "column."
        )
    if pa.types.is_null(values.type):
        yield from [""] * len(values)
        return
    binary = pa.large_binary() if pa.types.is_large_string(values.type) else pa.binary()
    values.view(binary).validate(full=True)
    sizes = pc.binary_length(values)
    if (pc.max(sizes).as_py() or 0) > reading.limit:
        row = pc.index(pc.greater(sizes, reading.limit), True).as_py()
        raise reading.too_long(f"{where.uri}, row {first_row + row + 1}", "cut its text into several rows")
    try:
        texts: list[str | None] = values.to_pylist()
    except UnicodeDecodeError:  # says nothing about the row: decode one by one
        raw = values.view(binary).to_pylist()
        texts = [
            None
            if data is None
            else decoding.decode(data, reading.errors, f"{where.uri}, row {first_row + n + 1}", "character")
            for n, data in enumerate(raw)
        ]
    for text in texts:
        yield text or ""


def _read_json(unit: Unit, reading: Reading) -> Iterator[str]:
    where = hub.locate(unit.uri)
    way_out = "cut its text into several " + ("lines" if unit.kind == "jsonl" else "objects")
    read = records.json_lines if unit.kind == "jsonl" else records.json_values
    column = reading.text_column
    try:
        for line, record in read(where, unit.compression, reading.errors, _row_limit(reading)):
            place = f"{where.uri}, line {line}"
            if column not in record:
                raise UserError(f"{place} has no {column!r} (it has {_names(record)}): {COLUMN_HELP} to one of these.")
            yield reading.check(_cell(record[column], column, place, reading), place, way_out)
    except TooLong as error:
        raise reading.too_long(f"{where.uri}, line {error.line}", way_out) from error


def _cell(text: Any, column: str, place: str, reading: Reading) -> str:
    if text is not None and not isinstance(text, str):
        raise UserError(f"{place}: {column!r} holds {type(text).__name__}, not text; {COLUMN_HELP}.")
    return decoding.without_surrogates(text or "", reading.errors, place)


def _read_csv(unit: Unit, reading: Reading) -> Iterator[str]:
    where = hub.locate(unit.uri)
    way_out = "mend its quotes if one is missing, cut its text into several rows"
    index: int | None = None
    try:
        for line, row in csvfile.rows(where, unit.compression, unit.kind, reading.errors, _row_limit(reading)):
            if index is None:
                _check_column(reading.text_column, row, where)
                index = row.index(reading.text_column)
                continue
            text = row[index]
            if "\r" in text:
                text = _WINDOWS_END.sub("\n", text)
            if len(text) * 4 > reading.limit:
                reading.check(text, f"{where.uri}, line {line}", way_out)
            yield text
    except TooLong as error:
        raise reading.too_long(f"{where.uri}, line {error.line}", way_out) from error


def _row_limit(reading: Reading) -> float:
    # other columns, quotes written twice and escapes (\u1234 for 2 or 3 bytes) come on top of the document
    return 2 * reading.limit + 2**20


def _read_text(unit: Unit, reading: Reading) -> Iterator[str]:
    """As `splitting.documents`: one document per file, or as many as marks, or its own breaks, separate."""
    where = hub.locate(unit.uri)
    way_out = "cut the file at its own breaks (prepare.split_text=true, or raygpt prepare --from-txt)"
    if reading.split_text:
        way_out = f"put lines of {splitting.MARK} between its documents"
    pieces = decoding.decoded(where, unit.compression, reading.errors)
    try:
        for text, gap in splitting.documents(pieces, reading.split_text, reading.limit):
            if text or splitting.MARK in gap or not reading.split_text:
                yield text
    except TooLong as error:
        raise reading.too_long(f"{where.uri}, the document from line {error.line} on", way_out) from error


def _read_hub(unit: Unit, reading: Reading) -> Iterator[str]:
    column = reading.text_column
    for number, record in enumerate(hub.stream(unit.uri, unit.subset, unit.part, unit.parts), start=1):
        if column not in record:
            raise UserError(f"{unit.uri} has no column {column!r} (it has {_names(record)}): {COLUMN_HELP}.")
        place = f"{unit.uri}, shard {unit.part}, row {number}"
        yield reading.check(_cell(record[column], column, place, reading), place, "cut its text into several rows")


_READERS: dict[str, Any] = {
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "jsonl": _read_json,
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_csv,
    "text": _read_text,
    "hub": _read_hub,
}


def _check_column(column: str, names: list[str], where: Location) -> None:
    if column not in names:
        way_out = f"{COLUMN_HELP} to one of these"
        if len(names) == 1 and (other := next((mark for mark in ";\t|," if mark in names[0]), None)):
            way_out = f"its fields seem to be separated by {other!r}, so save it with commas (.csv) or tabs (.tsv)"
        raise UserError(f"{where.uri} has no column {column!r} (it has {_names(names)}): {way_out}.")
    if names.count(column) > 1:
        raise UserError(
            f"{where.uri} has {names.count(column)} columns named {column!r}: rename all but the one with the text."
        )


def _names(names: Any) -> str:
    return ", ".join(repr(name) for name in list(names)[:20]) or "none"
