"""Workers that do not divide the batch train the same run as one worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.gloo_pool import GlooPool
from tests.train.running import CUT_ALL, assert_same_training, forget_after, letters, records, run, settings

FIXED = {"data__backend": "mmap", "model__dropout": "0", "train__max_steps": "12", "eval__every": "6"}
FIXED |= {"train__checkpoint_every": "4", "train__micro_batch_size": "4", "train__keep_checkpoints": "5"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return letters(tmp_path_factory.mktemp("data"), 6000)


@pytest.fixture(scope="module")
def alone(gloo: GlooPool, data: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return run(settings(data, tmp_path_factory.mktemp("alone"), scale__num_workers="1", **FIXED), pool=gloo)[1]


@pytest.mark.parametrize("strategy", ["ddp"])  # ZeRO: tests/drills/test_strategies.py
def test_three_workers_share_32_rows_and_train_as_one(
    gloo: GlooPool, data: str, alone: list[dict], tmp_path: Path, strategy: str
) -> None:
    """11, 11 and 10 rows in micro-batches of 4: the last one is smaller, and not equally small."""
    own = {"train__deepspeed": CUT_ALL} if strategy == "zero3" else {}
    config = settings(data, tmp_path, scale__num_workers="3", train__strategy=strategy, **FIXED, **own)
    assert_same_training(run(config, pool=gloo)[1], alone, 1e-5)


def test_one_run_on_one_then_three_then_two_workers(
    gloo: GlooPool, data: str, alone: list[dict], tmp_path: Path
) -> None:
    for workers, kept in (("1", 4), ("3", 8), ("2", 12)):
        config = settings(data, tmp_path, scale__num_workers=workers, **FIXED)
        run(config, pool=gloo)
        forget_after(tmp_path / "r", kept)
    assert [row["world_size"] for row in records(config)] == [1] * 4 + [3] * 4 + [2] * 4
    assert_same_training(records(config), alone, 1e-5)
