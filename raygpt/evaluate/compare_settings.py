"""What a comparison is asked for, in plain values."""

from __future__ import annotations

from dataclasses import dataclass

from raygpt.data.documents import Errors


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """Texts, sizes and chances of a comparison; everything but the two models and where the page goes.

    `domain` and `general` are URIs of held-out text: without the first it is what the tuned model was validated on,
    without the second nothing is said about what was forgotten. `terms` is a file of domain terms, else they are mined.
    `train` are the shards that samples are held against, else those the tuned model was trained on.
    """

    domain: str | None
    general: str | None
    terms: str | None
    train: str | None
    num_terms: int
    documents: int
    resamples: int
    samples: int
    sample_tokens: int
    overlap_tokens: int
    seq_len: int | None  # none: what the tuned model was trained on
    seed: int
    temperature: float
    top_k: int | None
    top_p: float | None
    domain_column: str | None  # of tables; none: the tuned model's own, or `text_column`
    text_column: str
    encoding_errors: Errors
    subset: str | None
    max_documents: int | None
    cache_bytes: int
