"""Reading one unit of a corpus as a stream of documents, in file order, without holding the file.

Text is given as it stands in the file, with two exceptions: a byte order mark at the start is dropped, and line
ends inside CSV fields become `\\n`. Documents of white space alone are skipped and counted. Whatever is wrong with a
file ends in a UserError that names the file, the place in it and the way out.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from raygpt import storage
from raygpt.data import hub
from raygpt.errors import UserError
from raygpt.storage import Location

if TYPE_CHECKING:
    from raygpt.data.corpus import Unit

Errors = Literal["strict", "replace"]
# In a text file this line separates documents (the form TinyStories and GPT-2's own dumps use).
SEPARATOR = "<|endoftext|>"
READ_BYTES = 2**20
# Rows decoded from parquet at a time: documents average a few KB, so about a megabyte.
PARQUET_ROWS = 256
_LINE_END = re.compile(r"\r\n?|\n")
_ENCODING_HELP = "repair the file or set prepare.encoding_errors=replace, which puts U+FFFD in its place"


@dataclass
class Skipped:
    """How many documents a reader left out because they were empty or white space alone."""

    empty: int = 0


def read_documents(
    unit: Unit, text_column: str = "text", errors: Errors = "strict", skipped: Skipped | None = None
) -> Iterator[str]:
    """Documents of one unit in file order; adds to `skipped.empty` the ones that were only white space."""
    for text in _READERS[unit.kind](unit, text_column, errors):
        if text and not text.isspace():
            yield text
        elif skipped is not None:
            skipped.empty += 1


def _read_parquet(unit: Unit, column: str, errors: Errors) -> Iterator[str]:
    where = hub.locate(unit.uri)
    try:
        with where.fs.open_input_file(where.path) as file:
            parquet = pq.ParquetFile(file, pre_buffer=not where.is_local)
            _check_column(column, parquet.schema_arrow.names, where)
            row = sum(parquet.metadata.row_group(group).num_rows for group in range(unit.part))
            batches = parquet.iter_batches(PARQUET_ROWS, row_groups=[unit.part], columns=[column], use_threads=False)
            for batch in batches:
                yield from _texts(batch.column(0), where, row, column, errors)
                row += batch.num_rows
    except pa.ArrowInvalid as error:
        raise UserError(f"{where.uri} is a damaged parquet file ({_line(error)}): copy it again.") from error
    except OSError as error:
        raise storage.explain(error, where) from error


def _read_arrow(unit: Unit, column: str, errors: Errors) -> Iterator[str]:
    """The stream files `datasets.save_to_disk` writes."""
    where = hub.locate(unit.uri)
    row = 0
    try:
        with where.fs.open_input_file(where.path) as file, pa.ipc.open_stream(file) as stream:
            _check_column(column, stream.schema.names, where)
            for batch in stream:
                yield from _texts(batch.column(column), where, row, column, errors)
                row += batch.num_rows
    except pa.ArrowInvalid as error:
        raise UserError(f"{where.uri} is a damaged arrow file ({_line(error)}): copy it again.") from error
    except OSError as error:
        raise storage.explain(error, where) from error


def _texts(values: pa.Array, where: Location, first_row: int, column: str, errors: Errors) -> Iterator[str]:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type) or pa.types.is_null(values.type)):
        raise UserError(
            f"{where.uri}: column {column!r} holds {values.type}, not text; set prepare.text_column to a text column."
        )
    try:
        texts: list[str | None] = values.to_pylist()
    except UnicodeDecodeError:  # says nothing about the row: decode one by one
        binary = pa.large_binary() if pa.types.is_large_string(values.type) else pa.binary()
        raw = values.view(binary).to_pylist()
        texts = [
            None if data is None else _decode(data, errors, f"{where.uri}, row {first_row + n + 1}")
            for n, data in enumerate(raw)
        ]
    for text in texts:
        yield text or ""


def _read_jsonl(unit: Unit, column: str, errors: Errors) -> Iterator[str]:
    where = hub.locate(unit.uri)
    for number, line in enumerate(_lines(where, unit.compression), start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        place = f"{where.uri}, line {number}"
        try:
            record = json.loads(_decode(line, errors, place))
        except ValueError as error:
            raise UserError(f"{place} is not JSON ({_line(error)}): every line must be one JSON object.") from error
        if not isinstance(record, dict):
            raise UserError(
                f"{place} is not a JSON object: every line must be one, with the text under prepare.text_column."
            )
        if column not in record:
            raise UserError(
                f"{place} has no {column!r} (it has {_names(record)}): set prepare.text_column to one of these."
            )
        text = record[column]
        if text is not None and not isinstance(text, str):
            raise UserError(f"{place}: {column!r} holds {type(text).__name__}, not text; set prepare.text_column.")
        yield _without_surrogates(text or "", errors, place)


def _read_csv(unit: Unit, column: str, errors: Errors) -> Iterator[str]:
    where = hub.locate(unit.uri)
    # the default limit of 128 KB is less than a novel; the setting is the process's, and only ever raised
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(
        _text_lines(where, unit.compression, errors), delimiter="\t" if unit.kind == "tsv" else ",", strict=True
    )
    index: int | None = None
    width = 0
    try:
        for row in reader:
            # files written on Windows in text mode end rows with \r\r\n, which reads as an empty row after each
            if not row:
                continue
            if index is None:
                _check_column(column, row, where)
                index, width = row.index(column), len(row)
                continue
            if len(row) <= index:
                raise UserError(
                    f"{where.uri}, line {reader.line_num} has {len(row)} fields where the header has {width}: "
                    "mend the row (is a quote missing?)."
                )
            text = row[index]
            yield text.replace("\r\r\n", "\n").replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    except csv.Error as error:
        raise UserError(
            f"{where.uri}, line {reader.line_num} is not valid CSV ({_line(error)}): mend its quotes."
        ) from error


def _read_text(unit: Unit, column: str, errors: Errors) -> Iterator[str]:
    """One document per file, or as many as `<|endoftext|>` separates; a line break next to that is not text."""
    where = hub.locate(unit.uri)
    parts: list[str] = []
    tail = ""
    separated = False
    for chunk in _decoded(where, unit.compression, errors):
        # the separator may lie across two chunks: keep back as much as could be its beginning
        *whole, rest = (tail + chunk).split(SEPARATOR)
        for text in whole:
            yield _trim("".join([*parts, text]), separated, True)
            parts, separated = [], True
        keep = len(SEPARATOR) - 1
        parts.append(rest[:-keep])
        tail = rest[-keep:]
    last = _trim("".join([*parts, tail]), separated, False)
    if last or not separated:
        yield last


def _trim(text: str, after: bool, before: bool) -> str:
    if after:
        text = text.removeprefix("\r\n") if text.startswith("\r\n") else text.removeprefix("\n")
    if before:
        text = text.removesuffix("\r\n") if text.endswith("\r\n") else text.removesuffix("\n")
    return text


def _read_hub(unit: Unit, column: str, errors: Errors) -> Iterator[str]:
    for number, record in enumerate(hub.stream(unit.uri, unit.subset, unit.part, unit.parts), start=1):
        if column not in record:
            raise UserError(f"{unit.uri} has no column {column!r} (it has {_names(record)}): set prepare.text_column.")
        text = record[column]
        if text is not None and not isinstance(text, str):
            raise UserError(
                f"{unit.uri}: column {column!r} holds {type(text).__name__}, not text; set prepare.text_column."
            )
        yield _without_surrogates(text or "", errors, f"{unit.uri}, shard {unit.part}, row {number}")


_READERS: dict[str, Any] = {
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "tsv": _read_csv,
    "text": _read_text,
    "hub": _read_hub,
}


def _chunks(where: Location, compression: str | None) -> Iterator[bytes]:
    try:
        with where.fs.open_input_stream(where.path, compression=None, buffer_size=READ_BYTES) as raw:
            stream = pa.CompressedInputStream(raw, compression) if compression else raw
            while chunk := stream.read(READ_BYTES):
                yield chunk
    except OSError as error:
        text = str(error).lower()
        if compression and any(word in text for word in ("truncated", "decompress", "zlib", "zstd", "gzip")):
            raise UserError(
                f"{where.uri} is cut short or damaged ({compression}: {_line(error)}): copy it again."
            ) from error
        raise storage.explain(error, where) from error


def _lines(where: Location, compression: str | None) -> Iterator[bytes]:
    parts: list[bytes] = []
    for chunk in _chunks(where, compression):
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            yield b"".join([*parts, line])
            parts = []
        parts.append(rest)
    if last := b"".join(parts):
        yield last


def _decoded(where: Location, compression: str | None, errors: Errors) -> Iterator[str]:
    """The file as text in chunks cut anywhere; invalid UTF-8 raises with its byte offset in the (unpacked) file."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    offset = 0  # of the first byte the decoder has not turned into text
    first = True
    for chunk, final in _with_end(_chunks(where, compression)):
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            raise UserError(f"{where.uri} is not UTF-8 at byte {offset + error.start:,}: {_ENCODING_HELP}.") from error
        offset += held + len(chunk) - len(decoder.getstate()[0])
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        if text:
            yield text


def _with_end(chunks: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    for chunk in chunks:
        yield chunk, False
    yield b"", True


def _text_lines(where: Location, compression: str | None, errors: Errors) -> Iterator[str]:
    """Lines with their ends, for the csv reader: split at \\r and \\n alone, unlike str.splitlines."""
    rest: list[str] = []
    for chunk in _decoded(where, compression, errors):
        end = 0
        for match in _LINE_END.finditer(chunk):
            line = chunk[end : match.end()]
            end = match.end()
            yield "".join([*rest, line]) if rest else line
            rest = []
        if end < len(chunk):
            rest.append(chunk[end:])
    if rest:
        yield "".join(rest)


def _decode(data: bytes, errors: Errors, place: str) -> str:
    try:
        return data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not UTF-8 at its byte {error.start:,}: {_ENCODING_HELP}.") from error


def _without_surrogates(text: str, errors: Errors, place: str) -> str:
    """JSON can escape half a surrogate pair, which no UTF-8 text can hold."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError as error:
        if errors == "replace":
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        raise UserError(
            f"{place} holds half a surrogate pair at character {error.start:,}: {_ENCODING_HELP}."
        ) from error


def _check_column(column: str, names: list[str], where: Location) -> None:
    if column not in names:
        raise UserError(
            f"{where.uri} has no column {column!r} (it has {_names(names)}): set prepare.text_column to one of these."
        )


def _names(names: Any) -> str:
    return ", ".join(repr(name) for name in list(names)[:20]) or "none"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
