"""How the workers share a model: DDP or DeepSpeed ZeRO behind one face, the same for the loop and for checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from raygpt import hardware
from raygpt.capacity.micro_batch import Found, accumulation, most_local_rows, untried_rows
from raygpt.config import Model, Optim, Train
from raygpt.model import registry
from raygpt.model.architecture import LanguageModel, ModelConfig
from raygpt.model.tensorfile import TensorStream
from raygpt.parallel import checkpoint
from raygpt.parallel.checkpoint import RunState
from raygpt.parallel.distributed import World
from raygpt.parallel.loading import once_per_node
from raygpt.parallel.lora import Adapters, Recognised, add_adapters, check_base
from raygpt.parallel.pieces import CheckpointTensors, piece_stream
from raygpt.parallel.weights import fill_model, open_weights
from raygpt.parallel.zero import ZeroEngine
from raygpt.parallel.zero_config import deepspeed_config
from raygpt.storage import Location
from raygpt.train.optim import check_name, make_optimizer
from raygpt.train.plan import TrainPlan
from raygpt.train.replica import Replica
from raygpt.train.step import StepFunction
from raygpt.train.zero_step import ZeroStep


@dataclass(frozen=True)
class Recipe:
    """The sections of the settings that a model in training is made from; `seed` is that of its weights."""

    model: Model
    optim: Optim
    train: Train
    seed: int


class Strategy(Protocol):
    """A model ready to train. `background`: what `tensor_files` returns are copies, which may be stored later."""

    @property
    def model(self) -> LanguageModel: ...

    @property
    def step(self) -> StepFunction: ...

    @property
    def micro_batch_size(self) -> int: ...

    @property
    def autocast(self) -> Callable[[], AbstractContextManager]: ...

    @property
    def background(self) -> bool: ...

    def tensor_files(self) -> dict[str, TensorStream]:
        """This rank's files of a checkpoint by name."""


def build(
    recipe: Recipe,
    model_config: ModelConfig,
    world: World,
    plan: TrainPlan,
    found: Location | None,
    state: RunState,
    planned_rows: int | None = None,
) -> tuple[Strategy, str]:
    """(model under train.strategy, sentence about its precision), with the weights of checkpoint `found` or fresh ones.

    Raises UserError for a precision or micro-batch that the device cannot do.
    """
    check_name(recipe.optim.name, recipe.train.strategy)
    precision, reason = hardware.choose_precision(recipe.train.precision, world.device)
    attention = hardware.prefer_attention(world.device)
    same = found is not None and state.world_size == world.size
    earlier = Found(state.micro_batch_size, state.device_memory) if same else None
    strategy: Strategy
    if recipe.train.strategy == "ddp":
        model = _whole_model(recipe, model_config, world, found, state)
        strategy = replica = Replica(
            model,
            world,
            precision=precision,
            micro_batch_size=recipe.train.micro_batch_size,
            local_rows=most_local_rows(plan.order.global_batch_rows, world.size),
            global_rows=plan.order.global_batch_rows,
            seq_len=plan.order.seq_len,
            lr=recipe.optim.lr,
            weight_decay=recipe.optim.weight_decay,
            betas=recipe.optim.betas,
            eps=recipe.optim.eps,
            optimizer=recipe.optim.name,
            grad_clip=recipe.optim.grad_clip,
            previous=earlier.rows if earlier is not None else None,  # tried out again
            compile=recipe.train.compile,
        )
        if found is not None:
            replica.restore(once_per_node(world, lambda: checkpoint.open_tensors(found).state()), state)
    else:
        weights = None
        if found is None:
            reads = recipe.model.init_from != "random"
            fresh = lambda: fresh_weights(recipe, model_config)  # noqa: E731
            weights = once_per_node(world, fresh) if reads else fresh()
        rows = recipe.train.micro_batch_size
        if not isinstance(rows, int):
            rows = untried_rows(
                most_local_rows(plan.order.global_batch_rows, world.size),
                seq_len=plan.order.seq_len,
                memory=device_memory(world),
                planned=planned_rows,
                earlier=earlier,
            )
        strategy = zero = Zero(model_config, weights, recipe, world, plan, precision, rows)
        if found is not None:
            zero.restore(checkpoint.open_tensors(found), state)
    return strategy, f"{precision} ({reason})" + (f"; {attention}" if world.device.type == "cuda" else "")


def fresh_weights(recipe: Recipe, model_config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """(name, value) of every parameter at step 0: those of model.init_from, or random ones from run.seed."""
    if recipe.model.init_from != "random":
        return open_weights(recipe.model.init_from, seq_len=model_config.seq_len).items()
    torch.manual_seed(recipe.seed)
    return registry.of(model_config).initial_weights(model_config)


def _whole_model(
    recipe: Recipe, model_config: ModelConfig, world: World, found: Location | None, state: RunState
) -> LanguageModel:
    """The model with its weights, and with adapters where model.lora_rank asks for them. One rank of a node reads."""

    def fresh() -> Iterator[tuple[str, Tensor]]:
        return fresh_weights(recipe, model_config)

    rank = recipe.model.lora_rank
    if not rank:
        with torch.device("meta"):
            model = registry.of(model_config).build(model_config, recipe.train.activation_checkpointing)
        model.to_empty(device=world.device)  # where it will stay: nothing whole lies in the host's memory
        model.tie()
        weights = fresh if found is None else lambda: checkpoint.open_tensors(found).items()
        reads = found is not None or recipe.model.init_from != "random"
        fill_model(model, once_per_node(world, weights) if reads else fresh())  # type: ignore[arg-type]
        return model
    model = registry.of(model_config).build(model_config, recipe.train.activation_checkpointing)
    base = Recognised(once_per_node(world, fresh))  # type: ignore[arg-type]
    fill_model(model, iter(base))
    alpha = recipe.model.lora_alpha or 2.0 * rank
    adapters = Adapters(recipe.model.init_from, rank, alpha, recipe.model.lora_dropout, base.digest)
    if state.adapters:
        check_base(Adapters(**state.adapters), base.digest)
    torch.manual_seed(recipe.seed)
    add_adapters(model, adapters)
    state.adapters = adapters.to_dict()
    if found is not None:
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        with torch.no_grad():
            for name, value in once_per_node(world, lambda: checkpoint.open_tensors(found).items()):
                trained[name].copy_(value)
    return model


class Zero:
    """A model under DeepSpeed ZeRO. Checkpoints are written from where the state lies: training waits, memory does not
    grow."""

    background = False

    def __init__(
        self,
        model_config: ModelConfig,
        weights: Iterable[tuple[str, Tensor]] | None,
        recipe: Recipe,
        world: World,
        plan: TrainPlan,
        precision: str,
        micro_batch_size: int,
    ) -> None:
        """Without `weights` they are undefined until `restore`."""
        self.world = world
        rows = plan.order.global_batch_rows
        self.micro_batch_size = micro_batch_size
        self.engine = ZeroEngine(
            model_config,
            world.device,
            deepspeed_config(
                strategy=recipe.train.strategy,
                offload=recipe.train.offload,
                precision=precision,
                micro_batch_size=self.micro_batch_size,
                grad_accum_steps=accumulation(rows, world.size, self.micro_batch_size),
                grad_clip=recipe.optim.grad_clip,
                pin_memory=world.device.type == "cuda",
                overrides=recipe.train.deepspeed,
            ),
            partial(
                make_optimizer,
                recipe.optim.name,
                lr=recipe.optim.lr,
                weight_decay=recipe.optim.weight_decay,
                betas=recipe.optim.betas,
                eps=recipe.optim.eps,
            ),
            precision=precision,
            activation_checkpointing=recipe.train.activation_checkpointing,
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
        self.engine.restore(tensors, state.optimizer_steps, state.scaler)

    def tensor_files(self) -> dict[str, TensorStream]:
        """One file with this rank's pieces, read out while it is written."""
        return {f"zero-{self.world.rank:05d}.safetensors": piece_stream(self.engine.pieces())}


def device_memory(world: World) -> int:
    """Bytes of the smallest rank's device, 0 where they compute on CPUs. All ranks call it."""
    if world.device.type != "cuda":
        return 0
    return world.minimum(torch.cuda.get_device_properties(world.device).total_memory)
