"""All figures of a comparison by name: comparison.json."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import raygpt
from raygpt.evaluate.compare import Comparison, TextComparison
from raygpt.evaluate.compare_headlines import headlines, perplexity
from raygpt.evaluate.subject import Subject


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """All figures by name, plain types only; what was not measured is absent and in `notes`."""
    facts: dict[str, Any] = {
        "headlines": [line["text"] for line in headlines(comparison)],
        "base": _model_facts(comparison.base),
        "tuned": _model_facts(comparison.tuned),
        "same_tokenizer": comparison.same_tokenizer,
        "seq_len": comparison.seq_len,
        "seed": comparison.settings.seed,
        "resamples": comparison.settings.resamples,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": raygpt.__version__,
        "domain": _text_facts(comparison.domain),
        "general": None if comparison.general is None else _text_facts(comparison.general),
        "terms": _term_facts(comparison),
        "memorisation": _copy_facts(comparison),
        "samples": [vars(pair) for pair in comparison.pairs] or None,
        "notes": comparison.notes,
    }
    return {name: value for name, value in facts.items() if value is not None}


def in_short(figures: dict[str, Any]) -> dict[str, Any]:
    """What a script wants in one line: figures of the texts, terms and overlaps without their parts."""
    short: dict[str, Any] = {}
    of_text = ("base_perplexity", "tuned_perplexity", "perplexity_ratio", "bits_per_byte_difference", "significant")
    wanted = {
        "domain": of_text,
        "general": of_text,
        "terms": ("log_probability_change", "base_median_rank", "tuned_median_rank"),
    }
    for part, names in wanted.items():
        if part in figures:
            short[part] = {name: figures[part][name] for name in names if name in figures[part]}
    if "memorisation" in figures:
        kinds = ("base", "tuned", "held_out")
        short["longest_overlap"] = {kind: figures["memorisation"][kind]["longest"] for kind in kinds}
    return short


def _model_facts(subject: Subject) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": subject.name,
        "origin": subject.origin,
        "parameters": subject.model.config.num_parameters(),
        "tokenizer": subject.tokenizer.name,
        "vocab_size": subject.tokenizer.vocab_size,
        "context": subject.model.config.seq_len,
        "precision": subject.precision.name,
    }
    if subject.state is not None:
        facts |= {"step": subject.state.step, "training_fingerprint": subject.state.fingerprint}
    return facts


def _text_facts(text: TextComparison) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "uri": text.documents.uri,
        "fingerprint": text.documents.fingerprint,
        "documents": len(text.per_document),
        "parts": text.documents.by_text,
        "documents_in_all": text.documents.total,
        "tokens": text.tokens,
        "bytes": int(text.documents.bytes.sum()),
        "improved": text.improved,
        "significant": (text.change or text.bits_change).significant,
    }
    if text.base_loss and text.tuned_loss and text.change:
        facts |= {
            "base_loss": text.base_loss.to_dict(),
            "tuned_loss": text.tuned_loss.to_dict(),
            "loss_difference": text.change.to_dict(),
            "base_perplexity": perplexity(text.base_loss).to_dict(),
            "tuned_perplexity": perplexity(text.tuned_loss).to_dict(),
            "perplexity_ratio": perplexity(text.change).to_dict(),
        }
    facts |= {
        "base_bits_per_byte": text.base_bits.to_dict(),
        "tuned_bits_per_byte": text.tuned_bits.to_dict(),
        "bits_per_byte_difference": text.bits_change.to_dict(),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _term_facts(comparison: Comparison) -> dict[str, Any] | None:
    table = comparison.terms
    if table is None:
        return None
    facts: dict[str, Any] = {"mined": comparison.terms_mined, "occurrences": table.occurrences, "absent": table.absent}
    if table.change is not None:
        facts |= {
            "log_probability_change": table.change.to_dict(),
            "base_median_rank": table.base_rank,
            "tuned_median_rank": table.tuned_rank,
        }
    facts["each"] = [
        {
            "term": row.term,
            "occurrences": row.occurrences,
            "documents": row.documents,
            "base_median_rank": row.base_rank,
            "tuned_median_rank": row.tuned_rank,
            "base_log_probability": row.base_log_probability,
            "tuned_log_probability": row.tuned_log_probability,
            "log_probability_change": None if row.change is None else row.change.to_dict(),
            "example": "".join(row.example),
        }
        for row in table.results
    ]
    return facts


def _copy_facts(comparison: Comparison) -> dict[str, Any] | None:
    found = comparison.memorisation
    if found is None:
        return None
    return {
        "uri": found.uri,
        "training_tokens": found.training_tokens,
        "overlap_tokens": comparison.settings.overlap_tokens,
        **{
            kind: {
                "longest": found.longest(kind),
                "covered": found.covered(kind),
                "texts": [vars(copied) for copied in found.copied[kind]],
            }
            for kind in found.copied
        },
        **({"note": found.note} if found.note else {}),
    }
