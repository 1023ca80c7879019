"""`run`: name, place and seed of the run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from raygpt.config.section import LARGEST_SEED, Fixed, Section


class Run(Section):
    name: str = Field("gpt2", description="name of the run: its folder below run.storage", min_length=1)
    storage: str = Field("runs", description="where runs live: a local path or an s3:// URI")
    seed: Annotated[
        int,
        Fixed(("train", "classify"), "the data order follows from it"),
        Fixed(("sweep",), "what is proposed follows from it"),
    ] = Field(1337, description="seed of weights, data order and dropout", ge=0, le=LARGEST_SEED)
    resume: Literal["auto", "never", "must"] = Field(
        "auto", description="go on where the run of this name stopped (auto), refuse if it exists (never) or not (must)"
    )

    @field_validator("name")
    @classmethod
    def _one_folder(cls, name: str) -> str:
        if "/" in name or name in (".", ".."):
            raise ValueError("must be one folder name without slashes")
        return name
