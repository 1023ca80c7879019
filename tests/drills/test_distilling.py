"""Distillation at logit level on real clusters: under ZeRO, from a teacher's stored states, past a lost worker."""

# ruff: noqa: F811 - fixtures of tests/distill are imported by name
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distill.test_runs import alone, folder, settings, train  # noqa: F401
from tests.train.gloo_pool import GlooPool
from tests.train.running import CUT_ALL, assert_same_training, sequence


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_under_zero_it_trains_as_under_ddp(
    gloo: GlooPool, folder: Path, alone: list[dict[str, Any]], tmp_path: Path, strategy: str
) -> None:
    own = {"train__deepspeed": CUT_ALL} if strategy == "zero3" else {}
    config = settings(folder, tmp_path, scale__num_workers="2", train__strategy=strategy, **own)
    rows = train(gloo, config)
    assert_same_training(rows, alone, 1e-4)
    assert sequence(rows, "kd_loss") == pytest.approx(sequence(alone, "kd_loss"), rel=1e-4)
