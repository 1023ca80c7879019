"""Answers are kept from the moment they came, in files that depend on nothing but them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

import raygpt.distill.store as store_module
from raygpt.distill.answers import Answer, Parked, Question
from raygpt.distill.store import AnswerStore
from raygpt.errors import UserError
from raygpt.storage import locate


def result(n: int) -> Answer | Parked:
    question = Question(f"p{n}") if n % 2 else Question(None, (("system", "s"), ("user", f"p{n}")), n % 3, {"id": n})
    key = question.key("g")
    return Parked(key, question, "why") if n % 10 == 7 else Answer(key, question, f"text {n} ü", "stop", n, 2 * n)


def filled(folder: Path, numbers: Iterable[int]) -> AnswerStore:
    store = AnswerStore(locate(str(folder)))
    store.recover({"model": "m"})
    for n in numbers:
        store.add(result(n))
        if store.is_due:
            store.flush()
    return store


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few answers to a part, and few parts to a larger one."""
    for name, value in {
        "JOURNAL_ANSWERS": 16,
        "FAN": 3,
        "SHARD_ANSWERS": 100,
        "FLUSH_ANSWERS": 16,
        "FLUSH_SECONDS": 1e9,
    }.items():
        monkeypatch.setattr(store_module, name, value)


def test_the_last_files_do_not_depend_on_the_order_of_arrival(tmp_path: Path, small: None) -> None:
    numbers = list(range(300))
    first = filled(tmp_path / "a", numbers)
    assert first.finish() == {"answered": 270, "parked": 30, "prompt_tokens": 40290, "answer_tokens": 80580}
    random.Random(3).shuffle(numbers)
    second = filled(tmp_path / "b", numbers)
    second.finish()
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert sorted(files(tmp_path / "a")) == [
        *(f"answers-000000270-0000{n}.parquet" for n in range(3)),
        "generation.json",
        "parked.parquet",
    ]
    answers = {answer.key: answer for answer in first.answers()}
    expected = {one.key: one for one in map(result, range(300))}
    assert answers == {key: one for key, one in expected.items() if isinstance(one, Answer)}
    assert list(answers) == sorted(answers)
    assert [one.key for one in first.parked()] == sorted(k for k, one in expected.items() if isinstance(one, Parked))
    # nothing is done twice
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    AnswerStore(locate(str(tmp_path / "a"))).finish()
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}


def test_an_answer_outlives_the_process_that_added_it(tmp_path: Path, small: None) -> None:
    filled(tmp_path, range(40))  # never closed, as after a kill: two parts and a journal
    journal = next(tmp_path.glob("journal-*.jsonl"))
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole[: len(whole) // 3].rpartition(b"\n")[2] + b'{"key": "torn')
    again = AnswerStore(locate(str(tmp_path)))
    again.recover({"model": "m"})
    assert not list(tmp_path.glob("journal-*"))
    answered = [key for keys, _ in again.known() for key in keys]
    parked = [key for _, keys in again.known() for key in keys]
    assert sorted(answered) == sorted(one.key for one in map(result, range(40)) if isinstance(one, Answer))
    assert len(parked) == 4
    assert again.stored_tokens() == (
        sum(n for n in range(40) if n % 10 != 7),
        2 * sum(n for n in range(40) if n % 10 != 7),
    )


def test_a_kill_between_a_part_and_the_end_of_its_journal_counts_nothing_twice(tmp_path: Path, small: None) -> None:
    store = filled(tmp_path, range(10))
    journal = next(tmp_path.glob("journal-*.jsonl"))
    kept = journal.read_bytes()
    store.close()
    journal.write_bytes(kept)
    again = AnswerStore(locate(str(tmp_path)))
    again.recover({"model": "m"})
    assert again.finish()["answered"] == 9


def test_parked_questions_leave_when_they_are_answered(tmp_path: Path, small: None) -> None:
    store = filled(tmp_path, range(20))
    store.finish()
    question = Question("p7")
    store.add(Answer(question.key("g"), question, "at last", "stop", 1, 2))
    assert store.finish()["parked"] == 1
    assert [one.question.prompt or one.question.messages[1][1] for one in store.parked()] == ["p17"]
    assert "at last" in [answer.text for answer in store.answers()]


def test_of_two_reasons_the_later_one_is_told(tmp_path: Path, small: None) -> None:
    store = filled(tmp_path, range(20))
    store.finish()
    question = Question("p7")
    store.add(Parked(question.key("g"), question, "another reason"))
    assert store.finish()["parked"] == 2
    assert {one.reason for one in store.parked() if one.question == question} == {"another reason"}


def test_half_a_character_in_an_answer_is_kept_as_its_sign(tmp_path: Path, small: None) -> None:
    store = filled(tmp_path, range(3))
    question = Question("cut")
    store.add(Answer(question.key("g"), question, "an emoji \ud83d", "length", 1, 2))
    again = filled(tmp_path, range(3, 5))  # from the journal, as after a kill
    again.finish()
    assert "an emoji \ufffd" in [answer.text for answer in again.answers()]


def test_many_parts_become_few(tmp_path: Path, small: None) -> None:
    filled(tmp_path, range(500))
    assert len(list(tmp_path.glob("part-*.parquet"))) < 10


def test_a_damaged_file_is_named(tmp_path: Path, small: None) -> None:
    store = filled(tmp_path, range(20))
    store.close()
    part = next(tmp_path.glob("part-*.parquet"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{part.name} is damaged .*: delete it, its answers are asked again"):
        list(store.answers())


def test_on_s3_answers_are_written_every_few_and_can_be_gone_on_with(bucket: str, small: None) -> None:
    store = AnswerStore(locate(f"{bucket}/answers/g"))
    store.recover({"model": "m"})
    for n in range(40):
        store.add(result(n))
        if store.is_due:
            store.flush()
    again = AnswerStore(locate(f"{bucket}/answers/g"))  # without what was in memory alone: 8 answers
    again.recover({"model": "m"})
    assert sum(len(a) + len(p) for a, p in again.known()) == 32
    store.close()
    assert again.finish() == {"answered": 36, "parked": 4, "prompt_tokens": 692, "answer_tokens": 1384}
    assert [answer.key for answer in again.answers()] == sorted(
        one.key for one in map(result, range(40)) if isinstance(one, Answer)
    )
    assert json.loads(json.dumps([answer.text for answer in again.answers()]))[0].startswith("text ")
