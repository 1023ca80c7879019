"""Teachers that raygpt has no architecture for: any causal language model that transformers loads, from a Hugging Face
folder or id. GPT-Neo and Cerebras-GPT, say, speak GPT-2's tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from raygpt.errors import UserError, one_line
from raygpt.model import registry
from raygpt.parallel import checkpoint

ARCHITECTURE = "transformers"  # in TeacherSource.config, for a model that no entry of the registry builds


class ForeignModel(nn.Module):
    """A transformers model, called as raygpt's own are for their hidden states."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.base = model.base_model
        self.lm_head = model.get_output_embeddings()

    def forward(self, tokens: Tensor, *, head_loss: Callable[..., Any]) -> Any:
        hidden = self.base(input_ids=tokens, use_cache=False).last_hidden_state
        return head_loss(hidden.flatten(0, 1), self.lm_head, None, None)


def is_foreign(uri: str) -> bool:
    """Whether a Hugging Face folder or id is of a model_type that no entry of the registry reads."""
    from raygpt.model.huggingface import open_folder, read_json

    try:
        if checkpoint.locate_checkpoint(uri) is not None:
            return False
        with open_folder(uri, weights=False) as folder:
            return registry.of_huggingface(read_json(folder / "config.json").get("model_type")) is None
    except (UserError, OSError):
        return False


def foreign_shape(uri: str) -> tuple[dict[str, Any], int, int]:
    """({architecture, vocab_size, seq_len}, width, parameters) of a model, without its weights. UserError for what
    transformers does not know."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(uri)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        reason = one_line(error, 160)
        raise UserError(f"distill.teacher={uri} is no language model that transformers loads ({reason}).") from error
    rows, width = model.get_output_embeddings().weight.shape
    seq_len = getattr(config.get_text_config(), "max_position_embeddings", None)
    if seq_len is None:
        raise UserError(f"distill.teacher={uri} does not say how long a context it reads: choose another teacher.")
    shape = {"architecture": ARCHITECTURE, "vocab_size": rows, "seq_len": seq_len}
    return shape, width, sum(parameter.numel() for parameter in model.parameters())


def load_foreign(uri: str, dtype: torch.dtype) -> ForeignModel:
    """On the CPU. UserError where its logits are not those of an output matrix and its last hidden states."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(uri, dtype=dtype).eval()
    wrapped = ForeignModel(model)
    tokens = torch.arange(min(8, model.config.get_text_config().vocab_size))[None]
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits.float()
        made = wrapped(tokens, head_loss=lambda hidden, head, *_: hidden @ head.weight.t()).float()
    gap = float((logits.flatten(0, 1) - made).abs().max())
    if not gap <= 0.02 * float(logits.abs().max()):  # half precision; a bias or a cap is more
        raise UserError(
            f"distill.teacher={uri} makes its logits otherwise than by a matrix from its last hidden state (a gap of "
            f"{gap:.3g}): choose another teacher, or distill.mode=sequence."
        )
    return wrapped
