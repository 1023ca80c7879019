"""Low-rank adapters (Hu et al., 2021) through peft: fine-tuning for those with less memory.

The base stays frozen and is not part of the checkpoint; whoever reads weights from such a run gets
them merged: W + alpha / rank * B A.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from raygpt.errors import UserError
from raygpt.model import registry
from raygpt.model.architecture import LanguageModel
from raygpt.parallel.pieces import CheckpointTensors

SAMPLED = 256  # values of each parameter that a base model is recognised by


@dataclass(frozen=True)
class Adapters:
    """What turns a base model into a tuned one; `digest` recognises the base (see `Recognised`)."""

    base: str
    rank: int
    alpha: float
    dropout: float = 0.0
    digest: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def add_adapters(model: LanguageModel, adapters: Adapters) -> None:
    """Freeze the model and put trainable adapters beside its matrices. Raises UserError without peft,
    and for a family of models that has no place for them."""
    entry = registry.of(model.config)
    if not entry.adapter_targets:
        raise UserError(f"model.lora_rank: a model of architecture {entry.name} takes no adapters, set it to 0.")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(
            "model.lora_rank needs peft, which is not installed here: pip install 'raygpt[lora]', or set it to 0."
        ) from error
    config = LoraConfig(
        r=adapters.rank,
        lora_alpha=adapters.alpha,  # type: ignore[arg-type]  # peft divides it, whole or not
        lora_dropout=adapters.dropout,
        target_modules=list(entry.adapter_targets),
    )
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


class Recognised:
    """Weights passing through, (name, tensor) by (name, tensor); afterwards `digest` tells whose they were."""

    def __init__(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        self._weights = weights
        self._hash = hashlib.sha256()

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self._weights:
            self._hash.update(f"{name}{tuple(value.shape)}".encode())
            self._hash.update(value.reshape(-1)[:SAMPLED].float().contiguous().numpy().tobytes())
            yield name, value

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()[:32]


def check_base(adapters: Adapters, digest: str) -> None:
    """UserError when the weights that were read are not those the adapters were trained on."""
    if adapters.digest and digest != adapters.digest:
        raise UserError(
            f"model.init_from={adapters.base} holds other weights than when this run began, and its adapters fit only "
            "those: put the model back."
        )


def merged(
    base: Iterator[tuple[str, Tensor]], tensors: CheckpointTensors, adapters: Adapters
) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of the tuned model, one at a time. Raises UserError when the base is another one."""
    recognised = Recognised(base)
    names = set(tensors.names)
    for name, value in recognised:
        part = name.removesuffix(".weight")
        if f"{part}.lora_A.default.weight" in names:
            low = tensors.whole(f"{part}.lora_A.default.weight")
            high = tensors.whole(f"{part}.lora_B.default.weight")
            value = torch.addmm(value.float(), high, low, alpha=adapters.alpha / adapters.rank)
        yield name, value
    check_base(adapters, recognised.digest)
