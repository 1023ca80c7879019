"""The comparison as people read it: one self-contained page, with comparison.json and plots/*.png beside it."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import raygpt
from raygpt.evaluate.bootstrap import Interval
from raygpt.evaluate.compare import Comparison, Pair, TextComparison
from raygpt.evaluate.compare_figures import as_dict
from raygpt.evaluate.compare_headlines import factor, headlines, length, perplexity, plural, shown, signed, verdict
from raygpt.evaluate.compare_page import COMPARISON_PAGE
from raygpt.evaluate.compare_plots import make_comparison_plots
from raygpt.evaluate.compare_terms import MOST_OCCURRENCES, TermResult
from raygpt.evaluate.documents import LONGEST
from raygpt.storage import Location, write_text
from raygpt.track.plots import keep_plots

PAGE, FIGURES = "comparison.html", "comparison.json"
CAPTIONS = {
    "losses": "Loss of every document under the base and the tuned model",
    "differences": "Differences between the models with 95 % intervals",
    "terms": "Rank and probability of domain terms before and after",
}


def write_comparison(comparison: Comparison, target: Location) -> dict[str, Any]:
    """Write plots/, comparison.json and, last, the page below `target`; returns the figures."""
    figures = as_dict(comparison)
    with tempfile.TemporaryDirectory() as folder:
        plots = keep_plots(make_comparison_plots(comparison, Path(folder)), target / "plots", CAPTIONS)
    write_text(target / FIGURES, json.dumps(figures, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(target / PAGE, render(comparison, figures, plots))
    return figures


def render(comparison: Comparison, figures: dict[str, Any], plots: list[dict[str, str]]) -> str:
    import jinja2

    texts = [_text_row("domain", comparison.domain)]
    if comparison.general is not None:
        texts.append(_text_row("general", comparison.general))
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(COMPARISON_PAGE)
    return template.render(
        base=figures["base"],
        tuned=figures["tuned"],
        headlines=headlines(comparison),
        same_tokenizer=comparison.same_tokenizer,
        texts=texts,
        plots=plots,
        notes=comparison.notes,
        how=_how(comparison),
        terms=[_term_row(row) for row in comparison.terms.results] if comparison.terms else [],
        absent=", ".join(comparison.terms.absent) if comparison.terms else "",
        copies=_copy_rows(comparison),
        overlap_tokens=comparison.settings.overlap_tokens,
        pairs=_pair_rows(comparison),
        facts=_facts(figures),
        version=raygpt.__version__,
        written=figures["written"],
    )


def _text_row(name: str, text: TextComparison) -> dict[str, Any]:
    cells = []

    def add(interval: Interval, digits: Any, kind: str = "") -> None:
        cells.append(
            {
                "figure": digits(interval.value),
                "interval": f"{digits(interval.low)} to {digits(interval.high)}",
                "kind": f" {kind}",
            }
        )

    if text.base_loss and text.tuned_loss and text.change:
        add(perplexity(text.base_loss), shown)
        add(perplexity(text.tuned_loss), shown)
        add(text.change.map(lambda nats: 100 * math.expm1(nats)), lambda v: f"{signed(v)} %", verdict(text.change))
    add(text.base_bits, lambda value: f"{value:.3f}")
    add(text.tuned_bits, lambda value: f"{value:.3f}")
    add(text.bits_change, lambda value: f"{value:+.3f}".replace("-", "−"), verdict(text.bits_change))
    parts = " parts" if text.documents.by_text else ""
    return {
        "name": name,
        "documents": f"{len(text.per_document):,}{parts}",
        "tokens": f"{text.tokens:,}",
        "cells": cells,
    }


def _term_row(row: TermResult) -> dict[str, Any]:
    return {
        "term": row.term,
        "occurrences": row.occurrences,
        "documents": plural(row.documents, "document"),
        "base_rank": f"{row.base_rank:,.0f}",
        "tuned_rank": f"{row.tuned_rank:,.0f}",
        "base_probability": _probability(row.base_log_probability),
        "tuned_probability": _probability(row.tuned_log_probability),
        "factor": factor(row.tuned_log_probability - row.base_log_probability),
        "interval": f"{factor(row.change.low)} to {factor(row.change.high)}" if row.change else "too few documents",
        "kind": f" {verdict(row.change, better_below=False)}" if row.change else "",
        "example": row.example,
    }


def _probability(log_probability: float) -> str:
    percent = 100 * math.exp(log_probability)
    return f"{percent:.1f} %" if percent >= 1 else f"{percent:.2g} %" if percent >= 1e-3 else factor(log_probability)


def _copy_rows(comparison: Comparison) -> list[dict[str, str]]:
    found = comparison.memorisation
    if found is None:
        return []
    names = {"tuned": "tuned samples", "base": "base samples", "held_out": "held-out documents, same length"}
    rows = []
    for kind, name in names.items():
        best = max(found.copied[kind], key=lambda copied: copied.longest)
        rows.append(
            {
                "name": name,
                "texts": f"{len(found.copied[kind])}",
                "longest": length(best.longest),
                "covered": f"{found.covered(kind):.1%}",
                "text": " ".join(best.text.split()),
            }
        )
    return rows


def _pair_rows(comparison: Comparison) -> list[dict[str, Any]]:
    rows = []
    for number, pair in enumerate(comparison.pairs):
        texts = {"base": pair.base, "tuned": pair.tuned, "held_out": _same_length(pair)}
        names = {"base": "base", "tuned": "tuned", "held_out": "how the document goes on"}
        rows.append(
            {
                "prompt": " ".join(pair.prompt.split()),
                "texts": [(names[kind], _marked(comparison, kind, number, text)) for kind, text in texts.items()],
            }
        )
    return rows


def _same_length(pair: Pair) -> str:
    """The document's own text, cut at a word to about the length of the samples."""
    longest = max(len(pair.base), len(pair.tuned), 200)
    return pair.rest if len(pair.rest) <= longest else pair.rest[:longest].rsplit(maxsplit=1)[0] + " …"


def _marked(comparison: Comparison, kind: str, number: int, text: str) -> list[tuple[str, str]]:
    """(tag, text) pieces: the longest run that training text has too is a mark where it is long."""
    text = text.strip() or "(the document ends here)"
    found = comparison.memorisation
    copied = found.copied[kind][number] if found is not None else None
    if copied is None or copied.longest < comparison.settings.overlap_tokens or copied.text.strip() not in text:
        return [("span", text)]
    before, _, after = text.partition(copied.text.strip())
    return [("span", before), ("mark", copied.text.strip()), ("span", after)]


def _how(comparison: Comparison) -> dict[str, str]:
    """How each figure was come by."""
    settings = comparison.settings
    units = "parts of documents" if comparison.domain.documents.by_text else "documents"
    text = (
        f"Every document by itself in rows of {comparison.seq_len:,} tokens (of longer ones, parts of up to "
        f"{LONGEST:,} characters). Intervals: paired bootstrap, {settings.resamples:,} draws of {units}, 95 %; a "
        "change is significant when its interval excludes 0."
    )
    if not comparison.same_tokenizer:
        text += " The models have different tokenizers, so only bits per byte compare."
    if comparison.terms_mined:
        origin = "Words that the base model finds hard and that several documents have"
        if comparison.general is not None:
            origin += ", over-represented against the general text"
        origin += "; chosen in one half of the documents, measured in the other."
    else:
        origin = f"Terms from {settings.terms}."
    terms = (
        f"{origin} The context of an occurrence is all that stands before it in its document. At most "
        f"{MOST_OCCURRENCES} occurrences a term."
    )
    memorisation = ""
    if (found := comparison.memorisation) is not None:
        memorisation = (
            f"Against all {found.training_tokens:,} training tokens of {found.uri}; prompts do not count. Held-out "
            "documents say how much text of this kind repeats anyway."
        )
        memorisation += f" Caution: {found.note}." if found.note else ""
    samples = (
        f"Beginnings of held-out documents; same seed, temperature {settings.temperature:g}, top_k "
        f"{settings.top_k}, up to {settings.sample_tokens} tokens. Marked: the longest run that "
        f"training text has too, from {settings.overlap_tokens} tokens on."
    )
    return {"text": text, "terms": terms, "memorisation": memorisation, "samples": samples}


def _facts(figures: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for which in ("base", "tuned"):
        model = figures[which]
        step = f", step {model['step']:,}" if "step" in model else ""
        rows.append(
            (
                which,
                f"{model['origin']}{step}: {model['parameters']:,} parameters, tokenizer {model['tokenizer']} of "
                f"{model['vocab_size']:,}, context {model['context']:,}, {model['precision']}",
            )
        )
    if "training_fingerprint" in figures["tuned"]:
        rows.append(("training data", f"fingerprint {figures['tuned']['training_fingerprint']}"))
    for which in ("domain", "general"):
        if which in figures:
            text = figures[which]
            mark = f", fingerprint {text['fingerprint']}" if "fingerprint" in text else ""
            rows.append(
                (
                    f"{which} text",
                    f"{text['uri']}: {text['documents']:,}{' parts' if text['parts'] else ''} of "
                    f"{text['documents_in_all']:,} documents, evenly spaced; "
                    f"{text['bytes']:,} bytes{mark}",
                )
            )
    rows.append(("seed", f"{figures['seed']}"))
    return rows
