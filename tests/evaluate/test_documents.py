"""Held-out texts of a comparison: evenly spaced, from shards or raw text, of any tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from raygpt.data.reader import TokenReader
from raygpt.data.tokenizer import load_tokenizer, train_tokenizer
from raygpt.errors import UserError
from raygpt.evaluate.documents import cut, document_bounds, evenly_spaced, open_documents
from tests.jobs.conftest import write_shards

TEXTS = [f"Document {number} speaks of naïve café no. {number}, once." for number in range(50)]


@pytest.mark.parametrize("total", [0, 1, 7, 20, 39, 40, 41, 100, 1234])
def test_a_stream_of_unknown_length_is_thinned_evenly(total: int) -> None:
    found = evenly_spaced(iter(range(total)), 20)
    assert len(found) == min(total, 20) and found == sorted(set(found))
    if total > 20:
        gaps = np.diff([*found, total + found[0]])
        assert gaps.max() <= 2 * total / 20 + 2 and found[0] < total / 10
        assert found[-1] >= 0.85 * total


@pytest.mark.parametrize(
    "text", ["", "short", "a" * 100, "words " * 40, "line\n" * 30, " \n" * 100, "ü" * 31 + " x" * 30]
)
def test_parts_of_a_text_join_to_it(text: str) -> None:
    parts = cut(text, 30)
    assert "".join(parts) == (text if text.strip() else "")
    assert all(len(part) <= 30 for part in parts)
    if text.startswith("words"):
        assert all(part.endswith("words ") for part in parts)


def test_shards_and_raw_text_give_the_same_texts(tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    raw = open_documents(str(tmp_path / "raw.jsonl"), 30, "compare.domain")
    for name, tokenizer in (("bytes", load_tokenizer("bytes")), ("bpe", train_tokenizer(iter(TEXTS), 300))):
        manifest = write_shards(tmp_path / name / "val", TEXTS, tokenizer)
        shards = open_documents(str(tmp_path / name), 30, "compare.domain")
        assert shards.fingerprint == manifest.fingerprint and raw.fingerprint is None
        assert shards.uri == str(tmp_path / name / "val")
        assert shards.total == raw.total == 50
        assert len(shards.texts) == len(raw.texts) == 30
        assert set(shards.texts) <= set(TEXTS) and set(raw.texts) <= set(TEXTS)
        every = open_documents(str(tmp_path / name), 80, "compare.domain")
        assert every.texts == TEXTS and every.units.tolist() == list(range(50)) and not every.by_text
        assert every.bytes.tolist() == [len(text.encode()) for text in TEXTS]


def test_bounds_leave_out_empty_documents_and_keep_an_open_last_one(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("bytes")
    write_shards(tmp_path / "shards", ["one", "", "three"], tokenizer)
    assert document_bounds(TokenReader(tmp_path / "shards"), 256).tolist() == [[0, 3], [5, 10]]
    assert document_bounds(TokenReader(tmp_path / "shards"), ord("e")).tolist() == [[0, 2], [3, 8], [10, 11]]


def test_a_long_document_is_several_texts_of_one_unit(tmp_path: Path) -> None:
    novel = "It was the best of times. " * 1000  # 26,000 characters
    texts = [*TEXTS, novel]
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = open_documents(str(tmp_path / "raw.jsonl"), 300, "compare.general")
    assert "".join(found.texts) == "".join(texts) and max(map(len, found.texts)) <= 8000
    assert found.units.tolist() == [*range(50), 50, 50, 50, 50] and not found.by_text


def test_a_corpus_in_one_line_is_compared_by_its_parts(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("All the world is a stage. " * 400)
    found = open_documents(str(tmp_path / "one.txt"), 300, "compare.domain")
    assert found.by_text and found.total == 1
    assert len(found.texts) > 10 and found.units.tolist() == list(range(len(found.texts)))


def test_reading_ends_where_it_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS) + "no JSON\n")
    found = open_documents(str(tmp_path / "raw.jsonl"), 10, "compare.general", max_documents=40)
    assert found.total == 40 and len(found.texts) == 10


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist: name a shard folder or a file of text"),
        ("\n \n", "holds no text to compare on: name more"),
        ("one word", "holds too little text to compare on: name more"),
    ],
)
def test_unusable_text_is_one_sentence_with_its_setting(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=f"compare.general={file} {says}"):
        open_documents(str(file), 10, "compare.general")
