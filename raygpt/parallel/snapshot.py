"""PURE. A copy of the training state taken between two steps, so that writing it need not hold training up."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class SnapshotBuffers:
    """CPU buffers that live as long as the run: the second snapshot costs one copy and no allocation.

    Fresh memory has to be mapped page by page, which takes longer than the copy itself; for a GPU the buffers are
    pinned, so that the copy runs at the bus's speed.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """CPU copies under the same names, complete on return after one wait for the device. The next `take`
        overwrites them, so all that belongs to one snapshot is taken at once."""
        out = {}
        waiting: set[torch.device] = set()
        for name, tensor in tensors.items():
            tensor = tensor.detach()
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._buffers[name] = buffer
            buffer.copy_(tensor, non_blocking=tensor.is_cuda)
            if tensor.is_cuda:
                waiting.add(tensor.device)
            out[name] = buffer
        for device in waiting:
            torch.cuda.current_stream(device).synchronize()
        return out
