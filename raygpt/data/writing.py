"""Shards of one side of the split, written by tasks of the cluster.

The driver knows how many tokens each object of the object store holds, decides arithmetically where shards begin and
end, and never sees a token. Every shard but the last holds exactly `shard_tokens`, however the tokens arrive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygpt import storage
from raygpt.data.shards import Shard, shard_name
from raygpt.errors import UserError
from raygpt.storage import Location

# A validation shard has its tokens from thousands of blocks: so many objects at most go into one task.
MAX_SPANS = 512


@dataclass(frozen=True)
class Span:
    """Tokens [start, stop) of an (n,) array in the object store."""

    ref: ObjectRef
    start: int
    stop: int


class Cuts:
    """Where shards of `shard_tokens` begin and end in a stream of objects."""

    def __init__(self, shard_tokens: int) -> None:
        self.shard_tokens = shard_tokens
        self.open: list[Span] = []
        self.open_tokens = 0

    def append(self, ref: ObjectRef, tokens: int) -> list[list[Span]]:
        """Add an object of `tokens`; the spans of each shard that it completed."""
        complete, start = [], 0
        while self.open_tokens + tokens - start >= self.shard_tokens:
            stop = start + self.shard_tokens - self.open_tokens
            complete.append([*self.open, Span(ref, start, stop)])
            self.open, self.open_tokens, start = [], 0, stop
        if start < tokens:
            self.open.append(Span(ref, start, tokens))
            self.open_tokens += tokens - start
        return complete


@dataclass(frozen=True)
class Writing:
    """A file on its way: `result` is (sha256, None) or, where it cannot be written, ("", a UserError's sentence)."""

    name: str
    tokens: int
    result: ObjectRef

    def wait(self) -> str:
        """sha256 (hex) of the file, once it is written. Raises UserError where it could not be."""
        digest, error = ray.get(self.result)
        if error:
            raise UserError(error)
        return digest


class SideWriter:
    """Appends objects to a shard folder. `shards` are those known to be written, in order, `writing` those after."""

    def __init__(self, folder: Location, dtype: np.dtype, shard_tokens: int) -> None:
        self.folder = folder
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.shards: list[Shard] = []
        self.writing: list[Writing] = []
        self.total_tokens = 0
        self._task = _placed(folder)
        self._cuts = Cuts(shard_tokens)
        self._cut = 0  # shards begun since `take_new`
        self._new: list[Span] = []  # open tokens since then

    def append(self, ref: ObjectRef, tokens: int) -> int:
        """Add (tokens,) ids; returns how many shards this completed. They are written in the background."""
        complete = self._cuts.append(ref, tokens)
        for spans in complete:
            self._write(spans)
        if complete:
            self._new = list(self._cuts.open)
        elif tokens:
            self._new.append(Span(ref, 0, tokens))
        if len(self._cuts.open) >= MAX_SPANS:
            self._cuts.open = [Span(_join.remote(*_arguments(self._cuts.open)), 0, self._cuts.open_tokens)]
        self.total_tokens += tokens
        return len(complete)

    def resume(self, shards: Sequence[Shard], open_tokens: np.ndarray) -> None:
        """Continue a folder whose finished `shards` and open tokens were kept."""
        self.shards = list(shards)
        self.total_tokens = sum(shard.tokens for shard in shards)
        self.append(ray.put(open_tokens), open_tokens.size)
        self.take_new()  # they are in the journal already

    def take_new(self) -> tuple[list[Writing], list[Span]]:
        """What came since the last call: shards cut, and the open tokens, all of them after a cut."""
        cut, self._cut = self.writing[len(self.writing) - self._cut :], 0
        new, self._new = self._new, []
        return cut, new

    def write_open(self, folder: Location, spans: list[Span]) -> Writing:
        """Put open tokens into a file below `folder`, to be named by `side`-sha256."""
        return Writing("", sum(span.stop - span.start for span in spans), self._start(folder, None, spans))

    def written(self, writing: Writing) -> Shard:
        """The first of `writing`, once it is written."""
        assert writing is self.writing[0]
        self.shards.append(Shard(writing.name, writing.tokens, writing.wait()))
        self.writing.pop(0)
        return self.shards[-1]

    def finish(self) -> list[Shard]:
        """Write the open shard; all shards, once they are written."""
        if self._cuts.open_tokens:
            self._write(self._cuts.open)
            self._cuts = Cuts(self._cuts.shard_tokens)
        while self.writing:
            self.written(self.writing[0])
        return self.shards

    def _write(self, spans: list[Span]) -> None:
        name = shard_name(len(self.shards) + len(self.writing))
        tokens = sum(span.stop - span.start for span in spans)
        self.writing.append(Writing(name, tokens, self._start(self.folder, name, spans)))
        self._cut += 1

    def _start(self, folder: Location, name: str | None, spans: list[Span]) -> ObjectRef:
        return self._task.remote(folder.uri, name, self.folder.name, self.dtype, *_arguments(spans))


def open_name(side: str, sha256: str) -> str:
    """Name of a file of open tokens. By content: a task of a run that was killed may still write its own."""
    return f"open-{side}-{sha256[:16]}.bin"


def _arguments(spans: list[Span]) -> tuple:
    return [(span.start, span.stop) for span in spans], *(span.ref for span in spans)


def _joined(bounds: list[tuple[int, int]], arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    return np.concatenate([array[start:stop] for (start, stop), array in zip(bounds, arrays, strict=True)])


@ray.remote(num_cpus=0)
def _join(bounds: list[tuple[int, int]], *arrays: np.ndarray) -> np.ndarray:
    return _joined(bounds, arrays)


@ray.remote(num_cpus=1)
def _write_tokens(
    folder: str, name: str | None, side: str, dtype: np.dtype, bounds: list[tuple[int, int]], *arrays: np.ndarray
) -> tuple[str, str | None]:
    data = _joined(bounds, arrays).astype(dtype, copy=False).tobytes()
    digest = hashlib.sha256(data).hexdigest()
    try:
        storage.write_bytes(storage.locate(folder) / (name or open_name(side, digest)), data)
    except UserError as error:
        return "", str(error)
    return digest, None


def _placed(folder: Location) -> Any:
    """The writing task, where it may run."""
    if not folder.is_local:
        return _write_tokens
    # a local folder is the driver's, whatever other machines have under that path
    here = ray.get_runtime_context().get_node_id()
    cpus = next(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["NodeID"] == here)
    strategy = NodeAffinitySchedulingStrategy(here, soft=False)
    return _write_tokens.options(num_cpus=min(1, cpus), scheduling_strategy=strategy)
