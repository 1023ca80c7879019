"""Whatever the usual writers write is read, each document once; what is no text is refused for what it is."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from raygpt.classify.tasks import read_examples
from raygpt.data.corpus import expand_sources, held_out_units, look_into, read_documents
from raygpt.data.documents import Reading
from raygpt.data.lines import LINE_END
from raygpt.data.request import PrepareOptions, expand
from raygpt.data.rows import read_rows
from raygpt.data.tokenizer import train_tokenizer
from raygpt.errors import UserError

CASES = Path(__file__).parents[3] / "shared" / "cases"
cases = pytest.mark.skipif(not CASES.exists(), reason="../shared/cases is not there")


def texts(*sources: Path | str, column: str = "text") -> list[str]:
    return [text for unit in expand_sources(list(map(str, sources))) for text in read_documents(unit, Reading(column))]


# --- inputs of public reports -------------------------------------------------------------------------------------


@cases
@pytest.mark.parametrize(
    ("name", "documents"),
    [
        ("notes #1.txt", ["the file I meant"]),
        ("long_window_28.jsonl.zst", 2000),
        ("arrow_ipc_file_format.arrow", ["a", "b"]),
        ("polars_write_ipc.arrow", 3),
        ("unbalanced_quote.tsv", ['"an unbalanced start', "b", 'closing here"', "d"]),
        ("endoftext_in_cell.csv", 3),
        ("many_cr.csv", 1),
    ],
)
def test_sound_files_of_reports_are_read(name: str, documents: Any) -> None:
    began = time.process_time()
    found = texts(CASES / name)
    assert [text.strip() for text in found] == documents if isinstance(documents, list) else len(found) == documents
    assert not any("<|endoftext|>" in text for text in found) and time.process_time() - began < 1


@cases
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("git_lfs_pointer.txt", "is a git-lfs pointer.*git lfs pull"),
        ("git_lfs_pointer.parquet", "is a git-lfs pointer.*git lfs pull"),
        ("deep_json.jsonl", "line 2 is nested too deeply"),
        ("utf16le_without_bom.txt", "as UTF-16 text has"),
    ],
)
def test_what_is_no_text_is_refused_for_what_it_is(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        texts(CASES / name)


@cases
def test_labelled_files_of_reports() -> None:
    with pytest.raises(UserError, match="line 3: .* is nan, which is not"):
        read_examples(str(CASES / "task_nan_label.jsonl"))
    with pytest.raises(UserError, match=r"line 1: .* is \['a0'\], which is not text"):
        read_examples(str(CASES / "task_text_is_list.jsonl"))
    assert set(read_examples(str(CASES / "task_labels_no_yes.csv")).labels) == {"no", "yes"}


@cases
def test_files_of_a_folder_that_are_not_read_are_named() -> None:
    found = look_into([str(CASES / "unknown_extensions")])
    read = {Path(unit.uri).name for unit in found.units}
    named = {Path(uri).name for uri, _ in found.left_out}
    assert read | named == set(os.listdir(CASES / "unknown_extensions")) and not read & named
    # what is JSON lines by its content and its name is read, packed or not
    assert {"a", "b", "c", "d"} & {Path(name).name.split(".")[0] for name in read}


def test_json_of_another_kind_is_left_out_of_a_folder(tmp_path: Path) -> None:
    for name, text in (("a.json", ' [{"text": "a"}]'), ("b.json", '["x"]'), ("c.json", "3"), ("d.json", "")):
        (tmp_path / name).write_text(text)
    assert texts(tmp_path) == ["a"] and len(look_into([str(tmp_path)]).left_out) == 3


@cases
def test_a_snapshot_of_the_hub_gives_its_train_split() -> None:
    found = look_into([str(CASES / "hf_snapshot_with_test_split")])
    assert texts(CASES / "hf_snapshot_with_test_split") == ["train 1", "train 2"]
    assert {reason for _, reason in found.left_out} >= {"of the split test", "of the split validation"}


# --- each document once -------------------------------------------------------------------------------------------


def test_a_file_is_read_once_whatever_leads_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "sub" / "b.txt").write_text("b")
    (folder / "sub" / "up").symlink_to(folder)  # a loop
    (folder / "again.txt").symlink_to(folder / "a.txt")
    os.link(folder / "a.txt", folder / "hard.txt")
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.txt")
    for sources in (
        [folder],
        [folder, folder / "a.txt"],
        [folder / "*.txt", folder],
        [folder / "sub" / ".." / ".", folder],
        [f"{folder}/**/*.txt", f"{folder}//sub/b.txt"],
    ):
        assert sorted(texts(*sources)) == ["a", "b"], sources
    found = look_into([str(folder)])
    assert {Path(uri).name for uri in found.repeated} == {"again.txt", "hard.txt"} and found.files == 2
    reasons = {Path(uri).name: reason for uri, reason in found.left_out}
    assert reasons == {"gone.txt": "a link that leads nowhere", "pipe.txt": "no regular file"}


def test_training_and_validation_never_share_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    options = PrepareOptions([str(tmp_path / "a.txt")], "out", val_sources=[str(tmp_path / "link.txt")])
    with pytest.raises(UserError, match="a.txt is in prepare.sources and in prepare.val_sources"):
        expand(options)
    options = PrepareOptions([str(tmp_path / "a.txt")], "out", val_sources=[str(tmp_path / "b.txt")])
    assert len(expand(options).val_units) == 1


def test_a_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    other = os.fsencode(tmp_path) + b"/b\xfc.dat"
    os.close(os.open(other, os.O_CREAT))
    assert texts(tmp_path) == ["a"] and look_into([str(tmp_path)]).left_out[0][0].endswith("b\\xfc.dat")
    os.rename(other, other.replace(b".dat", b".txt"))
    with pytest.raises(UserError, match=r"b\\xfc.txt has a name that is not UTF-8: rename it"):
        texts(tmp_path)


def test_the_mark_of_an_end_means_the_same_in_every_format(tmp_path: Path) -> None:
    whole = "one\n<|endoftext|>\ntwo<|endoftext|><|endoftext|>three"
    (tmp_path / "a.txt").write_text(whole)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": whole}))
    (tmp_path / "c.json").write_text(json.dumps([{"text": whole}]))
    pq.write_table(pa.table({"text": [whole]}), tmp_path / "d.parquet")
    with open(tmp_path / "e.csv", "w", newline="") as file:
        csv.writer(file).writerows([["text"], [whole]])
    for path in sorted(tmp_path.iterdir()):
        assert texts(path) == ["one", "two", "three"], path


# --- whatever the usual libraries write ---------------------------------------------------------------------------

DOCUMENTS = ["plain", 'with "quotes", commas', "two\nlines", "süß 中文 \U0001f600", "x" * 3000]
ROWS = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in DOCUMENTS).encode()


def zstd(data: bytes, **options: Any) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(**options)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def packed() -> Iterator[tuple[str, bytes]]:
    for level in (1, 9):
        yield ".gz", gzip.compress(ROWS, level)
        yield ".bz2", bz2.compress(ROWS, level)
        yield ".xz", lzma.compress(ROWS, preset=level)
    yield ".gz", gzip.compress(ROWS) + b"\0" * 512  # padding, as tar's tapes leave it
    yield ".gz", b"".join(gzip.compress(part) for part in (ROWS[:7], b"", ROWS[7:]))
    yield ".bz2", bz2.compress(ROWS[:7]) + bz2.compress(ROWS[7:])
    yield ".xz", lzma.compress(ROWS[:7]) + lzma.compress(ROWS[7:])
    yield ".xz", lzma.compress(ROWS, check=lzma.CHECK_SHA256)
    yield ".xz", lzma.compress(ROWS[:7]) + b"\0" * 8 + lzma.compress(ROWS[7:]) + b"\0" * 4  # stream padding
    yield ".zst", zstd(ROWS, compression_level=1, write_checksum=True)
    yield ".zst", zstd(ROWS, compression_level=22, window_log=27)
    yield ".zst", zstd(ROWS, window_log=30, enable_ldm=True)
    yield ".zst", zstandard.ZstdCompressor(write_content_size=False).compress(ROWS)
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"abcde"
    yield ".zst", zstd(ROWS[:7]) + skippable + zstd(ROWS[7:]) + skippable
    yield ".zst", zstd(b"") + zstd(ROWS)


@pytest.mark.parametrize(("extension", "data"), list(packed()))
def test_packed_files_are_read_and_damaged_ones_named(extension: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / f"a.jsonl{extension}").write_bytes(data)
    assert texts(tmp_path) == DOCUMENTS
    (tmp_path / f"a.jsonl{extension}").write_bytes(data[: len(data) * 2 // 3].rstrip(b"\0")[:-1])
    with pytest.raises(UserError, match="cut short or damaged|is not JSON"):
        texts(tmp_path)


COLUMNS = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()))


@pytest.mark.parametrize("kind", COLUMNS, ids=str)
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("form", ["file", "stream"])
def test_arrow_files_are_read(kind: pa.DataType, compression: str | None, form: str, tmp_path: Path) -> None:
    values = pa.array(DOCUMENTS, pa.string()).dictionary_encode() if pa.types.is_dictionary(kind) else DOCUMENTS
    table = pa.table({"n": range(5), "text": values if isinstance(values, pa.Array) else pa.array(values, kind)})
    options = pa.ipc.IpcWriteOptions(compression=compression)
    make = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
    with make(str(tmp_path / "a.arrow"), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=2)
    assert texts(tmp_path) == DOCUMENTS
    [unit] = expand_sources([str(tmp_path)])
    assert [row["text"] for _, row in read_rows(unit)] == DOCUMENTS


@pytest.mark.parametrize("options", [{"compression": "none"}, {"compression": "brotli"}, {"use_dictionary": False}])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_parquet_files_are_read(kind: pa.DataType, options: dict, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(DOCUMENTS, kind)}), tmp_path / "a.parquet", row_group_size=2, **options)
    assert texts(tmp_path) == DOCUMENTS


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_csv_is_read(ends: str, quoting: int, tmp_path: Path) -> None:
    out = io.StringIO(newline="")
    rows = [["id", "text"], *([n, text] for n, text in enumerate(DOCUMENTS))]
    csv.writer(out, lineterminator=ends, quoting=quoting).writerows(rows)  # type: ignore[arg-type]
    (tmp_path / "a.csv").write_bytes(out.getvalue().encode())
    assert texts(tmp_path) == DOCUMENTS


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("form", ["array", "lines", "one"])
def test_json_is_read_as_it_comes(indent: int | None, form: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("raygpt.data.decoding.READ_BYTES", 11)  # cut within every kind of token
    rows = [{"text": text, "more": [n, {"deep": '}]\\"'}]} for n, text in enumerate(DOCUMENTS)]
    if form == "one":
        rows = rows[:1]
    text = json.dumps(rows, indent=indent) if form == "array" else "\n".join(json.dumps(r, indent=indent) for r in rows)
    (tmp_path / "a.json").write_text(f"\ufeff \n{text}\n\n", encoding="utf-8")
    assert texts(tmp_path) == [row["text"] for row in rows]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"text": "a"},\n {"text": "b"}', "line 2 ends within its array"),
        ('[{"text": "a"}\n {"text": "b"}]', "line 2 has '{' where"),
        ('{"text": "a"}\n{"text": ', "line 2 is not JSON"),
        ('{"text": "a"}\n[1]', r"line 2 has '\[' where"),
        ("3\n", "line 1 has '3' where"),
        ('[{"text": "a"}] x', "line 1 has 'x' where"),
        ('{"data": [{"text": "a"}]}', "line 1 has no 'text'"),
    ],
)
def test_json_that_is_none_is_told_with_its_line(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=says):
        texts(tmp_path / "a.json")


# --- linear time --------------------------------------------------------------------------------------------------


def hostile(name: str, size: int) -> tuple[str, bytes, bool]:
    """(extension, bytes, split_text) of an input that some reader has been slow on."""
    quoted = {"csv returns": b"\r" * size, "csv quotes": b'""' * (size // 2)}
    if name in quoted:
        return "csv", b'text\n"' + quoted[name] + b'x"\n', False
    if name == "csv bare returns":
        return "csv", b"text\nx" + b"\r" * size + b"y\n", False
    if name == "json whitespace":
        return "json", b'[{"text": "a"}' + b" " * size + b"]", False
    if name == "json one string":
        return "json", b'{"text": "' + b"a" * size + b'"}', False
    texts = {
        "returns": b"x" + b"\r" * size + b"y",
        "returns and a feed": b"x" + b"\r" * size + b"\ny",
        "spaces": b"x" + b" " * size + b"y",
        "feeds": b"x" + b"\n" * size + b"y",
        "form feeds": b"x\f" * (size // 2),
        "half marks": b"<|endoftext" * (size // 11),
        "marks": b"<|endoftext|>" * (size // 13),
        "stops": b". " * (size // 2),
        "quotes after stops": b'."' * (size // 2),
        "spaced lines": b" \n" * (size // 2),
        "one word": b"a" * size,
    }
    return "txt", texts[name], True


HOSTILE = [
    *("csv returns", "csv quotes", "csv bare returns", "json whitespace", "json one string", "returns", "spaces"),
    *("returns and a feed", "feeds", "form feeds", "half marks", "marks", "stops", "quotes after stops"),
    *("spaced lines", "one word"),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_reading_takes_time_in_proportion(name: str, tmp_path: Path) -> None:
    """Five times the input here: quadratic reading takes 25 times as long."""

    def seconds(size: int) -> float:
        extension, data, split = hostile(name, size)
        path = tmp_path / f"{size}.{extension}"
        path.write_bytes(data)
        began = time.process_time()
        [unit] = expand_sources([str(path)])
        for _ in read_documents(unit, Reading(split_text=split)):
            pass
        return time.process_time() - began

    # where sentences end in vain each document looks through the next 100,000 characters
    small, times, most = (240_000, 3, 6) if name == "stops" else (120_000, 5, 19)
    assert seconds(times * small) < most * max(min(seconds(small) for _ in range(2)), 0.005), name


@pytest.mark.parametrize("make", [lambda draw: "".join(draw.choices("\r\n x", [4, 3, 2, 1], k=40)) for _ in range(1)])
def test_line_ends_are_what_they_were_for_runs_that_programs_write(make: Callable) -> None:
    before = re.compile(r"(?:\r\r*+\n|\n|\r(?!\r*\n))")
    draw = random.Random(0)
    for _ in range(500):
        text = re.sub(r"\r{16,}", "\r", make(draw))
        assert [m.span() for m in re.finditer(LINE_END, text)] == [m.span() for m in before.finditer(text)]


def test_text_without_ascii_word_ends_is_cut_exactly() -> None:
    draw = random.Random(1)
    sentence = "天地玄黃。宇宙洪荒！「日月盈昃」，辰宿列張；don't 'quote' x²。３つ、a…b　全角\n次の行 と"
    text = "".join(draw.choice([sentence, sentence[::-1], "，'s、", "。 ", "\n\n", "！ab1"]) for _ in range(400))
    tokenizer = train_tokenizer([text], 400)
    assert tokenizer.splits_exactly
    for size in (1, 7, 100, 1000):
        pieces = tokenizer.pieces(text, size)
        assert "".join(pieces) == text and max(map(len, pieces)) < size + 60
        joined = [int(i) for piece in pieces for i in tokenizer.encode(piece)]
        assert joined == tokenizer.encode(text).tolist()


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001.jsonl", "test_matched-00000-of-00001.jsonl", "validation_matched-00000-of-00001.jsonl"),
        ("train_sft.jsonl", "test_sft.jsonl", "my.val.jsonl"),
        ("data/train.jsonl", "data/test/x.jsonl", "data/dev.0.jsonl.gz"),
    ],
)
def test_splits_are_told_by_a_word_between_separators(names: tuple[str, str, str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        data = json.dumps({"text": name}).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert texts(tmp_path) == [names[0]]
    # what is only looked at is looked at whole, and what is measured on has to be named
    whole = [text for unit in expand_sources([str(tmp_path)], whole=True) for text in read_documents(unit)]
    assert sorted(whole) == sorted(names)
    with pytest.raises(UserError, match="data.val: .* holds several splits: name the file or folder of one"):
        held_out_units([str(tmp_path)], None, "data.val")


def test_a_subset_of_a_downloaded_data_set_is_its_folder(tmp_path: Path) -> None:
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.txt").write_text(name)
    [unit] = expand_sources([str(tmp_path)], "small")
    assert list(read_documents(unit)) == ["small"]
    with pytest.raises(UserError, match="prepare.subset=medium: .* has no folder of that name"):
        expand_sources([str(tmp_path)], "medium")


def test_one_column_named_twice_is_refused_by_every_reader(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"])] * 2 + [pa.array([1])], names=["text", "text", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="columns named 'text'"):
        texts(tmp_path)
    [unit] = expand_sources([str(tmp_path)])
    for use in (lambda: list(read_rows(unit)), lambda: read_examples(unit.uri)):
        with pytest.raises(UserError, match="several columns named 'text'"):
            use()


def test_dictionaries_of_views_are_read(tmp_path: Path) -> None:
    words = pa.array(["a", "b"], pa.string_view())
    values = pa.DictionaryArray.from_arrays(pa.array([1, 0, 1], pa.int32()), words)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), pa.schema([("text", values.type)])) as writer:
        writer.write_batch(pa.record_batch([values], ["text"]))
    assert texts(tmp_path) == ["b", "a", "b"]


def test_small_objects_of_a_json_file_are_read_in_proportion(tmp_path: Path) -> None:
    def seconds(count: int) -> float:
        (tmp_path / "a.json").write_text('{"t":1}\n' * count)
        began = time.process_time()
        assert sum(1 for _ in read_rows(expand_sources([str(tmp_path / "a.json")])[0])) == count
        return time.process_time() - began

    assert seconds(60_000) < 12 * max(seconds(12_000), 0.02)
