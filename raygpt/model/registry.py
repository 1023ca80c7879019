"""PURE. The families of models there are, by name: whoever needs a model of any kind asks here.

A new one is a module with an `Architecture` and a `register` below (CONTRIBUTING.md says how).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from raygpt.errors import UserError
from raygpt.model.architecture import Architecture
from raygpt.model.gpt2 import Gpt2

FIRST = "gpt2"  # what a checkpoint from before there were others holds
FAMILIES: dict[str, Architecture] = {}


def register(entry: Architecture) -> None:
    """Add a family, or put another in the place of the one of that name. ValueError for a preset that is taken."""
    for other in FAMILIES.values():
        if other.name != entry.name and (taken := sorted(set(other.presets) & set(entry.presets))):
            raise ValueError(f"presets {', '.join(taken)} of {entry.name} are {other.name}'s already")
    FAMILIES[entry.name] = entry


register(Gpt2())


def named(name: str) -> Architecture:
    """The family of that name. Raises UserError for one that is not known here."""
    if name not in FAMILIES:
        raise UserError(
            f"the model is of architecture {name}, which this raygpt does not know (it knows {', '.join(FAMILIES)}): "
            "use the version that trained it."
        )
    return FAMILIES[name]


def of(config: Any) -> Architecture:
    """The family of a ModelConfig."""
    return named(config.architecture)


def model_config(values: Mapping[str, Any]) -> Any:
    """ModelConfig of what a checkpoint holds: `to_dict` of any family's, or one without "architecture" (gpt2)."""
    rest = dict(values)
    return named(rest.pop("architecture", FIRST)).config(rest)


def preset_names() -> tuple[str, ...]:
    """What model.preset may be."""
    return tuple(preset for entry in FAMILIES.values() for preset in entry.presets)


def of_preset(preset: str) -> Architecture:
    """The family that model.preset names a shape of. Raises UserError naming those there are."""
    for entry in FAMILIES.values():
        if preset in entry.presets:
            return entry
    raise UserError(f"model.preset={preset} is not known: choose one of {', '.join(preset_names())}.")


def of_huggingface(model_type: str | None) -> Architecture | None:
    """The family that reads Hugging Face folders of that model_type."""
    return next((entry for entry in FAMILIES.values() if model_type in entry.huggingface_types), None)


@lru_cache(maxsize=64)  # a plan asks some hundred times: 20 ms for GPT-2 XL
def parameter_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of a model, as it lies in memory. Not to be changed."""
    return of(config).shapes(config)
