"""DeepSpeed ZeRO under the same contract as DDP: one step function, and a state that any worker count can take up.

DeepSpeed's own checkpoints are pickles bound to one number of workers, and loading them needs the state twice over.
Here every rank's part is written under the names of the parameters (see pieces.py) and read back in place.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from raygpt.errors import UserError
from raygpt.model import registry
from raygpt.model.architecture import LanguageModel, ModelConfig
from raygpt.parallel import loss_scale
from raygpt.parallel.optimizer_state import STEP, counter, set_lr
from raygpt.parallel.pieces import WEIGHT, CheckpointTensors, Piece

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
    # BF16_Optimizer prints the memory in use four times for every group
    importlib.import_module("deepspeed.runtime.bf16_optimizer").see_memory_usage = lambda *_, **__: None  # type: ignore[attr-defined]
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False
    )
    return deepspeed


class ZeroEngine:
    """A model whose optimizer state (1), gradients (2) and weights (3) are shared out over the ranks.

    `config` is what `zero_config.deepspeed_config` derives. `make_optimizer` makes the optimizer DDP would have; it
    is given flat pieces of the parameters then. The weights are undefined until `fill` or `restore`.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        device: torch.device,
        config: dict[str, Any],
        make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        *,
        precision: str,
        activation_checkpointing: bool,
    ) -> None:
        deepspeed = import_deepspeed(device)
        self.precision_name = precision
        torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
        self.stage = config["zero_optimization"]["stage"]
        if precision == "fp16" and device.type == "cpu" and not deepspeed.get_accelerator().is_fp16_supported():
            raise UserError("train.precision=fp16 is not supported by DeepSpeed on this CPU: use bf16 or fp32.")
        self._shapes = registry.parameter_shapes(model_config)
        model = self._empty_model(deepspeed, model_config, device, config, activation_checkpointing)
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=make_optimizer(model), config=config)
        self.model: LanguageModel = self.engine.module
        self.optimizer = self.engine.optimizer

    def _empty_model(
        self,
        deepspeed: Any,
        model_config: ModelConfig,
        device: torch.device,
        config: dict[str, Any],
        checkpointing: bool,
    ) -> LanguageModel:
        dtype = DTYPES.get(self.precision_name, torch.float32)
        if self.stage == 3:
            # every module is cut into its parts as soon as it exists: never more than one whole matrix at a time
            with deepspeed.zero.Init(config_dict_or_path=config, dtype=dtype):
                return registry.of(model_config).build(model_config, checkpointing)
        with torch.device("meta"):
            model = registry.of(model_config).build(model_config, checkpointing).to(dtype)
        model.to_empty(device=device)
        model.tie()
        return model

    # --- training ----------------------------------------------------------------------------------------------

    def step(self, losses: Iterable[Callable[[], Tensor]], lr: float) -> tuple[Tensor, Tensor, bool]:
        """(sum of the losses, gradient norm, whether it was skipped) of one optimizer step.

        Each of `losses` makes one micro-batch's part of the loss from a forward pass; as many on every rank. DeepSpeed
        itself skips a step whose gradients are not finite, in every precision.
        """
        set_lr(self.optimizer, lr)
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
        """The dynamic loss scale as plain numbers, {} but in fp16."""
        return loss_scale.of_deepspeed(self.optimizer.loss_scaler) if self.precision_name == "fp16" else {}

    # --- state -------------------------------------------------------------------------------------------------

    def pieces(self) -> list[Piece]:
        """This rank's part of the fp32 weights and of the optimizer's state, as views where they lie.

        The state is there after the first step or `restore`. Raises UserError for state that is no values of weights.
        """
        return list(self._pieces_of_stage_3() if self.stage == 3 else self._pieces_of_stage_1_and_2())

    def fill(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Set the weights from whole parameters that come one at a time; every rank keeps its part of each."""
        mine = {piece.name: piece for piece in self.pieces()}
        left = dict(self._shapes)
        for name, value in weights:
            if left.pop(name, None) != tuple(value.shape):
                raise UserError(f"the weights do not fit the model ({name}): name the run or folder they belong to.")
            if name in mine:
                piece = mine[name]
                piece.values[WEIGHT].copy_(value.reshape(-1)[piece.start : piece.stop])
        if left:
            raise UserError(f"the weights lack {', '.join(sorted(left)[:3])}: name the run or folder they belong to.")
        self._publish()

    def restore(self, tensors: CheckpointTensors, optimizer_steps: int, scaler: dict[str, Any]) -> None:
        """Set weights and the optimizer's state, of which every rank reads its own part, and how many updates there
        were."""
        for flat in self._masters if tensors.kinds else ():
            # padding between and behind the pieces stays zero
            state: dict[str, Tensor] = {kind: torch.zeros_like(flat, requires_grad=False) for kind in tensors.kinds}
            state[STEP] = counter(self.optimizer.param_groups[0], flat, optimizer_steps)
            self.optimizer.optimizer.state[flat] = state
        for piece in self.pieces():
            for kind, values in piece.values.items():
                values.copy_(tensors.read(piece.name, kind, piece.start, piece.stop))
        if self.precision_name == "fp16":
            loss_scale.to_deepspeed(self.optimizer.loss_scaler, scaler)
        self._publish()

    @property
    def _masters(self) -> list[Tensor]:
        """The flat fp32 weights of this rank that the optimizer works on."""
        # stage 3, BF16_Optimizer (stage 1 that adds up bf16 gradients in fp32), stages 1 and 2
        names = ("fp32_partitioned_groups_flat", "fp32_groups_flat_partition", "single_partition_of_fp32_groups")
        return next(getattr(self.optimizer, name) for name in names if hasattr(self.optimizer, name))

    def _pieces_of_stage_3(self) -> Iterator[Piece]:
        optimizer = self.optimizer
        parameter: Any  # with what DeepSpeed hangs on it
        for name, parameter in self.model.named_parameters():
            group, offset, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = parameter.ds_zero_partition_rank * count
            count = min(count, parameter.ds_numel - start)  # the last parts are padded to one length
            if count > 0:
                values = self._views(self._masters[group], offset, count)
                yield Piece(name, tuple(parameter.ds_shape), start, values)

    def _pieces_of_stage_1_and_2(self) -> Iterator[Piece]:
        parameter: Any
        for name, parameter in self.model.named_parameters():
            mapping = parameter._hp_mapping
            if mapping is not None:  # None: all of it lies with other ranks
                flat = self._masters[mapping.param_group_index]
                place = mapping.hp_fragment_address
                values = self._views(flat, place.start, place.numel)
                yield Piece(name, tuple(parameter.shape), mapping.lp_fragment_address.start, values)

    def _views(self, flat: Tensor, start: int, count: int) -> dict[str, Tensor]:
        state = self.optimizer.optimizer.state.get(flat, {})
        tensors = {WEIGHT: flat, **{kind: value for kind, value in state.items() if kind != STEP}}
        for kind, value in tensors.items():
            if not isinstance(value, Tensor) or value.shape != flat.shape:
                raise UserError(
                    f"the optimizer keeps {kind}, which is not one number for every weight, and ZeRO cannot share it "
                    "out: set train.strategy=ddp, or another optim.name."
                )
        return {kind: value.detach().narrow(0, start, count) for kind, value in tensors.items()}

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
