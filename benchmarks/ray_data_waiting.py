"""Ray Data while its consumer works: what its executor costs a process that takes blocks seldom, and its guard.

`python benchmarks/ray_data_waiting.py` starts a Ray cluster of this machine, reads a data set of 64 blocks of 4 MB,
takes one block and then only sleeps. Printed: the processor time of this process while it sleeps, and what becomes of a
consumer that pauses for longer than `execution_no_progress_timeout_s`. Nothing of raygpt is used.

Seen with Ray 2.60.0: with finished blocks waiting unread, no task is active and `StreamingExecutor`'s loop
(`_scheduling_loop_step`) runs without a pause until the last block has been taken; and a pause of the consumer counts
as a hang of the data set.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import ray.data


def dataset() -> Any:
    def block(row: dict) -> dict:
        return {"tokens": np.zeros((1, 2**20), np.float32)}

    return ray.data.range(64, override_num_blocks=64).map_batches(block, batch_size=None)


def processor_seconds_asleep(seconds: float = 5.0) -> float:
    """Share of a core that this process uses while its consumer sleeps."""
    blocks = iter(dataset().iter_batches(batch_size=None, prefetch_batches=2))
    next(blocks)
    time.sleep(3)  # what may be read ahead has been
    process = psutil.Process()
    before = process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / seconds


def pause_beyond_the_guard(timeout: float = 4.0) -> str:
    """What the consumer gets when it comes back after two and a half times the guard's patience."""
    data = dataset()
    data.context.execution_no_progress_timeout_s = timeout
    blocks = iter(data.iter_batches(batch_size=None, prefetch_batches=2))
    next(blocks)
    time.sleep(2.5 * timeout)
    try:
        return f"{1 + sum(1 for _ in blocks)} blocks"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def main() -> None:
    ray.init(num_cpus=2, object_store_memory=150_000_000, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    result = {
        "ray": ray.__version__,
        "cores_used_while_the_consumer_sleeps": round(processor_seconds_asleep(), 3),
        "after_a_pause_of_10_s_with_a_guard_of_4_s": pause_beyond_the_guard(),
    }
    print(json.dumps(result, indent=2))
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
