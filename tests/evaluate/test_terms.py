"""Words of a domain: what counts as one, where it stands, and which are mined."""

from __future__ import annotations

import math

import pytest

from raygpt.evaluate.terms import Occurrence, find_terms, key_words, mine_terms, snippet, words


def test_words_are_letters_and_markup_is_none() -> None:
    text = (
        r"We use \textbf{word2vec} and $\alpha_{graph}$ on COVID-19 data, see https://arxiv.org/abs and <em>GPUs</em>; "
        r"me@uni.edu, x1 10k 3D &amp; naïve Bayes for co-occurrence 2019abc."
    )
    found = list(words(text))
    assert [word for word, _, _ in found] == ["word2vec", "COVID-19", "data", "GPUs", "naïve", "Bayes", "co-occurrence"]
    assert all(text[start:stop] == word for word, start, stop in found)


def test_terms_are_found_as_whole_words_whatever_the_case_and_white_space() -> None:
    texts = ["Gradient descent and gradient\ndescents; gradient  descent.", "COVID-19, covid-19 and COVID-190 (C++)"]
    found = find_terms(["gradient descent", "COVID-19", "C++", "absent"], texts)
    assert [
        [(place.text, texts[place.text][place.start : place.stop]) for place in term.occurrences] for term in found
    ] == [
        [(0, "Gradient descent"), (0, "gradient  descent")],
        [(1, "COVID-19"), (1, "covid-19")],
        [(1, "C++")],
        [],
    ]


def test_key_words_are_scored_by_the_papers_formula() -> None:
    domain, general = {"neural": 30, "time": 50, "rare": 1}, {"time": 400, "house": 600}
    scores = key_words(domain, general, prior=100.0)
    # by hand for "neural": a = 100 * 30 / 1081 = 2.775208
    a = 100 * 30 / 1081
    delta = math.log((30 + a) / (81 + 100 - 30 - a)) - math.log(a / (1000 + 100 - a))
    assert a == pytest.approx(2.775208, abs=1e-6)
    assert scores["neural"] == pytest.approx(delta / math.sqrt(1 / (30 + a) + 1 / a), rel=1e-9)
    assert scores["neural"] > 1.96 > scores["rare"]


def test_mining_wants_several_documents_difficulty_and_the_domain() -> None:
    # "boson" and "quark" are the domain's; "river" is as frequent in general text; "lonely" stands in one document
    texts = [
        f"The boson met the quark near a river, case {'lonely ' * (n == 0)}and {chr(97 + n) * 5}." for n in range(10)
    ]
    texts += ["Filler here, and nothing else to say."] * 20
    general = ["A river ran by the house and the river was wide."] * 40
    hardness = {"boson": 9.0, "quark": 4.0, "river": 8.0, "lonely": 20.0}

    def surprisal(place: Occurrence) -> float:
        return hardness.get(texts[place.text][place.start : place.stop], 0.1)

    with_general = mine_terms(texts, range(30), surprisal, 3, general=general)
    assert [term.text for term in with_general][:2] == ["boson", "quark"]
    assert "river" not in [term.text for term in with_general]
    assert with_general[0].surprisal == pytest.approx(9.0) and len(with_general[0].occurrences) == 10
    without = [term.text for term in mine_terms(texts, range(30), surprisal, 3)]
    assert without == ["boson", "river", "quark"]
    assert [term.text for term in mine_terms(texts, [0] * 30, surprisal, 3)] == [], "all of one document"


def test_a_snippet_is_one_line_around_the_term() -> None:
    text = "word " * 60 + "the\nQUARK itself " + "more " * 40
    place = find_terms(["quark"], [text])[0].occurrences[0]
    before, term, after = snippet(text, place)
    assert term == "QUARK" and "\n" not in before and before.endswith("word the ") and before.startswith("… word")
    assert after.startswith(" itself more") and after.endswith(" …")
    assert snippet("a quark.", Occurrence(0, 2, 7)) == ("a ", "quark", ".")
