"""PURE. Every worker holds the whole model; gradients are averaged. The strategy for models that fit one device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from raygpt.hardware import prefer_attention
from raygpt.model.gpt import GPT
from raygpt.model.tensorfile import TensorStream
from raygpt.parallel.distributed import World, parallel
from raygpt.parallel.snapshot import SnapshotBuffers
from raygpt.train.objective import Objective
from raygpt.train.optim import load_optimizer_tensors, make_adamw, optimizer_tensors
from raygpt.train.precision import Precision
from raygpt.train.step import TrainStep
from raygpt.train.warmup import compile_for_training, find_micro_batch, rehearse

if TYPE_CHECKING:
    from raygpt.parallel.checkpoint import RunState

# Tokens whose logits exist at a time on a GPU (head_loss.py): 8192 of GPT-2's take 0.8 GB in bf16, and adding up the
# output matrix's gradient over 8 such pieces moves 4 GB, some 1 % of what a step of 64 rows moves.
LOSS_TOKENS = 8192


class Moments(Protocol):
    """What is needed of `raygpt.parallel.pieces.CheckpointTensors`."""

    @property
    def names(self) -> list[str]: ...

    def whole(self, name: str, kind: str = "weight") -> Tensor: ...


class DataParallel:
    """A model under DDP, or alone. Checkpoints are snapshots, stored while training goes on."""

    background = True

    def __init__(
        self,
        model: GPT,
        world: World,
        *,
        precision: str,
        micro_batch_size: int | str,
        local_rows: int,
        seq_len: int,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
        grad_clip: float = 0.0,
        previous: int | None = None,
        compile: bool = False,
        backend: str = "inductor",
        compile_mode: str | None = None,
        loss_tokens: int | None = None,
        attention: str = "auto",
        always_wrap: bool = False,
        global_rows: int | None = None,
        objective: Objective | None = None,
    ) -> None:
        """`local_rows` of `seq_len` tokens are the most that any worker has of a batch of `global_rows`; `previous` is
        the micro-batch of the checkpoint. `loss_tokens`: see LOSS_TOKENS, which is the default on a GPU; a CPU takes
        all at once. `attention` is the kernel to prefer. A worker alone goes without DDP unless `always_wrap`."""
        self.model = model.to(world.device)
        self.world = world
        self.optimizer = make_adamw(self.model, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)
        self.precision = Precision(precision, world.device)
        self.autocast = self.precision.autocast
        self.attention = prefer_attention(world.device, attention)
        on_gpu = world.device.type == "cuda"
        self.model.loss_tokens = (LOSS_TOKENS if on_gpu else 0) if loss_tokens is None else loss_tokens
        self.micro_batch_size = find_micro_batch(
            self.model,
            self.precision,
            world,
            micro_batch_size,
            local_rows=local_rows,
            seq_len=seq_len,
            previous=previous,
        )
        wraps = always_wrap or world.size > 1
        if compile:
            # in place, below DDP: the step must still see DDP to hold gradients back
            compile_for_training(self.model, blocks=wraps, backend=backend, mode=compile_mode)
        wrapped = parallel(self.model, world, always=always_wrap)
        rehearse(wrapped, self.precision, world, self.micro_batch_size, seq_len)
        self.step = TrainStep(
            wrapped,
            self.optimizer,
            self.precision,
            micro_batch_size=self.micro_batch_size,
            grad_clip=grad_clip,
            objective=objective,
            global_rows=global_rows,
        )
        self._buffers = SnapshotBuffers()

    def restore(self, tensors: Moments, state: RunState) -> None:
        """Take up AdamW's moments and the loss scale; the weights were there when the model was wrapped."""
        kinds = ("exp_avg", "exp_avg_sq")
        moments = {f"{name}.{kind}": tensors.whole(name, kind) for name in tensors.names for kind in kinds}
        moments |= {f"{name}.step": torch.tensor(float(state.optimizer_steps)) for name in tensors.names}
        load_optimizer_tensors(self.optimizer, moments)
        if state.scaler:
            self.precision.scaler.load_state_dict(state.scaler)

    def tensor_files(self) -> dict[str, TensorStream]:
        """Copies of weights and moments: rank 0 has them all."""
        if self.world.rank != 0:
            return {}
        weights = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        copies = self._buffers.take(weights | optimizer_tensors(self.optimizer, counters=False))
        return {
            "model.safetensors": TensorStream.of({name: copies[name] for name in copies if name in weights}),
            "optimizer.safetensors": TensorStream.of({name: copies[name] for name in copies if name not in weights}),
        }
