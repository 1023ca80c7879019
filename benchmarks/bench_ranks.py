"""The order of 5T tokens, and what 1,000 ranks on 125 nodes ask of S3: real planning and reading, S3 simulated.

`python benchmarks/bench_ranks.py` writes benchmarks/ranks.json and the part "Order" of benchmarks/scaling.md. A request
of the simulated S3 takes 30 ms and gives zeros. Steps take what 45,000 tokens/s and rank make of them.
"""

from __future__ import annotations

import json
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from benchmarks.provenance import provenance
from raygpt.data import stream
from raygpt.data.order import Order
from raygpt.data.reader import TokenReader
from raygpt.data.service import FIRST_STEPS, READ_TASKS, ROUND_BYTES, ROUND_SECONDS, round_steps
from raygpt.data.shards import Layout, shard_name
from raygpt.data.stream import Source

REQUEST_SECONDS = 0.03
RANKS, NODES = 1000, 125
TOKENS_PER_SECOND = 45_000  # of a rank: GPT-2 1.5B on an H100, about
SEQ_LEN = 1024


class SimulatedS3(TokenReader):
    """A reader whose requests take REQUEST_SECONDS and are counted."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.requests = self.bytes = 0

    def _fetch(self, index: int, begin: int, end: int) -> bytes:
        self.requests += 1
        self.bytes += end - begin
        time.sleep(REQUEST_SECONDS)
        return bytes(end - begin)


def first_rows(tokens: int, rows: int) -> dict[str, Any]:
    """Seconds and MB until the rows of a step in the middle of an epoch are known."""
    tracemalloc.start()
    began = time.perf_counter()
    order = Order("f" * 64, 1337, SEQ_LEN, rows, tokens)
    found = order.chunk_rows(order.chunk(order.steps_per_epoch // 2, 1))
    seconds, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(found)) == rows
    return {"tokens": tokens, "rows": rows, "run_rows": order.run_rows, "seconds": seconds, "mb": peak / 1e6}


def node(tokens: int, global_rows: int) -> dict[str, Any]:
    """What one node of 8 ranks plans and asks for, in its first block and in the steady state."""
    shards = max(1, tokens // 2**26)
    starts = np.minimum(np.arange(shards + 1, dtype=np.int64) * 2**26, tokens)
    starts[-1] = tokens
    layout = Layout("s3://simulated/train", "uint16", "f" * 64, starts, tuple(shard_name(i) for i in range(shards)))
    order = Order("f" * 64, 1337, SEQ_LEN, global_rows, tokens)
    sources = [Source(layout, order, rank, RANKS) for rank in range(RANKS // NODES)]
    step_seconds = global_rows * SEQ_LEN / (RANKS * TOKENS_PER_SECOND)

    def read(steps: int) -> tuple[float, int, int]:
        reader = SimulatedS3(layout)
        stream._readers.clear()
        stream._readers[layout.fingerprint, layout.uri, 0] = reader
        began = time.perf_counter()
        for source in sources:
            source.read(order.chunk(0, steps))
        return time.perf_counter() - began, reader.requests, reader.bytes

    first_seconds, _, _ = read(FIRST_STEPS)
    most = ROUND_BYTES // sum(source.step_bytes for source in sources)
    steps = FIRST_STEPS
    for _ in range(6):
        steps = round_steps(steps, 1 / step_seconds, most)
    seconds, requests, size = read(steps)
    return {
        "global_batch_rows": global_rows,
        "run_rows": order.run_rows,
        "step_seconds": round(step_seconds, 3),
        "reader_actors": NODES,
        "round_steps": steps,
        "round_of_seconds_of_training": round(steps * step_seconds, 1),
        "round_read_in_seconds": round(seconds / READ_TASKS[False], 2),
        "first_block_in_seconds": round(first_seconds / READ_TASKS[False], 2),
        "requests_per_step_and_node": round(requests / steps, 2),
        "requests_per_second_all_nodes": round(requests / steps / step_seconds * NODES),
        "mb_per_second_and_node": round(size / steps / step_seconds / 1e6, 2),
        "kib_per_request": round(size / requests / 1024, 1),
    }


def main() -> None:
    result = provenance("numpy")
    result["first_rows"] = [
        first_rows(tokens, rows) for tokens, rows in ((10**10, 512), (10**12, 4096), (5 * 10**12, 4096))
    ]
    result["nodes"] = [node(5 * 10**12, rows) for rows in (1000, 4000, 8000)]
    (ROOT / "benchmarks/ranks.json").write_text(json.dumps(result, indent=2) + "\n")
    lines = [
        f"`{result['command']}` on {result['machine']}, {result['date']} (benchmarks/ranks.json).",
        "",
        "Rows of a step in the middle of an epoch, from nothing:",
        "",
        "| tokens | rows a step | rows a run | seconds | MB |",
        "|---|---|---|---|---|",
    ]
    for row in result["first_rows"]:
        lines.append(
            f"| {row['tokens']:.0e} | {row['rows']:,} | {row['run_rows']} | {row['seconds']:.3f} | {row['mb']:.1f} |"
        )
    lines += [
        "",
        f"{RANKS:,} ranks on {NODES} nodes over 5e12 tokens, {TOKENS_PER_SECOND:,} tokens/s each, a simulated S3 of "
        f"{1000 * REQUEST_SECONDS:.0f} ms a request, no cache: {NODES} reader actors, no LIST and no manifest by any "
        f"of them, rounds of at most {ROUND_SECONDS:.0f} s and {ROUND_BYTES >> 20} MiB a node.",
        "",
        "| rows a step | step, s | first block after, s | round, steps | read in, s | GET a step and node | "
        "GET/s, all | MB/s a node | KiB a GET |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["nodes"]:
        lines.append(
            f"| {row['global_batch_rows']:,} | {row['step_seconds']} | {row['first_block_in_seconds']} | "
            f"{row['round_steps']} | {row['round_read_in_seconds']} | {row['requests_per_step_and_node']} | "
            f"{row['requests_per_second_all_nodes']} | {row['mb_per_second_and_node']} | {row['kib_per_request']} |"
        )
    lines += [
        "",
        "Where memory bounds a round to fewer steps than a run has rows, a run is read in parts: more requests, no "
        "byte twice. `first block` is the reading alone; a process for it starts in one to three seconds.",
    ]
    page = ROOT / "benchmarks/scaling.md"
    before, _, rest = page.read_text().partition("<!-- order -->")
    after = rest.partition("<!-- end of order -->")[2]
    page.write_text("\n".join([before + "<!-- order -->", *lines, "<!-- end of order -->"]) + after)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
