"""Token shards: a folder of raw little-endian token files and the manifest that says what is in them.

    manifest.json     format version, dtype, tokenizer, shards with sha256, totals, sources, fingerprint
    shard-00000.bin   uint16 (uint32 for vocabularies over 65,536) without a header
    tokenizer.json    the tokenizer itself, so that the folder explains its own ids

The shards are one stream cut at a fixed number of tokens: a document may continue in the next shard.
Every document ends with the end-of-text token. The manifest is written last, so a folder without one
is unfinished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from raygpt import storage
from raygpt.errors import UserError
from raygpt.storage import Location

VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


@dataclass(frozen=True)
class Shard:
    """One token file: `tokens` long, `sha256` (hex) over its bytes."""

    name: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class TokenizerInfo:
    """Which tokenizer made the ids; `sha256` as `raygpt.data.tokenizer.Tokenizer.sha256` gives it."""

    name: str
    vocab_size: int
    eot_id: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a shard folder holds.

    `tokens` counts end-of-text tokens too; `bytes` is the UTF-8 length of the documents' text without
    them (the denominator of bits per byte). `fingerprint` depends on dtype, tokenizer and tokens alone:
    a copied or moved folder keeps it.
    """

    version: int
    dtype: str
    tokenizer: TokenizerInfo
    shards: tuple[Shard, ...]
    tokens: int
    documents: int
    bytes: int
    sources: tuple[str, ...]
    fingerprint: str

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return DTYPES[self.dtype]

    def layout(self, uri: str) -> Layout:
        """What a reader needs to know of this folder, which lies at `uri`."""
        starts = np.zeros(len(self.shards) + 1, np.int64)
        np.cumsum([shard.tokens for shard in self.shards], out=starts[1:])
        return Layout(uri, self.dtype, self.fingerprint, starts, tuple(shard.name for shard in self.shards))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Raises ValueError, KeyError or TypeError for anything but a manifest of this version."""
        fields = json.loads(text)
        if fields["version"] != VERSION:
            raise ValueError(f"format version {fields['version']}, this raygpt reads version {VERSION}")
        fields["tokenizer"] = TokenizerInfo(**fields["tokenizer"])
        fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
        fields["sources"] = tuple(fields["sources"])
        if fields["dtype"] not in DTYPES:
            raise ValueError(f"dtype {fields['dtype']!r} is neither uint16 nor uint32")
        manifest = cls(**fields)
        if sum(shard.tokens for shard in manifest.shards) != manifest.tokens:
            raise ValueError("the shards' token counts do not add up to its total")
        if fingerprint(manifest.dtype, manifest.tokenizer.sha256, manifest.shards) != manifest.fingerprint:
            raise ValueError("its fingerprint does not follow from its shards")
        return manifest


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a shard folder lie: read and checked once from its manifest, then sent to every reader.

    `starts` is (shards + 1,) int64: the first token of each shard, then the total. Two layouts are equal when they
    are of the same tokens (`fingerprint`) at the same `uri`. Of 100,000 shards: 2.6 MB, unpickled in 5 ms.
    """

    uri: str
    dtype: str
    fingerprint: str
    starts: np.ndarray = field(compare=False)
    names: tuple[str, ...] = field(compare=False)

    @property
    def tokens(self) -> int:
        return int(self.starts[-1])

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return DTYPES[self.dtype]

    @property
    def is_local(self) -> bool:
        return storage.locate(self.uri).is_local

    @property
    def folders(self) -> tuple[Layout, ...]:
        return (self,)


@dataclass(frozen=True)
class JoinedLayout:
    """Two shard folders as one stream of tokens: those of the second follow those of the first.

    They may lie in different storages, and have ids of different width: reads give the wider one.
    """

    first: Layout
    second: Layout

    @property
    def folders(self) -> tuple[Layout, ...]:
        return (self.first, self.second)

    @property
    def uri(self) -> str:
        return f"{self.first.uri} and {self.second.uri}"

    @property
    def fingerprint(self) -> str:
        return f"{self.first.fingerprint} and {self.second.fingerprint}"

    @property
    def tokens(self) -> int:
        return self.first.tokens + self.second.tokens

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return max(self.first.numpy_dtype, self.second.numpy_dtype, key=lambda dtype: dtype.itemsize)

    @property
    def is_local(self) -> bool:
        return self.first.is_local and self.second.is_local


AnyLayout = Layout | JoinedLayout


def fingerprint(dtype: str, tokenizer_sha256: str, shards: Sequence[Shard]) -> str:
    """sha256 (hex) over dtype, tokenizer and the shards' own hashes in order."""
    lines = [dtype, tokenizer_sha256, *(shard.sha256 for shard in shards)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Smallest shard dtype that holds ids below `vocab_size`."""
    return DTYPES["uint16" if vocab_size <= 2**16 else "uint32"]


def dtype_name(dtype: np.dtype) -> str:
    return next(name for name, known in DTYPES.items() if known == np.dtype(dtype))


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.bin"


def load_manifest(location: str | Location) -> Manifest:
    """Manifest of a shard folder, after checking that every shard is there in its full length.

    Raises UserError when the folder holds no manifest (never prepared, or preparing was interrupted),
    when the manifest is damaged or of another version, and when a shard is missing or of another size.
    Contents are not hashed here: `verify` does that.
    """
    folder = storage.locate(location)
    manifest = read_manifest(folder)
    width = manifest.numpy_dtype.itemsize
    sizes = {entry.base_name: entry.size for entry in storage.list_folder(folder)}
    for shard in manifest.shards:
        want = shard.tokens * width
        if shard.name not in sizes:
            raise UserError(
                f"{(folder / shard.name).uri} is missing although {MANIFEST} lists it: prepare this folder again."
            )
        if sizes[shard.name] != want:
            raise UserError(
                f"{(folder / shard.name).uri} has {sizes[shard.name]:,} bytes instead of {want:,}: it was cut or "
                "changed after preparing; copy it again or prepare this folder again."
            )
    return manifest


def read_manifest(folder: Location) -> Manifest:
    """Manifest of a shard folder as it stands; its shards are not looked for. Raises UserError as `load_manifest`."""
    where = folder / MANIFEST
    try:
        text = storage.read_text(where)
    except FileNotFoundError:
        raise UserError(
            f"{folder.uri} holds no {MANIFEST}: it is not a token shard folder, or preparing it was interrupted; "
            "run `raygpt prepare` with this output."
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where.uri} is damaged ({error}): prepare this folder again.") from error
    try:
        return Manifest.from_json(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{where.uri} cannot be used ({what}): prepare this folder again.") from error


def verify(location: str | Location) -> Manifest:
    """`load_manifest` plus the sha256 of every shard. UserError names the first shard that differs."""
    folder = storage.locate(location)
    manifest = load_manifest(folder)
    for shard in manifest.shards:
        if storage.sha256(folder / shard.name) != shard.sha256:
            raise UserError(
                f"{(folder / shard.name).uri} does not have the contents {MANIFEST} records (sha256 differs): copy it "
                "again or prepare this folder again."
            )
    return manifest


class ShardWriter:
    """Appends tokens to a shard folder; every shard but the last holds exactly `shard_tokens`.

    Where `append` was cut into calls does not change a byte of the result. A shard appears under its
    name only when it is complete. Numbers begin at `first`: beside the shards of a manifest that stands
    until the new one replaces it.
    """

    def __init__(
        self, location: str | Location, dtype: np.dtype | str, shard_tokens: int = 2**24, first: int = 0
    ) -> None:
        if shard_tokens < 1:
            raise UserError(f"prepare.shard_tokens is {shard_tokens}: give at least 1.")
        self.folder = storage.locate(location)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.shard_tokens = shard_tokens
        self.first = first
        self.shards: list[Shard] = []
        self.total_tokens = 0
        self._open: list[np.ndarray] = []
        self._open_tokens = 0

    def append(self, tokens: np.ndarray) -> int:
        """Add (n,) token ids; returns how many shards this completed. Raises ValueError for ids beyond the dtype."""
        if tokens.dtype != self.dtype:
            if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) <= np.iinfo(self.dtype).max:
                raise ValueError(f"token ids beyond {self.dtype}: {tokens.min()}..{tokens.max()}")
            tokens = tokens.astype(self.dtype)
        self.total_tokens += tokens.size
        completed = 0
        while self._open_tokens + tokens.size >= self.shard_tokens:
            cut = self.shard_tokens - self._open_tokens
            self._open.append(tokens[:cut])
            tokens = tokens[cut:]
            self._write_open()
            completed += 1
        if tokens.size:
            # a copy: a view would keep the caller's whole buffer (a block of the object store) alive
            self._open.append(tokens.copy())
            self._open_tokens += tokens.size
        return completed

    def pending(self) -> np.ndarray:
        """(n,) tokens appended after the last completed shard."""
        return np.concatenate(self._open) if self._open else np.empty(0, self.dtype)

    def _write_open(self) -> None:
        data = self.pending().tobytes()
        name = shard_name(self.first + len(self.shards))
        storage.write_bytes(self.folder / name, data)
        self.shards.append(Shard(name, len(data) // self.dtype.itemsize, hashlib.sha256(data).hexdigest()))
        self._open, self._open_tokens = [], 0

    def close(self) -> None:
        """Write the open shard."""
        if self._open_tokens:
            self._write_open()

    def finish(
        self, tokenizer: TokenizerInfo, tokenizer_json: bytes, documents: int, text_bytes: int, sources: Sequence[str]
    ) -> Manifest:
        """Write the open shard, tokenizer.json and, last, the manifest."""
        self.close()
        return finish_folder(
            self.folder, self.dtype, self.shards, tokenizer, tokenizer_json, documents, text_bytes, sources
        )


def finish_folder(
    folder: Location,
    dtype: np.dtype,
    written: Sequence[Shard],
    tokenizer: TokenizerInfo,
    tokenizer_json: bytes,
    documents: int,
    text_bytes: int,
    sources: Sequence[str],
) -> Manifest:
    """Write tokenizer.json and, last, the manifest of a folder whose shards are `written`."""
    name = dtype_name(dtype)
    manifest = Manifest(
        version=VERSION,
        dtype=name,
        tokenizer=tokenizer,
        shards=tuple(written),
        tokens=sum(shard.tokens for shard in written),
        documents=documents,
        bytes=text_bytes,
        sources=tuple(sources),
        fingerprint=fingerprint(name, tokenizer.sha256, written),
    )
    storage.write_bytes(folder / TOKENIZER, tokenizer_json)
    storage.write_text(folder / MANIFEST, manifest.to_json())
    return manifest
