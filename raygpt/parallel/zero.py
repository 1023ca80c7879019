"""DeepSpeed ZeRO under the same contract as DDP: one step function, and a state that any worker count can take up.

DeepSpeed's own checkpoints are pickles bound to one number of workers, and loading them needs the state twice over.
Here every rank's part is written under the names of the parameters (see pieces.py) and read back in place.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from raygpt.errors import UserError
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.parallel.pieces import KINDS, Piece
from raygpt.train.objective import Batch, LanguageModelling, Objective, as_batch, divisor, rows_of, split
from raygpt.train.optim import decay_groups
from raygpt.train.step import StepResult, all_finite

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, quiet, on the accelerator of `device`, in the process group that exists. UserError without it."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*(all_gather|reduce_scatter).*")
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(
            "train.strategy=zero… needs DeepSpeed, which is not installed here: pip install 'raygpt[zero]', or set "
            "train.strategy=ddp."
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type == "cpu":
        # a shared-memory collective that would be compiled for a minute on first use; gloo serves as well
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False
    )
    return deepspeed


class ZeroEngine:
    """A model whose optimizer state (1), gradients (2) and weights (3) are shared out over the ranks.

    `config` is what `zero_config.deepspeed_config` derives. The weights are undefined until `fill` or `restore`.
    """

    def __init__(
        self,
        model_config: GPTConfig,
        device: torch.device,
        config: dict[str, Any],
        *,
        precision: str,
        activation_checkpointing: bool,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        deepspeed = import_deepspeed(device)
        self.precision_name = precision
        self.stage = config["zero_optimization"]["stage"]
        if precision == "fp16" and device.type == "cpu" and not deepspeed.get_accelerator().is_fp16_supported():
            raise UserError("train.precision=fp16 is not supported by DeepSpeed on this CPU: use bf16 or fp32.")
        model = self._empty_model(deepspeed, model_config, device, config, activation_checkpointing)
        # the parameter groups and the arithmetic are DDP's own
        optimizer = torch.optim.AdamW(decay_groups(model, weight_decay), lr=lr, betas=betas, eps=eps, fused=True)
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        self.model: GPT = self.engine.module
        self.optimizer = self.engine.optimizer
        self._states: dict[int, dict[str, Tensor]] = {}
        for flat in self._flat_masters():
            state = {kind: torch.zeros_like(flat, requires_grad=False) for kind in KINDS[1:]}
            # the fused kernel wants the counter beside the values
            state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
            self.optimizer.optimizer.state[flat] = state

    def _empty_model(
        self, deepspeed: Any, model_config: GPTConfig, device: torch.device, config: dict[str, Any], checkpointing: bool
    ) -> GPT:
        dtype = DTYPES.get(self.precision_name, torch.float32)
        if self.stage == 3:
            # every module is cut into its parts as soon as it exists: never more than one whole matrix at a time
            with deepspeed.zero.Init(config_dict_or_path=config, dtype=dtype):
                return GPT(model_config, checkpointing, initialise=False)
        with torch.device("meta"):
            model = GPT(model_config, checkpointing, initialise=False).to(dtype)
        model.to_empty(device=device)
        model.tie()
        return model

    # --- training ----------------------------------------------------------------------------------------------

    def step(self, losses: Iterable[Callable[[], Tensor]], lr: float) -> tuple[Tensor, Tensor, bool]:
        """(sum of the losses, gradient norm, whether it was skipped) of one optimizer step.

        Each of `losses` makes one micro-batch's part of the loss from a forward pass; as many on every rank. DeepSpeed
        itself skips a step whose gradients are not finite, in every precision.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)
        skipped = self.engine.skipped_steps
        done = []
        for make in losses:
            loss = make()
            self.engine.backward(loss, scale_wrt_gas=False)  # it is divided already
            self.engine.step()
            done.append(loss.detach())
        norm = self.engine.get_global_grad_norm()
        norm = torch.as_tensor(float("nan") if norm is None else norm)
        return torch.stack(done).sum(), norm, self.engine.skipped_steps > skipped

    @property
    def loss_scale(self) -> float | None:
        """Current loss scale of fp16, None in other precisions."""
        return float(self.optimizer.cur_scale) if self.precision_name == "fp16" else None

    def scaler_state(self) -> dict[str, Any]:
        """The dynamic loss scaler as plain numbers."""
        if self.precision_name != "fp16":
            return {}
        scaler = self.optimizer.loss_scaler
        names = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
        return {name: getattr(scaler, name) for name in names if hasattr(scaler, name)}

    # --- state -------------------------------------------------------------------------------------------------

    def pieces(self) -> list[Piece]:
        """This rank's part of the fp32 weights and of AdamW's moments, as views where they lie."""
        return list(self._pieces_of_stage_3() if self.stage == 3 else self._pieces_of_stage_1_and_2())

    def fill(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Set the weights from whole parameters that come one at a time; every rank keeps its part of each."""
        mine = {piece.name: piece for piece in self.pieces()}
        for name, value in weights:
            if name in mine:
                piece = mine[name]
                piece.values["weight"].copy_(value.reshape(-1)[piece.start : piece.stop])
        self._publish()

    def restore(
        self, read: Callable[[str, str, int, int], Tensor], optimizer_steps: int, scaler: dict[str, Any]
    ) -> None:
        """Set weights and moments from `read(name, kind, start, stop)`, and how many steps AdamW has made."""
        for piece in self.pieces():
            for kind in KINDS:
                piece.values[kind].copy_(read(piece.name, kind, piece.start, piece.stop))
        for state in self.optimizer.optimizer.state.values():
            state["step"].fill_(optimizer_steps)
        if self.precision_name == "fp16":
            for name, value in scaler.items():
                if hasattr(self.optimizer.loss_scaler, name):
                    setattr(self.optimizer.loss_scaler, name, value)
        self._publish()

    def _flat_masters(self) -> list[Tensor]:
        if self.stage == 3:
            return self.optimizer.fp32_partitioned_groups_flat
        return self.optimizer.single_partition_of_fp32_groups

    def _pieces_of_stage_3(self) -> Iterator[Piece]:
        optimizer = self.optimizer
        parameter: Any  # with what DeepSpeed hangs on it
        for name, parameter in self.model.named_parameters():
            group, offset, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = parameter.ds_zero_partition_rank * count
            count = min(count, parameter.ds_numel - start)  # the last parts are padded to one length
            if count > 0:
                values = self._views(optimizer.fp32_partitioned_groups_flat[group], offset, count)
                yield Piece(name, tuple(parameter.ds_shape), start, values)

    def _pieces_of_stage_1_and_2(self) -> Iterator[Piece]:
        parameter: Any
        for name, parameter in self.model.named_parameters():
            mapping = parameter._hp_mapping
            if mapping is not None:  # None: all of it lies with other ranks
                flat = self.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
                place = mapping.hp_fragment_address
                values = self._views(flat, place.start, place.numel)
                yield Piece(name, tuple(parameter.shape), mapping.lp_fragment_address.start, values)

    def _views(self, flat: Tensor, start: int, count: int) -> dict[str, Tensor]:
        state = self.optimizer.optimizer.state[flat]
        tensors = {"weight": flat, **{kind: state[kind] for kind in KINDS[1:]}}
        return {kind: tensor.detach().narrow(0, start, count) for kind, tensor in tensors.items()}

    def _publish(self) -> None:
        """Carry the fp32 weights over into those the model computes with, on every rank."""
        optimizer = self.optimizer
        if self.stage < 3:
            optimizer.update_lp_params()
            return
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:  # small ones are kept whole: gather them anew
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


class ZeroStep:
    """`TrainStep`'s contract on a ZeroEngine: the same objective, divided by the same weight.

    DeepSpeed takes the same number of micro-batches on every rank: one with fewer rows repeats some at a weight of 0.
    """

    def __init__(
        self,
        engine: ZeroEngine,
        micro_batch_size: int,
        *,
        global_rows: int | None = None,
        objective: Objective | None = None,
    ) -> None:
        self.engine = engine
        self.micro_batch_size = micro_batch_size
        self.precision_name = engine.precision_name
        self.global_rows = global_rows
        self.objective = objective or LanguageModelling()

    def __call__(self, batch: Batch | Tensor, lr: float) -> StepResult:
        batch = as_batch(batch)
        micro_batches, rows = split(batch, self.micro_batch_size), rows_of(batch)
        world_size = torch.distributed.get_world_size()
        weights = [self.objective.weight(micro) for micro in micro_batches]
        over = divisor(weights, rows, self.global_rows or rows * world_size, world_size)
        passes = self.engine.engine.gradient_accumulation_steps()
        padded = [*micro_batches, *[micro_batches[0]] * (passes - len(micro_batches))]

        def loss_of(index: int) -> Tensor:
            loss_sum, _ = self.objective(self.engine.engine, padded[index])
            counted = 1.0 if index < len(micro_batches) else 0.0
            return (loss_sum / over * counted).float()

        losses = (partial(loss_of, index) for index in range(passes))
        return StepResult(*self.engine.step(losses, lr))

    def loss_scale(self) -> float | None:
        return self.engine.loss_scale

    def scaler_state(self) -> dict[str, Any]:
        return self.engine.scaler_state()

    def weights_finite(self) -> bool:
        # not the flat buffers themselves: what pads them to one length on every rank is never set
        return all_finite([piece.values["weight"] for piece in self.engine.pieces()])
