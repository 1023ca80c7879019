"""PURE. Every worker holds the whole model; gradients are averaged. The strategy for models that fit one device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from raygpt.model.architecture import LanguageModel
from raygpt.model.tensorfile import TensorStream
from raygpt.parallel.distributed import World, parallel
from raygpt.parallel.optimizer_state import load_state, optimizer_tensors
from raygpt.parallel.shares import file_of, share_out
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
        """Copies of this rank's share of the trained weights and the optimizer's state: every rank has them all."""
        weights = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        tensors = weights | optimizer_tensors(self.optimizer, counters=False)
        sizes = {name: value.numel() * value.element_size() for name, value in tensors.items()}
        mine = set(share_out(sizes, self.world.size)[self.world.rank])
        copies = self._buffers.take({name: value for name, value in tensors.items() if name in mine})
        files = {
            "model": {name: copies[name] for name in copies if name in weights},
            "optimizer": {name: copies[name] for name in copies if name not in weights},
        }
        return {
            file_of(kind, self.world.rank, self.world.size): TensorStream.of(share)
            for kind, share in files.items()
            if share
        }
