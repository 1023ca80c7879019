"""Any causal language model that transformers loads, behind the engine's questions.

transformers 5.23 has continuous batching of its own. It was looked at and left aside: it has one seed for all requests
and log-probabilities after temperature and cuts, none of a prompt and no alternatives, and its passes are as long as
the batch of the moment, so that an answer depends on who shares it.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface
from transformers.utils import logging

from raygpt.errors import UserError, one_line
from raygpt.model.slots import LayerShape, SlotCache, attend
from raygpt.serve.decoder import Network, decodes_alike, parameter_bytes


def source(spec: str) -> tuple[str, dict[str, str]]:
    """(folder or id, arguments of from_pretrained) of what teacher.model names; a GGUF file lies in a folder."""
    path = Path(spec).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"teacher.model={spec}: no such file; name a GGUF file that is there.")
        return str(path.parent), {"gguf_file": path.name}
    if path.exists() and not (path / "config.json").is_file():
        raise UserError(f"teacher.model={spec} has no config.json: name a Hugging Face folder or id, or a GGUF file.")
    return str(path) if path.exists() else spec, {}


def load_model(spec: str, dtype: torch.dtype, device: torch.device) -> Any:
    """The model in eval mode. UserError where transformers cannot load it as a causal language model."""
    where, arguments = source(spec)
    logging.disable_progress_bar()  # a replica's log is no terminal
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, **arguments)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise UserError(
            f"teacher.model={spec} cannot be loaded as a causal language model ({one_line(error)}): name a Hugging "
            "Face folder or id, or a GGUF file, or for a run or checkpoint set teacher.engine=raygpt."
        ) from error
    return model.to(device).eval()


class HuggingFaceNetwork(Network):
    """A transformers model. `without_cache` says why its cache cannot hold several sequences."""

    def __init__(self, model: Any) -> None:
        self._model = model
        config = model.config.get_text_config()
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.context, self.context_reason = _context(config)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        if config._attn_implementation == "sdpa":
            model.set_attn_implementation(SLOTS)
        self._additive = config._attn_implementation == "eager"

    @torch.inference_mode()
    def layers(self) -> list[LayerShape] | None:
        try:
            past = self._model(torch.tensor([[0, 1]], device=self.device), use_cache=True).past_key_values
            plain = isinstance(past, DynamicCache) and all(
                type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in past.layers
            )
            if not plain:
                self.without_cache = f"it remembers {type(past).__name__} and not the keys and values of tokens"
                return None
            found = [_shape(layer) for layer in past.layers]
            self.without_cache = decodes_alike(self, found)
        except Exception as error:  # whatever a foreign model's code does with a cache it does not expect
            self.without_cache = one_line(error)
        return None if self.without_cache else found

    def logits(self, tokens: Tensor, cache: SlotCache | None, last: int) -> Tensor:
        keep = {"logits_to_keep": last} if self._keeps else {}
        if cache is None:
            out = self._model(tokens, use_cache=False, **keep)
        else:
            mask = cache.mask
            if self._additive:
                mask = torch.where(mask, 0.0, torch.finfo(self.dtype).min).to(self.dtype)
            places = {"attention_mask": mask, "position_ids": cache.positions}
            out = self._model(tokens, past_key_values=_Past(cache), use_cache=True, **places, **keep)
            cache.advance()
        return out.logits[:, -last:]

    @property
    def weight_bytes(self) -> int:
        return parameter_bytes(self._model)


class _Past(Cache):
    """A SlotCache as transformers' models know a cache. They get mask and positions beside it."""

    def __init__(self, cache: SlotCache) -> None:
        super().__init__(layers=[])
        self._cache = cache

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple:
        return self._cache.update(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self._cache.positions[0, 0])


SLOTS = "raygpt_slots"  # name of this attention among transformers'


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' own but for a step, whose rows are to be independent of each other."""
    plain = options.get("position_bias") is None and options.get("softcap") is None
    if query.size(2) > 1 or attention_mask is None or not plain:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    return attend(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(SLOTS, _attention)
AttentionMaskInterface.register(SLOTS, sdpa_mask)


def _shape(layer: Any) -> LayerShape:
    keys, values = layer.keys, layer.values
    return LayerShape(keys.size(1), keys.size(3), values.size(3), keys.dtype)


OWN = "the model's own context"


def own_context(config: Any) -> tuple[int, str]:
    """(most tokens of a row that is read at once, why not more); its layers may look back less far."""
    context = next(
        (
            int(value)
            for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len")
            if (value := getattr(config, name, None))
        ),
        2048,
    )
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type")) == "longrope":
        first = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        if first and first < context:
            return int(first), "beyond it its rotations change with the longest sequence of a batch"
    return context, OWN


def _context(config: Any) -> tuple[int, str]:
    """(most tokens, why). Within a sliding window every token sees all before it, which is what the mask says."""
    context, why = own_context(config)
    if why != OWN:
        return context, why
    window = getattr(config, "sliding_window", None)
    slides = getattr(config, "use_sliding_window", True) is not False
    kinds = getattr(config, "layer_types", None)
    if "local" in (getattr(config, "attention_layers", None) or ()) and config.window_size < context:
        return int(config.window_size), "its local layers look back through a window"
    if window and slides and window < context and (kinds is None or "sliding_attention" in kinds):
        return int(window), "its layers look back through a sliding window"
    return context, OWN
