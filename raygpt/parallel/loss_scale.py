"""PURE. The state of fp16's dynamic loss scale (Micikevicius et al., 2018), the same whoever keeps it.

A checkpoint holds {"scale": float, "good_steps": int}: the scale, and how many steps in a row were finite since it last
changed. DeepSpeed forgives an overflow after many good steps, and adds how many more it will: "hysteresis". Checkpoints
from before this form have torch's names or DeepSpeed's, and are read as well.
"""

from __future__ import annotations

from typing import Any

import torch


def read(saved: dict[str, Any]) -> dict[str, Any]:
    """The state in the form above from any that a checkpoint may hold; {} where there was no loss scale."""
    if "good_steps" in saved or not saved:
        return saved
    if "_growth_tracker" in saved:
        return {"scale": float(saved["scale"]), "good_steps": int(saved["_growth_tracker"])}
    out = {"scale": float(saved["cur_scale"])}
    out["good_steps"] = int(saved["cur_iter"]) - int(saved["last_overflow_iter"]) - 1
    return out | ({"hysteresis": int(saved["cur_hysteresis"])} if "cur_hysteresis" in saved else {})


def of_torch(scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """State of a GradScaler, {} where it is switched off."""
    return read(scaler.state_dict())


def to_torch(scaler: torch.amp.GradScaler, saved: dict[str, Any]) -> None:
    """Take up a state, of any form; nothing where either side has none."""
    state = read(saved)
    own = scaler.state_dict()
    if not state or not own:
        return
    # torch doubles the scale when the count equals its interval, so from beyond it never would
    good = min(state["good_steps"], own["growth_interval"] - 1)
    scaler.load_state_dict({**own, "scale": state["scale"], "_growth_tracker": good})


def of_deepspeed(scaler: Any) -> dict[str, Any]:
    """State of DeepSpeed's DynamicLossScaler, {} of a scale that never changes."""
    if not scaler.dynamic:
        return {}
    good = scaler.cur_iter - scaler.last_overflow_iter - 1
    if good > scaler.scale_window:  # it counts on, and looks at the remainder
        good = (good - 1) % scaler.scale_window + 1
    return {"scale": float(scaler.cur_scale), "good_steps": good, "hysteresis": scaler.cur_hysteresis}


def to_deepspeed(scaler: Any, saved: dict[str, Any]) -> None:
    """Take up a state, of any form; nothing where there is none."""
    state = read(saved)
    if not state or not scaler.dynamic:
        return
    scaler.cur_scale = state["scale"]
    scaler.cur_iter, scaler.last_overflow_iter = state["good_steps"], -1
    scaler.cur_hysteresis = state.get("hysteresis", scaler.cur_hysteresis)
