"""Every ZeRO stage with and without offload beside DDP, changes of stage and worker count, and a worker lost."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from raygpt.parallel import checkpoint
from raygpt.storage import locate
from tests.train.gloo_pool import GlooPool
from tests.train.running import assert_same_training, kill_a_worker, letters, run, sequence, zero_settings


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return letters(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def ddp(gloo: GlooPool, shards: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return run(zero_settings(shards, tmp_path_factory.mktemp("ddp"), "ddp", data__backend="mmap"), pool=gloo)[1]


@pytest.fixture(scope="module")
def unbroken(gloo: GlooPool, shards: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], list[dict]]:
    """Records of a run that nothing befell, by strategy and offload."""

    @lru_cache
    def records(strategy: str, offload: str) -> list[dict]:
        config = zero_settings(shards, tmp_path_factory.mktemp(strategy), strategy, offload, data__backend="mmap")
        _, rows, text = run(config, pool=gloo)
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


def test_a_run_goes_through_stages_and_from_2_to_1_to_2_to_1_workers_with_the_losses_of_ddp(
    gloo: GlooPool, shards: str, tmp_path: Path
) -> None:
    # no dropout: every rank draws its own, so it differs between worker counts
    fixed = {"model__dropout": "0", "optim__schedule": "constant", "data__backend": "mmap"}
    fixed |= {"train__checkpoint_every": "2", "train__keep_checkpoints": "20"}

    def part(storage: Path, strategy: str, steps: int, workers: int = 2) -> list[dict]:
        changes = {**fixed, "train__max_steps": str(steps), "scale__num_workers": str(workers)}
        return run(zero_settings(shards, storage, strategy, **changes), pool=gloo)[1]

    whole = part(tmp_path / "whole", "ddp", 24)
    part(tmp_path, "zero3", 2)
    assert_same_values(tmp_path / "r", tmp_path / "whole" / "r", "step_00000002")
    part(tmp_path, "zero1", 10, workers=1)
    part(tmp_path, "zero2", 18)
    rows = part(tmp_path, "ddp", 24, workers=1)
    assert len(sequence(rows, "train_loss")) == 24
    assert sequence(rows, "batch_digest") == sequence(whole, "batch_digest")
    losses, expected = sequence(rows, "train_loss"), sequence(whole, "train_loss")
    assert max(abs(losses[step] - expected[step]) for step in expected) < 2e-4  # type: ignore[operator]


def assert_same_values(pieces: Path, ddp: Path, step: str) -> None:
    """The checkpoint that two ranks cut up holds every value of DDP's whole one, once."""
    mine, whole = (checkpoint.open_tensors(locate(run / "checkpoints" / step)) for run in (pieces, ddp))
    assert len(list((pieces / "checkpoints" / step).glob("rank-*.pt"))) == 2
    assert set(mine.names) == set(whole.names)
    for name in whole.names:
        # the gradient of a key's bias is zero but for rounding, which AdamW scales up
        for kind, noise in (("weight", 1e-5), ("exp_avg", 1e-7), ("exp_avg_sq", 1e-9)):
            torch.testing.assert_close(mine.whole(name, kind), whole.whole(name, kind), rtol=1e-3, atol=noise)


@pytest.mark.parametrize(
    ("strategy", "offload"), [("zero3", "all"), pytest.param("zero2", "optimizer", marks=pytest.mark.long)]
)
def test_a_lost_worker_costs_nothing_and_the_losses_repeat(
    ray_cluster: object,
    unbroken: Callable[[str, str], list[dict]],
    shards: str,
    tmp_path: Path,
    strategy: str,
    offload: str,
) -> None:
    """Under Ray Train, on Ray Data, beside the ranks that nothing befell on the memory map."""
    whole = unbroken(strategy, offload)
    config = zero_settings(shards, tmp_path, strategy, offload)
    _, rows, text = run(config, {"step 27/50": kill_a_worker})
    assert "Going on from step 20" in text
    assert_same_training(rows, whole, 1e-6)
