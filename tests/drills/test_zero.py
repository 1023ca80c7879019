"""Every ZeRO stage with and without offload beside DDP, and a worker lost in the middle."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

from tests.train.running import assert_same_training, kill_a_worker, letters, run, sequence, zero_settings


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return letters(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def ddp(ray_cluster: object, shards: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return run(zero_settings(shards, tmp_path_factory.mktemp("ddp"), "ddp"))[1]


@pytest.fixture(scope="module")
def unbroken(
    ray_cluster: object, shards: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], list[dict]]:
    """Records of a run that nothing befell, by strategy and offload."""

    @lru_cache
    def records(strategy: str, offload: str) -> list[dict]:
        _, rows, text = run(zero_settings(shards, tmp_path_factory.mktemp(strategy), strategy, offload))
        assert len(sequence(rows, "train_loss")) == 50 and "Finished 50 steps" in text
        return rows

    return records


@pytest.mark.parametrize(
    ("strategy", "offload"),
    [
        ("zero1", "none"),
        ("zero1", "optimizer"),
        ("zero2", "none"),
        ("zero2", "optimizer"),
        ("zero3", "none"),
        ("zero3", "optimizer"),
        ("zero3", "all"),
    ],
)
def test_losses_are_those_of_ddp_for_50_steps(
    ddp: list[dict], unbroken: Callable[[str, str], list[dict]], strategy: str, offload: str
) -> None:
    assert_same_training(unbroken(strategy, offload), ddp, 2e-4)


@pytest.mark.parametrize(
    ("strategy", "offload"), [("zero3", "all"), pytest.param("zero2", "optimizer", marks=pytest.mark.long)]
)
def test_a_lost_worker_costs_nothing_and_the_losses_repeat(
    unbroken: Callable[[str, str], list[dict]], shards: str, tmp_path: Path, strategy: str, offload: str
) -> None:
    whole = unbroken(strategy, offload)
    config = zero_settings(shards, tmp_path, strategy, offload)
    _, rows, text = run(config, {"step 27/50": kill_a_worker})
    assert "Going on from step 20" in text
    assert_same_training(rows, whole, 1e-6)
