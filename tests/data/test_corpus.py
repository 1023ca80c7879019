"""Sources to documents: every format gives the same texts, in a fixed order, and a bad file is named with the place."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from raygpt.data import decoding
from raygpt.data.corpus import expand_sources, file_format, read_documents
from raygpt.data.documents import Reading, Rows, Unit
from raygpt.errors import UserError

TEXTS = ["first", 'a "quoted", line\nand another', "日本語 \U0001f600", "x" * 200_000, "  in\rdented", "last"]
UNIX = [text.replace("\r", "\n") for text in TEXTS]


def texts(source: Path | str, column: str = "text", errors: str = "strict", subset: str | None = None) -> list[str]:
    units = expand_sources([str(source)], subset)
    return [text for unit in units for text in read_documents(unit, Reading(column, errors))]  # type: ignore[arg-type]


def as_jsonl(items: list[str], key: str = "text") -> bytes:
    return "".join(json.dumps({key: item, "n": 1}) + "\n" for item in items).encode()


def as_csv(items: list[str], ends: str = "\n") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator=ends)
    writer.writerows([["id", "text"], *([str(n), item] for n, item in enumerate(items))])
    return out.getvalue().encode()


def as_parquet(path: Path, items: list, rows: int = 2, kind: pa.DataType | None = None) -> None:
    pq.write_table(pa.table({"id": list(range(len(items))), "text": pa.array(items, kind)}), path, row_group_size=rows)


WRITTEN = {
    "a.jsonl": as_jsonl(TEXTS),
    "a.ndjson": b"\xef\xbb\xbf" + as_jsonl(TEXTS) + b"\n\n",
    "a.csv": as_csv(UNIX),
    "a.json": json.dumps([{"text": item} for item in TEXTS], indent=1).encode(),
    "b.json": as_jsonl(TEXTS),
    "c.json": "\n".join(json.dumps({"text": item}, indent=2) for item in TEXTS).encode(),
    "windows.csv": b"\xef\xbb\xbf" + as_csv(UNIX, ends="\r\n"),
    "texts.txt": "\n<|endoftext|>\n".join(TEXTS).encode(),
    "texts.md": "<|endoftext|>".join(TEXTS).encode() + b"<|endoftext|>",
}


PACKED = {
    "": lambda data: data,
    # two members or frames, as `cat a.gz b.gz` makes
    ".gz": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]),
    ".zst": lambda data: zstandard.compress(data[:1000]) + zstandard.compress(data[1000:]),
    ".bz2": lambda data: bz2.compress(data[:1000]) + bz2.compress(data[1000:]),
    ".xz": lambda data: lzma.compress(data[:1000]) + lzma.compress(data[1000:]),
}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("name", WRITTEN)
def test_every_format_gives_the_same_documents(name: str, packed: str, tmp_path: Path) -> None:
    (tmp_path / (name + packed)).write_bytes(PACKED[packed](WRITTEN[name]))
    assert texts(tmp_path) == (UNIX if name.endswith("sv") else TEXTS)


@pytest.mark.parametrize("read_bytes", [1, 7, 1000])
def test_where_the_file_is_cut_into_reads_does_not_show(read_bytes: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(decoding, "READ_BYTES", read_bytes)
    short = [text[:40] for text in TEXTS]
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(short))
    (tmp_path / "b.csv").write_bytes(as_csv([text.replace("\r", "\n") for text in short], ends="\r\r\n"))
    (tmp_path / "c.txt").write_bytes("\n<|endoftext|>\n".join(short).encode())
    assert texts(tmp_path / "a.jsonl") == texts(tmp_path / "c.txt") == short
    assert texts(tmp_path / "b.csv") == [text.replace("\r", "\n") for text in short]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_row_groups_are_units(kind: pa.DataType, tmp_path: Path) -> None:
    as_parquet(tmp_path / "a.parquet", TEXTS, 2, kind)
    units = expand_sources([str(tmp_path)])
    assert [(unit.part, unit.parts) for unit in units] == [(0, 3), (1, 3), (2, 3)]
    assert [list(read_documents(unit)) for unit in units] == [TEXTS[:2], TEXTS[2:4], TEXTS[4:]]


def test_plain_text_is_one_document_to_the_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\n one\r\n\ntwo \n\n")
    assert texts(tmp_path) == ["\n one\r\n\ntwo \n\n"]


def test_empty_documents_are_skipped_and_counted(tmp_path: Path) -> None:
    as_parquet(tmp_path / "a.parquet", ["one", None, "", " \n\t\u00a0", "two"], 10)
    count = Rows()
    [unit] = expand_sources([str(tmp_path)])
    assert list(read_documents(unit, count=count)) == ["one", "two"]
    assert count == Rows(read=5, empty=3)


def test_order_is_sources_as_given_then_path(tmp_path: Path) -> None:
    for name in (
        "b/2.txt",
        "b/10.txt",
        "a/1.txt",
        "c.txt",
        "b/.hidden.txt",
        "b/README.md",
        "b/_SUCCESS.txt",
        "b/x.bin",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["a/1.txt", "b/10.txt", "b/2.txt", "c.txt"]
    units = expand_sources([str(tmp_path / "c.txt"), str(tmp_path / "b")])
    assert [text for unit in units for text in read_documents(unit)] == ["c.txt", "b/10.txt", "b/2.txt"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", ["c.txt"]),
        ("**/*.txt", ["a/1.txt", "b/10.txt", "b/2.txt", "c.txt"]),
        ("b/?.txt", ["b/2.txt"]),
        ("[ab]/[!2]*.txt", ["a/1.txt", "b/10.txt"]),
        ("**", ["a/1.txt", "b/10.txt", "b/2.txt", "c.txt"]),
    ],
)
def test_globs(pattern: str, names: list[str], tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/10.txt", "a/1.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(tmp_path / pattern) == names


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("one")
    assert texts(tmp_path / "a[1].txt") == ["one"]


def test_formats_by_extension() -> None:
    assert file_format("A.JSONL.GZ") == ("jsonl", "gzip")
    assert file_format("a.csv.zst") == ("csv", "zstd")
    assert file_format("a.parquet") == ("parquet", None)
    assert file_format("a.parquet.gz") == file_format("a") == (None, None)
    assert file_format("a.json.xz") == ("json", "xz") and file_format("a.txt.bz2") == ("text", "bz2")


def test_genuine_files_have_the_documents_their_readme_counts(shared_data: Path) -> None:
    def count(name: str, column: str = "text") -> int:
        return len(texts(shared_data / name, column))

    assert count("pretrain_text/openwebtext_1k.parquet") == 1000
    assert count("scipapers/acl_sections.csv.gz") == 6778
    assert count("shakespeare/train.csv") == 41
    assert count("instructions/alpaca_seed_tasks.jsonl", "instruction") == 175
    # rows end in \r\r\n, lines within in \r\n: the document is the one in the text file
    [poem] = texts(shared_data / "shakespeare/validation.csv")
    assert poem == (shared_data / "shakespeare/validation.txt").read_text()


def test_local_datasets_folder_gives_its_train_split(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    as_parquet(tmp_path / "repo/train-00000-of-00002.parquet", ["one", "two"])
    as_parquet(tmp_path / "repo/train-00001-of-00002.parquet", ["three"])
    as_parquet(tmp_path / "repo/test-00000-of-00001.parquet", ["not this"])
    assert texts(f"hf://{tmp_path}/repo") == ["one", "two", "three"]


def test_subset_of_a_dataset_by_its_card(tmp_path: Path) -> None:
    for subset in ("small", "large"):
        (tmp_path / subset).mkdir()
        as_parquet(tmp_path / subset / "0.parquet", [f"from {subset}"])
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {subset}\n  data_files:\n  - split: train\n    path: {subset}/*\n"
        for subset in ("small", "large")
    )
    (tmp_path / "README.md").write_text(card + "---\n")
    assert texts(f"hf://{tmp_path}", subset="large") == ["from large"]
    with pytest.raises(UserError, match="prepare.subset"):
        expand_sources([f"hf://{tmp_path}"], "medium")


def test_streamed_dataset_is_read_shard_by_shard(tmp_path: Path) -> None:
    # .zip is no format of ours: such a dataset is streamed through `datasets`
    for n in range(3):
        with zipfile.ZipFile(tmp_path / f"train-{n}.zip", "w") as packed:
            packed.writestr(f"train-{n}.jsonl", as_jsonl([f"{n}a", f"{n}b"]))
    units = expand_sources([f"hf://{tmp_path}"])
    assert [unit.kind for unit in units] == ["hub"] * 3
    assert texts(f"hf://{tmp_path}") == ["0a", "0b", "1a", "1b", "2a", "2b"]


def test_saved_datasets_arrow_files_are_read(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"))
    assert texts(tmp_path / "saved") == TEXTS


def test_s3_objects_are_found_and_read(s3, bucket: str, tmp_path: Path) -> None:
    as_parquet(tmp_path / "p.parquet", TEXTS)
    name = bucket.removeprefix("s3://")
    s3.client.put_object(Bucket=name, Key="in/p.parquet", Body=(tmp_path / "p.parquet").read_bytes())
    s3.client.put_object(Bucket=name, Key="in/deep/a.csv.gz", Body=gzip.compress(as_csv(UNIX)))
    assert texts(f"{bucket}/in/p.parquet") == TEXTS
    assert texts(f"{bucket}/in/**/*.csv.gz") == UNIX
    assert texts(f"{bucket}/in") == UNIX + TEXTS
    with pytest.raises(UserError, match="does not exist"):
        expand_sources([f"{bucket}/nothing"])


BAD = {
    "column.csv": (
        as_csv(["x"]).replace(b"text", b"body"),
        r"no column 'text' \(it has 'id', 'body'\).*prepare.text_column",
    ),
    "column.jsonl": (as_jsonl(["x"], "body"), "line 1 has no 'text'.*'body'.*prepare.text_column"),
    "number.jsonl": (b'{"text": 5}\n', "line 1: 'text' holds int"),
    "list.jsonl": (as_jsonl(["ok"]) + b"[1]\n", "line 2 is not a JSON object"),
    "torn.jsonl": (as_jsonl(["ok"]) + b'{"text": "ab', "line 2 is not JSON"),
    "bytes.jsonl": (
        as_jsonl(["ok"]) + b'{"text": "\xff"}\n',
        r"line 2, column 11 is not UTF-8 \(byte 0xff\).*encoding_errors=replace",
    ),
    "half.jsonl": (b'{"text": "\\ud800"}\n', "line 1 holds half a surrogate.*encoding_errors=replace"),
    "bytes.txt": (b"a" * 2_000_000 + b"\xe2\x82\xffb", "line 1, column 2000001 is not UTF-8.*encoding_errors=replace"),
    "end.txt": (b"caf\xc3", "line 1, column 4 is not UTF-8 .byte 0xc3"),
    "bytes.csv": (b"text\nab\xffc\n", "line 2, column 3 is not UTF-8"),
    "open.csv": (b'text\nok\n"never closed\nmore\n', "line 3 is not valid CSV .unexpected end of data, line 4"),
    "short.csv": (b"id,text\n1,a\n2\n", "line 3 has 1 fields where the header has 2"),
    "cut.jsonl.gz": (gzip.compress(as_jsonl(TEXTS))[:-20], "cut short or damaged .gzip"),
    "cut.csv.zst": (zstandard.compress(as_csv(TEXTS))[:-5], "cut short or damaged .zstd"),
    "not.txt.gz": (b"plain text", "cut short or damaged .gzip"),
    "cut.parquet": (b"PAR1 and no more", "not a complete parquet file"),
    "cut.arrow": (b"no arrow here", "damaged arrow file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_one_sentence_with_the_place(name: str, tmp_path: Path) -> None:
    data, says = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=says) as raised:
        texts(tmp_path / name)
    assert name in str(raised.value) and "\n" not in str(raised.value)


def test_replacing_reads_what_strict_refuses(tmp_path: Path) -> None:
    for name in ("bytes.jsonl", "half.jsonl", "end.txt", "bytes.csv"):
        (tmp_path / name).write_bytes(BAD[name][0])
    assert texts(tmp_path / "bytes.jsonl", errors="replace") == ["ok", "\ufffd"]
    assert texts(tmp_path / "half.jsonl", errors="replace") == ["\ufffd"]
    assert texts(tmp_path / "end.txt", errors="replace") == ["caf\ufffd"]
    assert texts(tmp_path / "bytes.csv", errors="replace") == ["ab\ufffdc"]


def test_invalid_utf8_in_parquet_names_the_row(tmp_path: Path) -> None:
    values = pa.array([b"ok", b"a\xff", b"ok"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet", row_group_size=1)
    with pytest.raises(UserError, match=r"a.parquet, row 2, character 2 is not UTF-8"):
        texts(tmp_path)
    assert texts(tmp_path, errors="replace") == ["ok", "a\ufffd", "ok"]


def test_column_that_is_not_text_is_refused(tmp_path: Path) -> None:
    as_parquet(tmp_path / "a.parquet", ["x"])
    with pytest.raises(UserError, match=r"'id' holds int64, not text"):
        texts(tmp_path, column="id")
    with pytest.raises(UserError, match=r"no column 'body' \(it has 'id', 'text'\)"):
        texts(tmp_path, column="body")


def test_file_damaged_inside_is_one_sentence(tmp_path: Path) -> None:
    as_parquet(tmp_path / "a.parquet", ["some text " * 50] * 50, 50)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[4:400] = b"\xff" * 396
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"a.parquet"):
        texts(tmp_path)


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ([], "prepare.sources is empty"),
        (["{tmp}/nothing.txt"], "does not exist"),
        (["{tmp}/*.txt"], "matches no file of a known kind"),
        (["{tmp}"], "matches no file of a known kind"),
        (["{tmp}/a.docx"], "no known extension"),
        (["ftp://host/a.txt"], "ftp://"),
        (["s3://"], "bucket"),
    ],
)
def test_sources_that_give_nothing_are_one_sentence(sources: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(UserError, match=says) as raised:
        expand_sources([source.format(tmp=tmp_path) for source in sources])
    assert "\n" not in str(raised.value)


def test_unreachable_hub_dataset_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", offline)
    with pytest.raises(UserError, match="some-org/none.*network.*local files"):
        expand_sources(["some-org/none"])


def test_unreadable_unit_kind_is_unknown() -> None:
    with pytest.raises(KeyError):
        list(read_documents(Unit("exotic", "x")))
