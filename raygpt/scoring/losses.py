"""PURE. What every token of rows of tokens costs a model: the one place where a model is run over data for its loss."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from raygpt.hardware import to_device

Row = TypeVar("Row")


def token_losses(
    model: nn.Module,
    blocks: Iterable[np.ndarray],
    device: torch.device | str,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> Generator[tuple[np.ndarray, Tensor]]:
    """(block, losses) of every block in turn: (N, T + 1) int64 tokens, and the (N, T) float32 nats on the device that
    each of a row's tokens but the first costs, given those before it.

    A token IGNORE_INDEX, which stands after a row's end, costs 0, and neither it nor other rows change what the rest
    costs. The model is in eval mode until the last block: close this where you may stop earlier.
    """
    device = torch.device(device)
    with evaluating(model):
        for block in blocks:
            rows = to_device(block, device)
            with torch.no_grad(), uncompiled(), autocast():
                # what stands in for inputs after the end is any valid id: nothing looks back at it
                losses = model(rows[:, :-1].clamp(min=0), rows[:, 1:].contiguous(), reduction="none")
            yield block, losses.float()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model is in eval mode meanwhile."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def uncompiled() -> AbstractContextManager:
    """Inside, compiled modules run as they were written.

    An evaluation has other shapes than training, a ragged last batch among them, and no gradients: each would be
    compiled anew, for longer than most evaluations take.
    """
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):  # nothing is; before torch 2.6
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def batches(rows: Sequence[Row], length: Callable[[Row], int], batch_tokens: int) -> list[list[Row]]:
    """Rows in batches of at most `batch_tokens` padded tokens (one row at least), the longest first in each."""
    made: list[list[Row]] = []
    longest = 0
    for row in sorted(rows, key=length, reverse=True):
        if not made or (len(made[-1]) + 1) * longest > batch_tokens:
            made.append([])
            longest = length(row)
        made[-1].append(row)
    return made
