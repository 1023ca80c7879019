"""CSV as people have it: rows equal an independent reader's, and whatever is wrong is told with line and way out."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
import pytest

from raygpt.data import decoding
from raygpt.data.corpus import expand_sources
from raygpt.data.documents import Reading, Rows, read_documents
from raygpt.errors import UserError


def read(path: Path, column: str = "text", **settings: object) -> list[str]:
    reading = Reading(column, **settings)  # type: ignore[arg-type]
    return [text for unit in expand_sources([str(path)]) for text in read_documents(unit, reading)]


def unix(text: str) -> str:
    return text.replace("\r\r\n", "\n").replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("scipapers/acl_sections.csv.gz", 6778),
        ("scipapers/arxiv_abstracts_21353.csv.gz", 21353),
        ("shakespeare/train.csv", 41),
        ("shakespeare/validation.csv", 1),
    ],
)
def test_genuine_files_equal_two_other_readers(name: str, rows: int, shared_data: Path) -> None:
    path = shared_data / name
    count = Rows()
    [unit] = expand_sources([str(path)])
    found = list(read_documents(unit, Reading(), count))
    data = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    # Python's reader over the whole text at once, and Arrow's own parser
    python = [unix(row["text"]) for row in csv.DictReader(io.StringIO(data.decode(), newline=""))]
    arrow = arrow_csv.read_csv(
        pa.BufferReader(data),
        read_options=arrow_csv.ReadOptions(block_size=2**28),
        parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
    )
    assert found == python == [unix(text) for text in arrow["text"].to_pylist()]
    assert (count.read, count.empty, len(found)) == (rows, 0, rows)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_line_ends_and_byte_order_marks(end: str, mark: bytes, tmp_path: Path) -> None:
    text = 'id,text\n1,"two\n\nlines, and a ""quote"""\n\n2,plain\n3," "\n4,last'
    (tmp_path / "a.csv").write_bytes(mark + text.replace("\n", end).encode())
    count = Rows()
    [unit] = expand_sources([str(tmp_path)])
    assert list(read_documents(unit, Reading(), count)) == ['two\n\nlines, and a "quote"', "plain", "last"]
    assert count == Rows(read=4, empty=1)


BAD = {
    "fewer": (b"id,text\n1,a\n\n2\n", "line 4 has 1 fields where the header has 2: mend the row .is a quote missing"),
    "more": (
        b'text\nfine\n"a\nb"\nGreat, isn\'t it\n',
        "line 5 has 2 fields where the header has 1: put the text in quotes",
    ),
    "trailing": (b"id,text\n1,a,\n", "line 2 has 3 fields where the header has 2"),
    "open": (b'id,text\n1,"a\n2,b\n3,c\n', "line 2 is not valid CSV .unexpected end of data, line 4.*mend the quotes"),
    "swallowed": (b'id,text\n1,x\n2,"a\n3,b\n4,"c"\n', "line 3 is not valid CSV .*, line 5.*mend the quotes"),
    "backslash": (rb"id,text" + b'\n1,"he said \\"no\\" twice"\n', "line 2 is not valid CSV.*written twice"),
    "twice": (b"text,text\na,b\n", "has 2 columns named 'text': rename"),
    "semicolon": (b"id;text\n1;a\n", "no column 'text'.*separated by ';', so save it with commas"),
    "column": (
        b"id,body\n1,a\n",
        r"no column 'text' \(it has 'id', 'body'\): set data.text_column \(or prepare.text_column\)",
    ),
    "bytes": (b'id,text\r\r\n1,"a\r\r\nd\xc3\xa9j\xe0 vu"\r\r\n', r"line 3, column 4 is not UTF-8 \(byte 0xe0\)"),
    "marked": (codecs.BOM_UTF8 + b"text\xff\n", "line 1, column 5 is not UTF-8"),
    "utf16": ("text\nhello\n".encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_one_sentence_with_the_line(name: str, packed: bool, tmp_path: Path) -> None:
    data, says = BAD[name]
    path = tmp_path / (f"{name}.csv.gz" if packed else f"{name}.csv")
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(UserError, match=says) as raised:
        read(path)
    assert path.name in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_without_rows_has_no_documents(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"")
    (tmp_path / "b.csv").write_bytes(b"id,text\n")
    assert read(tmp_path) == []


def test_tabs_and_a_column_by_name(tmp_path: Path) -> None:
    """A quote is a character there like others, as in GLUE's files."""
    (tmp_path / "a.tsv").write_text('id\tbody\n1\t"a b\n2\tc, d"\n')
    assert read(tmp_path, "body") == ['"a b', 'c, d"']


LONG = "long " * 1000


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "a.csv",
            f'id,text\n1,short\n2,"\n{LONG}"\n',
            "a.csv, line 3: longer than prepare.max_document_mb=0.004.*rows",
        ),
        (
            "a.jsonl",
            f'{{"text": "short"}}\n{{"text": "{LONG}"}}\n',
            "a.jsonl, line 2: longer than.*several lines, or raise",
        ),
        (
            "a.txt",
            LONG,
            "a.txt, the document from line 1 on: longer than.*split_text=true, or raygpt prepare --from-txt.*raise",
        ),
        ("b.txt", f"one\n<|endoftext|>\n\n{LONG}", "b.txt, the document from line 3 on: longer than"),
    ],
)
def test_a_document_longer_than_the_limit_is_refused_with_the_way_out(
    name: str, text: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=says):
        read(tmp_path / name, max_document_mb=0.004)
    assert read(tmp_path / name)[-1].strip() == LONG.strip()


def test_parquet_cells_longer_than_the_limit_are_refused_by_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", LONG, "c"]}), tmp_path / "a.parquet", row_group_size=2)
    with pytest.raises(UserError, match="a.parquet, row 3: longer than prepare.max_document_mb=0.004"):
        read(tmp_path, max_document_mb=0.004)


def test_the_limit_counts_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("é" * 2000)
    assert read(tmp_path, max_document_mb=0.004)
    with pytest.raises(UserError, match="longer than"):
        read(tmp_path, max_document_mb=0.003999)


@pytest.mark.parametrize(
    ("name", "begin", "split"),
    [
        ("a.csv", b'text\nfine\n"open ', False),
        ("a.jsonl", b'{"text": "', False),
        ("a.txt", b"text ", False),
        ("a.txt", b"text ", True),
    ],
)
def test_a_long_document_is_refused_before_it_is_read(
    name: str, begin: bytes, split: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0

    def endless(*_: object) -> Iterator[bytes]:
        nonlocal taken
        yield begin
        while True:
            taken += 2**20
            yield b"x" * 2**20

    (tmp_path / name).write_bytes(begin)
    monkeypatch.setattr(decoding, "chunks", endless)
    with pytest.raises(UserError, match="longer than prepare.max_document_mb=2 "):
        read(tmp_path / name, max_document_mb=2, split_text=split)
    assert taken <= 10 * 2**20
