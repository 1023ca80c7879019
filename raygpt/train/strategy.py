"""How the workers share a model: DDP or DeepSpeed ZeRO behind one face, the same for the loop and for checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from raygpt import hardware
from raygpt.config import Config
from raygpt.model.gpt import GPT, GPTConfig, initial_weights
from raygpt.model.tensorfile import Spec
from raygpt.parallel import checkpoint
from raygpt.parallel.checkpoint import RunState, TensorStream
from raygpt.parallel.ddp import DataParallel
from raygpt.parallel.distributed import World
from raygpt.parallel.lora import Adapters, Recognised, add_adapters, check_base
from raygpt.parallel.pieces import KINDS, CheckpointTensors, Piece, starts_of
from raygpt.parallel.weights import fill_model, open_weights
from raygpt.parallel.zero import ZeroEngine, ZeroStep
from raygpt.parallel.zero_config import deepspeed_config
from raygpt.storage import Location
from raygpt.train.plan import TrainPlan, accumulation, micro_batch_choices, most_local_rows
from raygpt.train.step import StepFunction
from raygpt.train.warmup import CPU_MICRO_BATCH_TOKENS


class Strategy(Protocol):
    """A model ready to train. `background`: what `tensor_files` returns are copies, which may be stored later."""

    @property
    def model(self) -> GPT: ...

    @property
    def step(self) -> StepFunction: ...

    @property
    def micro_batch_size(self) -> int: ...

    @property
    def autocast(self) -> Callable[[], AbstractContextManager]: ...

    @property
    def background(self) -> bool: ...

    def restore(self, tensors: CheckpointTensors, state: RunState) -> None:
        """Take up the rest of a checkpoint: the optimizer and the loss scale."""

    def tensor_files(self) -> dict[str, TensorStream]:
        """This rank's files of a checkpoint by name."""


def build(
    config: Config,
    model_config: GPTConfig,
    world: World,
    plan: TrainPlan,
    found: Location | None,
    state: RunState,
    planned_rows: int | None = None,
) -> tuple[Strategy, str]:
    """(model under train.strategy, sentence about its precision), with the weights of checkpoint `found` or fresh ones.

    Raises UserError for a precision or micro-batch that the device cannot do.
    """
    precision, reason = hardware.choose_precision(config.train.precision, world.device)
    attention = hardware.prefer_attention(world.device)
    previous = state.micro_batch_size if found is not None and state.world_size == world.size else None
    tensors = checkpoint.open_tensors(found) if found is not None else None
    strategy: Strategy
    if config.train.strategy == "ddp":
        model = _whole_model(config, model_config, tensors, state)
        strategy = DataParallel(
            model,
            world,
            precision=precision,
            micro_batch_size=config.train.micro_batch_size,
            local_rows=most_local_rows(plan.order.global_batch_rows, world.size),
            global_rows=plan.order.global_batch_rows,
            seq_len=plan.order.seq_len,
            lr=config.optim.lr,
            weight_decay=config.optim.weight_decay,
            betas=config.optim.betas,
            eps=config.optim.eps,
            grad_clip=config.optim.grad_clip,
            previous=previous,
            compile=config.train.compile,
        )
    else:
        weights = fresh_weights(config, model_config) if tensors is None else None
        rows = previous or (planned_rows if world.device.type == "cuda" else None)
        strategy = Zero(model_config, weights, config, world, plan, precision, rows)
    if tensors is not None:
        strategy.restore(tensors, state)
    return strategy, f"{precision} ({reason})" + (f"; {attention}" if world.device.type == "cuda" else "")


def fresh_weights(config: Config, model_config: GPTConfig) -> Iterator[tuple[str, Tensor]]:
    """(name, value) of every parameter at step 0: those of model.init_from, or random ones from run.seed."""
    if config.model.init_from != "random":
        return open_weights(config.model.init_from, seq_len=model_config.seq_len).items()
    torch.manual_seed(config.run.seed)
    return initial_weights(model_config)


def _whole_model(config: Config, model_config: GPTConfig, tensors: CheckpointTensors | None, state: RunState) -> GPT:
    """The model on the CPU with its weights, and with adapters where model.lora_rank asks for them."""
    model = GPT(model_config, config.train.activation_checkpointing, initialise=False)
    rank = config.model.lora_rank
    if not rank:
        fill_model(model, tensors.items() if tensors is not None else fresh_weights(config, model_config))
        return model
    base = Recognised(fresh_weights(config, model_config))
    fill_model(model, iter(base))
    alpha = config.model.lora_alpha or 2.0 * rank
    adapters = Adapters(config.model.init_from, rank, alpha, config.model.lora_dropout, base.digest)
    if state.adapters:
        check_base(Adapters(**state.adapters), base.digest)
    torch.manual_seed(config.run.seed)
    add_adapters(model, adapters)
    state.adapters = adapters.to_dict()
    if tensors is not None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(tensors.whole(name))
    return model


class Zero:
    """A model under DeepSpeed ZeRO. Checkpoints are written from where the state lies: training waits, memory does not
    grow."""

    background = False

    def __init__(
        self,
        model_config: GPTConfig,
        weights: Iterable[tuple[str, Tensor]] | None,
        config: Config,
        world: World,
        plan: TrainPlan,
        precision: str,
        previous: int | None,
    ) -> None:
        """Without `weights` they are undefined until `restore`."""
        self.world = world
        rows = plan.order.global_batch_rows
        most = most_local_rows(rows, world.size)
        self.micro_batch_size = _micro_batch(config.train.micro_batch_size, most, plan, world, previous)
        torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
        self.engine = ZeroEngine(
            model_config,
            world.device,
            deepspeed_config(
                strategy=config.train.strategy,
                offload=config.train.offload,
                precision=precision,
                micro_batch_size=self.micro_batch_size,
                grad_accum_steps=accumulation(rows, world.size, self.micro_batch_size),
                grad_clip=config.optim.grad_clip,
                pin_memory=world.device.type == "cuda",
                overrides=config.train.deepspeed,
            ),
            precision=precision,
            activation_checkpointing=config.train.activation_checkpointing,
            lr=config.optim.lr,
            weight_decay=config.optim.weight_decay,
            betas=config.optim.betas,
            eps=config.optim.eps,
        )
        if weights is not None:
            self.engine.fill(weights)
        self.model = self.engine.model
        self.step = ZeroStep(self.engine, self.micro_batch_size, global_rows=rows)
        self.autocast: Callable[[], AbstractContextManager] = (
            nullcontext  # the weights are in half precision themselves
        )

    def restore(self, tensors: CheckpointTensors, state: RunState) -> None:
        """Every rank reads its own part, whoever wrote it."""
        self.engine.restore(tensors.read, state.optimizer_steps, state.scaler)

    def tensor_files(self) -> dict[str, TensorStream]:
        """One file with this rank's pieces, read out while it is written."""
        pieces = self.engine.pieces()
        specs = [
            Spec(f"{piece.name}.{kind}", torch.float32, (piece.stop - piece.start,))
            for piece in pieces
            for kind in KINDS
        ]
        stream = TensorStream(specs, lambda: _values(pieces), starts_of(pieces))
        return {f"zero-{self.world.rank:05d}.safetensors": stream}


def _values(pieces: list[Piece]) -> Iterator[Tensor]:
    for piece in pieces:
        for kind in KINDS:
            yield piece.values[kind]


def _micro_batch(wanted: int | str, local_rows: int, plan: TrainPlan, world: World, previous: int | None) -> int:
    if isinstance(wanted, int):
        return wanted
    if previous is not None and previous in micro_batch_choices(local_rows, local_rows):
        return previous
    limit = max(1, CPU_MICRO_BATCH_TOKENS // plan.order.seq_len)
    return micro_batch_choices(local_rows, limit if world.device.type == "cpu" else 4)[0]
