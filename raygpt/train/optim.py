"""PURE. AdamW with GPT-2's decay groups: matrices decay, biases and norms do not."""

from __future__ import annotations

import torch
from torch import nn


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two parameter groups by dimension; a tied weight appears once. Names are kept for checkpoints."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = []
    for decay in (True, False):
        chosen = [(name, parameter) for name, parameter in named if (_dimensions(parameter) >= 2) == decay]
        if chosen:
            groups.append(
                {
                    "params": [parameter for _, parameter in chosen],
                    "names": [name for name, _ in chosen],
                    "weight_decay": weight_decay if decay else 0.0,
                }
            )
    return groups


def _dimensions(parameter: nn.Parameter) -> int:
    # a weight of ZeRO-3 is flat and empty outside its layer, and keeps its shape beside it
    return len(getattr(parameter, "ds_shape", parameter.shape))


def make_adamw(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float], eps: float = 1e-8
) -> torch.optim.AdamW:
    """One fused kernel per step (CPU and CUDA): 20-30 % faster steps than the loop on small models."""
    return torch.optim.AdamW(decay_groups(model, weight_decay), lr=lr, betas=betas, eps=eps, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, *, counters: bool = True) -> dict[str, torch.Tensor]:
    """State as flat named tensors `<parameter>.<moment>`: independent of parameter order, fit for safetensors.

    Without `counters` the step counts are left out: all are equal, and on a GPU each is a transfer of four bytes.
    """
    out = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if key == "step" and not counters:
                    continue
                out[f"{name}.{key}"] = value if isinstance(value, torch.Tensor) else torch.tensor(value)
    return out


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Inverse of `optimizer_tensors`. Raises KeyError when a parameter has no state in `tensors`."""
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, _, moment = key.rpartition(".")
        moments.setdefault(name, {})[moment] = value
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            optimizer.state[parameter] = {
                # step counters stay fp32 on their own device, as the fused kernel wants them
                key: value.to(parameter.device) if key == "step" else value.to(parameter.device, parameter.dtype)
                for key, value in moments[name].items()
            }
