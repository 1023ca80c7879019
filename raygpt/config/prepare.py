"""`prepare`: documents to token shards."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from raygpt.config.section import Section


class Prepare(Section):
    sources: list[str] = Field([], description="files, globs, folders, s3:// URIs or Hugging Face dataset ids")
    subset: str | None = Field(None, description="subset of a Hugging Face dataset, such as sample-10BT")
    text_column: str = Field("text", description="column or key that holds the document")
    output: str | None = Field(None, description="folder (local or s3://) that gets train/ and val/")
    val_fraction: float = Field(0.005, description="share of the documents held out for validation", gt=0, lt=1)
    val_split: Literal["documents", "tail"] = Field(
        "documents", description="hold out whole documents, or the last part (tail) of every document"
    )
    val_sources: list[str] = Field(
        [], description="documents held out for validation, instead of a share of prepare.sources"
    )
    split_text: bool = Field(
        False, description="cut text files into documents at their own breaks (marks, form feeds, blank lines)"
    )
    max_document_mb: float = Field(256, description="a longer document is refused: it has to fit memory", gt=0)
    shard_tokens: int = Field(2**24, description="tokens per shard file", ge=1024)
    max_documents: int | None = Field(None, description="stop after this many documents", ge=1)
    encoding_errors: Literal["strict", "replace"] = Field(
        "strict", description="invalid UTF-8 ends the job (strict) or becomes U+FFFD (replace)"
    )

    @field_validator("sources", "val_sources", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value
