"""Generated files against independent readers, and damaged ones: nothing but a UserError may come of those.

`FUZZ_FILES=10000` has 10,000 files per format generated, `FUZZ_SECONDS=600` as many damaged ones as fit into ten
minutes; without, a hundredth and some seconds. Seeds are fixed: a file that fails is named by its number.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raygpt.classify.tasks import read_examples
from raygpt.config.settings import load_config
from raygpt.data import journal, shards
from raygpt.data.corpus import expand_sources
from raygpt.data.documents import Reading, read_documents
from raygpt.data.rows import read_rows
from raygpt.data.shards import ShardWriter
from raygpt.data.tokenizer import load_tokenizer
from raygpt.errors import UserError
from raygpt.storage import locate
from raygpt.track.jsonl import read_metrics

FILES = int(os.environ.get("FUZZ_FILES", "100"))
SECONDS = float(os.environ.get("FUZZ_SECONDS", "3"))
ALPHABET = "ab,\"\n\r\t \\;|'{}[]:#\x00\x0c\x85\u2028é中\U0001f600"
MARK = "<|endoftext|>"


def word(draw: random.Random, letters: str = ALPHABET, most: int = 12) -> str:
    return "".join(draw.choices(letters, k=draw.randrange(most)))


def documents(texts: list[str]) -> list[str]:
    """What is to come of cells: split at marks, none of white space alone."""
    parts = [part for text in texts for part in text.split(MARK)]
    return [part for part in parts if part and not part.isspace()]


def as_csv(draw: random.Random) -> tuple[bytes, list[str]]:
    cells = [word(draw, ALPHABET.replace("\x00", "")) for _ in range(draw.randrange(6))]
    out = io.StringIO(newline="")
    quoting, ends = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), draw.choice(["\n", "\r\n"])
    # Python's writer leaves \r bare where rows end in \n, and its reader takes it for the end of a row
    quoting = csv.QUOTE_ALL if ends == "\n" else quoting
    writer = csv.writer(out, lineterminator=ends, quoting=quoting)
    writer.writerows([["n", "text"], *([n, cell] for n, cell in enumerate(cells))])
    data = out.getvalue().encode()
    rows = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
    # line ends inside a cell become \n, and \r\r\n, of files written on Windows in text mode, is one of them
    wanted = [re.sub(r"\r+\n|\r", "\n", row[1]) for row in rows[1:]]
    return draw.choice([b"", codecs.BOM_UTF8]) + data, wanted


def as_tsv(draw: random.Random) -> tuple[bytes, list[str]]:
    letters = "".join(letter for letter in ALPHABET if letter not in "\t\n\r\x00")
    cells = [word(draw, letters) for _ in range(draw.randrange(6))]
    text = "n\ttext\n" + "".join(f"{n}\t{cell}\n" for n, cell in enumerate(cells))
    return text.encode(), [line.split("\t")[1] for line in text.split("\n")[1:-1]]


def as_jsonl(draw: random.Random) -> tuple[bytes, list[str]]:
    cells = [word(draw) for _ in range(draw.randrange(6))]
    plain = draw.random() < 0.5
    lines = [json.dumps({"more": [n], "text": cell}, ensure_ascii=plain) for n, cell in enumerate(cells)]
    return ("\n".join(lines) + draw.choice(["", "\n", "\n\n"])).encode(), [json.loads(line)["text"] for line in lines]


def as_json(draw: random.Random) -> tuple[bytes, list[str]]:
    cells = [word(draw) for _ in range(draw.randrange(1, 6))]
    rows = [{"text": cell, "more": {"x": [cell, None, 1.5]}} for cell in cells]
    indent = draw.choice([None, 1])
    array = draw.random() < 0.5
    text = json.dumps(rows, indent=indent) if array else "\n".join(json.dumps(row, indent=indent) for row in rows)
    return (draw.choice(["", " \n"]) + text).encode(), cells


def as_text(draw: random.Random) -> tuple[bytes, list[str]]:
    letters = "".join(letter for letter in ALPHABET if letter not in "\r\n\x00")
    parts = [word(draw, letters, 30) for _ in range(draw.randrange(1, 6))]
    return MARK.join(parts).encode(), [part for part in parts if part]


def as_parquet(draw: random.Random) -> tuple[bytes, list[str]]:
    cells = [word(draw) for _ in range(draw.randrange(6))]
    out = io.BytesIO()
    kind = draw.choice([pa.string(), pa.large_string()])
    pq.write_table(pa.table({"text": pa.array(cells, kind)}), out, row_group_size=draw.randrange(1, 4))
    return out.getvalue(), cells


def as_arrow(draw: random.Random) -> tuple[bytes, list[str]]:
    cells = [word(draw) for _ in range(draw.randrange(6))]
    table = pa.table({"text": pa.array(cells, draw.choice([pa.string(), pa.large_string(), pa.string_view()]))})
    out = io.BytesIO()
    with draw.choice([pa.ipc.new_file, pa.ipc.new_stream])(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return out.getvalue(), cells


FORMATS: dict[str, Callable[[random.Random], tuple[bytes, list[str]]]] = {
    "csv": as_csv,
    "tsv": as_tsv,
    "jsonl": as_jsonl,
    "json": as_json,
    "txt": as_text,
    "parquet": as_parquet,
    "arrow": as_arrow,
}


def read(path: Path) -> list[str]:
    return [text for unit in expand_sources([str(path)]) for text in read_documents(unit, Reading())]


@pytest.mark.parametrize("form", FORMATS)
def test_generated_files_are_read_as_another_reader_reads_them(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{form}"
    for number in range(FILES):
        data, wanted = FORMATS[form](random.Random(number))
        path.write_bytes(data)
        assert read(path) == documents(wanted), f"file {number}: {data!r}"


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Bytes cut, doubled, overwritten or put in."""
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(len(data) + 1)
        piece = draw.choice(
            [b"", b'"', b"{", b"]", b"\x00", b"\xff", b"\r", b"-", b"9" * 30, b"[" * 50, bytes([draw.randrange(256)])]
        )
        kind = draw.randrange(4)
        end = min(len(data), at + draw.randrange(20))
        data = (
            data[:at] + piece + data[at:]
            if kind == 0
            else data[:at] + piece + data[end:]
            if kind == 1
            else data[:at] + data[at:end] * 3 + data[end:]
            if kind == 2
            else data[:at]
        )
    return data


def only_user_errors(path: Path, first: bytes, use: Callable[[], object], seed: str) -> None:
    """Whatever is done to the file, it is read or refused in a sentence."""
    draw = random.Random(seed)
    until = time.monotonic() + SECONDS
    number = 0
    while time.monotonic() < until:
        data = damaged(first, draw)
        path.write_bytes(data)
        try:
            use()
        except UserError:
            pass
        except BaseException as error:
            raise AssertionError(f"{path.name} number {number} of {seed}: {error!r} from {data!r}") from error
        number += 1
    assert number


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_documents_are_a_sentence(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{form}"
    data = max((FORMATS[form](random.Random(number))[0] for number in range(20)), key=len)

    def use() -> None:
        for unit in expand_sources([str(path)]):
            list(read_documents(unit, Reading()))
            list(read_rows(unit))

    only_user_errors(path, data, use, form)


def test_damaged_task_files_are_a_sentence(tmp_path: Path) -> None:
    for name, data in (
        ("a.jsonl", b'{"text": "a b", "label": 1}\n{"text": "c", "label": 0}\n{"text": "d", "label": 1.5}\n'),
        ("a.csv", b'text,label\n"a, b",1\nc,0\n'),
        ("a.tsv", b"text\tlabel\na\t1\nc\t0\n"),
    ):
        only_user_errors(tmp_path / name, data, lambda name=name: read_examples(str(tmp_path / name)), name)


def test_damaged_settings_are_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    data = (
        b"run: {name: a, seed: 010}\noptim: &o\n  lr: 1e-3\n  betas: [0.9, 0.95]\ntrain: {deepspeed: {a: {b: 5e8}}}\n"
    )
    only_user_errors(path, data, lambda: load_config("pretrain", str(path), {}, {}), "settings")


def test_damaged_manifests_and_journals_are_a_sentence(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("bytes")
    writer = ShardWriter(tmp_path / "shards", tokenizer.dtype, 64)
    writer.append(tokenizer.encode("some text of a hundred characters or so " * 5))
    writer.finish(tokenizer.info, tokenizer.to_json(), 1, 205, ["x"])
    manifest = tmp_path / "shards" / shards.MANIFEST
    only_user_errors(
        manifest, manifest.read_bytes(), lambda: shards.load_manifest(str(tmp_path / "shards")), "manifest"
    )
    head = tmp_path / journal.FOLDER / journal.NAME
    head.parent.mkdir()
    record = {
        "version": journal.VERSION,
        "request": {"settings": {}, "inputs": "x"},
        "tokenizer": {"name": "b", "eot_id": 0},
    }

    def use() -> None:
        journal.read_request(locate(tmp_path))
        journal.saved_tokenizer(locate(tmp_path))

    (head.parent / journal.TOKENIZER).write_bytes(tokenizer.to_json())
    only_user_errors(head, json.dumps(record).encode(), use, "journal")
    metrics = tmp_path / "metrics.jsonl"
    lines = b'{"step": 1, "train_loss": 2.5}\n{"step": 2, "train_loss": null}\n'
    only_user_errors(metrics, lines, lambda: read_metrics(locate(metrics)), "metrics")
