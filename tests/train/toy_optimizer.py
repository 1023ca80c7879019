"""An optimizer as somebody would add it: one function. Its state has three kinds, none of them AdamW's."""

from __future__ import annotations

import torch

from raygpt.train.optim import register


class ThreeMeans(torch.optim.Optimizer):
    """Follows the sign of three running means of the gradient, a fast, a slow and a slower one."""

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                update = torch.zeros_like(parameter)
                for kind, weight in (("fast", 0.5), ("slow", 0.1), ("slower", 0.02)):
                    mean = state.setdefault(kind, torch.zeros_like(parameter))
                    update += mean.lerp_(parameter.grad.to(mean.dtype), weight)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.sign(), alpha=-group["lr"])


@register("three_means")
def three_means(groups: list[dict], *, lr: float, betas: tuple[float, float], eps: float) -> ThreeMeans:
    return ThreeMeans(groups, {"lr": lr})
