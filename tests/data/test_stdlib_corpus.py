"""The quick start's corpus: enough text, always the same, from whatever Python there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raygpt.data import stdlib_corpus
from raygpt.data.stdlib_corpus import documents, write_corpus
from raygpt.errors import UserError


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(documents())


def test_there_is_enough_of_each_kind(texts: list[str]) -> None:
    assert 8e6 < sum(len(text.encode()) for text in texts) < 20e6
    assert len(texts) > 500 and all(text.strip() for text in texts)
    assert any(text.startswith("The standard type hierarchy\n****") for text in texts)
    docstrings = next(text for text in texts if text.startswith("textwrap\n"))
    assert "textwrap.wrap(text, width=70, **kwargs)\n\nWrap a single paragraph of text" in docstrings
    import textwrap

    assert Path(textwrap.__file__).read_text() in texts


def test_neither_tests_nor_installed_packages_are_in_it(texts: list[str]) -> None:
    joined = "\n".join(texts)
    assert "import pytest" not in joined
    assert "class TestCase_" not in joined
    assert not any(text.startswith(("numpy", "ray.", "test.", "idlelib")) for text in texts)


def test_its_order_is_the_same_every_time(tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / "in" / "stdlib.jsonl"
    assert write_corpus(path) == len(texts)
    assert [json.loads(line)["text"] for line in path.open(encoding="utf-8")] == texts


def test_writing_again_leaves_the_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdlib_corpus, "documents", lambda: iter(["one", "two"]))  # each walk takes 3 s
    path = tmp_path / "in" / "stdlib.jsonl"
    assert write_corpus(path) == 2
    before = path.stat()
    write_corpus(path)
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_ino == before.st_ino


def test_python_without_its_sources_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdlib_corpus, "_library", lambda: tmp_path)
    with pytest.raises(UserError, match="0 modules.*library's sources"):
        list(documents())
