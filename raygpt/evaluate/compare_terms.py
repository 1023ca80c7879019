"""Domain terms before and after: which are probed, and what became of their probability and rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raygpt import storage
from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError
from raygpt.evaluate.bootstrap import Interval, ratio_intervals
from raygpt.evaluate.document_losses import DocumentLosses
from raygpt.evaluate.documents import Documents
from raygpt.evaluate.probes import Probed, Stretch
from raygpt.evaluate.terms import Occurrence, Term, find_terms, mine_terms, snippet

# Of a term that occurs more often, this many evenly spaced occurrences are probed.
MOST_OCCURRENCES = 50
# A mined term has to stand in this many documents, of those it is chosen from and of those it is measured on; of a text
# of fewer than MANY documents, in two.
SPREAD, MANY = 3, 60
# Drawing again from fewer documents than this says nothing of how sure a figure is.
FEWEST_DOCUMENTS = 5


@dataclass(frozen=True)
class TermResult:
    """One term: medians of the rank of its first token, mean ln p of the whole term, and the change of that.

    `change` has no interval (None) where the occurrences lie in fewer than FEWEST_DOCUMENTS. `example` is (before,
    term, after) of the occurrence whose change is the median one.
    """

    term: str
    occurrences: int
    documents: int
    base_rank: float
    tuned_rank: float
    base_log_probability: float
    tuned_log_probability: float
    change: Interval | None
    example: tuple[str, str, str]


@dataclass(frozen=True)
class TermTable:
    """All terms, the ones that gained most first; `change` is the mean change of ln p per occurrence over all of them.

    `absent` are terms of the user's file that the held-out text does not have.
    """

    results: list[TermResult]
    absent: list[str]
    change: Interval | None
    base_rank: float
    tuned_rank: float
    occurrences: int


def read_terms(uri: str) -> list[str]:
    """Terms of a file, one per line, each once. Raises UserError where there is no file or nothing in it."""
    where = storage.locate(uri)
    try:
        text = storage.read_text(where)
    except FileNotFoundError:
        raise UserError(
            f"compare.terms={uri} does not exist: name a file with one term per line, or leave it out to have terms "
            "mined from the text."
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"compare.terms={uri} is not UTF-8 at byte {error.start:,}: save it as UTF-8.") from error
    found = list(dict.fromkeys(" ".join(line.split()) for line in text.removeprefix("\ufeff").splitlines()))
    found = [term for term in found if term]
    if not found:
        raise UserError(
            f"compare.terms={uri} holds no term: write one per line, or leave it out to have terms mined from the text."
        )
    return found


def token_offsets(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """(tokens, 2) int64 per text: the characters each token stands for."""
    encodings = tokenizer.backend.encode_batch(list(texts), add_special_tokens=False)
    return [np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) for encoding in encodings]


def tokens_of(place: Occurrence, offsets: Sequence[np.ndarray]) -> Stretch:
    """The tokens that have a part in the characters of `place`; a space before it may belong to the first of them."""
    spans = offsets[place.text]
    first = int(np.searchsorted(spans[:, 1], place.start, "right"))
    last = int(np.searchsorted(spans[:, 0], place.stop, "left")) - 1
    return Stretch(place.text, first, max(first, last))


def domain_terms(
    documents: Documents,
    losses: DocumentLosses,
    offsets: Sequence[np.ndarray],
    wanted: int,
    general: Documents | None,
) -> list[Term]:
    """Terms mined from every second document, with their occurrences in the others.

    Chosen and measured on the same sentences, terms the base model happened to find hard there would look better
    afterwards whatever the fine-tuning did. `losses` and `offsets` are the base model's.
    """
    _, order = np.unique(documents.units, return_inverse=True)
    mined_from = order % 2 == 0
    spread = SPREAD if len(documents.texts) >= MANY else 2
    chosen = np.flatnonzero(mined_from)
    texts = [documents.texts[n] for n in chosen]

    def surprisal(place: Occurrence) -> float:
        n = int(chosen[place.text])
        stretch = tokens_of(Occurrence(n, place.start, place.stop), offsets)
        return float(losses.surprisals[n][stretch.first : stretch.last + 1].sum())

    mined = mine_terms(
        texts,
        [int(order[n]) for n in chosen],
        surprisal,
        4 * wanted,
        general=None if general is None else general.texts,
        fewest_documents=spread,
    )
    kept: list[Term] = []
    stems: set[str] = set()
    for term, found in zip(mined, find_terms([term.text for term in mined], documents.texts)):
        places = [place for place in found.occurrences if not mined_from[place.text]]
        # a plural beside its singular would say the same thing twice
        stem = term.text.lower().removesuffix("s")
        enough = len({order[place.text] for place in places}) >= spread
        if enough and stem not in stems and len(kept) < wanted:
            kept.append(Term(term.text, places, term.surprisal))
            stems.add(stem)
    return kept


def thinned(terms: Sequence[Term]) -> list[Term]:
    """The terms with at most MOST_OCCURRENCES each, evenly spaced over the text."""
    return [
        Term(term.text, [places[at * len(places) // most] for at in range(most)], term.surprisal)
        for term in terms
        for places in [term.occurrences]
        for most in [min(len(places), MOST_OCCURRENCES)]
    ]


def term_table(
    terms: Sequence[Term], documents: Documents, base: Probed, tuned: Probed, *, resamples: int, seed: int
) -> TermTable:
    """Figures from what both models gave for the occurrences, which are numbered term after term."""
    results = []
    begin = 0
    units = np.array([documents.units[place.text] for term in terms for place in term.occurrences], dtype=np.int64)
    change = tuned.log_probability - base.log_probability
    for term in terms:
        here = slice(begin, begin + len(term.occurrences))
        begin = here.stop
        if not term.occurrences:
            continue
        middle = term.occurrences[int(np.argsort(change[here], kind="stable")[len(term.occurrences) // 2])]
        results.append(
            TermResult(
                term.text,
                len(term.occurrences),
                len(np.unique(units[here])),
                float(np.median(base.rank[here])),
                float(np.median(tuned.rank[here])),
                float(base.log_probability[here].mean()),
                float(tuned.log_probability[here].mean()),
                _mean_change(change[here], units[here], resamples, seed),
                snippet(documents.texts[middle.text], middle),
            )
        )
    results.sort(key=lambda row: row.base_log_probability - row.tuned_log_probability)
    none = not results
    return TermTable(
        results,
        [term.text for term in terms if not term.occurrences],
        None if none else _mean_change(change, units, resamples, seed),
        math.nan if none else float(np.median(base.rank)),
        math.nan if none else float(np.median(tuned.rank)),
        len(change),
    )


def _mean_change(change: np.ndarray, units: np.ndarray, resamples: int, seed: int) -> Interval | None:
    _, unit = np.unique(units, return_inverse=True)
    if unit.max() + 1 < FEWEST_DOCUMENTS:
        return None
    sums, counts = np.bincount(unit, weights=change), np.bincount(unit).astype(float)
    return ratio_intervals([sums], [counts], resamples=resamples, seed=seed)[0]
