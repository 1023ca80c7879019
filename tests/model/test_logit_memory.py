"""Without gradients the logits of a large batch exist in pieces, whichever way the losses are put together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raygpt.model.gpt import EVALUATION_LOGIT_ROWS, GPT, GPTConfig, Reduction

CONFIG = GPTConfig(vocab_size=500, seq_len=16, n_layer=1, n_head=1, n_embd=8)


class Largest(TorchDispatchMode):
    """Records the elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize(("checkpointing", "loss_tokens"), [(False, 0), (True, 0), (False, 64)])
def test_no_tensor_is_as_large_as_the_logits_of_the_batch(
    reduction: Reduction, checkpointing: bool, loss_tokens: int
) -> None:
    torch.manual_seed(0)
    model = GPT(CONFIG, activation_checkpointing=checkpointing)
    model.loss_tokens = loss_tokens
    rows = torch.randint(0, 500, (2 * EVALUATION_LOGIT_ROWS // CONFIG.seq_len + 3, CONFIG.seq_len + 1))
    targets = rows[:, 1:].clone()
    targets[::7, 5] = -100
    with torch.no_grad(), Largest() as largest:
        got = model(rows[:, :-1], targets, reduction=reduction)
    assert largest.elements == EVALUATION_LOGIT_ROWS * CONFIG.padded_vocab_size, "one piece"
    with torch.no_grad():
        logits = model(rows[:, :-1]).double()
    want = F.cross_entropy(logits.transpose(1, 2), targets, reduction=reduction)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
