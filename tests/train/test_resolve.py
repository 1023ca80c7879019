"""What a job works out before anything starts, from settings and two manifests."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from raygpt.track.progress import Progress
from raygpt.train.resolve import resolve
from raygpt.train.trainer import _announce
from tests.train.running import settings


def test_a_large_validation_set_does_not_hold_training_up(make_shards: Callable[..., str], tmp_path: Path) -> None:
    large = make_shards(np.resize(np.arange(97, 122), 2_200_000), shard_tokens=1_000_000)
    train = make_shards(70_000, shard_tokens=70_000)
    config = settings(train, tmp_path, data__val=large)
    job = resolve(config)
    assert job.val_tokens == 2**20, "of 2.2 million"
    assert job.plan.evaluation_rows == 2**20 // 16
    screen = io.StringIO()
    _announce(config, job, Progress(job.plan.total_steps, screen))
    assert "the same 1.05M of 2.20M tokens, evenly spaced" in screen.getvalue()
    some = resolve(settings(train, tmp_path, data__val=large, eval__batches="3"))
    assert some.val_tokens == 3 * 512
    small = resolve(settings(train, tmp_path))
    assert small.val_tokens == 69_999, "all that can be predicted"
    # steps between two evaluations are those the run has
    long = {"train__max_steps": "10000", "train__global_batch_tokens": "65536"}
    assert resolve(settings(train, tmp_path, data__val=large, eval__every="200", **long)).val_tokens == 1_310_720
    assert resolve(settings(train, tmp_path, data__val=large, eval__every="0", **long)).val_tokens == 2_199_999
