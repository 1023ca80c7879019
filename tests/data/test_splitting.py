"""Text files cut at their own breaks: no sentence is cut, nothing but separators is lost, reads do not show."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from raygpt.data import splitting
from raygpt.data.corpus import expand_sources, read_documents
from raygpt.data.documents import Reading, Rows
from raygpt.data.lines import Place, TooLong
from raygpt.data.splitting import documents

WORDS = ["the", "of", "and", "a", "to", "in", "is", "was", "he", "for", "it", "with", "as", "his", "on", "be"]


def pieces(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def cut(text: str, size: int = 2**20, own_breaks: bool = True) -> list[str]:
    """Documents with text, after the checks that hold for every file."""
    pairs = list(documents(pieces(text, size), own_breaks, float("inf")))
    assert "".join(document + gap for document, gap in pairs) == text
    assert all(gap.replace(splitting.MARK, "").strip() == "" for _, gap in pairs)
    return [document for document, _ in pairs if document.strip()]


def prose(paragraphs: int, sentences: int = 6, seed: int = 0) -> str:
    made = random.Random(seed)
    return "\n\n".join(
        " ".join(" ".join(made.choices(WORDS, k=12)).capitalize() + "." for _ in range(made.randint(1, sentences)))
        for _ in range(paragraphs)
    )


def test_marks_come_before_everything_else() -> None:
    text = "one\n\n\n\n\nstill one\n<|endoftext|>\ntwo\f still two<|endoftext|>\n\nthree"
    assert cut(text) == ["one\n\n\n\n\nstill one", "two\f still two", "\nthree"]
    assert cut(text, own_breaks=False) == cut(text)


def test_form_feeds_separate_but_for_a_page_turned_within_a_sentence() -> None:
    text = "Chapter one.\n\n\n\n\nMore.\n\f\nChapter two goes\f\non here.\f\f Chapter three.\n"
    assert cut(text) == ["Chapter one.\n\n\n\n\nMore.", "Chapter two goes\f\non here.", "Chapter three."]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\r\n", "\r"])
def test_runs_of_blank_lines_separate_sections_and_headings_stay_with_theirs(end: str) -> None:
    parts = [prose(5, seed=n) for n in range(4)]
    text = f"A TITLE\n\n\n\n\n{parts[0]}\n \n\t\n\n\n{parts[1]}\n\n\n\nII.\n\n\n\n{parts[2]}\n\n\n{parts[3]}\n"
    expected = [f"A TITLE\n\n\n\n\n{parts[0]}", parts[1], f"II.\n\n\n\n{parts[2]}\n\n\n{parts[3]}"]
    assert cut(text.replace("\n", end)) == [part.replace("\n", end) for part in expected]


def test_two_blank_lines_separate_where_there_are_never_three() -> None:
    parts = [prose(3, seed=n) for n in range(3)]
    assert cut("\n\n\n".join(parts)) == parts


def test_a_rare_run_of_blank_lines_is_no_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "LONGEST_MEAN_SECTION", 20_000)
    text = prose(300) + "\n\n\n\n" + prose(300, seed=1)
    assert len(cut(text)) > 10


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\r\n"])
def test_paragraphs_are_put_together_to_documents_of_two_to_eight_thousand_characters(end: str) -> None:
    text = prose(400).replace("\n", end)
    found = cut(text)
    assert all(2000 <= len(document) <= 8000 for document in found[:-1]) and len(found) > 20
    paragraphs = set(text.split(end * 2))
    assert all(set(document.split(end * 2)) <= paragraphs for document in found)


@pytest.mark.parametrize("end", [" ", "\n"])
def test_text_without_blank_lines_is_cut_at_ends_of_sentences(end: str) -> None:
    text = end.join(prose(400).replace("\n\n", " ").replace(". ", ".\0").split("\0"))
    found = cut(text)
    assert len(found) > 20 and all(len(document) <= 8000 for document in found)
    assert all(document.endswith(".") and document[0].isupper() for document in found)


def test_titles_and_initials_end_no_sentence() -> None:
    text = " ".join(["And Mr. Smith met Dr. J. R. Brown of St. Ives for tea"] * 60) + ". Then they left. " + "x" * 9000
    assert cut(text)[0].endswith("for tea.")


def test_lines_wrapped_within_sentences_are_not_cut() -> None:
    words = prose(400).replace("\n\n", " ").split()
    text = "\n".join(" ".join(words[at : at + 9]) for at in range(0, len(words), 9))
    found = cut(text)
    assert len(found) > 20 and all(document.endswith(".") for document in found)


def test_text_that_offers_no_place_is_cut_at_white_space_in_the_end() -> None:
    found = cut("word " * 60_000)
    assert " ".join(found) == ("word " * 60_000).rstrip()
    assert {len(document) for document in found[:-1]} == {8004} and len(found[-1]) < splitting.FARTHEST
    assert cut("x" * 300_000) == ["x" * 300_000]


def test_chinese_is_cut_after_its_full_stops() -> None:
    found = cut("他们在学习语言模型。" * 2000)
    assert len(found) > 5 and all(document.endswith("。") and len(document) <= 8000 for document in found)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_tiny_files(size: int) -> None:
    for text, expected in (
        ("", []),
        (" \n\n ", []),
        ("short", ["short"]),
        ("\n\n\n\nshort\n\n\n\n", ["short"]),
        ("a\n<|endoftext|>\n<|endoftext|>b", ["a", "b"]),
    ):
        assert cut(text, size) == expected


def test_where_the_file_is_cut_into_reads_does_not_show() -> None:
    made = random.Random(1)
    ends = [
        "\n",
        "\r\n",
        " ",
        "\n\n",
        "\r\n\r\n",
        "\n\n\n\n",
        "\f",
        ". ",
        ".\n",
        "\n<|endoftext|>\n",
        " <|endof",
        "\r\r\n",
    ]
    for kind in ([0, 3, 7, 8], [0, 2, 3, 5], [2, 6, 7], [0, 9, 3], [1, 4, 7, 11], range(12)):
        chosen = [ends[at] for at in kind]
        text = "".join(made.choice(WORDS) * made.randint(1, 30) + made.choice(chosen) for _ in range(400))
        whole = cut(text)
        assert [cut(text, size) for size in (1, 7, 13, 1000)] == [whole] * 4


def test_genuine_text_loses_no_character_that_is_not_white_space(shared_data: Path, tmp_path: Path) -> None:
    text = (shared_data / "shakespeare/input.txt").read_text()
    for name, end in (("unix", "\n"), ("windows", "\r\n"), ("text2csv", "\r\r\n")):
        (tmp_path / f"{name}.txt").write_text(text.replace("\n", end), newline="")
        [unit] = expand_sources([str(tmp_path / f"{name}.txt")])
        count = Rows()
        found = list(read_documents(unit, Reading(split_text=True), count))
        assert re.sub(r"\s", "", "".join(found)) == re.sub(r"\s", "", text)
        assert count.read == len(found) > 400 and count.empty == 0
        # every speech begins with its speaker
        assert all(re.match(r"[A-Z][A-Za-z' ]+:", document) for document in found)
    assert list(read_documents(unit)) == [text.replace("\n", "\r\r\n")]


def test_a_document_too_long_is_told_by_the_line_it_begins_in() -> None:
    for own_breaks in (False, True):
        with pytest.raises(TooLong) as raised:
            list(documents(["short\n<|endoftext|>\n", *["x" * 1000] * 10_000], own_breaks, 5000))
        assert raised.value.line == 3
    with pytest.raises(TooLong) as raised:
        list(documents([prose(50), " ", *["x" * 1000] * 10_000], True, 500_000))
    assert raised.value.line > 20


def test_lines_and_columns() -> None:
    for text, line, column in (("", 1, 1), ("ab", 1, 3), ("a\nb\ncd", 3, 3), ("a\r\r\nbc", 2, 3), ("a\rb\rcde", 3, 4)):
        for size in (1, 2, 100):
            place = Place()
            for piece in pieces(text, size):
                place.advance(piece)
            assert (place.line, place.column) == (line, column)
