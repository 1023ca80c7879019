"""What fine-tuning bought: two models on the same held-out documents, terms, prompts and training shards."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from raygpt.evaluate.bootstrap import Interval, ratio_intervals
from raygpt.evaluate.compare_settings import ComparisonSettings
from raygpt.evaluate.compare_subjects import context, domain_uri, in_place
from raygpt.evaluate.compare_terms import (
    TermTable,
    domain_terms,
    read_terms,
    term_table,
    thinned,
    token_offsets,
    tokens_of,
)
from raygpt.evaluate.document_losses import DocumentLosses, OnProgress, document_losses
from raygpt.evaluate.documents import Documents, open_documents
from raygpt.evaluate.held_out import BATCH_TOKENS
from raygpt.evaluate.pairs import (
    Memorisation,
    Prompt,
    choose_prompts,
    look_for_copies,
    open_training_shards,
    write_samples,
)
from raygpt.evaluate.probes import Probed, Stretch, probe
from raygpt.evaluate.subject import Subject
from raygpt.evaluate.terms import Occurrence, Term, find_terms
from raygpt.track.meter import Meter


@dataclass(frozen=True)
class TextComparison:
    """Both models on one text. Losses are nats per token (None where the tokenizers differ), bits are per byte.

    `change` and `bits_change` are tuned - base, below 0 where fine-tuning helped. `per_document` is (documents, 2)
    losses of base and tuned, in nats per token or, where the tokenizers differ, bits per byte; `improved` is the share
    of documents that the tuned model finds easier.
    """

    documents: Documents
    tokens: int
    base_loss: Interval | None
    tuned_loss: Interval | None
    change: Interval | None
    base_bits: Interval
    tuned_bits: Interval
    bits_change: Interval
    per_document: np.ndarray
    improved: float


@dataclass(frozen=True)
class Pair:
    """One prompt and what each model made of it; `rest` is how the document itself goes on."""

    prompt: str
    base: str
    tuned: str
    rest: str


@dataclass
class Comparison:
    """Everything the page shows. `notes` say why something was not measured, by its name."""

    settings: ComparisonSettings
    base: Subject
    tuned: Subject
    seq_len: int
    domain: TextComparison
    general: TextComparison | None
    terms: TermTable | None
    terms_mined: bool
    pairs: list[Pair]
    memorisation: Memorisation | None
    notes: dict[str, str]

    @property
    def same_tokenizer(self) -> bool:
        return self.base.tokenizer.sha256 == self.tuned.tokenizer.sha256


def compare(settings: ComparisonSettings, base: Subject, tuned: Subject) -> Comparison:
    """Measure both models; progress goes to stdout. Raises UserError for texts and terms that cannot be used."""
    names = read_terms(settings.terms) if settings.terms is not None else None
    notes: dict[str, str] = {}
    domain = _open_text(settings, domain_uri(settings.domain, tuned), "compare.domain", _column(settings, tuned))
    general = None
    if settings.general is not None:
        general = _open_text(settings, settings.general, "compare.general", settings.text_column)
    else:
        notes["general"] = "name general text with --compare.general, shards or raw text, to measure it"
    seq_len = context(settings.seq_len, base, tuned)
    prompts = choose_prompts(domain.texts, tuned.tokenizer, settings.samples, settings.sample_tokens)
    if settings.samples and not prompts:
        notes["samples"] = "no held-out document is long enough to begin one"

    with in_place(tuned):
        tuned_ids = tuned.tokenizer.encode_batch(domain.texts)
        tuned_losses = _losses(tuned, tuned_ids, seq_len, "tuned: domain text")
        tuned_general = general and _text_losses(tuned, general, seq_len, "tuned: general text")
        tuned_samples = _samples(tuned, prompts, settings, "tuned: samples")
    with in_place(base):
        base_ids = base.tokenizer.encode_batch(domain.texts)
        base_losses = _losses(base, base_ids, seq_len, "base: domain text")
        base_general = general and _text_losses(base, general, seq_len, "base: general text")
        base_samples = _samples(base, prompts, settings, "base: samples")
        offsets = token_offsets(base.tokenizer, domain.texts)
        if names is None:
            terms = domain_terms(domain, base_losses, offsets, settings.num_terms, general)
        else:
            terms = find_terms(names, domain.texts)
        terms = _that_fit(thinned(terms), [offsets, token_offsets(tuned.tokenizer, domain.texts)], seq_len)
        base_probed = _probe(base, base_ids, terms, offsets, seq_len, "base: terms")
    with in_place(tuned):
        own = token_offsets(tuned.tokenizer, domain.texts)
        tuned_probed = _probe(tuned, tuned_ids, terms, own, seq_len, "tuned: terms")
    table = None
    if terms:
        table = term_table(terms, domain, base_probed, tuned_probed, resamples=settings.resamples, seed=settings.seed)
    else:
        notes["terms"] = "no word of the held-out text is frequent enough; name terms in a file with compare.terms"

    memorisation = _memorisation(settings, tuned, prompts, base_samples, tuned_samples, notes)
    same = base.tokenizer.sha256 == tuned.tokenizer.sha256

    def losses_compared(text: Documents, before: DocumentLosses, after: DocumentLosses) -> TextComparison:
        return compare_losses(
            text, before, after, same_tokenizer=same, resamples=settings.resamples, seed=settings.seed
        )

    return Comparison(
        settings=settings,
        base=base,
        tuned=tuned,
        seq_len=seq_len,
        domain=losses_compared(domain, base_losses, tuned_losses),
        general=losses_compared(general, base_general, tuned_general)
        if general and base_general and tuned_general
        else None,
        terms=table,
        terms_mined=names is None,
        pairs=[
            Pair(prompt.prompt, one, two, prompt.rest) for prompt, one, two in zip(prompts, base_samples, tuned_samples)
        ],
        memorisation=memorisation,
        notes=notes,
    )


def compare_losses(
    documents: Documents,
    base: DocumentLosses,
    tuned: DocumentLosses,
    *,
    same_tokenizer: bool,
    resamples: int,
    seed: int,
) -> TextComparison:
    """Intervals of both losses and of their difference, over the documents drawn again (the same for every figure)."""
    _, unit = np.unique(documents.units, return_inverse=True)

    def by_unit(values: np.ndarray) -> np.ndarray:
        return np.bincount(unit, weights=values)

    before, after = by_unit(base.nats), by_unit(tuned.nats)
    tokens, bits = by_unit(tuned.tokens), by_unit(documents.bytes) * math.log(2)
    of_bits = ratio_intervals([before, after, after - before], [bits] * 3, resamples=resamples, seed=seed)
    of_loss: Sequence[Interval | None] = [None] * 3
    if same_tokenizer:
        of_loss = ratio_intervals([before, after, after - before], [tokens] * 3, resamples=resamples, seed=seed)
    below = tokens if same_tokenizer else bits
    return TextComparison(
        documents=documents,
        tokens=int(tuned.tokens.sum()),
        base_loss=of_loss[0],
        tuned_loss=of_loss[1],
        change=of_loss[2],
        base_bits=of_bits[0],
        tuned_bits=of_bits[1],
        bits_change=of_bits[2],
        per_document=np.stack([before / below, after / below], axis=1),
        improved=float(np.mean(after < before)),
    )


@contextmanager
def _meter(label: str) -> Iterator[OnProgress]:
    meter = Meter(label, sys.stdout)
    try:
        yield meter.show
    finally:
        meter.close()


def _open_text(settings: ComparisonSettings, uri: str, setting: str, column: str) -> Documents:
    return open_documents(
        uri,
        settings.documents,
        setting,
        subset=settings.subset,
        text_column=column,
        encoding_errors=settings.encoding_errors,
        cache_bytes=settings.cache_bytes,
        max_documents=settings.max_documents,
    )


def _column(settings: ComparisonSettings, tuned: Subject) -> str:
    own = tuned.trained.text_column if tuned.trained is not None else None
    return settings.domain_column or own or settings.text_column


def _losses(subject: Subject, ids: Sequence[np.ndarray], seq_len: int, label: str) -> DocumentLosses:
    with _meter(label) as show:
        return document_losses(
            subject.model,
            ids,
            subject.tokenizer.eot_id,
            seq_len,
            on_progress=show,
            **_where(subject),
        )


def _where(subject: Subject) -> dict[str, Any]:
    """How a subject's model is run."""
    kind = subject.device.type
    return {"batch_tokens": BATCH_TOKENS[kind], "device": subject.device, "autocast": subject.precision.autocast}


def _text_losses(subject: Subject, documents: Documents, seq_len: int, label: str) -> DocumentLosses:
    return _losses(subject, subject.tokenizer.encode_batch(documents.texts), seq_len, label)


def _samples(subject: Subject, prompts: Sequence[Prompt], settings: ComparisonSettings, label: str) -> list[str]:
    with _meter(label) as show:
        return write_samples(
            subject,
            prompts,
            settings.sample_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            seed=settings.seed,
            on_progress=show,
        )


def _that_fit(terms: Sequence[Term], offsets: Sequence[Sequence[np.ndarray]], seq_len: int) -> list[Term]:
    """Without occurrences that are longer than the context in one of the tokenizers."""

    def fits(place: Occurrence) -> bool:
        stretches = [tokens_of(place, own) for own in offsets]
        return all(stretch.last - stretch.first < seq_len for stretch in stretches)

    return [Term(term.text, [place for place in term.occurrences if fits(place)], term.surprisal) for term in terms]


def _probe(
    subject: Subject,
    ids: Sequence[np.ndarray],
    terms: Sequence[Term],
    offsets: Sequence[np.ndarray],
    seq_len: int,
    label: str,
) -> Probed:
    stretches: list[Stretch] = [tokens_of(place, offsets) for term in terms for place in term.occurrences]
    with _meter(label) as show:
        return probe(
            subject.model,
            ids,
            stretches,
            subject.tokenizer.eot_id,
            seq_len,
            on_progress=show,
            **_where(subject),
        )


def _memorisation(
    settings: ComparisonSettings,
    tuned: Subject,
    prompts: Sequence[Prompt],
    base_samples: list[str],
    tuned_samples: list[str],
    notes: dict[str, str],
) -> Memorisation | None:
    if not prompts:
        notes["memorisation"] = "there are no samples to look at"
        return None
    reader, remark = open_training_shards(settings.train, tuned, settings.cache_bytes)
    if reader is None:
        notes["memorisation"] = remark
        return None
    texts = {"base": base_samples, "tuned": tuned_samples, "held_out": [prompt.rest for prompt in prompts]}
    with _meter("overlaps with training text") as show:
        return look_for_copies(reader, texts, settings.sample_tokens, settings.overlap_tokens, remark, show)
