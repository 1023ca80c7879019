"""The loss scale of fp16 goes from DDP to ZeRO and back, and is read from older checkpoints."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from raygpt.parallel import loss_scale


@pytest.fixture(scope="module")
def scalers() -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return pytest.importorskip("deepspeed.runtime.fp16.loss_scaler")


def deepspeeds(scalers: Any) -> Any:
    return scalers.DynamicLossScaler(2.0**16, 1000, 1.0, 2, False)


def test_a_scale_that_never_changes_has_no_state(scalers: Any) -> None:
    fixed = scalers.LossScaler(scale=128.0)
    assert loss_scale.of_deepspeed(fixed) == {}
    loss_scale.to_deepspeed(fixed, {"scale": 4.0, "good_steps": 1})
    assert fixed.cur_scale == 128.0


def test_a_scale_survives_the_way_from_either_to_the_other(scalers: Any) -> None:
    torchs = torch.amp.GradScaler("cpu", init_scale=2.0**9)
    torchs.load_state_dict({**torchs.state_dict(), "_growth_tracker": 7})
    other = deepspeeds(scalers)
    loss_scale.to_deepspeed(other, loss_scale.of_torch(torchs))
    assert (other.cur_scale, other.cur_iter - other.last_overflow_iter - 1) == (2.0**9, 7)
    back = torch.amp.GradScaler("cpu")
    loss_scale.to_torch(back, loss_scale.of_deepspeed(other))
    assert back.get_scale() == 2.0**9 and back.state_dict()["_growth_tracker"] == 7


def test_checkpoints_with_torchs_or_deepspeeds_names_are_read_by_both(scalers: Any) -> None:
    torchs = torch.amp.GradScaler("cpu", init_scale=2.0**5).state_dict()
    theirs_before = {"cur_scale": 2.0**5, "cur_iter": 9, "last_overflow_iter": 3, "cur_hysteresis": 1}
    for saved, good in ((torchs, 0), (theirs_before, 5)):
        ours, theirs = torch.amp.GradScaler("cpu"), deepspeeds(scalers)
        loss_scale.to_torch(ours, saved)
        loss_scale.to_deepspeed(theirs, saved)
        assert ours.get_scale() == theirs.cur_scale == 2.0**5
        assert ours.state_dict()["_growth_tracker"] == loss_scale.of_deepspeed(theirs)["good_steps"] == good
