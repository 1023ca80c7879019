"""prepare: what comes out depends on inputs and options alone, nothing is lost or doubled, and a kill costs little."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import random
import re
import shutil
import time
import timeit
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from raygpt import storage
from raygpt.data import journal as journal_module
from raygpt.data import pipeline
from raygpt.data import prepare as prepare_module
from raygpt.data.corpus import expand_sources
from raygpt.data.journal import FOLDER, Progress
from raygpt.data.pipeline import Cursor, ReadPlan, is_validation
from raygpt.data.prepare import Account, PrepareOptions, PrepareProgress, prepare, tokenizer_texts
from raygpt.data.shards import load_manifest, verify
from raygpt.data.tokenizer import load_tokenizer
from raygpt.errors import UserError
from raygpt.jobs.prepare import input_lines, rows_line

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 files, 3 formats, 700 documents of 0-4 KB, ten of them white space, each with its number in it."""
    folder = tmp_path_factory.mktemp("corpus")
    made = random.Random(0)
    words = [hashlib.sha256(str(n).encode()).hexdigest()[: made.randint(1, 9)] for n in range(500)]
    texts = [f"document {n}: " + " ".join(made.choices(words, k=made.randint(0, 700))) + " é\n" for n in range(700)]
    for n in range(0, 700, 70):
        texts[n] = "  \n"
    rows = [{"text": text} for text in texts]
    pq.write_table(pa.Table.from_pylist(rows[:300]), folder / "a.parquet", row_group_size=40)
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[300:500]))
    (folder / "c.txt").write_text("\n<|endoftext|>\n".join(texts[500:600]))
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[600:]))
    (folder / "texts.json").write_text(json.dumps(texts))
    return folder


def committed(output: Path) -> dict[str, Any]:
    """Progress of an interrupted preparation's last commit, as it lies in the journal."""
    newest = max((output / FOLDER).glob("segment-*.json"), key=lambda path: int(path.stem.rsplit("-", 1)[1]))
    return json.loads(newest.read_text())["progress"]


def texts_of(corpus: Path) -> list[str]:
    return [text for text in json.loads((corpus / "texts.json").read_text()) if text.strip()]


def options(corpus: Path, output: Path | str, /, **changes: Any) -> PrepareOptions:
    defaults: dict[str, Any] = dict(tokenizer="bytes", val_fraction=0.1, shard_tokens=100_000)
    return PrepareOptions(**({"sources": [str(corpus)], "output": str(output)} | defaults | changes))


def tokens(folder: str) -> np.ndarray:
    manifest = verify(folder)
    parts = [np.fromfile(Path(folder) / shard.name, manifest.numpy_dtype) for shard in manifest.shards]
    return np.concatenate(parts)


def split_documents(folder: str) -> list[str]:
    tokenizer = load_tokenizer(folder)
    ids = tokens(folder)
    ends = np.flatnonzero(ids == tokenizer.eot_id)
    assert ends[-1] == ids.size - 1
    return [tokenizer.decode(part[:-1]) for part in np.split(ids, ends[:-1] + 1)]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: str) -> Path:
    """An unbroken preparation to compare with."""
    output = tmp_path_factory.mktemp("whole") / "out"
    prepare(options(corpus, output))
    return output


def test_every_document_is_in_exactly_one_side_in_order(corpus: Path, tmp_path: Path) -> None:
    seen: list[PrepareProgress] = []
    result = prepare(options(corpus, tmp_path / "out"), seen.append)
    expected = texts_of(corpus)
    train = [text for text in expected if not is_validation(text.encode(), 0.1)]
    val = [text for text in expected if is_validation(text.encode(), 0.1)]
    assert split_documents(result.train) == train
    assert split_documents(result.val) == val
    assert 40 < len(val) < 100
    assert (result.documents, result.train_documents, result.val_documents) == (690, len(train), len(val))
    assert result.empty_documents == 10
    assert result.bytes == sum(len(text.encode()) for text in expected)
    assert result.tokens == result.bytes + 690 == result.train_tokens + result.val_tokens
    manifest = load_manifest(result.train)
    assert manifest.bytes == sum(len(text.encode()) for text in train)
    assert {shard.tokens for shard in manifest.shards[:-1]} == {100_000} and len(manifest.shards) > 5
    assert manifest.fingerprint == result.train_fingerprint
    assert not result.reused and not result.resumed and result.tokens_per_second > 0
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert seen[-1].documents == 690 and seen[-1].tokens == result.tokens
    assert not (tmp_path / "out/.prepare").exists()


def test_shards_are_those_of_a_plain_loop_over_the_documents(corpus: Path, whole: Path) -> None:
    streams = {"train": bytearray(), "val": bytearray()}
    for text in texts_of(corpus):
        data = text.encode()
        held_out = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") < 0.1 * 2**64
        # the byte tokenizer: a byte's value is its id, 256 ends a document
        streams["val" if held_out else "train"] += b"".join(bytes([b, 0]) for b in data) + b"\x00\x01"
    for side, stream in streams.items():
        parts = [bytes(stream[at : at + 200_000]) for at in range(0, len(stream), 200_000)]
        assert [path.read_bytes() for path in sorted((whole / side).glob("shard-*.bin"))] == parts
        manifest = load_manifest(whole / side)
        hashes = [hashlib.sha256(part).hexdigest() for part in parts]
        assert [shard.sha256 for shard in manifest.shards] == hashes
        lines = "\n".join(["uint16", load_tokenizer("bytes").sha256, *hashes])
        assert manifest.fingerprint == hashlib.sha256(lines.encode()).hexdigest()


def test_tokens_stay_out_of_the_driver(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get, sizes = ray.get, []

    def counted(refs: Any, **options: Any) -> Any:
        found = get(refs, **options)
        sizes.append(len(pickle.dumps(found)))
        return found

    monkeypatch.setattr(ray, "get", counted)
    result = prepare(options(corpus, tmp_path / "out"))
    assert 0 < sum(sizes) < result.tokens / 50


def test_the_journal_grows_by_what_is_new(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, int]] = []
    write_bytes = storage.write_bytes

    def counted(where: storage.Location, data: bytes) -> None:
        if "/.prepare/" in where.path:
            written.append((where.name, len(data)))
        write_bytes(where, data)

    monkeypatch.setattr(storage, "write_bytes", counted)
    monkeypatch.setattr(journal_module, "MERGED", 16)
    small_blocks(monkeypatch)
    result = prepare(options(corpus, tmp_path / "out", shard_tokens=8_000))
    shards = len(load_manifest(result.train).shards)
    assert shards > 100
    sizes = [size for name, size in written if not name.startswith("open-")]
    assert len(sizes) > 60
    half = len(sizes) // 2
    assert sum(sizes[half:]) < 1.3 * sum(sizes[:half])
    assert sum(sizes) < 1500 * shards


def test_progress_costs_the_same_for_a_million_units() -> None:
    before = [0, *accumulate([7] * 10**6)]
    at = Progress(cursor=Cursor(750_000))
    assert prepare_module._fraction(before, at, 3) == pytest.approx((750_000 * 7 + 3) / (7 * 10**6))
    assert prepare_module._fraction(before, Progress(cursor=Cursor(10**6)), 3) == 1
    seconds = min(
        timeit.repeat(lambda: prepare_module._fraction(before, at, 3), timer=time.process_time, number=100, repeat=5)
    )
    assert seconds < 0.01


def test_gpt2_tokens_equal_encoding_one_by_one(corpus: Path, tmp_path: Path, shared_data: Path) -> None:
    vocabulary = str(shared_data / "gpt2_bpe")
    result = prepare(options(corpus / "b.jsonl", tmp_path / "out", tokenizer=vocabulary))
    tokenizer = load_tokenizer(vocabulary)
    train = [json.loads(line)["text"] for line in (corpus / "b.jsonl").read_text().splitlines()]
    expected = [
        [*tokenizer.backend.encode(text, add_special_tokens=False).ids, 50256]
        for text in train
        if text.strip() and not is_validation(text.encode(), 0.1)
    ]
    assert tokens(result.train).tolist() == [token for document in expected for token in document]
    assert load_tokenizer(result.train).sha256 == tokenizer.sha256
    assert result.tokenizer == "gpt2"


def test_block_and_task_sizes_do_not_show(
    corpus: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # one reading task per unit, and tiny blocks
    monkeypatch.setattr(pipeline, "READ_TASK_UNITS", 1)
    monkeypatch.setattr(pipeline, "READ_TASK_BYTES", 1)
    monkeypatch.setattr(pipeline, "BLOCK_BYTES", 5000)
    prepare(options(corpus, tmp_path / "out"))
    assert tree(tmp_path / "out") == tree(whole)


def test_finished_output_is_recognised_and_left_alone(
    corpus: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(whole)
    monkeypatch.setattr(prepare_module, "token_blocks", None)
    result = prepare(options(corpus, whole))
    assert result.reused and result.seconds == 0 and result.documents == 690
    assert tree(whole) == before


class Killed(Exception):
    pass


def interrupt(monkeypatch: pytest.MonkeyPatch, after_blocks: int, of_val: bool = False) -> None:
    """Stop the driver after some blocks (of the validation sources), in the middle of nowhere, as a kill would."""
    take = prepare_module._take
    left = after_blocks

    def counted(*arguments: Any) -> int:
        nonlocal left
        if left == 0:
            raise Killed
        left -= arguments[0].from_val or not of_val
        return take(*arguments)

    monkeypatch.setattr(prepare_module, "_take", counted)


def small_blocks(monkeypatch: pytest.MonkeyPatch, on_the_way: int = 0) -> None:
    """Blocks of some documents; at most `on_the_way` bytes of shards not yet in the journal."""
    monkeypatch.setattr(prepare_module, "_bytes_on_the_way", lambda shard_bytes: on_the_way)
    monkeypatch.setattr(pipeline, "READ_TASK_UNITS", 3)
    monkeypatch.setattr(pipeline, "READ_TASK_BYTES", 1)
    monkeypatch.setattr(pipeline, "BLOCK_BYTES", 20_000)


@pytest.mark.parametrize(("val_split", "on_the_way"), [("documents", 0), ("tail", 0), ("documents", 10**9)])
def test_killed_twice_and_run_again_gives_the_unbroken_bytes(
    val_split: str, on_the_way: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(options(corpus, tmp_path / "whole", val_split=val_split, shard_tokens=30_000))
    small_blocks(monkeypatch, on_the_way)
    monkeypatch.setattr(journal_module, "MERGED", 3)
    wanted = options(corpus, tmp_path / "out", val_split=val_split, shard_tokens=30_000)
    for blocks in (12, 9):
        with monkeypatch.context() as patch:
            interrupt(patch, blocks)
            with pytest.raises(Killed):
                prepare(wanted)
    if not on_the_way:
        assert committed(tmp_path / "out")["completed"] > 50
    # what the kill left half done after the commit must not matter
    shutil.copy(tmp_path / "out/train/shard-00000.bin", tmp_path / "out/train/shard-00020.bin")
    result = prepare(wanted)
    assert (result.resumed or on_the_way) and result.documents == 690 and result.empty_documents == 10
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_resuming_keeps_the_tokenizer_that_was_trained(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = options(corpus, tmp_path / "out", tokenizer="train:400", shard_tokens=20_000)
    whole = prepare(dataclasses.replace(wanted, output=str(tmp_path / "whole")))
    assert (whole.vocab_size, whole.tokenizer) == (400, "bpe-400")
    small_blocks(monkeypatch)
    with monkeypatch.context() as patch:
        interrupt(patch, 10)
        with pytest.raises(Killed):
            prepare(wanted)
    monkeypatch.setattr(prepare_module, "_trained_tokenizer", None)
    assert prepare(wanted).resumed
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_other_inputs_or_options_in_the_same_output_are_refused(corpus: Path, whole: Path, tmp_path: Path) -> None:
    before = tree(whole)
    for changes, says in (
        ({"val_fraction": 0.2}, "val_fraction=0.1, now 0.2"),
        ({"sources": [str(corpus / "b.jsonl")]}, "other input files"),
        ({"shard_tokens": 5, "max_documents": 3}, "shard_tokens.*max_documents=None, now 3"),
    ):
        with pytest.raises(UserError, match=says) as raised:
            prepare(options(corpus, whole, **changes))
        assert "prepare.output" in str(raised.value)
    assert tree(whole) == before


def test_an_interrupted_output_refuses_other_options_too(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        small_blocks(patch)
        interrupt(patch, 12)
        with pytest.raises(Killed):
            prepare(options(corpus, tmp_path / "out"))
    with pytest.raises(UserError, match="was begun with other data: val_split"):
        prepare(options(corpus, tmp_path / "out", val_split="tail"))


def test_tail_split_of_one_text_is_nanogpts(tmp_path: Path, shared_data: Path) -> None:
    text = (shared_data / "shakespeare/input.txt").read_text()
    result = prepare(options(shared_data / "shakespeare/input.txt", tmp_path / "out", val_split="tail"))
    n = int(len(text) * 0.9)
    assert split_documents(result.train) == [text[:n]]
    assert split_documents(result.val) == [text[n:]]
    assert (result.documents, result.train_documents, result.val_documents) == (1, 1, 1)
    assert (result.train_tokens, result.val_tokens) == (n + 1, len(text) - n + 1)


def test_tail_split_takes_the_end_of_every_document(corpus: Path, tmp_path: Path) -> None:
    result = prepare(options(corpus, tmp_path / "out", val_split="tail", val_fraction=0.25))
    expected = texts_of(corpus)
    assert split_documents(result.train) == [text[: int(len(text) * 0.75)] for text in expected]
    assert split_documents(result.val) == [text[int(len(text) * 0.75) :] for text in expected]
    assert result.documents == 690


def test_a_document_longer_than_fragments_blocks_and_shards_stays_whole(tmp_path: Path, shared_data: Path) -> None:
    book = (shared_data / "shakespeare/input.txt").read_text() * 3
    (tmp_path / "in").mkdir()
    for name, text in (("a.txt", "before"), ("b.txt", book), ("c.txt", "after")):
        (tmp_path / "in" / name).write_text(text)
    vocabulary = load_tokenizer(str(shared_data / "gpt2_bpe"))
    wanted = options(tmp_path / "in", tmp_path / "out", tokenizer=str(shared_data / "gpt2_bpe"), val_split="tail")
    result = prepare(wanted)
    assert result.documents == 3 and result.train_documents == 3
    assert len(load_manifest(result.train).shards) > 5
    cut = int(len(book) * 0.9)
    pieces = ["befor", book[:cut], "afte"]
    ids = [vocabulary.backend.encode(text, add_special_tokens=False).ids for text in pieces]
    assert tokens(result.train).tolist() == [token for document in ids for token in [*document, 50256]]


def test_max_documents_takes_the_first_ones(corpus: Path, tmp_path: Path) -> None:
    for count in (1, 45, 333, 5000):
        result = prepare(options(corpus, tmp_path / str(count), max_documents=count, val_split="tail"))
        expected = texts_of(corpus)[:count]
        assert result.documents == len(expected)
        assert split_documents(result.train) == [text[: int(len(text) * 0.9)] for text in expected]


def test_validation_sources_are_held_out_whole_and_every_row_is_accounted_for(corpus: Path, tmp_path: Path) -> None:
    train, val = corpus / "a.parquet", corpus / "b.jsonl"
    result = prepare(options(train, tmp_path / "out", val_sources=[str(val)]))
    texts = json.loads((corpus / "texts.json").read_text())
    assert split_documents(result.train) == [text for text in texts[:300] if text.strip()]
    assert split_documents(result.val) == [text for text in texts[300:500] if text.strip()]
    assert (result.account, result.val_account) == (Account(300, 295, 0, 5), Account(200, 0, 197, 3))
    assert load_manifest(result.train).sources == (str(train),) and load_manifest(result.val).sources == (str(val),)
    record = json.loads((tmp_path / "out/prepare.json").read_text())
    assert record["rows"] == {
        "sources": {"read": 300, "train": 295, "val": 0, "empty": 5},
        "val_sources": {"read": 200, "train": 0, "val": 197, "empty": 3},
    }
    # what decides nothing then may differ
    again = prepare(options(train, tmp_path / "out", val_sources=[str(val)], val_fraction=0.7, max_document_mb=9))
    assert again.reused and again.account == result.account and again.val_account == result.val_account
    with pytest.raises(UserError, match="other input files"):
        prepare(options(val, tmp_path / "out", val_sources=[str(train)]))


def test_max_documents_ends_the_training_part_alone(corpus: Path, tmp_path: Path) -> None:
    wanted = options(corpus / "a.parquet", tmp_path, val_sources=[str(corpus / "b.jsonl")], max_documents=100)
    result = prepare(wanted)
    assert split_documents(result.train) == texts_of(corpus)[:100]
    assert (result.account, result.val_account) == (Account(102, 100, 0, 2), Account(200, 0, 197, 3))


def test_validation_sources_survive_kills_in_both_parts(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = {"val_sources": [str(corpus / "d.jsonl"), str(corpus / "b.jsonl")], "shard_tokens": 20_000}
    wanted = options(corpus / "a.parquet", tmp_path / "out", **held_out)
    whole = prepare(dataclasses.replace(wanted, output=str(tmp_path / "whole")))
    small_blocks(monkeypatch)
    monkeypatch.setattr(prepare_module, "COMMIT_SECONDS", 0.0)
    at = []
    for of_val in (False, True):
        with monkeypatch.context() as patch:
            interrupt(patch, 7, of_val)
            with pytest.raises(Killed):
                prepare(wanted)
        at.append(committed(tmp_path / "out")["cursor"]["unit"])
    assert at[0] < len(expand_sources([str(corpus / "a.parquet")])) <= at[1]
    result = prepare(wanted)
    assert result.resumed and (result.account, result.val_account) == (whole.account, whole.val_account)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_one_side_alone(corpus: Path, tmp_path: Path) -> None:
    only_val = prepare(options(corpus, tmp_path / "val", sources=[], val_sources=[str(corpus / "b.jsonl")]))
    assert only_val.train is None and not (tmp_path / "val/train").exists()
    assert len(split_documents(only_val.val)) == 197
    only_train = prepare(options(corpus / "b.jsonl", tmp_path / "train", val_split="none"))
    assert only_train.val is None and not (tmp_path / "train/val").exists()
    assert split_documents(only_train.train) == split_documents(only_val.val)
    assert only_train.account == Account(200, 197, 0, 3)
    assert prepare(options(corpus / "b.jsonl", tmp_path / "train", val_split="none")).reused


def test_split_rows_are_accounted_for(corpus: Path, tmp_path: Path) -> None:
    result = prepare(options(corpus, tmp_path / "out"))
    assert result.account == Account(700, result.train_documents, result.val_documents, 10)
    tail = prepare(options(corpus, tmp_path / "tail", val_split="tail"))
    assert tail.account == Account(700, 690, 690, 10)


def test_a_tokenizer_object_is_as_good_as_its_name(corpus: Path, tmp_path: Path) -> None:
    named = prepare(options(corpus / "b.jsonl", tmp_path / "out"))
    given = prepare(options(corpus / "b.jsonl", tmp_path / "out", tokenizer=load_tokenizer("bytes")))
    assert given.reused and given.train_fingerprint == named.train_fingerprint


def test_copies_of_a_document_land_on_one_side(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"text {n % 50}"}) + "\n" for n in range(500)))
    result = prepare(options(tmp_path / "a.jsonl", tmp_path / "out", val_fraction=0.3))
    train, val = split_documents(result.train), split_documents(result.val)
    assert len(train) + len(val) == 500 and not set(train) & set(val)


def test_tokenizer_training_sees_no_validation_text(corpus: Path) -> None:
    units = tuple(expand_sources([str(corpus)]))
    plan = ReadPlan(units, 0.1, "documents")
    assert list(tokenizer_texts(plan)) == [text for text in texts_of(corpus) if not is_validation(text.encode(), 0.1)]
    sample = list(tokenizer_texts(plan, characters=20_000))
    assert 10_000 < sum(map(len, sample)) <= 20_000
    assert {"document 1:"[:8], "document 650"[:8]} <= {text[:8] for text in sample}
    before = ReadPlan(units, 0.1, "documents", val_from=len(units) - 1)
    assert list(tokenizer_texts(before)) == [
        text for text in json.loads((corpus / "texts.json").read_text())[:600] if text.strip()
    ]
    tail = ReadPlan(units, 0.1, "tail")
    assert list(tokenizer_texts(tail)) == [text[: int(len(text) * 0.9)] for text in texts_of(corpus)]


def test_s3_in_and_out_give_the_local_bytes(s3: Any, bucket: str, corpus: Path, whole: Path) -> None:
    name = bucket.removeprefix("s3://")
    for path in corpus.iterdir():
        s3.client.put_object(Bucket=name, Key=f"in/{path.name}", Body=path.read_bytes())
    wanted = options(corpus, f"{bucket}/out", sources=[f"{bucket}/in"])
    result = prepare(wanted)
    assert result.train == f"{bucket}/out/train"
    for path in sorted(whole.rglob("*.bin")):
        key = f"out/{path.relative_to(whole)}"
        assert s3.client.get_object(Bucket=name, Key=key)["Body"].read() == path.read_bytes()
    assert result.train_fingerprint == load_manifest(str(whole / "train")).fingerprint
    assert verify(result.val).documents == result.val_documents
    assert prepare(wanted).reused
    objects = s3.client.list_objects_v2(Bucket=name, Prefix="out/.prepare/").get("Contents", [])
    assert not [entry for entry in objects if entry["Size"]]


def write_one(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "a.jsonl").write_text(text)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("text", "changes", "says"),
    [
        ('{"text": "one"}\n', {"val_fraction": 0.999}, "All of the ends of the 1 documents.*prepare.val_fraction"),
        ('{"text": " "}\n' * 3, {}, r"no document with text in .*a.jsonl \(rows read: 3, empty ones: 3\)"),
        ("", {}, "no document with text"),
        ('{"text": "one"}\n', {"text_column": "body"}, "no 'body'.*prepare.text_column"),
        ('{"text": "one"}\n{"text', {}, "line 2 is not JSON"),
        ('{"text": "one"}\n', {"val_fraction": 0}, "prepare.val_fraction is 0"),
        ('{"text": "one"}\n', {"shard_tokens": 0, "val_split": "x"}, "prepare.shard_tokens.*prepare.val_split"),
        ('{"text": "one"}\n', {"max_documents": 0}, "prepare.max_documents"),
        ('{"text": "one"}\n', {"tokenizer": "train:lots"}, "train:<vocab_size>"),
        ('{"text": "one"}\n', {"tokenizer": "train:9"}, "at least 257"),
        ('{"text": "one"}\n', {"tokenizer": "nowhere/at/all"}, "data.tokenizer"),
        ('{"text": "one"}\n', {"encoding_errors": "ignore"}, "prepare.encoding_errors"),
        ('{"text": "one"}\n', {"val_sources": ["/no/such.csv"]}, "prepare.val_sources: /no/such.csv does not exist"),
        ('{"text": "one"}\n', {"val_sources": ["{tmp}/a.jsonl"]}, "a.jsonl is in prepare.sources and in prepare.val_s"),
        (
            '{"text": "one"}\n',
            {"val_sources": ["{tmp}/b.csv"]},
            "prepare.val_sources: no document with text in .*b.csv",
        ),
        (
            '{"text": "one"}\n',
            {"val_sources": ["x"], "val_split": "tail"},
            "val_sources and prepare.val_split=tail are",
        ),
        ('{"text": "one"}\n', {"max_document_mb": 2e-6}, "line 1: longer than prepare.max_document_mb=2e-06"),
        ('{"text": "one"}\n', {"output": "/proc/no"}, "prepare.output.*/proc/no"),
    ],
)
def test_what_cannot_be_prepared_is_said_and_can_be_mended_in_place(
    text: str, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "b.csv").write_text("text\n ")
    if "val_sources" in changes:
        changes = changes | {"val_sources": [uri.format(tmp=tmp_path) for uri in changes["val_sources"]]}
    with pytest.raises(UserError, match=says) as raised:
        prepare(options(tmp_path / "a.jsonl", tmp_path / "out", **changes))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out/train/manifest.json").exists()
    assert not (tmp_path / "out/.prepare").exists()


def test_the_end_of_few_documents_is_held_out_where_none_can_be_whole(tmp_path: Path) -> None:
    """One text file just works, and its result is found again under the options as they were typed."""
    text = "".join(f"sentence {n}. " for n in range(200))
    (tmp_path / "a.txt").write_text(text)
    result = prepare(options(tmp_path / "a.txt", tmp_path / "out", val_fraction=0.05))
    assert result.val_split == "tail" and (result.documents, result.train_documents, result.val_documents) == (1, 1, 1)
    sides = [split_documents(str(tmp_path / "out" / side)) for side in ("train", "val")]
    assert "".join(sides[0] + sides[1]) == text and len(sides[1][0]) == pytest.approx(0.05 * len(text), abs=1)
    again = prepare(options(tmp_path / "a.txt", tmp_path / "out", val_fraction=0.05))
    assert again.reused and again.val_split == "tail"
    assert rows_line(again) == "Rows: 1 read = 1 with their ends held out + 0 empty"
    table = "\n".join(input_lines(again))
    assert re.search(r"files read +1\n", table) and re.search(r"tokens +\d", table)


def test_the_first_bad_place_in_corpus_order_is_the_one_named(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.parquet", "b.jsonl", "d.jsonl"):
        shutil.copy(corpus / name, folder / name)
    (folder / "c.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    (folder / "e.jsonl").write_bytes(b"bad\n")
    with pytest.raises(UserError, match=r"c.jsonl, line 2, column 14 is not UTF-8.*prepare.encoding_errors=replace"):
        prepare(options(folder, tmp_path / "out"))
    (folder / "e.jsonl").unlink()
    result = prepare(options(folder, tmp_path / "out", encoding_errors="replace"))
    assert "caf\ufffd" in split_documents(result.train) + split_documents(result.val)
