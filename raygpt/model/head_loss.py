"""PURE. Cross-entropy over the output matrix without ever holding all logits, gradients included.

At 64 rows of 1024 tokens the logits of GPT-2 take 6.6 GB in bf16 and their gradient as much again, written and read
several times. Here a few thousand tokens' logits exist at a time, and what they tell the gradients is taken out of them
at once, so that nothing is computed twice: three matrix products per piece, as many as without pieces. The idea is
Liger's (Hsu et al., 2024, https://github.com/linkedin/Liger-Kernel); written in plain operations, torch.compile fuses
what lies between the products.

Shapes: N tokens, C width, P padded vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100  # a target with this value adds nothing to the loss


def product_dtype(tensor: Tensor) -> torch.dtype:
    """Type in which a matrix product with this tensor is made here: autocast's, or its own."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def chunked_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, vocab_size: int, tokens: int, mean: bool, dtype: torch.dtype
) -> Tensor:
    """Mean or sum of the losses in nats, fp32, of (N, C) hidden states and (N,) int64 targets under (P, C) weights.

    `tokens` at a time; products are made in `dtype`, sums and gradients of `weight` in fp32. Not for fp16: gradients
    are taken before the loss scale could reach them. One backward pass; none of a gradient's own gradient.
    """
    return _ChunkedLoss.apply(hidden, weight, targets, vocab_size, tokens, mean, dtype)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        vocab_size: int,
        tokens: int,
        mean: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        matrix = weight.to(dtype)
        columns = torch.arange(weight.size(0), device=weight.device)
        counted = targets != IGNORE_INDEX
        share = counted.float() / counted.sum() if mean else counted.float()  # what each token's loss weighs
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        weight_grad = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        hidden_grads = []
        for piece, wanted, factor in zip(hidden.split(tokens), targets.split(tokens), share.split(tokens)):
            piece, wanted, factor = piece.to(dtype), wanted[:, None], factor[:, None]
            # in place where nothing is compiled: one fp32 copy of the piece's logits instead of five
            log_probs = (piece @ matrix.t()).float().masked_fill_(columns >= vocab_size, float("-inf"))
            log_probs.sub_(log_probs.logsumexp(1, keepdim=True))
            total = total - (log_probs.gather(1, wanted.clamp(min=0)) * factor).sum()
            # softmax minus one at the target; padding columns have a softmax of zero
            errors = log_probs.exp_().add_(columns == wanted, alpha=-1).mul_(factor).to(dtype)
            hidden_grads.append((errors @ matrix).to(hidden.dtype))
            weight_grad = weight_grad + errors.t() @ piece
        ctx.save_for_backward(torch.cat(hidden_grads), weight_grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.saved_tensors
        hidden_grad = hidden_grad * grads[0].to(hidden_grad.dtype)
        return hidden_grad, weight_grad * grads[0], None, None, None, None, None
