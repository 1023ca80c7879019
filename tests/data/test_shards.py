"""Token shards: bytes on disk are what the contract says, and whatever is wrong with a folder is found on loading."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import time
import timeit
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raygpt.data.reader import TokenReader
from raygpt.data.shards import Manifest, ShardWriter, TokenizerInfo, load_manifest, shard_name, token_dtype, verify
from raygpt.errors import UserError

INFO = TokenizerInfo("bytes", 257, 256, "ab" * 32)


def write(folder: Path, parts: Sequence[np.ndarray], shard_tokens: int = 10, dtype: str = "uint16") -> Manifest:
    writer = ShardWriter(str(folder), dtype, shard_tokens)
    for part in parts:
        writer.append(part)
    return writer.finish(INFO, b"{}", documents=3, text_bytes=30, sources=["corpus.txt"])


def test_shards_are_raw_little_endian_and_the_manifest_says_what_they_are(tmp_path: Path) -> None:
    tokens = np.arange(25, dtype=np.int64) * 10
    manifest = write(tmp_path, [tokens])
    data = b"".join((tmp_path / f"shard-{n:05d}.bin").read_bytes() for n in range(3))
    assert data == b"".join(int(token).to_bytes(2, "little") for token in tokens)
    fields = json.loads((tmp_path / "manifest.json").read_text())
    assert fields["version"] == 1 and fields["dtype"] == "uint16" and fields["tokens"] == 25
    assert fields["tokenizer"] == {"name": "bytes", "vocab_size": 257, "eot_id": 256, "sha256": "ab" * 32}
    assert [(shard["name"], shard["tokens"]) for shard in fields["shards"]] == [
        ("shard-00000.bin", 10), ("shard-00001.bin", 10), ("shard-00002.bin", 5)
    ]  # fmt: skip
    assert fields["shards"][1]["sha256"] == hashlib.sha256(data[20:40]).hexdigest()
    assert (fields["documents"], fields["bytes"], fields["sources"]) == (3, 30, ["corpus.txt"])
    assert load_manifest(str(tmp_path)) == verify(str(tmp_path)) == manifest
    assert (tmp_path / "tokenizer.json").read_bytes() == b"{}"


@pytest.mark.parametrize("cuts", [[], [1], [10], [10, 20], [3, 3, 17], list(range(1, 25))])
def test_how_tokens_arrive_does_not_show(tmp_path: Path, cuts: list[int]) -> None:
    tokens = np.arange(25, dtype=np.uint16)
    whole = write(tmp_path / "whole", [tokens])
    assert write(tmp_path / "cut", np.split(tokens, cuts)) == whole


def test_a_document_longer_than_a_shard_continues_in_the_next(tmp_path: Path) -> None:
    manifest = write(tmp_path, [np.zeros(35, np.uint16)])
    assert [shard.tokens for shard in manifest.shards] == [10, 10, 10, 5]


def test_a_full_last_shard_leaves_no_empty_one(tmp_path: Path) -> None:
    assert len(write(tmp_path, [np.zeros(20, np.uint16)]).shards) == 2


def test_fingerprint_follows_tokens_and_tokenizer_but_not_the_place(tmp_path: Path) -> None:
    one = write(tmp_path / "one", [np.arange(25)])
    shutil.copytree(tmp_path / "one", tmp_path / "moved")
    assert load_manifest(str(tmp_path / "moved")).fingerprint == one.fingerprint
    assert write(tmp_path / "two", [np.arange(25)]).fingerprint == one.fingerprint
    assert write(tmp_path / "three", [np.arange(1, 26)]).fingerprint != one.fingerprint
    writer = ShardWriter(str(tmp_path / "four"), "uint16", 10)
    writer.append(np.arange(25))
    other = TokenizerInfo("bytes", 257, 256, "cd" * 32)
    assert writer.finish(other, b"{}", 3, 30, []).fingerprint != one.fingerprint


def test_ids_beyond_the_dtype_are_refused(tmp_path: Path) -> None:
    assert (token_dtype(65536), token_dtype(65537)) == (np.uint16, np.uint32)
    with pytest.raises(ValueError, match="beyond"):
        ShardWriter(str(tmp_path), "uint16").append(np.array([65536]))
    with pytest.raises(ValueError, match="beyond"):
        ShardWriter(str(tmp_path), "uint16").append(np.array([-1]))
    manifest = write(tmp_path, [np.array([65536, 1])], dtype="uint32")
    assert (tmp_path / "shard-00000.bin").stat().st_size == 8 and manifest.dtype == "uint32"


def test_folder_without_a_manifest_is_unfinished(tmp_path: Path) -> None:
    ShardWriter(str(tmp_path), "uint16", 10).append(np.zeros(30, np.uint16))
    with pytest.raises(UserError, match="manifest.json.*raygpt prepare"):
        load_manifest(str(tmp_path))
    with pytest.raises(UserError, match="holds no manifest.json"):
        load_manifest(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text[: len(text) // 2], "cannot be used"),
        (lambda text: text.replace('"version": 1', '"version": 9'), "version 9"),
        (lambda text: text.replace('"uint16"', '"int8"'), "int8"),
        (lambda text: text.replace('"documents"', '"docs"'), "docs"),
        (lambda text: text.replace('"tokens": 25', '"tokens": 26'), "add up"),
        (lambda text: text.replace("abab", "acac"), "fingerprint"),
        (lambda text: text.replace('"version"', '"v"'), "version"),
        (lambda text: "[]", "cannot be used"),
        (lambda text: "\x80", "cannot be used|damaged"),
    ],
)
def test_damaged_manifest_is_one_sentence(tmp_path: Path, change, says: str) -> None:
    write(tmp_path, [np.arange(25)])
    path = tmp_path / "manifest.json"
    path.write_text(change(path.read_text()), encoding="latin-1")
    with pytest.raises(UserError, match=says) as raised:
        load_manifest(str(tmp_path))
    assert "manifest.json" in str(raised.value)


def test_missing_or_cut_shard_is_found_on_loading(tmp_path: Path) -> None:
    write(tmp_path, [np.arange(25)])
    shard = tmp_path / "shard-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"shard-00001.bin has 19 bytes instead of 20"):
        load_manifest(str(tmp_path))
    shard.unlink()
    with pytest.raises(UserError, match="shard-00001.bin is missing"):
        load_manifest(str(tmp_path))


def test_changed_contents_are_found_by_verify(tmp_path: Path) -> None:
    write(tmp_path, [np.arange(25)])
    shard = tmp_path / "shard-00001.bin"
    shard.write_bytes(shard.read_bytes()[::-1])
    load_manifest(str(tmp_path))
    with pytest.raises(UserError, match="shard-00001.bin.*sha256"):
        verify(str(tmp_path))


def test_a_layout_says_where_each_token_lies_and_travels_cheaply(tmp_path: Path) -> None:
    manifest = write(tmp_path, [np.arange(25)])
    layout = manifest.layout(str(tmp_path))
    assert layout.starts.tolist() == [0, 10, 20, 25] and layout.starts.dtype == np.int64
    assert layout.names == ("shard-00000.bin", "shard-00001.bin", "shard-00002.bin")
    assert (layout.tokens, layout.numpy_dtype, layout.fingerprint) == (25, np.dtype("<u2"), manifest.fingerprint)
    for names in (layout.names, ("one.bin", "a name.bin"), ()):
        again = pickle.loads(pickle.dumps(replace(layout, names=names)))
        assert again == layout and again.names == names and again.starts.tolist() == layout.starts.tolist()
    assert len({layout, manifest.layout(str(tmp_path)), manifest.layout("s3://elsewhere/x")}) == 2

    many = replace(layout, starts=np.arange(100_001) * 2**24, names=tuple(map(shard_name, range(100_000))))
    data = pickle.dumps(many)
    assert len(data) < 3 * 10**6
    seconds = min(timeit.repeat(lambda: pickle.loads(data), timer=time.process_time, number=1, repeat=5))
    assert seconds < 0.05, f"{seconds:.3f} s to unpickle the layout of 100,000 shards"


def test_a_reader_of_a_layout_asks_nothing_of_storage(tmp_path: Path) -> None:
    layout = write(tmp_path / "here", [np.arange(25)]).layout(str(tmp_path / "here"))
    assert TokenReader(replace(layout, uri="/nowhere/at/all")).total_tokens == 25
    (tmp_path / "here" / "manifest.json").rename(tmp_path / "aside.json")
    reader = TokenReader(layout)
    assert reader.read(8, 23).tolist() == list(range(8, 23))
    with pytest.raises(UserError, match=r"manifest.json"):
        _ = reader.manifest
    (tmp_path / "aside.json").rename(tmp_path / "here" / "manifest.json")
    assert reader.manifest == load_manifest(tmp_path / "here")
