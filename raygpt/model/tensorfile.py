"""PURE. safetensors files written as a stream: header first, then one tensor after another straight from its memory.

The library's own `save_file` makes a second copy of all tensors before it writes and refuses views that share memory;
for the 19 GB of a large model's state there is no room for that. Format: 8 bytes header length, JSON header, values
(https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
CHUNK_BYTES = 2**24  # written and hashed at a time


class Writable(Protocol):
    def write(self, data: memoryview | bytes, /) -> object: ...


@dataclass(frozen=True)
class Spec:
    """Name, type and shape of a tensor that is going to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class TensorStream:
    """Tensors of one file, fetched one after another when it is written: `values()` yields them in order of `specs`."""

    specs: Sequence[Spec]
    values: Callable[[], Iterable[Tensor]]
    metadata: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> TensorStream:
        """Tensors that are there already."""
        specs = [Spec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
        return cls(specs, tensors.values)


@dataclass(frozen=True)
class Written:
    """Size of a file in bytes and its sha256 (hex)."""

    bytes: int
    sha256: str


def header(specs: Sequence[Spec], metadata: Mapping[str, str] | None = None) -> bytes:
    """Length and JSON header, padded with spaces so that the values begin at a multiple of 8 bytes."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for spec in specs:
        end = offset + spec.nbytes
        entries[spec.name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_tensors(
    file: Writable, specs: Sequence[Spec], values: Iterable[Tensor], metadata: Mapping[str, str] | None = None
) -> Written:
    """Write tensors in the order of `specs`; a tensor that is not contiguous on the CPU is copied, that one alone.

    Raises ValueError when a value is not as its spec says, or there are more or fewer of them.
    """
    digest = hashlib.sha256()
    size = 0

    def put(data: memoryview | bytes) -> None:
        nonlocal size
        for begin in range(0, len(data), CHUNK_BYTES):
            chunk = data[begin : begin + CHUNK_BYTES]
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)

    put(header(specs, metadata))
    for spec, value in zip(specs, values, strict=True):
        if tuple(value.shape) != spec.shape or value.dtype != spec.dtype:
            raise ValueError(f"{spec.name} is {value.dtype} {tuple(value.shape)}, not {spec.dtype} {spec.shape}")
        flat = value.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            put(memoryview(flat.view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return Written(size, digest.hexdigest())
