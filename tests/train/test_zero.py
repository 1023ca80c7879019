"""DeepSpeed ZeRO on real workers: the losses of DDP, the same resume, any number of workers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raygpt.errors import UserError
from raygpt.settings import load_config
from raygpt.storage import locate
from raygpt.train import checkpoint
from raygpt.train.zero_config import deepspeed_config, merged
from tests.train.running import OPTIONS, letters, run, sequence, zero_settings


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return letters(tmp_path_factory.mktemp("data"))


def test_a_run_goes_from_zero_3_to_zero_1_to_ddp_with_the_losses_of_ddp(
    ray_cluster: object, shards: str, tmp_path: Path
) -> None:
    # no dropout: every rank draws its own, so it differs between worker counts
    fixed = {"model__dropout": "0", "optim__schedule": "constant", "data__backend": "mmap"}
    fixed |= {"train__checkpoint_every": "2", "train__keep_checkpoints": "20"}

    def part(storage: Path, strategy: str, steps: int, workers: int = 2) -> list[dict]:
        changes = {**fixed, "train__max_steps": str(steps), "scale__num_workers": str(workers)}
        return run(zero_settings(shards, storage, strategy, **changes))[1]

    whole = part(tmp_path / "whole", "ddp", 24)
    part(tmp_path, "zero3", 2)
    assert_same_values(tmp_path / "r", tmp_path / "whole" / "r", "step_00000002")
    part(tmp_path, "zero1", 14)
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


def test_overrides_go_into_the_derived_config_key_by_key() -> None:
    common = dict(precision="fp16", micro_batch_size=2, grad_accum_steps=3, grad_clip=1.0)
    config = deepspeed_config(
        strategy="zero3", offload="all", overrides={"zero_optimization": {"sub_group_size": 7}, "x": 1}, **common
    )
    assert config["zero_optimization"]["sub_group_size"] == 7 and config["x"] == 1
    assert config["zero_optimization"]["offload_param"]["device"] == "cpu" and config["fp16"]["enabled"]
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
    with pytest.raises(UserError, match="train_batch_size follows from train.global_batch_tokens"):
        deepspeed_config(strategy="zero1", offload="none", overrides={"train_batch_size": 1}, **common)
    with pytest.raises(UserError, match="stage follows from train.strategy"):
        deepspeed_config(strategy="zero1", offload="none", overrides={"zero_optimization": {"stage": 2}}, **common)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train.offload": "optimizer"}, "train.offload.*needs DeepSpeed: set train.strategy"),
        ({"train.strategy": "zero2", "train.offload": "all"}, "train.offload.*set zero3"),
        ({"train.deepspeed": "{a: 1}"}, "train.deepspeed.*no effect with train.strategy=ddp"),
        ({"train.strategy": "zero1", "train.compile": "true"}, "train.compile.*not supported with DeepSpeed"),
        ({"train.strategy": "zero1", "scale.num_workers": "[1, 2]"}, "scale.num_workers.*must be one number"),
    ],
)
def test_settings_that_cannot_go_together_are_refused(changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_config("pretrain", None, {**OPTIONS, "data.train": "x", **changes}, {})
