"""`compare`: `raygpt evaluate --base … --tuned …`, and `--compare` with several models side by side."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from raygpt.config.section import Section


class Compare(Section):
    base: str | None = Field(None, description="model before fine-tuning (run, checkpoint, Hugging Face folder or id)")
    tuned: str | None = Field(None, description="model after fine-tuning; a run folder or name in run.storage")
    models: list[str] = Field(
        [],
        description="models side by side, the first being what the others are held against: runs, checkpoints, "
        "Hugging Face folders or ids, GGUF files",
    )
    real: str | None = Field(
        None, description="models: held-out real text; none: data.val, or what one of their runs held out"
    )
    synthetic: str | None = Field(
        None, description="models: held-out text of the teacher; none: val/ of the generation a run was distilled on"
    )
    domain: str | None = Field(None, description="held-out text of the domain; none: the tuned run's validation data")
    general: str | None = Field(None, description="general text, to measure what was forgotten; none: not measured")
    terms: str | None = Field(None, description="file with one domain term per line; none: mined from the text")
    num_terms: int = Field(20, description="terms probed", ge=1)
    documents: int = Field(300, description="documents per text that losses are taken over, evenly spaced", ge=2)
    resamples: int = Field(2000, description="bootstrap resamples behind the confidence intervals", ge=100)
    samples: int = Field(4, description="pairs of samples, prompted with beginnings of held-out documents", ge=0)
    sample_tokens: int = Field(120, description="tokens per sample", ge=1)
    overlap_tokens: int = Field(16, description="shortest verbatim overlap with training text that is shown", ge=4)
    output: str | None = Field(None, description="folder of the page; none: comparison/ in the tuned run's folder")

    @field_validator("models", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value
