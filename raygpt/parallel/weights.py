"""Weights and tokenizer from wherever they lie: a run, one checkpoint of it, or Hugging Face."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from raygpt import storage
from raygpt.data.tokenizer import Tokenizer, load_tokenizer
from raygpt.errors import UserError
from raygpt.model import registry
from raygpt.model.architecture import Architecture, ModelConfig
from raygpt.parallel import checkpoint
from raygpt.parallel.checkpoint import RunState
from raygpt.parallel.lora import Adapters, merged


@dataclass
class Loaded:
    """A model with what is needed to talk to it. `state` is None for a Hugging Face model."""

    model: Any  # a LanguageModel, of whatever family
    tokenizer: Tokenizer
    origin: str
    state: RunState | None = None


@dataclass(frozen=True)
class WeightSource:
    """Weights that are read one parameter at a time: `items()` yields (name, fp32 tensor) in this package's layout.

    `state` is None for a Hugging Face model.
    """

    config: Any  # a ModelConfig
    origin: str
    items: Callable[[], Iterator[tuple[str, torch.Tensor]]]
    state: RunState | None = None


def open_weights(uri: str, *, dropout: float = 0.0, seq_len: int | None = None) -> WeightSource:
    """Weights of a run folder, a checkpoint, or a Hugging Face folder or id. UserError where nothing usable lies."""
    where = _checkpoint(uri)
    if where is None:
        return _open_huggingface(uri, dropout, seq_len)
    state = checkpoint.read_state(where)
    config = registry.model_config({**state.model, **({"dropout": dropout} if "dropout" in state.model else {})})
    tensors = checkpoint.open_tensors(where)
    if state.adapters:
        adapters = Adapters(**state.adapters)
        base = open_weights(adapters.base, seq_len=config.seq_len)
        return WeightSource(config, where.uri, lambda: merged(base.items(), tensors, adapters), state)
    return WeightSource(config, where.uri, tensors.items, state)


def load_weights(uri: str, *, dropout: float = 0.0, seq_len: int | None = None) -> tuple[Any, RunState | None, str]:
    """(model on the CPU, state, where from) for a run folder, a checkpoint, or a Hugging Face folder or id.

    Raises UserError when nothing usable lies there.
    """
    source = open_weights(uri, dropout=dropout, seq_len=seq_len)
    return build_model(source), source.state, source.origin


def build_model(source: WeightSource) -> Any:
    """The model on the CPU, fp32."""
    model = registry.of(source.config).build(source.config)
    fill_model(model, source.items())
    return model


def load(uri: str, tokenizer: str | None = None) -> Loaded:
    """Model and tokenizer ready for inference: the checkpoint's own tokenizer, or `tokenizer` as a setting names it."""
    source = open_weights(uri)
    return Loaded(build_model(source).eval(), open_tokenizer(source, tokenizer), source.origin, source.state)


def open_tokenizer(source: WeightSource, tokenizer: str | None = None) -> Tokenizer:
    """The tokenizer saved beside a checkpoint; for a Hugging Face model its own, or `tokenizer` as a setting names it.

    Raises UserError for one with more ids than the model knows.
    """
    if source.state is not None:
        data = storage.read_bytes(storage.locate(source.origin) / "tokenizer.json")
        return Tokenizer.from_json(data, source.state.tokenizer_name, source.state.eot_id)
    found = load_tokenizer(tokenizer if tokenizer not in (None, "gpt2", "base") else source.origin)
    if found.vocab_size > source.config.vocab_size:
        raise UserError(
            f"data.tokenizer has {found.vocab_size:,} ids but the model {source.origin} knows "
            f"{source.config.vocab_size:,}: name the tokenizer it was trained with."
        )
    return found


@torch.no_grad()
def fill_model(model: torch.nn.Module, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Copy parameters that come one at a time into a model; tied weights come once. UserError unless all fit."""
    parameters = dict(model.named_parameters())
    for name, value in weights:
        parameter = parameters.pop(name, None)
        if parameter is None or parameter.shape != value.shape:
            raise UserError(_ANOTHER)
        parameter.copy_(value)
    if parameters:
        raise UserError(_ANOTHER)


def huggingface_shape(
    uri: str, *, dropout: float = 0.0, seq_len: int | None = None
) -> tuple[Architecture, ModelConfig]:
    """(family, config) of a Hugging Face folder or id, without its weights. UserError for a model_type that no family
    reads."""
    from raygpt.model.huggingface import open_folder, read_json

    with open_folder(uri, weights=False) as folder:
        path = folder / "config.json"
        model_type = read_json(path).get("model_type")
        entry = registry.of_huggingface(model_type)
        if entry is None:
            known = ", ".join(name for one in registry.FAMILIES.values() for name in one.huggingface_types)
            raise UserError(f"{path} says model_type {model_type!r}: choose a GPT-2 model (what can be read: {known}).")
        return entry, entry.read_config(folder, dropout=dropout, seq_len=seq_len)


def _open_huggingface(uri: str, dropout: float, seq_len: int | None) -> WeightSource:
    from raygpt.model.huggingface import open_folder

    entry, config = huggingface_shape(uri, dropout=dropout, seq_len=seq_len)

    def items() -> Iterator[tuple[str, torch.Tensor]]:
        with open_folder(uri) as folder:
            yield from entry.read_weights(folder, config, torch.float32)

    return WeightSource(config, uri, items)


_ANOTHER = "the checkpoint holds weights of another architecture: name the run it belongs to."


def _checkpoint(uri: str) -> storage.Location | None:
    try:
        return checkpoint.locate_checkpoint(uri)
    except FileNotFoundError:
        return None
