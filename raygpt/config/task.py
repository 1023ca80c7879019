"""`task`: classification of texts or pairs of texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, field_validator

from raygpt.config.section import LARGEST_SEED, AlsoCalled, Fixed, Kind, Problem, Section

_BOTH: tuple[Kind, ...] = ("classify", "sweep")
_DATA = "what is trained on and chosen by follows from it"
_SWEEP: tuple[Kind, ...] = ("sweep",)
_COMPARED = "its trials are compared under it"


class Task(Section):
    name: str | None = Field(
        None, description="classification task, such as mrpc; none: no classification, language modelling"
    )
    train: Annotated[str | None, Fixed(_SWEEP, _DATA)] = Field(
        None, description="CSV, TSV or JSONL with text and labels, a folder with train.* and validation.*, or glue/mrpc"
    )
    val: Annotated[str | None, Fixed(("sweep",), "the winner is measured on it")] = Field(
        None, description="validation file, scored once; none: the validation.* beside task.train"
    )
    test: str | None = Field(None, description="labelled file that only `raygpt evaluate` scores")
    text_columns: Annotated[list[str], Fixed(_BOTH, _DATA)] = Field(
        [], description="one text column, or two for pairs; empty: found by their names"
    )
    label_column: Annotated[str | None, Fixed(_BOTH, _DATA)] = Field(
        None, description="column of the labels; none: label (or MRPC's Quality)"
    )
    labels: Annotated[list[str], Fixed(_BOTH, _DATA)] = Field(
        [], description="the labels there may be, in order; empty: those of the training file"
    )
    selection_fraction: Annotated[float, Fixed(_BOTH, _DATA)] = Field(
        0.1, description="share of the training file that hyperparameters and epochs are chosen on", gt=0, lt=1
    )
    split_seed: Annotated[int, Fixed(_BOTH, _DATA)] = Field(
        0, description="seed of that share; the same for every trial and seed", ge=0, le=LARGEST_SEED
    )
    train_examples: Annotated[int | None, Fixed(_BOTH, _DATA)] = Field(
        None, description="use only this many training examples; none: all", ge=2
    )
    max_tokens: Annotated[int, AlsoCalled(("max_length",)), Fixed(_BOTH, "the examples are cut by it")] = Field(
        256, description="longer texts are cut, the longer one of a pair first", ge=8
    )
    batch_size: Annotated[int, Fixed(_BOTH, "the steps follow from it")] = Field(
        16, description="examples per optimizer step", ge=1
    )
    label_smoothing: Annotated[float, Fixed(_SWEEP, _COMPARED)] = Field(
        0.0, description="probability spread over the other labels", ge=0, lt=1
    )
    layer_decay: Annotated[float, Fixed(_SWEEP, _COMPARED)] = Field(
        1.0, description="learning rate of a block over that of the block above it; 1: the same everywhere", gt=0, le=1
    )
    reinit_layers: Annotated[int, Fixed(_SWEEP, _COMPARED)] = Field(
        0, description="topmost blocks that start from fresh weights", ge=0
    )
    swap_train: Annotated[bool, Fixed(_SWEEP, _COMPARED)] = Field(
        True, description="training shows a pair in either order, drawn anew each epoch"
    )
    swap_eval: Annotated[bool, Fixed(("sweep",), "trials are ranked with it")] = Field(
        True, description="evaluation averages the logits of both orders of a pair"
    )

    def problems(self) -> Iterator[Problem]:
        if len(self.text_columns) > 2:
            yield "text_columns", "names more than two columns: a task has one text or a pair"

    @field_validator("text_columns", "labels", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        items = [value] if isinstance(value, str | int) else value
        return [str(item) for item in items] if isinstance(items, list) else items
