"""PURE. What a checkpoint's folder must hold: one `index.json`, made of what every rank says it wrote.

    part-00003-<attempt>.json   size, sha256 and tensors of each file that one rank of one attempt wrote; its last file
    index.json                  all of them together; rank 0 writes it when every part is there: the checkpoint counts

The attempt is an id that every start of a group of workers draws anew, so the parts of two groups never make one
checkpoint. Checkpoints of before the index have a `manifest-00000.json` of every rank instead, and are whole when all
of those are there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from raygpt import storage
from raygpt.model.tensorfile import NAMES, TensorStream, header
from raygpt.parallel.pieces import STARTS, TensorPlace
from raygpt.parallel.shares import share_out
from raygpt.storage import Location

NAME = "index.json"
VERSION = 2


@dataclass(frozen=True)
class Index:
    """`files`: name -> {bytes, sha256}; `places`: where each tensor lies, None where only the files know."""

    world_size: int
    files: dict[str, dict[str, Any]]
    places: list[TensorPlace] | None = None
    attempt: str = ""

    @property
    def bytes(self) -> int:
        return sum(facts["bytes"] for facts in self.files.values())

    def shares(self, ranks: int) -> list[list[str]]:
        """The files shared out over so many ranks, about as many bytes to each."""
        return share_out({name: facts["bytes"] for name, facts in self.files.items()}, ranks)

    def to_json(self) -> str:
        """Names of tensors stand once in a table: with ZeRO each comes back in the file of every rank."""
        assert self.places is not None
        table = {key: number for number, key in enumerate(dict.fromkeys(map(_key, self.places)))}
        rows = [[table[_key(each)], each.file, each.first_byte, each.start, each.stop] for each in self.places]
        names = {name: number for number, name in enumerate(dict.fromkeys(row[1] for row in rows))}
        tensors = {
            "names": [list(key) for key in table],
            "files": list(names),
            "places": [[row[0], names[row[1]], *row[2:]] for row in rows],
        }
        content = {"version": VERSION, "world_size": self.world_size, "attempt": self.attempt, "files": self.files}
        return json.dumps({**content, "tensors": tensors}, separators=(",", ":")) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Index:
        """Raises ValueError, KeyError, TypeError or IndexError for anything but an index."""
        content = json.loads(text)
        tensors = content["tensors"]
        places = []
        for key, file, first_byte, start, stop in tensors["places"]:
            name, kind, dtype, shape = tensors["names"][key]
            places.append(TensorPlace(name, kind, dtype, tuple(shape), tensors["files"][file], first_byte, start, stop))
        return cls(content["world_size"], content["files"], places, content["attempt"])


def _key(place: TensorPlace) -> tuple[str, str, str, tuple[int, ...]]:
    return place.name, place.kind, place.dtype, place.shape


def read_index(where: Location) -> Index:
    """Of a checkpoint, one read; of one that was written before there was an index, the manifests of all its ranks.

    Raises FileNotFoundError where it was never finished, and as `Index.from_json` where it is damaged.
    """
    try:
        return Index.from_json(storage.read_text(where / NAME))
    except FileNotFoundError:
        first = json.loads(storage.read_text(where / manifest_name(0)))
    files = dict(first["files"])
    for rank in range(1, first["world_size"]):
        files |= json.loads(storage.read_text(where / manifest_name(rank)))["files"]
    return Index(first["world_size"], files)


def is_finished(where: Location) -> bool:
    """Whether the file is there that is written last. One request, two for a folder without an index."""
    return storage.exists(where / NAME) or storage.exists(where / manifest_name(0))


def part_name(rank: int, attempt: str) -> str:
    return f"part-{rank:05d}-{attempt}.json"


def manifest_name(rank: int) -> str:
    return f"manifest-{rank:05d}.json"


def joined(parts: Iterable[Index]) -> Index:
    """One index of the parts of all ranks. Raises ValueError where they are not of one attempt and number of ranks."""
    parts = list(parts)
    if len({part.attempt for part in parts}) != 1 or {part.world_size for part in parts} != {len(parts)}:
        raise ValueError("the parts are not those of one attempt")
    files: dict[str, dict[str, Any]] = {}
    for part in parts:
        files |= part.files
    return Index(len(parts), files, [place for part in parts for place in part.places or ()], parts[0].attempt)


def places_of(file: str, stream: TensorStream) -> list[TensorPlace]:
    """Where the tensors of a file lie in it. Pieces of parameters (metadata STARTS) know their place in the whole."""
    starts = json.loads(stream.metadata[STARTS]) if STARTS in stream.metadata else {}
    offset = len(header(stream.specs, stream.metadata))
    weights = file.startswith("model")
    places = []
    for spec in stream.specs:
        name, kind = (spec.name, "weight") if weights else _split(spec.name)
        count = math.prod(spec.shape)
        start, shape = starts.get(name, (0, spec.shape))
        places.append(TensorPlace(name, kind, NAMES[spec.dtype], tuple(shape), file, offset, start, start + count))
        offset += spec.nbytes
    return places


def _split(key: str) -> tuple[str, str]:
    name, _, kind = key.rpartition(".")
    return name, kind
