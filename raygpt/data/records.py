"""Records of a file, one after the other, whatever is to be taken from them: JSON lines, JSON values, Arrow's batches.

What is wrong with a file is told with its place. Who reads text columns (raygpt.data.documents), whole rows
(raygpt.data.rows) or labelled examples (raygpt.classify.tasks) reads them here.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raygpt import storage
from raygpt.data import decoding
from raygpt.data.decoding import Errors
from raygpt.data.lines import Place, TooLong
from raygpt.errors import UserError, one_line
from raygpt.storage import Location

Record = tuple[int, dict[str, Any]]  # (line it begins in, columns)


def json_lines(where: Location, compression: str | None, errors: Errors, limit: float) -> Iterator[Record]:
    """One JSON object a line; empty lines are none. TooLong for a line of more than `limit` bytes."""
    for number, line in enumerate(decoding.byte_lines(where, compression, limit), start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        place = f"{where.uri}, line {number}"
        yield number, _object(decoding.decode(line, errors, place), place, "every line must be one JSON object")


def _object(text: str, place: str, rule: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise UserError(f"{place} is not JSON ({one_line(error)}): {rule}.") from error
    except RecursionError:
        raise _too_deep(place) from None
    if not isinstance(record, dict):
        raise UserError(f"{place} is not a JSON object: {rule}.")
    return record


def _too_deep(place: str) -> UserError:
    return UserError(f"{place} is nested too deeply to be read: leave that value out.")


def json_values(where: Location, compression: str | None, errors: Errors, limit: float) -> Iterator[Record]:
    """JSON objects as a .json file has them: one a line or over several lines, or all in one array.

    TooLong for an object of more than `limit` characters.
    """
    decoder, place = json.JSONDecoder(), Place()
    pieces = decoding.decoded(where, compression, errors)
    buffer, at, ended, after_value = "", 0, False, False
    told = 0  # how much of the buffer `place` knows of
    array: str | None = None  # none, open or closed; None before anything was seen

    def more(wanted: int) -> None:
        """Have `wanted` characters from `at` on, or all there are."""
        nonlocal buffer, at, ended, told
        place.advance(buffer[told:at])
        parts, size = [buffer[at:]], len(buffer) - at
        while size < wanted and not ended:
            piece = next(pieces, None)
            ended = piece is None
            parts.append(piece or "")
            size += len(parts[-1])
        buffer, at, told = "".join(parts), 0, 0

    def fault(reason: str) -> UserError:
        place.advance(buffer[told:at])
        return UserError(f"{where.uri}, line {place.line} {reason}: a .json file holds objects, or an array of them.")

    while True:
        while at < len(buffer) and buffer[at].isspace():
            at += 1
        if at == len(buffer):
            if ended:
                if array == "open":
                    raise fault("ends within its array")
                return
            more(1)
            continue
        char = buffer[at]
        if array is None and char == "[":
            array, at = "open", at + 1
        elif array == "open" and char == "]":
            array, at = "closed", at + 1
        elif array == "open" and after_value and char == ",":
            after_value, at = False, at + 1
        elif char != "{" or array == "closed" or (array == "open" and after_value):
            raise fault(f"has {char!r} where an object should be")
        else:
            while True:
                try:
                    record, end = decoder.raw_decode(buffer, at)
                    break
                except RecursionError:
                    place.advance(buffer[told:at])
                    raise _too_deep(f"{where.uri}, line {place.line}") from None
                except ValueError as error:
                    size = len(buffer) - at
                    if ended:
                        raise fault(f"is not JSON ({one_line(error)})") from error
                    if size > limit:
                        place.advance(buffer[told:at])
                        raise TooLong(place.line) from error
                    more(2 * size + 1)  # twice as much each time: every character is read a few times at most
            place.advance(buffer[told:at])
            line, told, at = place.line, at, end
            array, after_value = array or "none", True
            yield line, record


def holds_objects(where: Location, compression: str | None) -> bool:
    """Whether a .json file begins as `json_values` reads it: with an object, or an array of them."""
    head = b""
    for chunk in decoding.chunks(where, compression):
        head = (head + chunk).removeprefix(codecs.BOM_UTF8).lstrip()
        inside = head[1:].lstrip() if head[:1] == b"[" else head
        if inside:
            return inside[:1] in (b"{", b"]")
    return False


@contextmanager
def arrow_batches(where: Location) -> Iterator[tuple[list[str], Iterator[pa.RecordBatch]]]:
    """(column names, batches) of an .arrow file in either of Arrow's formats: the stream (`datasets.save_to_disk`) and
    the file (Feather, polars' write_ipc)."""
    with _told("arrow", where), where.fs.open_input_file(where.path) as file:
        head = file.read(len(decoding.LFS_POINTER))
        if head.startswith(decoding.LFS_POINTER):
            raise decoding.lfs_pointer(where)
        file.seek(0)
        if head.startswith(b"ARROW1"):
            opened = pa.ipc.open_file(file)
            yield opened.schema.names, map(opened.get_batch, range(opened.num_record_batches))
        else:
            stream = pa.ipc.open_stream(file)
            yield stream.schema.names, iter(stream)


@contextmanager
def parquet_file(where: Location) -> Iterator[pq.ParquetFile]:
    with _told("parquet", where), where.fs.open_input_file(where.path) as file:
        yield pq.ParquetFile(file, pre_buffer=not where.is_local)


@contextmanager
def _told(kind: str, where: Location) -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise UserError(f"{where.uri} is a damaged {kind} file ({one_line(error)}): copy it again.") from error
    except OSError as error:
        raise storage.explain(error, where) from error
