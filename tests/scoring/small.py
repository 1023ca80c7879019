"""Tiny models of two families over bytes, and a part of WikiText-2: what tests of scoring have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from raygpt.data.tokenizer import Tokenizer
from raygpt.evaluate.foreign import Foreign, ForeignConfig, ForeignModel
from raygpt.model import registry
from raygpt.model.gpt import GPT, GPTConfig

VOCAB, CONTEXT = 257, 32


def tiny_gpt(context: int = CONTEXT) -> GPT:
    """Far from uniform, so that a wrong token costs something."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(VOCAB, context, n_layer=2, n_head=2, n_embd=32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()


def tiny_llama(vocab_size: int = VOCAB) -> Any:
    """A LlamaForCausalLM of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=vocab_size, intermediate_size=64, max_position_embeddings=CONTEXT, **shape)
    model: Any = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model.eval()


def as_language_model(net: Any) -> ForeignModel:
    registry.register(Foreign())
    return ForeignModel(net, ForeignConfig("llama", net.config.vocab_size, CONTEXT, 1)).eval()


def save_foreign(net: Any, folder: Path, tokenizer: Tokenizer, bos: str | None = None) -> Path:
    """A Hugging Face folder of it, whose files name `bos`."""
    from transformers import PreTrainedTokenizerFast

    net.save_pretrained(folder)
    end = tokenizer.backend.id_to_token(tokenizer.eot_id)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, eos_token=end, bos_token=bos).save_pretrained(folder)
    return folder


def wikitext_part(shared_data: Path, tmp_path: Path) -> Path:
    """The beginnings of two pages of WikiText-2's test file, as a file of its own."""
    text = (shared_data / "pretrain_text" / "wikitext2" / "test.txt").read_text(encoding="utf-8")
    starts = [text.index(title) for title in (" = Robert <unk> = \n", " = Du Fu = \n")]
    ends = [text.index("\n", start + size) + 1 for start, size in zip(starts, (500, 1200))]
    part = tmp_path / "wiki.test.tokens"
    part.write_text(" \n" + "".join(text[start:end] for start, end in zip(starts, ends)), encoding="utf-8")
    return part
