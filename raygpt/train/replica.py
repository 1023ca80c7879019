"""PURE. A whole model on every worker, ready to train: precision, micro-batch, compiling and rehearsal put together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from raygpt.capacity.micro_batch import LOSS_TOKENS
from raygpt.hardware import prefer_attention
from raygpt.model.architecture import LanguageModel
from raygpt.model.tensorfile import TensorStream
from raygpt.parallel.ddp import DataParallel
from raygpt.parallel.distributed import World
from raygpt.train.objective import Objective
from raygpt.train.optim import make_optimizer
from raygpt.train.precision import Precision
from raygpt.train.step import TrainStep
from raygpt.train.warmup import compile_for_training, find_micro_batch, rehearse

if TYPE_CHECKING:
    from raygpt.parallel.checkpoint import RunState


class Replica:
    """What the loop takes for train.strategy=ddp. Checkpoints are snapshots, stored while training goes on."""

    background = True

    def __init__(
        self,
        model: LanguageModel,
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
        optimizer: str = "adamw",
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
        self.optimizer = make_optimizer(optimizer, self.model, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)
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
        if compile:
            # in place, below DDP: the step must still see DDP to hold gradients back
            blocks = always_wrap or world.size > 1
            compile_for_training(self.model, blocks=blocks, backend=backend, mode=compile_mode)
        self.parallel = DataParallel(self.model, world, self.optimizer, always_wrap=always_wrap)
        wrapped = self.parallel.wrapped
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

    def restore(self, optimizer_state: Iterable[tuple[str, str, Tensor]], state: RunState) -> None:
        """Take up the optimizer's state, one tensor at a time, and the loss scale."""
        self.parallel.restore(optimizer_state, state.optimizer_steps)
        self.precision.load_scaler(state.scaler)

    def tensor_files(self) -> dict[str, TensorStream]:
        return self.parallel.tensor_files()
