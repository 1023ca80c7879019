"""Ray Data's view of a plan: one read task, and one block, per chunk of steps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from ray.data import DataContext
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from raygpt.data.order import Chunk
from raygpt.data.stream import Source


class TokenDatasource(Datasource):
    """Blocks of `position` (int64) and `tokens` (fixed-size list of seq_len + 1), in the order of `chunks`."""

    def __init__(self, source: Source, chunks: list[Chunk]) -> None:
        super().__init__()
        self.source = source
        self.chunks = chunks

    def get_name(self) -> str:
        return "TokenShards"

    def estimate_inmemory_data_size(self) -> int:
        return sum(self._bytes(chunk) for chunk in self.chunks)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return [self._task(chunk) for chunk in self.chunks]

    def _bytes(self, chunk: Chunk) -> int:
        order = self.source.order
        return chunk.steps * self.source.local_rows * ((order.seq_len + 1) * order.token_bytes + 8)

    def _task(self, chunk: Chunk) -> ReadTask:
        source = self.source

        def read() -> Iterable[pa.Table]:
            positions, tokens = source.read(chunk)
            width = tokens.shape[1]
            flat = pa.array(np.ascontiguousarray(tokens).reshape(-1))
            yield pa.table({"position": pa.array(positions), "tokens": pa.FixedSizeListArray.from_arrays(flat, width)})

        rows = chunk.steps * source.local_rows
        metadata = BlockMetadata(num_rows=rows, size_bytes=self._bytes(chunk), input_files=None, exec_stats=None)
        return ReadTask(read, metadata)
