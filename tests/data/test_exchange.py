"""Exchange formats: other programs' bytes out, the same tokens back in."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raygpt.data import exchange
from raygpt.data.shards import ShardWriter, load_manifest, verify
from raygpt.data.tokenizer import Tokenizer, byte_tokenizer, load_tokenizer
from raygpt.errors import UserError


@pytest.fixture
def ids() -> np.ndarray:
    ids = np.random.default_rng(0).integers(32, 127, 5003).astype(np.uint16)
    ids[99::100] = 256
    ids[-1] = 256
    return ids


@pytest.fixture
def folder(make_shards: Callable[..., str], ids: np.ndarray) -> str:
    return make_shards(ids, shard_tokens=700)


def read(folder: str) -> np.ndarray:
    manifest = verify(folder)
    return np.concatenate([np.fromfile(Path(folder) / shard.name, manifest.numpy_dtype) for shard in manifest.shards])


def test_nanogpt_file_is_the_bare_ids(folder: str, ids: np.ndarray, tmp_path: Path) -> None:
    assert exchange.export_nanogpt(folder, tmp_path / "train.bin") == 5003
    # as nanoGPT's train.py opens it
    assert np.memmap(tmp_path / "train.bin", dtype=np.uint16, mode="r").tolist() == ids.tolist()
    back = exchange.import_nanogpt(tmp_path / "train.bin", str(tmp_path / "back"), byte_tokenizer())
    assert read(str(tmp_path / "back")).tolist() == ids.tolist()
    assert (back.documents, back.bytes) == (51, 5003 - 51)


def test_llmc_file_has_its_header(folder: str, ids: np.ndarray, tmp_path: Path) -> None:
    assert exchange.export_llmc(folder, tmp_path / "train.bin") == 5003
    data = (tmp_path / "train.bin").read_bytes()
    # as llm.c's dataloader.h checks it: int32 magic, version, token count, then uint16 ids from byte 1024
    assert struct.unpack("<3i", data[:12]) == (20240520, 1, 5003)
    assert len(data) == 1024 + 2 * 5003 and not any(data[12:1024])
    assert np.frombuffer(data[1024:], "<u2").tolist() == ids.tolist()
    exchange.import_llmc(tmp_path / "train.bin", str(tmp_path / "back"), byte_tokenizer())
    assert read(str(tmp_path / "back")).tolist() == ids.tolist()


def test_parquet_rows_are_two_bytes_per_token(folder: str, ids: np.ndarray, tmp_path: Path) -> None:
    assert exchange.export_parquet(folder, tmp_path / "a.parquet", seq_len=33) == 5003 % 33
    rows = pq.read_table(tmp_path / "a.parquet")["tokens"].to_pylist()
    assert {len(row) for row in rows} == {66}
    whole = ids[: 5003 // 33 * 33]
    assert np.frombuffer(b"".join(rows), "<u2").tolist() == whole.tolist()
    exchange.import_parquet(tmp_path / "a.parquet", str(tmp_path / "back"), byte_tokenizer())
    assert read(str(tmp_path / "back")).tolist() == whole.tolist()


def test_an_import_counts_the_bytes_of_the_text(shared_data: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(shared_data / "gpt2_bpe"))
    texts = ["naïve \U0001f600\n", (shared_data / "shakespeare/validation.txt").read_text()]
    ids = np.concatenate([[*tokenizer.encode(text), tokenizer.eot_id] for text in texts]).astype("<u2")
    (tmp_path / "val.bin").write_bytes(ids.tobytes())
    manifest = exchange.import_nanogpt(tmp_path / "val.bin", str(tmp_path / "out"), tokenizer)
    assert manifest.bytes == sum(len(text.encode()) for text in texts) and manifest.documents == 2
    assert load_manifest(str(tmp_path / "out")).tokenizer == tokenizer.info


def test_wide_vocabularies_only_go_to_parquet(tmp_path: Path) -> None:
    writer = ShardWriter(str(tmp_path / "wide"), "uint32", 10)
    writer.append(np.array([70_000] * 25))
    writer.finish(byte_tokenizer().info, b"{}", 0, 0, [])
    for export in (exchange.export_llmc, exchange.export_nanogpt):
        with pytest.raises(UserError, match="uint32.*parquet"):
            export(str(tmp_path / "wide"), tmp_path / "x.bin")
    assert exchange.export_parquet(str(tmp_path / "wide"), tmp_path / "x.parquet", 10) == 5
    assert np.frombuffer(pq.read_table(tmp_path / "x.parquet")["tokens"][1].as_py(), "<u4").tolist() == [70_000] * 10


@pytest.mark.parametrize(
    ("data", "reader", "says"),
    [
        (b"abc", exchange.import_nanogpt, "odd number of bytes"),
        (b"", exchange.import_nanogpt, "no tokens"),
        (struct.pack("<H", 300), exchange.import_nanogpt, "the id 300, beyond the 257 of bytes"),
        (b"short", exchange.import_llmc, "not an llm.c data file"),
        (struct.pack("<256i", 20240520, 2, *[0] * 254), exchange.import_llmc, "not an llm.c data file"),
        (struct.pack("<256i", 20240520, 1, 7, *[0] * 253), exchange.import_llmc, "7 tokens its header promises"),
    ],
)
def test_what_is_not_such_a_file_is_refused(
    data: bytes, reader: Callable[[Path, str, Tokenizer], object], says: str, tmp_path: Path
) -> None:
    (tmp_path / "x.bin").write_bytes(data)
    with pytest.raises(UserError, match=says):
        reader(tmp_path / "x.bin", str(tmp_path / "out"), byte_tokenizer())
    assert not (tmp_path / "out/manifest.json").exists()


def test_parquet_of_other_ids_is_refused(folder: str, tmp_path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({"tokens": [[1, 2]]}), tmp_path / "list.parquet")
    with pytest.raises(UserError, match="not fixed_size_binary"):
        exchange.import_parquet(tmp_path / "list.parquet", str(tmp_path / "out"), byte_tokenizer())
    with pytest.raises(UserError, match="no column 'ids'"):
        exchange.import_parquet(tmp_path / "list.parquet", str(tmp_path / "out"), byte_tokenizer(), column="ids")
