"""PURE. Training state cut into pieces: what one rank holds of a parameter, and where a checkpoint keeps it.

ZeRO gives every rank a run of consecutive values of the flattened parameters. A checkpoint stores those runs under the
parameter's name with their place, so that any number of workers, and any strategy, finds its own part again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raygpt.model.tensorfile import Spec, TensorStream
from raygpt.storage import Location

WEIGHT = "weight"  # beside it stand the kinds of state that the optimizer keeps, whatever they are
STARTS = "starts"  # metadata: {parameter: [first value, shape of the whole parameter]}
# safetensors' names of the types it may hold here
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


@dataclass(frozen=True)
class Piece:
    """Values [start, start + n) of a flattened parameter: `values[kind]` are views (n,) fp32 of this rank's state.

    Kinds are WEIGHT and the optimizer's own.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    values: Mapping[str, Tensor]

    @property
    def stop(self) -> int:
        return self.start + self.values[WEIGHT].numel()


@dataclass(frozen=True)
class TensorPlace:
    """Values [start, stop) of a flattened parameter's `kind`: from `first_byte` of `file` on, in safetensors' `dtype`.

    `shape` is that of the whole parameter.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    first_byte: int
    start: int
    stop: int


@dataclass
class TensorFile:
    """A safetensors file read value by value, on any file system: only what is asked for is fetched."""

    where: Location
    entries: dict[str, tuple[str, tuple[int, ...], int]] = field(default_factory=dict)  # dtype, shape, first byte
    metadata: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, where: Location) -> TensorFile:
        """Reads the header. Raises FileNotFoundError, or ValueError where it is none."""
        with where.fs.open_input_file(where.path) as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        entries = {
            key: (item["dtype"], tuple(item["shape"]), 8 + length + item["data_offsets"][0])
            for key, item in header.items()
        }
        return cls(where, entries, metadata)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Values [start, stop) of the flattened tensor, (stop - start,) fp32."""
        dtype, shape, begin = self.entries[key]
        stop = int(np.prod(shape)) if stop is None else stop
        numpy_dtype = _DTYPES[dtype]
        size = numpy_dtype.itemsize
        with self.where.fs.open_input_file(self.where.path) as file:
            file.seek(begin + start * size)
            data = file.read((stop - start) * size)
        return torch.from_numpy(np.frombuffer(data, numpy_dtype).copy()).float()


class CheckpointTensors:
    """Weights and optimizer state of a checkpoint, whatever strategy and however many workers wrote it."""

    def __init__(self, where: Location, files: Iterable[str], places: Iterable[TensorPlace] | None = None) -> None:
        """`files` are the names that belong to the checkpoint; their headers are read unless `places` are known."""
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._own_shapes: dict[tuple[str, str], tuple[int, ...]] = {}  # of state that is not shaped as its parameter
        self._parts: dict[tuple[str, str], list[tuple[int, int, TensorFile, str]]] = {}
        if places is not None:
            self._add_places(where, places)
            return
        sharded = [name for name in sorted(files) if name.startswith("zero-") and name.endswith(".safetensors")]
        for name in sharded:
            self._add_pieces(TensorFile.open(where / name))
        if not sharded:
            self._add_whole(where)

    @property
    def names(self) -> list[str]:
        return list(self.shapes)

    @property
    def kinds(self) -> list[str]:
        """Kinds of optimizer state that it holds, of all or of some parameters."""
        return list(dict.fromkeys(kind for _, kind in self._parts if kind != WEIGHT))

    def read(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        """Values [start, stop) of the flattened parameter's `kind`: WEIGHT, or one of `kinds`, fp32.

        Raises KeyError for what the checkpoint does not hold.
        """
        parts = self._parts[name, kind]
        for first, last, file, key in parts:
            if first <= start and stop <= last:  # one file has it all: no second copy
                return file.read(key, start - first, stop - first)
        out = torch.empty(stop - start)
        found = 0
        for first, last, file, key in parts:
            low, high = max(first, start), min(last, stop)
            if low < high:
                out[low - start : high - start] = file.read(key, low - first, high - first)
                found += high - low
        if found != stop - start:
            raise KeyError(f"{name}.{kind}: {found} of {stop - start} values")
        return out

    def whole(self, name: str, kind: str = WEIGHT) -> Tensor:
        """The parameter, or state of it, in its shape."""
        shape = self._own_shapes.get((name, kind), self.shapes[name])
        return self.read(name, kind, 0, int(np.prod(shape))).view(shape)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """(name, weight) one after another."""
        for name in self.shapes:
            yield name, self.whole(name)

    def state(self) -> Iterator[tuple[str, str, Tensor]]:
        """(name, kind, value) of all optimizer state, one after another."""
        for name, kind in self._parts:
            if kind != WEIGHT:
                yield name, kind, self.whole(name, kind)

    def _add_places(self, where: Location, places: Iterable[TensorPlace]) -> None:
        files: dict[str, TensorFile] = {}
        for place in places:
            if place.kind == WEIGHT:
                self.shapes.setdefault(place.name, place.shape)
            else:
                self._own_shapes[place.name, place.kind] = place.shape
            file = files.setdefault(place.file, TensorFile(where / place.file))
            key = f"{place.name}.{place.kind}"
            file.entries[key] = (place.dtype, (place.stop - place.start,), place.first_byte)
            self._parts.setdefault((place.name, place.kind), []).append((place.start, place.stop, file, key))

    def _add_pieces(self, file: TensorFile) -> None:
        starts = json.loads(file.metadata[STARTS])
        for name, (_, shape) in starts.items():
            self.shapes.setdefault(name, tuple(shape))
        for key, (_, (count,), _) in file.entries.items():
            name, _, kind = key.rpartition(".")
            start = starts[name][0]
            self._parts.setdefault((name, kind), []).append((start, start + count, file, key))

    def _add_whole(self, where: Location) -> None:
        weights = TensorFile.open(where / "model.safetensors")
        for name, (_, shape, _) in weights.entries.items():
            self.shapes[name] = shape
            self._parts[name, WEIGHT] = [(0, int(np.prod(shape)), weights, name)]
        try:
            moments = TensorFile.open(where / "optimizer.safetensors")
        except FileNotFoundError:
            return
        for key, (_, shape, _) in moments.entries.items():
            name, _, kind = key.rpartition(".")
            if name in self.shapes:
                self._own_shapes[name, kind] = shape
                self._parts[name, kind] = [(0, int(np.prod(shape)), moments, key)]


def piece_stream(pieces: list[Piece]) -> TensorStream:
    """The file that holds these pieces, read out of them while it is written."""
    specs = [
        Spec(f"{piece.name}.{kind}", torch.float32, tuple(value.shape))
        for piece in pieces
        for kind, value in piece.values.items()
    ]
    return TensorStream(
        specs, lambda: (value.float() for piece in pieces for value in piece.values.values()), starts_of(pieces)
    )


def starts_of(pieces: list[Piece]) -> dict[str, str]:
    """Metadata of the file that holds these pieces."""
    places: dict[str, Any] = {piece.name: [piece.start, list(piece.shape)] for piece in pieces}
    return {STARTS: json.dumps(places)}
