"""The settings that DeepSpeed ZeRO is started with."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from raygpt.config.settings import load_config
from raygpt.errors import UserError
from raygpt.jobs import find_jobs
from raygpt.parallel.zero_config import deepspeed_config, merged
from tests.train.running import OPTIONS


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
        load_config(find_jobs()["pretrain"], None, {**OPTIONS, "data.train": "x", **changes}, {})


def test_gradients_of_32_micro_batches_are_added_up_in_fp32_whatever_the_stage() -> None:
    """In bf16 their sum was off by 0.6 %."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    cases = ["zero1:none", "zero2:none", "zero3:none", "zero1:optimizer", "zero2:optimizer", "zero3:all"]
    command = [sys.executable, "-m", "tests.train.accumulation", port, *cases]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) == 6 and max(errors.values()) < 1e-3, errors
