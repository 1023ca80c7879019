"""PURE. DeepSpeed's configuration, derived from raygpt's: printed with --print_deepspeed, open to train.deepspeed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raygpt.errors import UserError

STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
# Elements that are reduced, gathered or prefetched at a time: 100 MB in half precision, enough to fill a network and
# little beside the smallest GPU.
BUCKET = 50_000_000
# Elements of one optimizer sub-group; its gradients are zeroed and copied together.
SUB_GROUP = 200_000_000
# Gathered weights of ZeRO-3 that may be alive at a time, and how soon one must be used again to stay.
LIVE_PARAMETERS = 300_000_000
# Settings that raygpt's own arithmetic rests on: other values would change the batch, the schedule or the resume.
OURS = {
    "train_batch_size": "train.global_batch_tokens",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_tokens",
    "optimizer": "optim.*",
    "scheduler": "optim.schedule",
    "gradient_clipping": "optim.grad_clip",
}


def deepspeed_config(
    *,
    strategy: str,
    offload: str,
    precision: str,
    micro_batch_size: int | str,
    grad_accum_steps: int | str,
    grad_clip: float,
    pin_memory: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The JSON DeepSpeed starts from, as a dict. `overrides` are merged into it key by key, at any depth.

    The loss scale of fp16 starts at 2^16 and doubles after 1,000 good steps, as in Micikevicius et al. (2018). Raises
    UserError for an override of what belongs to another setting.
    """
    stage = STAGES[strategy]
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": False,  # on one stream sums are added in one order: a resumed run repeats an unbroken one
        "contiguous_gradients": True,
        "reduce_bucket_size": BUCKET,
        "round_robin_gradients": False,
    }
    if stage < 3:
        zero["allgather_bucket_size"] = BUCKET
    else:
        zero |= {
            "sub_group_size": SUB_GROUP,
            "stage3_prefetch_bucket_size": BUCKET,
            "stage3_max_live_parameters": LIVE_PARAMETERS,
            "stage3_max_reuse_distance": LIVE_PARAMETERS,
            "stage3_param_persistence_threshold": 100_000,
        }
    if offload in ("optimizer", "all"):
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pin_memory}
    if offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": pin_memory}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": grad_accum_steps,
        "gradient_clipping": grad_clip,
        "zero_optimization": zero,
        # torch's fused AdamW serves on the CPU and on GPUs, and needs no compiler
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
    }
    if precision in ("fp16", "bf16"):
        # Gradients leave the model in half precision; from there on they are added in fp32, over micro-batches and over
        # ranks. In bf16 the sum of 32 micro-batches was off by 0.6 % of its length.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
    if precision == "fp16":
        config["fp16"] = {
            "enabled": True,
            "loss_scale": 0,
            "initial_scale_power": 16,
            "loss_scale_window": 1000,
            "hysteresis": 2,
            "min_loss_scale": 1,
        }
    elif precision == "bf16":
        config["bf16"] = {"enabled": True}
    elif precision == "auto":  # printed before a device is known
        config |= {"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}}
    overrides = overrides or {}
    taken = [f"train.deepspeed: {key} follows from {OURS[key]}: set that instead." for key in overrides if key in OURS]
    if (overrides.get("zero_optimization") or {}).get("stage", stage) != stage:
        taken.append("train.deepspeed: zero_optimization.stage follows from train.strategy: set that instead.")
    if taken:
        raise UserError("\n".join(taken))
    return merged(config, overrides)


def merged(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the keys of `overrides` put over it, mappings inside mappings key by key."""
    out = dict(config)
    for key, value in overrides.items():
        below = out.get(key)
        out[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return out
