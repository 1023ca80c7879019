"""What filters keep out and what they let through: known samples, a plain loop of Gopher's rules, and real text."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raygpt.distill.filters import IN_ORDER, Rules, objection, whole_sentences
from raygpt.distill.refusal import refusal
from raygpt.distill.repetition import REPEATED_RUN, TOP_RUN, repetition
from raygpt.distill.score import mark, score_question
from raygpt.distill.words import worded, words_of
from raygpt.errors import UserError
from tests.distill.stored import answer

GOOD = (
    "The heart is a muscle that pumps blood through the body. It has four chambers, and its rhythm is set by a small "
    "group of cells in the right atrium."
)
GERMAN = "Das Herz ist ein Muskel, der das Blut durch den Körper pumpt. Es hat vier Kammern und schlägt ein Leben lang."


def step_of(text: str, **rules: object) -> str | None:
    found = objection(text, lambda: worded(text), Rules(IN_ORDER, **rules))  # type: ignore[arg-type]
    return None if found is None else found.step


@pytest.mark.parametrize(
    ("text", "step"),
    [
        (GOOD, None),
        ("", "empty"),
        (" \n\t ", "empty"),
        ("Too short.", "length"),
        ("I like it. " * 20, "repetition"),
        ("- a line of the same words again\n" * 9, "repetition"),
        (GOOD + "\n\n" + GOOD, "repetition"),
        ("the cat and the dog " * 5 + GOOD, "repetition"),
        (GERMAN, "language"),
        ("Le cœur est un muscle qui pompe le sang dans tout le corps et qui bat toute la vie.", "language"),
        (
            "心脏是一块肌肉，它将血液泵送到全身。它有四个腔室，其节律由右心房的一小群细胞控制，一生都在跳动，从不停歇。",
            "language",
        ),
        ("I'm sorry, but I can't help with that request. Please ask me about something else today.", "refusal"),
        ("As an AI language model, I do not have a heart, but I can tell you how one works in general.", "refusal"),
    ],
)
def test_the_first_step_that_objects_counts(text: str, step: str | None) -> None:
    assert step_of(text) == step


def test_length_counts_the_characters_without_white_space_around_them() -> None:
    assert step_of(f"  {GOOD}\n", min_characters=len(GOOD), max_characters=len(GOOD)) is None
    assert step_of(f"  {GOOD}\n", min_characters=len(GOOD) + 1) == "length"
    assert step_of(GOOD, max_characters=len(GOOD) - 1) == "length"


def test_the_wanted_language_stays_and_english_goes() -> None:
    assert step_of(GERMAN, language="de") is None
    assert step_of(GOOD, language="de") == "language"


def test_a_language_that_is_not_known_is_named_before_anything_is_read() -> None:
    with pytest.raises(UserError, match="generate.language=klingon"):
        Rules(IN_ORDER, language="klingon").check()
    Rules(("length",), language="klingon").check()


def test_without_filters_only_what_has_no_text_goes() -> None:
    nothing = Rules(())
    for text in ("x", "I like it. " * 20, GERMAN, "I'm sorry, but I can't help with that."):
        assert objection(text, lambda text=text: worded(text), nothing) is None
    assert objection("", lambda: worded(""), nothing) is not None


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("One. Two is done. Three is not", "One. Two is done."),
        ('He said "stop!" and then', 'He said "stop!"'),
        ("It costs 3.50 dollars. Then it", "It costs 3.50 dollars."),
        ("Done.", "Done."),
        ("- first line\n- second line\n- thi", "- first line\n- second line"),
        ("an unfinished sentence", ""),
        ("它有四个腔室。其节律由", "它有四个腔室。"),
    ],
)
def test_an_answer_that_the_limit_ended_loses_its_unfinished_sentence(text: str, left: str) -> None:
    assert whole_sentences(answer(text, "p", finish="length")) == left
    assert whole_sentences(answer(text, "p", finish="stop")) == text


REFUSALS = [
    "I'm sorry, but I cannot fulfill this request.",
    "I’m sorry, but I can’t assist with that.",
    "I apologize, but I am unable to generate such content.",
    "Sorry, I can't do that.",
    "I cannot provide medical advice. Please see a doctor.",
    "Unfortunately, I cannot access real-time data.",
    "Great question! However, as an AI language model, I don't have personal opinions.",
    "The best film is hard to name. I'm just a language model, so take this with care.",
    "As a text-based AI, I cannot see pictures.",
    "Yes. Note that this lies beyond my knowledge cutoff.",
]
NOT_REFUSALS = [
    "I cannot help but wonder at the stars tonight.",
    "I can't help feeling that summer is over.",
    "I can't give up my cat, said Mia.",
    "I'm sorry, but I can't come to your party on Saturday, as my sister is ill.",
    "As an artist, I cannot help loving colour.",
    "As a language teacher, I write exercises every day.",
    "AI language models such as GPT-2 predict the next token.",
    "The clerk refused to help the customer, who said: I cannot accept that.",
    GOOD,
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_told(text: str) -> None:
    assert refusal(text)


@pytest.mark.parametrize("text", NOT_REFUSALS)
def test_texts_that_speak_of_refusing_are_no_refusals(text: str) -> None:
    assert refusal(text) is None


def gopher_by_loop(words: list[str]) -> bool:
    """Whether the words are over one of Gopher's limits on runs, word by word (Rae et al. 2021, table A1)."""
    total = sum(map(len, words))
    for size, most in TOP_RUN.items():
        runs = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
        for run in set(runs):
            if runs.count(run) >= 3 and runs.count(run) * sum(map(len, run)) / total > most:
                return True
    for size, most in REPEATED_RUN.items():
        seen, inside = set(), set()
        for at in range(len(words) - size + 1):
            run = tuple(words[at : at + size])
            if run in seen:
                inside |= set(range(at, at + size))
            seen.add(run)
        if sum(len(words[at]) for at in inside) / total > most:
            return True
    return False


def test_repetition_is_that_of_a_plain_loop() -> None:
    generator = random.Random(3)
    over = 0
    for _ in range(300):
        words = [f"w{generator.randrange(60)}" for _ in range(generator.randrange(1, 100))]
        phrase = words[: generator.randrange(1, 14)]
        for _ in range(generator.randrange(5)):
            at = generator.randrange(len(words))
            words[at:at] = phrase
        text = " ".join(words)
        expected = gopher_by_loop(words)
        assert bool(repetition(text, worded(text))) == expected, text
        over += expected
    assert 50 < over < 250  # both sides are there


def test_words_do_not_see_punctuation_case_and_the_form_of_characters() -> None:
    assert (
        words_of("Don’t STOP: ﬁne—really!")
        == words_of("don 't stop fine really")
        == ["don", "t", "stop", "fine", "really"]
    )
    assert words_of("猫が cat") == ["猫", "が", "cat"]
    assert words_of("?!") != words_of("!?")


@pytest.mark.parametrize(("name", "every"), [("openwebtext_1k", 4), ("openstax_ccby", 20)])
def test_real_text_passes(shared_data: Path, name: str, every: int) -> None:
    """At least 95 %; of all documents 96.5 and 98.4 % (benchmarks/quality.json)."""
    texts = pq.read_table(shared_data / f"pretrain_text/{name}.parquet")["text"].to_pylist()[::every]
    kept = sum(step_of(text) is None for text in texts)
    assert kept >= 0.95 * len(texts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4", 4.0), ("Mark: 4", 4.0), ("4/5", 4.0), (" **3.5** out of 5.", 3.5), ("5 - excellent", 5.0)]
    + [("none", None), ("", None), ("10", None), ("0", None), ("I would say it is good", None)],
)
def test_marks_are_read_from_what_teachers_write(text: str, expected: float | None) -> None:
    assert mark(text) == expected


def test_a_long_text_is_marked_by_its_beginning() -> None:
    asked = score_question("start " + "x" * 50_000).messages[0][1]
    assert "start" in asked and len(asked) < 5_000
