"""Token shards to and from the forms other programs read: parquet, nanoGPT's .bin, llm.c's .bin.

| form | what it holds | after an import |
|---|---|---|
| parquet | one column `tokens`, fixed_size_binary of seq_len little-endian ids | same ids, short last row lost |
| nanoGPT | raw uint16 ids | same ids |
| llm.c | 1024-byte header (256 int32: magic 20240520, version 1, token count), then raw uint16 ids | same ids |

Importers need the tokenizer, which none of these forms names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raygpt import storage
from raygpt.data.shards import Manifest, ShardWriter, load_manifest
from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError

# llm.c, train_gpt2.c and dev/data/data_common.py: write_datafile
LLMC_MAGIC = 20240520
LLMC_VERSION = 1
LLMC_HEADER_BYTES = 1024
# Tokens held at a time.
CHUNK = 2**22


def export_parquet(folder: str, path: Path, seq_len: int) -> int:
    """Rows of `seq_len` tokens as fixed_size_binary (2 bytes per token stay 2 bytes; a list column doubles them).

    Returns the number of tokens at the end that do not fill a row and are left out.
    """
    if seq_len < 1:
        raise UserError(f"seq_len is {seq_len}: a parquet row needs at least one token.")
    manifest = load_manifest(folder)
    width = seq_len * manifest.numpy_dtype.itemsize
    kind = pa.binary(width)
    about = {"dtype": manifest.dtype, "seq_len": str(seq_len), "tokenizer_sha256": manifest.tokenizer.sha256}
    schema = pa.schema([("tokens", kind)], metadata=about)
    rest = np.empty(0, manifest.numpy_dtype)
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for chunk in _chunks(folder, manifest):
            joined = np.concatenate([rest, chunk])
            rows = joined.size // seq_len
            rest = joined[rows * seq_len :]
            if rows:
                data = pa.py_buffer(np.ascontiguousarray(joined[: rows * seq_len]))
                writer.write_batch(pa.record_batch([pa.Array.from_buffers(kind, rows, [None, data])], schema=schema))
    return int(rest.size)


def import_parquet(path: Path, folder: str, tokenizer: Tokenizer, column: str = "tokens") -> Manifest:
    """Rows of little-endian ids in a fixed_size_binary column (as `export_parquet` writes) to a shard folder."""
    parquet = pq.ParquetFile(path)
    if column not in parquet.schema_arrow.names:
        raise UserError(f"{path} has no column {column!r} (it has {', '.join(parquet.schema_arrow.names)}).")
    if not pa.types.is_fixed_size_binary(parquet.schema_arrow.field(column).type):
        raise UserError(f"{path}: column {column!r} is not fixed_size_binary: only raw little-endian ids are read.")
    if (dtype := (parquet.schema_arrow.metadata or {}).get(b"dtype")) not in (None, str(tokenizer.dtype).encode()):
        raise UserError(
            f"{path} holds {dtype.decode()} ids but {tokenizer.name} makes {tokenizer.dtype}: give its own tokenizer."
        )

    def ids() -> Iterator[np.ndarray]:
        for batch in parquet.iter_batches(columns=[column]):
            values = batch.column(0)
            if values.null_count:
                raise UserError(f"{path}: column {column!r} has rows without tokens.")
            width = values.type.byte_width
            data = np.frombuffer(values.buffers()[1], np.uint8)[
                values.offset * width : (values.offset + len(values)) * width
            ]
            yield data.view(tokenizer.dtype)

    return _import(ids(), folder, tokenizer, str(path))


def export_nanogpt(folder: str, path: Path) -> int:
    """Raw uint16 ids as nanoGPT's data/*/prepare.py writes; returns their number. UserError for a uint32 folder."""
    manifest = _narrow(folder, "nanoGPT")
    with open(path, "wb") as file:
        for chunk in _chunks(folder, manifest):
            file.write(chunk.tobytes())
    return manifest.tokens


def import_nanogpt(path: Path, folder: str, tokenizer: Tokenizer) -> Manifest:
    """nanoGPT's train.bin or val.bin to a shard folder."""
    if path.stat().st_size % 2:
        raise UserError(f"{path} has an odd number of bytes: it is not a nanoGPT .bin of uint16 ids, or it was cut.")
    return _import(_file_chunks(path, 0), folder, tokenizer, str(path))


def export_llmc(folder: str, path: Path) -> int:
    """One llm.c data file, version 1; returns the number of tokens. UserError for a uint32 folder."""
    manifest = _narrow(folder, "llm.c")
    if manifest.tokens >= 2**31:
        raise UserError(f"{folder} holds {manifest.tokens:,} tokens: one llm.c file holds fewer than 2^31.")
    header = np.zeros(LLMC_HEADER_BYTES // 4, dtype="<i4")
    header[:3] = LLMC_MAGIC, LLMC_VERSION, manifest.tokens
    with open(path, "wb") as file:
        file.write(header.tobytes())
        for chunk in _chunks(folder, manifest):
            file.write(chunk.tobytes())
    return manifest.tokens


def import_llmc(path: Path, folder: str, tokenizer: Tokenizer) -> Manifest:
    """An llm.c data file to a shard folder. UserError for another magic or version and for a cut file."""
    with open(path, "rb") as file:
        data = file.read(LLMC_HEADER_BYTES)
    header = np.frombuffer(data.ljust(LLMC_HEADER_BYTES, b"\0"), dtype="<i4")
    if len(data) < LLMC_HEADER_BYTES or header[0] != LLMC_MAGIC or header[1] != LLMC_VERSION:
        raise UserError(f"{path} is not an llm.c data file of version {LLMC_VERSION} (magic {LLMC_MAGIC}).")
    if path.stat().st_size != LLMC_HEADER_BYTES + 2 * int(header[2]):
        raise UserError(f"{path} does not have the {int(header[2]):,} tokens its header promises: copy it again.")
    return _import(_file_chunks(path, LLMC_HEADER_BYTES), folder, tokenizer, str(path))


def _narrow(folder: str, program: str) -> Manifest:
    manifest = load_manifest(folder)
    if manifest.dtype != "uint16":
        raise UserError(
            f"{folder} holds {manifest.dtype} ids, which {program}'s uint16 files cannot: export to parquet."
        )
    return manifest


def _chunks(folder: str, manifest: Manifest) -> Iterator[np.ndarray]:
    for shard in manifest.shards:
        where = storage.locate(folder) / shard.name
        with where.fs.open_input_stream(where.path) as stream:
            while data := stream.read(CHUNK * manifest.numpy_dtype.itemsize):
                yield np.frombuffer(data, manifest.numpy_dtype)


def _file_chunks(path: Path, skip: int) -> Iterator[np.ndarray]:
    with open(path, "rb") as file:
        file.seek(skip)
        while data := file.read(2 * CHUNK):
            yield np.frombuffer(data, "<u2")


def _import(chunks: Iterable[np.ndarray], folder: str, tokenizer: Tokenizer, source: str) -> Manifest:
    """Shards with documents counted by their end of text; `bytes` from decoding, exact where ids are of text."""
    writer = ShardWriter(folder, tokenizer.dtype)
    lengths = token_bytes(tokenizer)
    documents = text_bytes = 0
    for chunk in chunks:
        if chunk.size and int(chunk.max()) >= tokenizer.vocab_size:
            raise UserError(
                f"{source} has the id {int(chunk.max())}, beyond the {tokenizer.vocab_size} of {tokenizer.name}: give "
                "the tokenizer it was made with."
            )
        documents += int(np.count_nonzero(chunk == tokenizer.eot_id))
        text_bytes += int(lengths[chunk].sum())
        writer.append(chunk)
    if not writer.total_tokens:
        raise UserError(f"{source} holds no tokens.")
    return writer.finish(tokenizer.info, tokenizer.to_json(), documents, text_bytes, [source])


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """(vocab_size,) int64: UTF-8 bytes each id stands for in a byte-level vocabulary; 0 for end of text."""
    lengths = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for token, index in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        # byte-level: one character of the alphabet per byte
        lengths[index] = len(token)
    lengths[tokenizer.eot_id] = 0
    return lengths
