"""A teacher's states of a shard folder, one record per token, beside the tokens: written once, read by any student.

    states.json          format version, whose tokens and whose states these are, what a record holds, parts with sha256
    part-00000.bin       records without a header, little-endian (see transport.py), token after token
    output.safetensors   the teacher's output matrix (V, C), for the transport hidden

Record i is what the teacher made of token i and those before it: it predicts token i + 1. The stream was read in
windows that overlap by half, so that every token but the first few of the stream was seen with at least half a window
before it (`least_context`), and ends of documents were read over, as training rows read over them. A teacher beside the
student sees no more than a row of training: it knows the first tokens of a row less well.

The manifest comes last: a folder without one is unfinished. What is read depends on the row's place in the stream
alone, whatever the number of workers.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load as load_tensors
from torch import Tensor

from raygpt import storage
from raygpt.data.order import Order, lanes_of
from raygpt.data.reader import TokenReader
from raygpt.data.shards import Layout, Manifest, Shard
from raygpt.data.stream import Batch
from raygpt.distill.transport import Transport
from raygpt.errors import UserError
from raygpt.model.gpt import VOCAB_MULTIPLE
from raygpt.storage import Location

VERSION = 1
MANIFEST = "states.json"
OUTPUT = "output.safetensors"


@dataclass(frozen=True)
class StatesManifest:
    """What a folder of states holds. `fingerprint` and `tokens` are the shard folder's; `context` is the window in
    tokens, `least_context` how many a token was at least seen with, itself counted, after the first window."""

    version: int
    fingerprint: str
    tokens: int
    teacher: str
    teacher_digest: str
    transport: Transport
    context: int
    least_context: int
    bytes_per_token: int
    parts: tuple[Shard, ...]
    output_sha256: str | None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> StatesManifest:
        """Raises ValueError, KeyError or TypeError for anything but a manifest of this version."""
        fields = json.loads(text)
        if fields["version"] != VERSION:
            raise ValueError(f"format version {fields['version']}, this raygpt reads version {VERSION}")
        fields["transport"] = Transport(**fields["transport"])
        fields["parts"] = tuple(Shard(**part) for part in fields["parts"])
        manifest = cls(**fields)
        if sum(part.tokens for part in manifest.parts) != manifest.tokens:
            raise ValueError("its parts' token counts do not add up to its total")
        return manifest


@dataclass(frozen=True)
class StatesLayout(Layout):
    """Where records lie: read as a shard folder of very wide tokens."""

    transport: Transport | None = None

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        assert self.transport is not None
        return self.transport.record


def is_stored(uri: str) -> bool:
    """Whether a folder of states lies there, whole."""
    return storage.exists(storage.locate(uri) / MANIFEST)


def read_states_manifest(uri: str) -> StatesManifest:
    """Manifest of a folder of states, after checking that every part is there in its full length. UserError else."""
    folder = storage.locate(uri)
    where = folder / MANIFEST
    again = "write the states again (distill.store)"
    try:
        manifest = StatesManifest.from_json(storage.read_text(where))
    except FileNotFoundError:
        raise UserError(
            f"{folder.uri} holds no {MANIFEST}: no teacher's states were written there to the end; go on with "
            "distill.store."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{where.uri} cannot be used ({what}): {again}.") from error
    sizes = {entry.base_name: entry.size for entry in storage.list_folder(folder)}
    wanted = {part.name: part.tokens * manifest.bytes_per_token for part in manifest.parts}
    for name, size in wanted.items():
        if sizes.get(name) != size:
            raise UserError(
                f"{(folder / name).uri} has {sizes.get(name, 0):,} bytes instead of {size:,}: copy it again or {again}."
            )
    return manifest


def check_states(
    uri: str, manifest: StatesManifest, train: Manifest, wanted: Transport, vocab_size: int, train_uri: str
) -> None:
    """UserError unless the states are those of data.train's tokens, in the form that the settings ask for."""
    have = manifest.transport
    if manifest.fingerprint != train.fingerprint:
        raise UserError(
            f"distill.teacher={uri} holds a teacher's states of other tokens ({manifest.fingerprint[:12]}) than "
            f"data.train={train_uri} ({train.fingerprint[:12]}): name the shard folder that it was written for, or "
            "write the states of this one (distill.store)."
        )
    if have.vocab_size != vocab_size:
        raise UserError(
            f"distill.teacher={uri} holds states of a teacher with {have.vocab_size:,} outputs and the student has "
            f"{vocab_size:,}: set model.vocab_size={have.vocab_size}."
        )
    keys = {
        "hidden": ("kind",),
        "topk": ("kind", "temperature", "top_k"),
        "sampled": ("kind", "temperature", "samples"),
    }
    for key in keys[have.kind]:
        if getattr(have, key) != getattr(wanted, key):
            setting = f"distill.{'transport' if key == 'kind' else key}"
            raise UserError(
                f"{setting}={getattr(wanted, key)} but the states in distill.teacher={uri} were written with "
                f"{getattr(have, key)}: set {setting}={getattr(have, key)}, or write them again (distill.store)."
            )


def verify(uri: str) -> StatesManifest:
    """`read_states_manifest` plus the sha256 of every file. UserError names the first one that differs."""
    manifest = read_states_manifest(uri)
    folder = storage.locate(uri)
    hashes = {part.name: part.sha256 for part in manifest.parts}
    if manifest.output_sha256 is not None:
        hashes[OUTPUT] = manifest.output_sha256
    for name, want in hashes.items():
        if storage.sha256(folder / name) != want:
            raise UserError(
                f"{(folder / name).uri} does not have the contents {MANIFEST} records (sha256 differs): copy it again, "
                "or write the states again (distill.store)."
            )
    return manifest


class StoredStates:
    """Reads, for a rank's rows of a step, the states of their inputs: arrays (rows, seq_len, …) by name.

    Order is arithmetic, so the next step's states are read in a thread while this one computes.
    """

    def __init__(self, uri: str, order: Order, rank: int, world_size: int, cache_bytes: int = 0) -> None:
        """`cache_bytes` > 0 keeps what S3 gave on local disk, as of token shards."""
        self.folder: Location = storage.locate(uri)
        self.manifest = read_states_manifest(uri)
        self.order = order
        self.lanes = lanes_of(rank, world_size, order.global_batch_rows)
        starts = np.zeros(len(self.manifest.parts) + 1, np.int64)
        np.cumsum([part.tokens for part in self.manifest.parts], out=starts[1:])
        # the cache is keyed by it: other states of the same tokens are other files, by temperature or seed alone too
        key = hashlib.sha256("".join(part.sha256 for part in self.manifest.parts).encode()).hexdigest()
        names = tuple(part.name for part in self.manifest.parts)
        layout = StatesLayout(uri, "", key, starts, names, transport=self.manifest.transport)
        self._reader = TokenReader(layout, cache_bytes)
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: tuple[int, Future[dict[str, np.ndarray]]] | None = None

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        """The states of the batch that this rank has of its step."""
        step, ahead = batch.step, self._ahead
        states = ahead[1].result() if ahead is not None and ahead[0] == step else self.read(step)
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="states-read")
        self._ahead = step + 1, self._thread.submit(self.read, step + 1)
        return states

    def read(self, step: int) -> dict[str, np.ndarray]:
        """States of the inputs of this rank's rows of the run's step."""
        epoch, inside = self.order.position(step)
        starts = self.order.starts(epoch, self.order.rows(epoch, inside, self.lanes))
        # one more than there are inputs: neighbouring rows share a token, and become one read
        records = self._reader.read_rows(starts, self.order.seq_len + 1)[:, :-1]
        return self.manifest.transport.unpack(records)

    def output_matrix(self, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """The teacher's on the device, padded to whole tiles (P, C); None where no hidden states are stored."""
        if self.manifest.output_sha256 is None:
            return None
        output = load_tensors(storage.read_bytes(self.folder / OUTPUT))["output"]
        return F.pad(output, (0, 0, 0, -output.size(0) % VOCAB_MULTIPLE)).to(device, dtype)
