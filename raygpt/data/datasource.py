"""Ray Data's view of a plan: one read task, and one block, per rank of a node and chunk of steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from raygpt.data.order import Chunk
from raygpt.data.shards import AnyLayout
from raygpt.data.stream import Source

_layouts: dict[tuple[str, str], AnyLayout] = {}  # of this process: thousands of tasks read one folder


class TokenDatasource(Datasource):
    """Blocks of `position` (int64) and `tokens` (fixed-size list of seq_len + 1), one for each of `parts` in order.

    `layout` is the folder's Layout in the object store: a process fetches it once, however many tasks it runs.
    """

    def __init__(self, layout: Any, parts: Sequence[tuple[Source, Chunk]]) -> None:
        super().__init__()
        self.layout = layout
        self.parts = parts

    def get_name(self) -> str:
        return "TokenShards"

    def estimate_inmemory_data_size(self) -> int:
        return sum(chunk.steps * source.step_bytes for source, chunk in self.parts)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return [_task(self.layout, source, chunk) for source, chunk in self.parts]


def _task(layout: Any, source: Source, chunk: Chunk) -> ReadTask:
    key = (source.layout.fingerprint, source.layout.uri)
    bare = replace(source, layout=None)  # type: ignore[arg-type]  # shipped once, by reference

    def read() -> Iterable[pa.Table]:
        if key not in _layouts:
            _layouts.clear()
            _layouts[key] = ray.get(layout)
        positions, tokens = replace(bare, layout=_layouts[key]).read(chunk)
        width = tokens.shape[1]
        flat = pa.array(np.ascontiguousarray(tokens).reshape(-1))
        yield pa.table({"position": pa.array(positions), "tokens": pa.FixedSizeListArray.from_arrays(flat, width)})

    metadata = BlockMetadata(
        num_rows=chunk.steps * source.local_rows,
        size_bytes=chunk.steps * source.step_bytes,
        input_files=None,
        exec_stats=None,
    )
    return ReadTask(read, metadata)
