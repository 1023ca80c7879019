"""Weights and tokenizer from wherever they lie: a run, one checkpoint of it, or Hugging Face."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from raygpt import storage
from raygpt.data.tokenizer import Tokenizer, load_tokenizer
from raygpt.errors import UserError
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.train import checkpoint
from raygpt.train.checkpoint import RunState


@dataclass
class Loaded:
    """A model with what is needed to talk to it. `state` is None for a Hugging Face model."""

    model: GPT
    tokenizer: Tokenizer
    origin: str
    state: RunState | None = None


def load_weights(uri: str, *, dropout: float = 0.0, seq_len: int | None = None) -> tuple[GPT, RunState | None, str]:
    """(model on the CPU, state, where from) for a run folder, a checkpoint, or a Hugging Face folder or id.

    Raises UserError when nothing usable lies there.
    """
    where = _checkpoint(uri)
    if where is None:
        from raygpt.model.huggingface import load_huggingface

        return load_huggingface(uri, dropout=dropout, seq_len=seq_len), None, uri
    state = checkpoint.read_state(where)
    config = replace(GPTConfig.from_dict(state.model), dropout=dropout)
    model = GPT(config)
    restore_model(model, checkpoint.read_tensors(where, "model.safetensors"))
    return model, state, where.uri


def load(uri: str, tokenizer: str | None = None) -> Loaded:
    """Model and tokenizer ready for inference: the checkpoint's own tokenizer, or `tokenizer` as a setting names it."""
    model, state, origin = load_weights(uri)
    model.eval()
    if state is not None:
        data = storage.read_bytes(storage.locate(origin) / "tokenizer.json")
        return Loaded(model, Tokenizer.from_json(data, state.tokenizer_name, state.eot_id), origin, state)
    found = load_tokenizer(tokenizer if tokenizer not in (None, "gpt2") else uri)
    if found.vocab_size > model.config.vocab_size:
        raise UserError(
            f"data.tokenizer has {found.vocab_size:,} ids but the model {uri} knows {model.config.vocab_size:,}: name "
            "the tokenizer it was trained with."
        )
    return Loaded(model, found, origin)


def restore_model(model: GPT, tensors: dict[str, torch.Tensor]) -> None:
    """Copy checkpoint tensors into a model; tied weights are stored once."""
    parameters = dict(model.named_parameters())
    if set(parameters) != set(tensors):
        raise UserError("the checkpoint holds weights of another architecture: name the run it belongs to.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _checkpoint(uri: str) -> storage.Location | None:
    try:
        return checkpoint.locate_checkpoint(uri)
    except FileNotFoundError:
        return None
