"""What tests/train shows under one strategy, under the others as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train import test_diverging, test_hellaswag, test_toy_optimizer, test_uneven
from tests.train.gloo_pool import GlooPool
from tests.train.test_uneven import alone, data  # noqa: F401 - fixtures


@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_a_foreign_optimizer_resumes_bit_for_bit(
    gloo: GlooPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    test_toy_optimizer.test_it_trains_and_resumes_bit_for_bit(gloo, tmp_path, monkeypatch, strategy)


@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_three_workers_share_32_rows(
    gloo: GlooPool,
    strategy: str,
    data: str,  # noqa: F811
    alone: list[dict],  # noqa: F811
    tmp_path: Path,
) -> None:
    test_uneven.test_three_workers_share_32_rows_and_train_as_one(gloo, data, alone, tmp_path, strategy)


def test_a_step_that_was_far_too_long_is_skipped(gloo: GlooPool, tmp_path: Path) -> None:
    test_diverging.test_steps_after_one_that_was_far_too_long_are_skipped_and_end_the_run(gloo, tmp_path, "zero3")


def test_hellaswag_under_zero_3_takes_all_ranks(
    gloo: GlooPool,
    data: str,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    test_hellaswag.test_training_logs_what_evaluate_says_of_its_checkpoint(gloo, data, tmp_path, capsys, "zero3")
