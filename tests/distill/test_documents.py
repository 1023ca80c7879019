"""Stored answers to documents: what is kept, where it goes, and that neither order, core, kill nor rerun shows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raygpt.data.shards import verify
from raygpt.data.tokenizer import byte_tokenizer
from raygpt.distill import sides
from raygpt.distill.answers import Answer, Question
from raygpt.distill.card import Facts
from raygpt.distill.documents import QualityOptions, make_documents
from raygpt.errors import UserError
from raygpt.storage import locate
from tests.distill.stored import answer, random_texts, stored

Answers = Callable[[], Iterator[Answer]]
FACTS = Facts("teacher", "prompt", answer_tokens=1_000, seconds=2.0)
PLAIN = QualityOptions(filters=(), dedup="none", val_fraction=0.3)
ALL = QualityOptions(filters=("length", "repetition", "refusal"), val_fraction=0.2)


def make(answers: Answers, output: str | Path, options: QualityOptions = ALL, **more: Any) -> dict[str, Any]:
    return make_documents(answers, locate(output), tokenizer=byte_tokenizer(), options=options, facts=FACTS, **more)


def texts_of(output: str | Path, side: str) -> list[str]:
    manifest = verify(str(Path(output) / side))
    ids = np.concatenate([np.fromfile(Path(output) / side / shard.name, "<u2") for shard in manifest.shards])
    assert ids[-1] == 256
    return [byte_tokenizer().decode(part) for part in np.split(ids, np.flatnonzero(ids == 256) + 1)[:-1]]


def files(output: str | Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in Path(output).rglob("*") if path.is_file()}


def removed(made: dict[str, Any]) -> dict[str, int]:
    return {step["step"]: step["removed"] for step in made["steps"]}


def mixed(seed: int = 0) -> list[str]:
    """100 good texts, 20 copies, 15 near duplicates, 5 short, 4 repetitive, 3 refusals, 1 empty answer."""
    generator = random.Random(seed)
    good = random_texts(100, seed=seed)
    near = [" ".join([*text.split()[:-1], f"x{n}"]) for n, text in enumerate(good[:15])]
    bad = ["short"] * 5 + [f"again{n} " * 50 for n in range(4)]
    bad += [f"I'm sorry, but I cannot help you with number {n} of what you have asked me for." for n in range(3)] + [""]
    texts = good + [text.upper() for text in good[40:60]] + near + bad
    generator.shuffle(texts)
    return texts


def test_every_answer_is_kept_or_counted_by_the_step_that_removed_it(tmp_path: Path) -> None:
    made = make(stored(mixed()), tmp_path)
    assert removed(made) == {
        "empty": 1, "length": 5, "repetition": 4, "refusal": 3, "exact duplicates": 20, "near duplicates": 15,
    }  # fmt: skip
    assert made["answers"] == 148 and made["documents"] == 100 and made["steps"][-1]["kept"] == 100
    written = texts_of(tmp_path, "train") + texts_of(tmp_path, "val")
    assert len({text.lower() for text in written}) == 100 == len(written)
    assert {len(step["samples"]) for step in made["steps"]} <= {1, 3}
    sample = made["steps"][1]["samples"][0]
    assert sample["text"] == "short" and sample["why"] == "5 characters, fewer than 50"


def test_without_filters_everything_is_kept_to_the_token(tmp_path: Path) -> None:
    texts = ["a", "I like it. " * 30, "a", "Ein deutscher Satz.", "naïve ☃"]
    made = make(stored(texts), tmp_path, PLAIN)
    assert sorted(texts_of(tmp_path, "train") + texts_of(tmp_path, "val")) == sorted(texts)
    assert made["tokens"] == sum(len(text.encode()) + 1 for text in texts)
    assert made["bytes"] == sum(len(text.encode()) for text in texts)
    assert removed(made) == {"empty": 0}


def test_what_is_kept_does_not_hang_on_the_order_of_answers(tmp_path: Path) -> None:
    answers = list(stored(mixed())())
    kept = set()
    for seed in range(3):
        shuffled = random.Random(seed).sample(answers, len(answers))
        make(lambda shuffled=shuffled: iter(shuffled), tmp_path / str(seed))
        train, val = texts_of(tmp_path / str(seed), "train"), texts_of(tmp_path / str(seed), "val")
        # documents stand in the order of the answers
        assert train == [one.text for one in shuffled if one.text in set(train)]
        kept.add((frozenset(train), frozenset(val)))
    assert len(kept) == 1


def test_a_second_making_is_equal_to_the_byte_and_a_rerun_writes_nothing(tmp_path: Path) -> None:
    answers = stored(mixed())
    options = replace(ALL, shard_tokens=5_000)
    first = make(answers, tmp_path / "one", options)
    make(answers, tmp_path / "two", options)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert len([name for name in files(tmp_path / "one") if name.startswith("train/shard-")]) > 5
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*")}
    again = make(answers, tmp_path / "one", options)
    assert not first["reused"] and again == {**first, "reused": True}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*")} == stamps


@pytest.mark.parametrize("change", [{"min_characters": 60}, {"dedup": "exact"}, {"val_fraction": 0.5}])
def test_other_options_make_other_documents_in_the_same_place(tmp_path: Path, change: dict[str, Any]) -> None:
    answers = stored(mixed())
    make(answers, tmp_path / "same", ALL)
    again = make(answers, tmp_path / "same", replace(ALL, **change))
    fresh = make(answers, tmp_path / "fresh", replace(ALL, **change))
    assert not again["reused"]
    for side in ("train", "val"):
        assert verify(str(tmp_path / "same" / side)).fingerprint == fresh[side]["fingerprint"]
        assert len(list((tmp_path / "same" / side).iterdir())) == len(list((tmp_path / "fresh" / side).iterdir()))


def test_more_answers_are_seen(tmp_path: Path) -> None:
    texts = random_texts(30)
    make(stored(texts[:20]), tmp_path)
    assert make(stored(texts), tmp_path)["documents"] == 30


class Stopped(Exception):
    """What a run raises out of its own answers when it is to stop."""


def test_an_interrupted_making_leaves_the_old_documents_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in each pass over the answers, also while new shards are being written beside the old ones."""
    monkeypatch.setattr(sides, "BATCH", 10)
    options = replace(ALL, shard_tokens=1_000)
    make(stored(random_texts(40, seed=1)), tmp_path / "out", options)
    before = {side: texts_of(tmp_path / "out", side) for side in ("train", "val")}
    answers = stored(mixed())
    fresh = make(answers, tmp_path / "fresh", options)
    passes = 0

    def breaking(last: int) -> Answers:
        def read() -> Iterator[Answer]:
            nonlocal passes
            passes += 1
            for number, one in enumerate(answers()):
                if passes == last and number == 120:
                    raise Stopped
                yield one

        return read

    for last in range(1, 5):
        passes = 0
        with pytest.raises(Stopped):
            make(breaking(last), tmp_path / "out", options)
        assert {side: texts_of(tmp_path / "out", side) for side in ("train", "val")} == before
    assert len([name for name in files(tmp_path / "out") if "shard-" in name]) > 50  # both sets of shards
    passes = 0
    made = make(breaking(5), tmp_path / "out", options)  # four passes are enough
    assert made["train"] == fresh["train"] and made["val"] == fresh["val"]
    assert texts_of(tmp_path / "out", "train") == texts_of(tmp_path / "fresh", "train")
    assert len(list((tmp_path / "out/train").iterdir())) == len(list((tmp_path / "fresh/train").iterdir()))


def test_a_making_killed_between_the_two_manifests_is_made_again(tmp_path: Path) -> None:
    make(stored(mixed()), tmp_path / "out")
    fresh = make(stored(mixed(1)), tmp_path / "fresh")
    (tmp_path / "out/train/manifest.json").write_bytes((tmp_path / "fresh/train/manifest.json").read_bytes())
    (tmp_path / "out/train/shard-00000.bin").write_bytes((tmp_path / "fresh/train/shard-00000.bin").read_bytes())
    made = make(stored(mixed(1)), tmp_path / "out")
    assert not made["reused"] and made["val"] == fresh["val"] and made["train"] == fresh["train"]
    verify(str(tmp_path / "out/val"))


def test_all_answers_to_a_prompt_are_on_one_side(tmp_path: Path) -> None:
    texts = random_texts(120)
    answers = [
        replace(answer(text, f"prompt {n // 4}"), key=f"{n:032x}", question=Question(f"prompt {n // 4}", sample=n % 4))
        for n, text in enumerate(texts)
    ]
    make(lambda: iter(answers), tmp_path, PLAIN)
    prompts = {one.text: one.question.prompt for one in answers}
    train, val = ({prompts[text] for text in texts_of(tmp_path, side)} for side in ("train", "val"))
    assert train and val and not train & val


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_either_side_has_a_document(tmp_path: Path, fraction: float) -> None:
    for number, answers in enumerate(
        [
            stored(random_texts(5)),
            lambda: (replace(answer(text, "one prompt"), key=text[:32]) for text in random_texts(5)),
        ]
    ):
        made = make(answers, tmp_path / str(number), replace(PLAIN, val_fraction=fraction))
        assert sorted((made["train"]["documents"], made["val"]["documents"])) == [1, 4]


def test_documents_may_hold_the_prompt(tmp_path: Path) -> None:
    make(
        stored(["first answer", "second answer"]),
        tmp_path,
        PLAIN,
        text_of=lambda one: f"{one.question.prompt}\n{one.text}",
    )
    assert texts_of(tmp_path, "train")[0].startswith("prompt of ")


def test_half_a_surrogate_pair_does_not_end_the_making(tmp_path: Path) -> None:
    make(stored(["a smile \ud83d", "another text"]), tmp_path, PLAIN)
    assert "a smile \ufffd" in texts_of(tmp_path, "train") + texts_of(tmp_path, "val")


def test_an_answer_that_the_limit_ended_becomes_whole_sentences(tmp_path: Path) -> None:
    texts = [f"{text}. And then there was" for text in random_texts(4)]
    make(stored(texts, finish="length"), tmp_path / "cut", replace(ALL, dedup="none"))
    written = texts_of(tmp_path / "cut", "train") + texts_of(tmp_path / "cut", "val")
    assert sorted(written) == sorted(text.removesuffix(" And then there was") for text in texts)
    made = make(stored(texts, finish="length"), tmp_path / "whole", PLAIN)
    assert made["bytes"] == sum(len(text.encode()) for text in texts)


def test_contaminated_documents_go_and_are_counted_by_file(tmp_path: Path) -> None:
    texts = random_texts(30)
    (tmp_path / "val.txt").write_text(" ".join(texts[3].split()[10:40]))
    (tmp_path / "other.txt").write_text(random_texts(1, seed=9)[0])
    files_named = (str(tmp_path / "val.txt"), str(tmp_path / "other.txt"))
    made = make(stored(texts), tmp_path / "out", replace(ALL, decontaminate=files_named))
    assert removed(made)["contamination"] == 1
    assert [(one["contaminated"], one["longest"], one["texts"]) for one in made["decontaminated"]] == [
        (1, 30, 1),
        (0, 0, 1),
    ]
    assert texts[3] not in texts_of(tmp_path / "out", "train") + texts_of(tmp_path / "out", "val")
    # the file counts, not its name
    (tmp_path / "val.txt").write_text(" ".join(texts[5].split()[10:40]))
    assert not make(stored(texts), tmp_path / "out", replace(ALL, decontaminate=files_named))["reused"]


def test_marks_of_the_teacher_keep_what_is_good_whatever_their_order(tmp_path: Path) -> None:
    texts = random_texts(20)
    marks = {text: ("5", "4.5", "Mark: 2", "no idea")[n % 4] for n, text in enumerate(texts)}
    asked = []

    def scorer(questions: Callable[[], Iterator[Question]]) -> Iterable[Answer]:
        asked.extend(questions())
        for question in reversed(asked):
            text = next(text for text in texts if text in question.messages[0][1])
            if text != texts[0]:  # one that was never answered
                yield Answer(question.key("marks"), question, marks[text], "stop", 100, 1)

    options = replace(ALL, filters=("length", "score"), min_score=4)
    made = make(stored(texts), tmp_path, options, scorer=scorer)
    assert removed(made)["score"] == 11 and len(asked) == 20
    written = texts_of(tmp_path, "train") + texts_of(tmp_path, "val")
    assert sorted(written) == sorted(text for text in texts[1:] if marks[text] in ("5", "4.5"))


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (
            ["short"] * 3 + random_texts(1),
            r"Of 4 answers one document is left.*step length removed most \(3, such as: 5",
        ),
        (["word " * 40] * 3, r"no document is left.*step repetition removed most"),
        (random_texts(1) * 5, r"one document is left.*exact duplicates removed most \(4.*set generate.dedup otherwise"),
        ([], r"There is no answer to make documents of"),
    ],
)
def test_when_nothing_is_left_the_step_that_removed_most_is_named(
    tmp_path: Path, texts: list[str], sentence: str
) -> None:
    answers = [replace(answer(text, "p"), key=f"{n:032x}") for n, text in enumerate(texts)]
    with pytest.raises(UserError, match=sentence) as error:
        make(lambda: iter(answers), tmp_path)
    assert "\n" not in str(error.value) and not files(tmp_path)


def test_options_are_checked_before_a_teacher_is_paid(tmp_path: Path) -> None:
    QualityOptions().check()
    with pytest.raises(UserError, match="generate.language=xx"):
        QualityOptions(language="xx").check()
    with pytest.raises(UserError, match="generate.decontaminate: .* does not exist"):
        QualityOptions(decontaminate=(str(tmp_path / "no.jsonl"),)).check()


def test_answers_that_change_while_they_are_read_are_noticed(tmp_path: Path) -> None:
    answers = list(stored(random_texts(20))())
    passes = iter([answers, answers[::-1]])
    with pytest.raises(RuntimeError, match="answers changed"):
        make(lambda: iter(next(passes)), tmp_path, PLAIN)


def test_every_pass_tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    texts = [f"{n} and some more words" for n in range(2_500)]
    make(stored(texts), tmp_path, PLAIN, on_progress=lambda doing, answers: told.append((doing, answers)))
    assert told == [("filtering", 1_000), ("filtering", 2_000), ("writing", 1_000), ("writing", 2_000)]
