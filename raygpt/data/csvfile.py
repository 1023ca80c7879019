"""CSV and TSV rows by Python's strict reader, with every way a row can be wrong told by the line it begins in."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator

from raygpt.data.decoding import Errors, Growth, text_lines
from raygpt.data.lines import TooLong
from raygpt.errors import UserError, one_line
from raygpt.storage import Location

QUOTES_HELP = 'mend the quotes (one inside a quoted field is written twice, "")'


def rows(
    where: Location,
    compression: str | None,
    kind: str,
    errors: Errors = "strict",
    limit: float = float("inf"),
) -> Iterator[tuple[int, list[str]]]:
    """(line it begins in, fields) of every row of a `kind` of file, header first; empty lines are no rows.

    In "csv" commas separate fields and quotes may stand around them; in "tsv" tabs do, and a quote is a character like
    others, as in GLUE's files.

    Raises UserError for quotes that do not match and for a row with more or fewer fields than the header; TooLong for
    a row of more than `limit` characters, before it is read to its end.
    """
    # the default limit of 128 KB is less than a novel; the setting is the process's, so the limit is kept by `growth`
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    growth = Growth(limit)
    lines = text_lines(where, compression, errors, growth)
    if kind == "csv":
        reader = csv.reader(lines, strict=True)
    else:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    begin, width = 1, 0
    while True:
        growth.size = 0
        try:
            row = next(reader)
        except StopIteration:
            return
        except TooLong as error:
            raise TooLong(begin) from error
        except csv.Error as error:
            raise UserError(
                f"{where.uri}, line {begin} is not valid CSV ({one_line(error)}, line {reader.line_num}): "
                f"{QUOTES_HELP}."
            ) from error
        # files written on Windows in text mode end rows with \r\r\n, of which some tools make an empty row after each
        if row:
            width = width or len(row)
            if len(row) != width:
                raise UserError(_ragged(where, begin, len(row), width, kind))
            yield begin, row
        begin = reader.line_num + 1


def _ragged(where: Location, line: int, found: int, width: int, kind: str) -> str:
    way_out = "mend the row (is a quote missing?)" if kind == "csv" else "mend the row (quotes mean nothing in TSV)"
    if kind == "csv" and found > width:
        way_out = "put the text in quotes if it holds a comma, or mend the row"
    return f"{where.uri}, line {line} has {found} fields where the header has {width}: {way_out}."
