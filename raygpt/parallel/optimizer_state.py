"""PURE. What an optimizer remembers, as named tensors: {parameter: {kind: tensor}} with whatever kinds it has.

The kind `step` counts updates. It is one number for all parameters, so checkpoints keep it in state.json alone, and it
is put back the way the kernel wants it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

STEP = "step"


def set_lr(optimizer: Any, lr: float) -> None:
    """`lr` times the group's own `scale`, where it has one, for every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)


def named_parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    """(name, parameter, group) by the names that groups keep beside their parameters."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            yield name, parameter, group


def optimizer_tensors(optimizer: torch.optim.Optimizer, *, counters: bool = True) -> dict[str, Tensor]:
    """State as flat named tensors `<parameter>.<kind>`: independent of parameter order, fit for safetensors.

    Without `counters` the step counts are left out: all are equal, and on a GPU each is a transfer of four bytes.
    """
    out = {}
    for name, parameter, _ in named_parameters(optimizer):
        for kind, value in optimizer.state.get(parameter, {}).items():
            if kind != STEP or counters:
                out[f"{name}.{kind}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return out


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`. Raises KeyError when a parameter has no state in `tensors`."""
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, kind = key.rpartition(".")
        state.setdefault(name, {})[kind] = value
    for name, parameter, _ in named_parameters(optimizer):
        optimizer.state[parameter] = {
            # step counters stay fp32 on their own device, as the fused kernel wants them
            kind: value.to(parameter.device) if kind == STEP else value.to(parameter.device, parameter.dtype)
            for kind, value in state[name].items()
        }


def load_state(optimizer: torch.optim.Optimizer, items: Iterable[tuple[str, str, Tensor]], steps: int) -> None:
    """Take up state that comes one tensor at a time, (parameter, kind, value), and that `steps` updates were made.

    Of two copies of a value there is only the one on its way. Raises KeyError for a parameter that is not
    trained, and for trained ones that no state came of.
    """
    trained = {name: (parameter, group) for name, parameter, group in named_parameters(optimizer)}
    for name, kind, value in items:
        parameter, group = trained[name]
        state = optimizer.state[parameter]
        if not state:
            state[STEP] = counter(group, parameter, steps)
        # a CPU's `to` keeps the very tensor, which nobody else holds
        state[kind] = value.to(parameter.device, parameter.dtype)
    if steps and (bare := [name for name, (parameter, _) in trained.items() if not optimizer.state.get(parameter)]):
        raise KeyError(f"no optimizer state of {', '.join(bare[:3])} after {steps} steps")


def counter(group: dict[str, Any], parameter: Tensor, steps: int) -> Tensor:
    """`steps` as torch's optimizers count: beside the values for a fused kernel, on the CPU otherwise."""
    beside = group.get("fused") or group.get("capturable")
    return torch.tensor(float(steps), dtype=torch.float32, device=parameter.device if beside else "cpu")
