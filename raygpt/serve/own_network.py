"""PURE. The models of this package behind the engine's questions."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.attention import sdpa_kernel

from raygpt.model import registry
from raygpt.model.generate import ATTENTION
from raygpt.model.slots import LayerShape, SlotCache
from raygpt.serve.decoder import Network, parameter_bytes


class OwnNetwork(Network):
    """A LanguageModel of any family, as it lies on its device."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval()
        self._family = registry.of(model.config)
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.vocab_size: int = model.config.vocab_size
        self.context: int = model.config.seq_len

        self.without_cache = f"architecture {self._family.name} has none for several sequences"

    def layers(self) -> list[LayerShape] | None:
        return self._family.slot_layers(self._model.config, self.dtype, self.device)

    def logits(self, tokens: Tensor, cache: SlotCache | None, last: int) -> Tensor:
        with sdpa_kernel(ATTENTION):
            if cache is None:
                return self._model(tokens)[:, -last:]
            if last == 1:
                return self._family.next_logits(self._model, tokens, cache)[:, None]
            return self._family.all_logits(self._model, tokens, cache)[:, -last:]

    @property
    def weight_bytes(self) -> int:
        return parameter_bytes(self._model)
