"""`data`: what is trained on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raygpt.config.section import AlsoCalled, Fixed, Section


class Data(Section):
    train: Annotated[str | None, Fixed(("sweep",), "its trials are compared on it")] = Field(
        None, description="token shard folder, or raw text prepared on first use"
    )
    val: Annotated[str | None, Fixed(("sweep",), "its trials are ranked on it")] = Field(
        None, description="validation shard folder; none: the val/ beside train/"
    )
    text_column: str | None = Field(
        None, description="column or key of raw data.train and data.val; none: prepare.text_column"
    )
    tokenizer: Annotated[str, Fixed(("classify", "sweep"), "the token ids follow from it")] = Field(
        "gpt2", description="gpt2, bytes, train:<vocab_size>, a folder with a tokenizer, or base: model.init_from's own"
    )
    seq_len: Annotated[
        int | None,
        AlsoCalled(("block_size", "max_length", "max_seq_len", "max_seq_length")),
        Fixed(("train", "sweep"), "the rows follow from it"),
    ] = Field(
        None,
        description="tokens per training row, and the most of a window in `raygpt evaluate`; none: model.seq_len, "
        "there 8,192 at most",
        ge=1,
    )
    backend: Literal["ray", "mmap"] = Field("ray", description="read through Ray Data, or with numpy in the worker")
    cache_gb: float = Field(20, description="local disk kept per machine for shards read from S3; 0 turns it off", ge=0)
    ignore_fingerprint: bool = Field(
        False, description="resume on other shards than the run began with: tokens will repeat or be missed"
    )
