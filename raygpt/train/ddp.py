"""Every worker holds the whole model; gradients are averaged. The strategy for models that fit one device."""

from __future__ import annotations

import torch

from raygpt.config import Config
from raygpt.model.gpt import GPT
from raygpt.train import checkpoint
from raygpt.train.checkpoint import TensorStream
from raygpt.train.distributed import World, parallel
from raygpt.train.optim import load_optimizer_tensors, make_adamw, optimizer_tensors
from raygpt.train.pieces import CheckpointTensors
from raygpt.train.plan import TrainPlan
from raygpt.train.precision import Precision
from raygpt.train.snapshot import SnapshotBuffers
from raygpt.train.step import TrainStep
from raygpt.train.warmup import find_micro_batch, rehearse


class DataParallel:
    """A model under DDP, or alone. Checkpoints are snapshots, stored while training goes on."""

    background = True

    def __init__(self, model: GPT, config: Config, world: World, plan: TrainPlan, precision: str, previous: int | None):
        self.model = model.to(world.device)
        self.world = world
        self.optimizer = make_adamw(
            self.model,
            lr=config.optim.lr,
            weight_decay=config.optim.weight_decay,
            betas=config.optim.betas,
            eps=config.optim.eps,
        )
        self.precision = Precision(precision, world.device)
        self.autocast = self.precision.autocast
        if config.train.compile:
            self.model.compile()  # in place, below DDP: the step must still see DDP to hold gradients back
        wrapped = parallel(self.model, world)
        self.micro_batch_size = find_micro_batch(
            self.model,
            self.precision,
            world,
            config.train.micro_batch_size,
            local_rows=plan.order.global_batch_rows // world.size,
            seq_len=plan.order.seq_len,
            previous=previous,
        )
        rehearse(wrapped, self.precision, world, self.micro_batch_size, plan.order.seq_len)
        self.step = TrainStep(
            wrapped,
            self.optimizer,
            self.precision,
            micro_batch_size=self.micro_batch_size,
            grad_clip=config.optim.grad_clip,
        )
        self._buffers = SnapshotBuffers()

    def restore(self, tensors: CheckpointTensors, state: checkpoint.RunState) -> None:
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
        trained = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        return {
            "model.safetensors": TensorStream.of(self._buffers.take(trained, "weight")),
            "optimizer.safetensors": TensorStream.of(self._buffers.take(optimizer_tensors(self.optimizer), "moment")),
        }
