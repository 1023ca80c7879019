"""Terms before and after: their tokens, the user's file, and figures that can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raygpt.data.tokenizer import load_tokenizer, train_tokenizer
from raygpt.errors import UserError
from raygpt.evaluate.compare_terms import (
    domain_terms,
    read_terms,
    term_table,
    thinned,
    token_offsets,
    tokens_of,
)
from raygpt.evaluate.document_losses import DocumentLosses
from raygpt.evaluate.documents import Documents
from raygpt.evaluate.probes import Probed
from raygpt.evaluate.terms import Occurrence, Term, find_terms

TEXTS = ["Zwölf Boxkämpfer jagen Eva über den Deich 🚀, sagt Eva.", "The boxer: EVA-2 (Eva)"]


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_the_tokens_of_a_term_spell_it(kind: str) -> None:
    tokenizer = load_tokenizer("bytes") if kind == "bytes" else train_tokenizer(iter(TEXTS * 4), 290)
    offsets = token_offsets(tokenizer, TEXTS)
    encoded = tokenizer.encode_batch(TEXTS)
    assert [len(spans) for spans in offsets] == [len(ids) for ids in encoded]
    for term in find_terms(["Eva", "Boxkämpfer", "🚀", "den Deich"], TEXTS):
        assert term.occurrences
        for place in term.occurrences:
            stretch = tokens_of(place, offsets)
            spelt = tokenizer.decode(encoded[place.text][stretch.first : stretch.last + 1])
            assert spelt.strip() == TEXTS[place.text][place.start : place.stop]


def test_figures_are_those_worked_out_by_hand() -> None:
    texts = ["alpha and alpha", "alpha beta", "beta", "alpha", "alpha", "alpha"]
    documents = Documents("x", texts, np.arange(6), 6, False)
    terms = find_terms(["alpha", "beta", "gamma"], texts)
    # alpha in documents 0, 0, 1, 3, 4, 5, then beta in 1 and 2
    base = Probed(np.array([-4.0, -6.0, -5.0, -5.0, -5.0, -5.0, -2.0, -3.0]), np.array([10, 30, 20, 20, 20, 20, 7, 9]))
    tuned = Probed(np.array([-1.0, -5.0, -3.0, -3.0, -3.0, -3.0, -2.5, -3.5]), np.array([1, 12, 3, 3, 3, 3, 8, 9]))
    table = term_table(terms, documents, base, tuned, resamples=500, seed=0)
    alpha, beta = table.results
    assert (alpha.term, alpha.occurrences, alpha.documents, beta.occurrences, beta.documents) == ("alpha", 6, 5, 2, 2)
    assert (alpha.base_rank, alpha.tuned_rank, beta.base_rank, beta.tuned_rank) == (20, 3, 8, 8.5)
    assert alpha.base_log_probability == pytest.approx(-5) and alpha.tuned_log_probability == pytest.approx(-3)
    # every one of its documents has a mean change of 2: however they are drawn, so does the whole
    assert alpha.change is not None and (alpha.change.low, alpha.change.high) == pytest.approx((2, 2))
    assert beta.change is None, "two documents say nothing of how sure it is"
    assert table.change is not None and table.change.value == pytest.approx((6 * 2 - 2 * 0.5) / 8)
    assert table.change.low < table.change.value < table.change.high
    assert (table.base_rank, table.tuned_rank, table.occurrences) == (20, 3, 8)
    assert table.absent == ["gamma"]
    assert alpha.example == ("", "alpha", ""), "the one in the middle of six"


def test_mined_terms_are_measured_on_other_documents_than_they_were_chosen_from() -> None:
    texts = [
        f"{'quark' if n % 8 == 0 or n > 70 else 'lepton' if n % 2 else 'nothing'} is {chr(97 + n % 26) * 4} there"
        for n in range(80)
    ]
    documents = Documents("x", texts, np.arange(80) * 3, 80, False)
    tokenizer = load_tokenizer("bytes")
    losses = DocumentLosses([np.full(len(text), 2.0, np.float32) for text in texts])
    offsets = token_offsets(tokenizer, texts)
    terms = {term.text: term for term in domain_terms(documents, losses, offsets, 10, None)}
    assert "lepton" not in terms, "it stands only in the half that is measured"
    assert list(terms) and terms["quark"].surprisal == pytest.approx(2.0 * len("quark"))
    assert [place.text for place in terms["quark"].occurrences] == [n for n in range(71, 80) if n % 2]


def test_many_occurrences_are_thinned_evenly() -> None:
    many = Term("x", [Occurrence(n, 0, 1) for n in range(500)])
    few = Term("y", [Occurrence(n, 0, 1) for n in range(3)])
    kept = thinned([many, few, Term("z", [])])
    assert [place.text for place in kept[0].occurrences] == list(range(0, 500, 10))
    assert kept[1] == few and kept[2].occurrences == []


def test_a_file_of_terms_has_one_per_line(tmp_path: Path) -> None:
    file = tmp_path / "terms.txt"
    file.write_bytes("\ufeffCOVID-19\r\n\r\n  gradient   descent \r\nCOVID-19\r\n".encode())
    assert read_terms(str(file)) == ["COVID-19", "gradient descent"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        (b"\n \n", "holds no term: write one per line"),
        (b"caf\xe9\n", "is not UTF-8 at byte 3"),
    ],
)
def test_an_unusable_file_of_terms_is_one_sentence(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "terms.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"compare.terms={file} {says}"):
        read_terms(str(file))
