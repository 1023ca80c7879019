"""PURE. Every worker holds the whole model; gradients are averaged. The strategy for models that fit one device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from raygpt.model.architecture import LanguageModel
from raygpt.model.tensorfile import TensorStream
from raygpt.parallel.distributed import World, parallel
from raygpt.parallel.optimizer_state import load_state, optimizer_tensors
from raygpt.parallel.snapshot import SnapshotBuffers


class DataParallel:
    """A model under DDP (`wrapped`), or alone, with its state out to a checkpoint and in again."""

    def __init__(
        self, model: LanguageModel, world: World, optimizer: torch.optim.Optimizer, *, always_wrap: bool = False
    ) -> None:
        """The model is on its device and ready, compiled where it is to be. A worker alone goes without DDP unless
        `always_wrap`."""
        self.model = model
        self.world = world
        self.optimizer = optimizer
        self.wrapped = parallel(model, world, always=always_wrap)
        self._buffers = SnapshotBuffers()

    def restore(self, state: Iterable[tuple[str, str, Tensor]], steps: int) -> None:
        """Take up the optimizer's state, (parameter, kind, value) by (parameter, kind, value), and that it has made
        `steps` updates; the weights were there when the model was wrapped."""
        load_state(self.optimizer, state, steps)

    def tensor_files(self) -> dict[str, TensorStream]:
        """Copies of the trained weights and the optimizer's state: rank 0 has them all."""
        if self.world.rank != 0:
            return {}
        weights = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        copies = self._buffers.take(weights | optimizer_tensors(self.optimizer, counters=False))
        return {
            "model.safetensors": TensorStream.of({name: copies[name] for name in copies if name in weights}),
            "optimizer.safetensors": TensorStream.of({name: copies[name] for name in copies if name not in weights}),
        }
