"""The loss scale of fp16 goes from DDP to ZeRO and back, and is read from older checkpoints."""

from __future__ import annotations

import torch

from raygpt.parallel import loss_scale


class Deepspeed:
    """The numbers of DeepSpeed 0.19.8's DynamicLossScaler."""

    def __init__(self, scale: float = 2.0**16, iteration: int = 0, last: int = -1) -> None:
        self.cur_scale, self.cur_iter, self.last_overflow_iter = scale, iteration, last
        self.cur_hysteresis, self.scale_window = 2, 1000


def test_a_scale_survives_the_way_from_either_to_the_other() -> None:
    torchs = torch.amp.GradScaler("cpu", init_scale=2.0**9)
    torchs.load_state_dict({**torchs.state_dict(), "_growth_tracker": 7})
    other = Deepspeed()
    loss_scale.to_deepspeed(other, loss_scale.of_torch(torchs))
    assert (other.cur_scale, other.cur_iter - other.last_overflow_iter - 1) == (2.0**9, 7)
    back = torch.amp.GradScaler("cpu")
    loss_scale.to_torch(back, loss_scale.of_deepspeed(other))
    assert back.get_scale() == 2.0**9 and back.state_dict()["_growth_tracker"] == 7


def test_checkpoints_with_torchs_or_deepspeeds_names_are_read_by_both() -> None:
    torchs = torch.amp.GradScaler("cpu", init_scale=2.0**5).state_dict()
    deepspeeds = {"cur_scale": 2.0**5, "cur_iter": 9, "last_overflow_iter": 3, "cur_hysteresis": 1}
    for saved, good in ((torchs, 0), (deepspeeds, 5)):
        ours, theirs = torch.amp.GradScaler("cpu"), Deepspeed()
        loss_scale.to_torch(ours, saved)
        loss_scale.to_deepspeed(theirs, saved)
        assert ours.get_scale() == theirs.cur_scale == 2.0**5
        assert ours.state_dict()["_growth_tracker"] == loss_scale.of_deepspeed(theirs)["good_steps"] == good
