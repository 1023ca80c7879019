"""PURE. GPT-2's parameter groups: matrices decay, biases and norms do not."""

from __future__ import annotations

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
