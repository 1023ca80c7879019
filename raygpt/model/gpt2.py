"""PURE. The gpt2 family's entry in the registry: OpenAI's four sizes, and the tiny one for laptops and tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raygpt.model import gpt2_memory
from raygpt.model.architecture import Architecture, Work
from raygpt.model.gpt import GPT, GPTConfig, KVCache, initial_weights
from raygpt.model.presets import PRESETS
from raygpt.model.slots import LayerShape, SlotCache
from raygpt.model.tree import TreePass

if TYPE_CHECKING:
    from raygpt.storage import Location


class Gpt2(Architecture):
    """gpt.py behind the registry's questions. What needs pyarrow is imported where it is asked for."""

    name = GPTConfig.architecture
    presets = PRESETS
    overrides = ("n_layer", "n_head", "n_embd", "vocab_size", "seq_len", "dropout", "bias", "tie_weights")
    adapter_targets = ("c_attn", "c_proj", "c_fc")  # all matrices of a block
    huggingface_types = ("gpt2",)
    no_export = None

    def config(self, values: Mapping[str, Any]) -> GPTConfig:
        return GPTConfig.from_dict(dict(values))

    def build(self, config: GPTConfig, activation_checkpointing: bool = False) -> GPT:
        return GPT(config, activation_checkpointing, initialise=False)

    def initial_weights(self, config: GPTConfig) -> Iterator[tuple[str, Tensor]]:
        return initial_weights(config)

    def forward_memory(self, config: GPTConfig, work: Work) -> dict[str, int]:
        return gpt2_memory.forward_work(config, work)

    def backward_memory(self, config: GPTConfig, work: Work) -> dict[str, int]:
        return gpt2_memory.backward_work(config, work)

    def evaluation_memory(self, config: GPTConfig, work: Work) -> dict[str, int]:
        return gpt2_memory.evaluation_work(config, work)

    def new_cache(self, config: GPTConfig) -> KVCache:
        return KVCache(config)

    def next_logits(self, model: GPT, tokens: Tensor, cache: KVCache | SlotCache | None = None) -> Tensor:
        hidden = model.hidden(tokens, cache)
        return model.lm_head(hidden[:, -1])[:, : model.config.vocab_size]

    def slot_layers(self, config: GPTConfig, dtype: torch.dtype, device: torch.device) -> list[LayerShape]:
        width = config.n_embd // config.n_head
        # attention on a CPU is made in fp32 (see gpt.py), so that is what its keys are
        kept = torch.float32 if device.type == "cpu" else dtype
        return [LayerShape(config.n_head, width, width, kept)] * config.n_layer

    def all_logits(self, model: GPT, tokens: Tensor, cache: SlotCache | None = None) -> Tensor:
        return model(tokens, cache=cache)

    def tree_tokens(self, model: GPT) -> int:
        return sys.maxsize

    def logits_at(
        self, model: GPT, tokens: Tensor, where: Tensor, at_once: int, tree: TreePass | None = None
    ) -> Iterator[Tensor]:
        for hidden in model.hidden(tokens, tree).flatten(0, 1)[where].split(at_once):
            yield model.lm_head(hidden)[:, : model.config.vocab_size]

    def read_config(self, folder: Path, *, dropout: float = 0.0, seq_len: int | None = None) -> GPTConfig:
        from raygpt.model.huggingface import read_config

        return read_config(folder, dropout=dropout, seq_len=seq_len)

    def read_weights(
        self, folder: Path, config: GPTConfig, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        from raygpt.model.huggingface import read_weights

        return read_weights(folder, config, dtype)

    def export(
        self, config: GPTConfig, weights: Iterator[tuple[str, Tensor]], target: Location, **options: Any
    ) -> Location:
        from raygpt.model.export import export_to

        return export_to(config, weights, target, **options)
