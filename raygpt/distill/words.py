"""PURE. Words of a text as numbers, the same in every process: what duplicates and contamination are looked for by.

A text is folded (Unicode NFKC, no upper case) and its words are runs of letters and digits; punctuation, white space
and markup between them do not count, so that `don't`, `don 't` and `Don’t` are the same two words. Scripts written
without spaces (kana, Chinese characters) count by the character.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass

import numpy as np

from raygpt.evaluate.overlap import window_hashes

SHINGLE = 5  # words in a row that near duplicates are compared by
_SINGLE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[^\W_{_SINGLE}]+|[{_SINGLE}]")
# Numbers of words are remembered: about 150 MB when they are all forgotten.
MAX_WORDS = 1_000_000


@dataclass(frozen=True)
class Worded:
    """A text's `words` and their `numbers` (n,) int64: 64 bits of a word's BLAKE2b, so that different words differ."""

    words: list[str]
    numbers: np.ndarray


def folded(text: str) -> str:
    """The text in one form of its characters, without upper case."""
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()


def words_of(text: str) -> list[str]:
    """The words in order; a text without any is one word of its own."""
    text = folded(text)
    return _WORD.findall(text) or [text]


def worded(text: str) -> Worded:
    words = words_of(text)
    if len(_numbers) > MAX_WORDS:
        _numbers.clear()
    return Worded(words, np.fromiter(map(_numbers.__getitem__, words), np.int64, len(words)))


def shingles(numbers: np.ndarray) -> np.ndarray:
    """Sorted distinct uint64 hashes of every SHINGLE words in a row; of a shorter text the one hash of all its words.

    Jaccard's index of two texts is that of these sets.
    """
    return np.unique(window_hashes(numbers, min(SHINGLE, len(numbers))))


class _Numbers(dict[str, int]):
    def __missing__(self, word: str) -> int:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        number = self[word] = int.from_bytes(digest, "little", signed=True)
        return number


_numbers = _Numbers()
