"""A file's bytes to text in pieces of bounded size: unpacked, decoded and cut into lines, each fault with its place."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import zstandard

from raygpt import storage
from raygpt.data.lines import LINE_END, RETURNS, Place, TooLong, with_end
from raygpt.errors import UserError, one_line
from raygpt.storage import Location

Errors = Literal["strict", "replace"]
READ_BYTES = 2**20
ZSTD_BYTES = 2048  # unpacked at a time: at worst they become 64 MiB
LARGEST_WINDOW = 2**31  # zstd --long=31, the most there is
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
ENCODING_HELP = "repair the file or set prepare.encoding_errors=replace, which puts U+FFFD in its place"
_LINE_END = re.compile(LINE_END)


@dataclass
class Growth:
    """Characters read since the reader of lines last set `size` to 0; TooLong beyond `limit`."""

    limit: float
    size: int = 0


def chunks(where: Location, compression: str | None) -> Iterator[bytes]:
    """The unpacked file, READ_BYTES at a time. UserError when it cannot be read or its packing is damaged."""
    first = True
    try:
        with where.fs.open_input_stream(where.path, compression=None, buffer_size=READ_BYTES) as raw:
            stream = _unpacked(raw, compression)
            while chunk := stream.read(READ_BYTES):
                if first:
                    check_text(chunk, where)
                    first = False
                yield chunk
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile) as error:
        raise _damaged(where, compression, error) from error
    except OSError as error:
        if compression == "bz2" and error.errno is None:  # bz2 has no error class of its own
            raise _damaged(where, compression, error) from error
        raise storage.explain(error, where) from error


def _unpacked(raw: Any, compression: str | None) -> Any:
    """The stream unpacked: any number of members or frames one after the other, padding between them, and windows of
    any size. (pyarrow's own reads neither zstd --long=28 nor .xz.)"""
    if compression == "gzip":
        return gzip.GzipFile(fileobj=raw, mode="rb")
    if compression == "bz2":
        return _Members(raw, bz2.BZ2Decompressor, padding=False)
    if compression == "xz":
        return _Members(raw, lzma.LZMADecompressor, padding=True)
    return _Zstd(raw) if compression == "zstd" else raw


class _Members:
    """bz2 and xz: their own files take whatever follows a member for the end, and padding between two as well."""

    def __init__(self, raw: Any, new: Callable[[], Any], *, padding: bool) -> None:
        self._raw, self._new, self._padding = raw, new, padding
        self._member: Any = None
        self._packed = b""

    def read(self, size: int) -> bytes:
        """The next bytes, `size` at most, b"" at the end. Raises EOFError where the file ends within a member."""
        while True:
            if self._member is None:
                packed = self._packed or self._raw.read(2**16)
                self._packed = packed.lstrip(b"\0") if self._padding else packed
                if not packed:
                    return b""
                if not self._packed:
                    continue
                self._member = self._new()
            piece = b""
            if self._member.needs_input:
                piece, self._packed = self._packed or self._raw.read(2**16), b""
                if not piece:
                    raise EOFError("the file ends within a member")
            out = self._member.decompress(piece, size)
            if self._member.eof:
                self._packed, self._member = self._member.unused_data + self._packed, None
            if out:
                return out


class _Zstd:
    """zstandard's reader takes a file that ends within a frame for one that ends; this one does not."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._frame: Any = None
        self._packed = b""

    def read(self, size: int) -> bytes:
        """The next bytes, about `size`, b"" at the end. Raises EOFError where the file ends within a frame."""
        out: list[bytes] = []
        held = 0
        while held < size:
            self._packed = self._packed or self._raw.read(2**16)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the file ends within a frame")
                break
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()
            piece, self._packed = self._packed[:ZSTD_BYTES], self._packed[ZSTD_BYTES:]
            out.append(self._frame.decompress(piece))
            held += len(out[-1])
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data + self._packed, None
        return b"".join(out)


def check_text(head: bytes, where: Location) -> None:
    """UserError where the first bytes of a file are those of something else than UTF-8 text."""
    if head.startswith(LFS_POINTER):
        raise lfs_pointer(where)
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise UserError(f"{where.uri} is UTF-32 text: save it as UTF-8.")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise utf16(where)
    head = head[:4096]
    pairs = len(head) // 2
    # of text in Latin letters every second byte; UTF-8 has none
    if pairs and max(head[0::2].count(0), head[1::2].count(0)) > pairs / 4:
        raise UserError(f"{where.uri} has a NUL in every second byte or more, as UTF-16 text has: save it as UTF-8.")


def lfs_pointer(where: Location) -> UserError:
    return UserError(f"{where.uri} is a git-lfs pointer, not the file itself: run `git lfs pull` where it came from.")


def _damaged(where: Location, compression: str | None, error: Exception) -> UserError:
    return UserError(f"{where.uri} is cut short or damaged ({compression}: {one_line(error)}): copy it again.")


def byte_lines(where: Location, compression: str | None, limit: float) -> Iterator[bytes]:
    """Lines without their \\n. TooLong for one of more than `limit` bytes, before it is read to its end."""
    parts: list[bytes] = []
    number, size = 1, 0
    for chunk in chunks(where, compression):
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            if size + len(line) > limit:
                raise TooLong(number)
            yield b"".join([*parts, line]) if parts else line
            parts, size = [], 0
            number += 1
        if rest:
            parts.append(rest)
            size += len(rest)
            if size > limit:
                raise TooLong(number)
    if parts:
        yield b"".join(parts)


def decoded(where: Location, compression: str | None, errors: Errors) -> Iterator[str]:
    """The file as text in pieces cut anywhere, without a byte order mark; invalid UTF-8 raises with line and column."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    place = Place()
    first = True
    for chunk, final in with_end(chunks(where, compression)):
        try:
            text = decoder.decode(chunk or b"", final)
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode("utf-8")
            place.advance(before.removeprefix("\ufeff") if first else before)
            raise not_utf8(f"{where.uri}, line {place.line}, column {place.column}", error) from error
        if first and text:
            text, first = text.removeprefix("\ufeff"), False  # the mark is no column
        if text:
            place.advance(text)
            yield text


def text_lines(where: Location, compression: str | None, errors: Errors, growth: Growth) -> Iterator[str]:
    """Lines with their ends. TooLong when `growth` goes past its limit, before the line is read to its end."""
    parts: list[str] = []
    held = ""
    for chunk, final in with_end(decoded(where, compression, errors)):
        text = held + (chunk or "")
        # \r at the end of a piece may be the beginning of \r\n
        held = "" if final else text[max(len(text.rstrip("\r")), len(text) - RETURNS) :]
        if held:
            text = text[: -len(held)]
        lines, rest = _cut(text)
        for line in lines:
            growth.size += len(line)
            if growth.size > growth.limit:
                raise TooLong
            if parts:
                line, parts = "".join([*parts, line]), []
            yield line
        if rest:
            parts.append(rest)
            growth.size += len(rest)
            if growth.size > growth.limit:
                raise TooLong
    if parts:
        yield "".join(parts)


def _cut(text: str) -> tuple[Iterable[str], str]:
    """Whole lines with their ends, and what follows the last of them."""
    if "\r" not in text:  # twice as fast
        *whole, rest = text.split("\n")
        return (line + "\n" for line in whole), rest
    ends = [match.end() for match in _LINE_END.finditer(text)]
    begins = [0, *ends]
    return (text[begin:end] for begin, end in zip(begins, ends, strict=False)), text[begins[-1] :]


def decode(data: bytes, errors: Errors, place: str, unit: str = "column") -> str:
    """Text of a line or cell at `place`. UserError names the character at which it is not UTF-8."""
    try:
        return data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        column = len(data[: error.start].decode("utf-8")) + 1
        raise not_utf8(f"{place}, {unit} {column}", error) from error


def without_surrogates(text: str, errors: Errors, place: str) -> str:
    """JSON can escape half a surrogate pair, which no UTF-8 text can hold."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError as error:
        if errors == "replace":
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        raise UserError(
            f"{place} holds half a surrogate pair at character {error.start + 1:,}: {ENCODING_HELP}."
        ) from error


def utf16(where: Location) -> UserError:
    return UserError(f"{where.uri} is UTF-16 text: save it as UTF-8.")


def not_utf8(place: str, error: UnicodeDecodeError) -> UserError:
    return UserError(f"{place} is not UTF-8 (byte 0x{error.object[error.start]:02x}): {ENCODING_HELP}.")
