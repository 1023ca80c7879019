"""What every section of the config tree is made of: its class, and the marks that a key may carry.

A key is a pydantic field with a sentence. `Annotated[int, Fixed(...)]` says that a run may not change it on a resume,
`Annotated[float, AlsoCalled(...)]` under which names it is known elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

LARGEST_SEED = 2**63 - 1  # of torch's generators; `date +%Y%m%d%H%M%S` is well below
# (key, what is wrong with it and the way out); the key is dotted, or bare within its section
Problem = tuple[str, str]
# What is resumed: a language model's training, a classifier's, or a search for hyperparameters.
Kind = Literal["train", "classify", "sweep"]


@dataclass(frozen=True)
class Fixed:
    """May not change when a run of these kinds is resumed; `why` ends the sentence that refuses it."""

    kinds: tuple[Kind, ...]
    why: str


@dataclass(frozen=True)
class AlsoCalled:
    """What other programs call a key; only for the suggestion after a name that is no setting."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class OfSettings:
    """A mapping whose keys are dotted settings: its values are read by the types of those."""


@dataclass(frozen=True)
class MayBeEmpty:
    """Empty text means something. Of other keys it is refused: it is what an unset variable of a shell leaves."""


class Section(BaseModel):
    """Keys of one section.

    `alternatives` are groups of keys of which one at most may be set; `fixed_whole` marks every key of the section.
    """

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, validate_default=False, allow_inf_nan=False)
    alternatives: ClassVar[tuple[tuple[str, ...], ...]] = ()
    fixed_whole: ClassVar[tuple[Fixed, ...]] = ()

    def problems(self) -> Iterable[Problem]:
        """(bare key, what is wrong) for all that this section alone can tell and no single key shows."""
        return ()
