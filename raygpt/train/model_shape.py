"""The shape of the model that a config asks for: a preset's with overrides, that of some weights, or a run's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raygpt import storage
from raygpt.config import Model
from raygpt.errors import UserError
from raygpt.model import registry
from raygpt.model.architecture import Architecture, ModelConfig
from raygpt.parallel import checkpoint
from raygpt.parallel.weights import huggingface_shape

HUB_OWNER = "openai-community/"  # where the four sizes lie now; their old short names still work
# Sizes of weights: what a model started from some weights cannot have otherwise than they do.
SIZES = ("n_layer", "n_head", "n_embd", "vocab_size")


def model_shape(
    model: Model, vocab_size: int, *, trained: Mapping[str, Any] | None = None, offline: bool = False
) -> ModelConfig:
    """The shape for the section `model`; `vocab_size` is the tokenizer's, for a preset without one.

    `trained` is what the newest checkpoint of the run holds: then model.init_from is no longer needed (it may be gone),
    and what the settings say otherwise is put over it, so that the resume can refuse it by name. `offline` takes
    OpenAI's sizes from the presets instead of asking the Hub. No weights are fetched. Raises UserError for a preset
    that is not known, and for settings that the architecture or the weights of model.init_from do not have.
    """
    if model.init_from == "random":
        family = registry.of_preset(model.preset)
        wanted = _wanted(model, family)
        return family.config({"vocab_size": vocab_size, **family.presets[model.preset], **wanted})
    if trained is not None:
        shape = dict(trained)
    else:
        shape = _shape_of_weights(model.init_from, model.seq_len, offline)
    family = registry.of(registry.model_config(shape))
    given = {key: getattr(model, key) for key in (*SIZES, "seq_len") if getattr(model, key) is not None}
    if trained is not None:
        shape |= given
    # Hugging Face's weights are cut to a shorter context where they are read; a checkpoint keeps its own
    for key in (*SIZES, "seq_len"):
        if trained is None and key in given and given[key] != shape.get(key):
            raise UserError(
                f"model.{key}={given[key]} but the weights of model.init_from={model.init_from} have "
                f"{shape.get(key, 'no such size')}: leave it out, or start from random."
            )
    return registry.model_config({**shape, **({"dropout": model.dropout} if "dropout" in family.overrides else {})})


def _wanted(model: Model, family: Architecture) -> dict[str, Any]:
    """What the settings say of the shape. UserError for a setting that this architecture does not have."""
    wanted: dict[str, Any] = {}
    for key in ("n_layer", "n_head", "n_embd", "vocab_size", "seq_len", "dropout", "bias", "tie_weights"):
        value = getattr(model, key)
        if key in family.overrides:
            wanted |= {key: value} if value is not None else {}
        elif value != Model.model_fields[key].default:
            raise UserError(
                f"model.{key}={value} means nothing to model.preset={model.preset} (architecture {family.name}, which "
                f"takes {', '.join(family.overrides)}): leave it out."
            )
    return wanted


def _shape_of_weights(init_from: str, seq_len: int | None, offline: bool) -> dict[str, Any]:
    """Values of the shape of the weights of model.init_from; those of Hugging Face are cut to a context of seq_len."""
    known = registry.FAMILIES[registry.FIRST].presets.get(init_from.removeprefix(HUB_OWNER))
    if offline and known is not None and "vocab_size" in known and not storage.exists(storage.locate(init_from)):
        return registry.model_config({**known, **({"seq_len": seq_len} if seq_len else {})}).to_dict()
    where = checkpoint.locate_checkpoint(init_from)
    if where is not None:
        return checkpoint.read_state(where).model
    return huggingface_shape(init_from, seq_len=seq_len)[1].to_dict()
