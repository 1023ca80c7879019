"""Duplicates against all pairs compared as sets, in any order and any process."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from functools import lru_cache

import numpy as np
import pytest

from raygpt.distill.dedup import (
    NearDuplicates,
    band_hashes,
    banding,
    exact_duplicates,
    exact_hash,
    jaccard,
)
from raygpt.distill.words import shingles, worded
from tests.distill.stored import random_texts


@lru_cache(maxsize=2_000)
def set_of(text: str) -> np.ndarray:
    return shingles(worded(text).numbers)


@lru_cache(maxsize=2_000)
def bands_of(text: str, threshold: float) -> np.ndarray:
    return band_hashes(set_of(text), banding(threshold))


def sets_of(texts: list[str]) -> list[np.ndarray]:
    return [set_of(text) for text in texts]


def removed(texts: list[str], keys: list[str], threshold: float = 0.8) -> dict[str, str]:
    """Key of each removed text -> key of the one that stays."""
    sets = sets_of(texts)
    found = NearDuplicates(np.array([bands_of(text, threshold) for text in texts]), np.array(keys), threshold)
    return {keys[pair.removed]: keys[pair.stays] for pair in found.find(sets.__getitem__)}


def removed_by_all_pairs(texts: list[str], keys: list[str], threshold: float = 0.8) -> dict[str, str]:
    """The same rule on sets of tuples of words: by ascending key, near one that stays."""
    shingled = []
    for text in texts:
        words = text.lower().split()
        shingled.append({tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))})
    staying: list[int] = []
    gone = {}
    for n in sorted(range(len(texts)), key=keys.__getitem__):
        near = (m for m in staying if len(shingled[n] & shingled[m]) / len(shingled[n] | shingled[m]) >= threshold)
        if (first := next(near, None)) is None:
            staying.append(n)
        else:
            gone[keys[n]] = keys[first]
    return gone


def altered(text: str, words: int, generator: random.Random) -> str:
    parts = text.split()
    for at in generator.sample(range(len(parts)), words):
        parts[at] = f"x{generator.randrange(10**6)}"
    return " ".join(parts)


def test_planted_near_duplicates_are_counted_exactly_in_any_order() -> None:
    """One word of 100 exchanged leaves 0.90 to 0.98 of the shingles, ten leave less than 0.7."""
    generator = random.Random(1)
    texts = random_texts(300)
    planted = [altered(text, 1, generator) for text in texts[:40] for _ in range(2)]
    distant = [altered(text, 10, generator) for text in texts[100:130]]
    texts += planted + distant
    keys = [f"{generator.getrandbits(64):016x}" for _ in texts]
    first = removed(texts, keys)
    assert len(first) == 80
    assert first == removed_by_all_pairs(texts, keys)
    for seed in range(3):
        order = random.Random(seed).sample(range(len(texts)), len(texts))
        assert removed([texts[n] for n in order], [keys[n] for n in order]) == first


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95])
def test_every_threshold_gives_what_all_pairs_give(threshold: float) -> None:
    generator = random.Random(7)
    texts = random_texts(60)
    texts += [altered(text, generator.randrange(0, 12), generator) for text in texts]
    keys = [f"{generator.getrandbits(64):016x}" for _ in texts]
    expected = removed_by_all_pairs(texts, keys, threshold)
    assert removed(texts, keys, threshold) == expected
    assert 0 < len(expected) <= 60


def test_the_threshold_itself_counts_as_near() -> None:
    """Of 104 words and their first 84 or 83, 100 shingles are in one and 80 or 79 in both."""
    for seed in range(60):
        words = random_texts(1, 104, seed)[0].split()
        whole, at, below = " ".join(words), " ".join(words[:84]), " ".join(words[:83])
        assert jaccard(*sets_of([whole, at])) == 0.8
        assert removed([whole, at], ["a", "b"]) == {"b": "a"}
        assert removed([whole, below], ["a", "b"]) == {}


def test_what_is_removed_is_near_something_that_stays() -> None:
    """Of a chain a ~ b ~ c whose ends are not near each other, only the middle goes, or only both ends."""
    words = random_texts(1, 130)[0].split()
    chain = [" ".join(words[at : at + 104]) for at in (0, 8, 16)]
    one, two, three = sets_of(chain)
    assert jaccard(one, two) >= 0.8 and jaccard(two, three) >= 0.8 and jaccard(one, three) < 0.8
    assert removed(chain, ["a", "b", "c"]) == {"b": "a"}
    assert removed(chain, ["b", "a", "c"]) == {"b": "a", "c": "a"}


def test_short_and_wordless_texts_are_near_only_their_equals() -> None:
    texts = ["yes it is", "yes it is not", "Yes, it IS!", "!!!", "???", "no"]
    assert removed(texts, list("abcdef")) == {"c": "a"}


def test_a_crowd_of_near_duplicates_leaves_one() -> None:
    generator = random.Random(0)
    text = random_texts(1, 300)[0]
    crowd = [altered(text, 1, generator) for _ in range(500)]
    keys = [f"{n:04d}" for n in range(500)]
    assert removed(crowd, keys) == dict.fromkeys(keys[1:], "0000")


def test_copies_but_for_case_and_white_space_leave_the_smallest_key_in_any_order() -> None:
    texts = random_texts(50)
    texts += [text.upper() for text in texts[:20]] + [f"  {text.replace(' ', chr(10), 3)}\t" for text in texts[:5]]
    texts += ["2 + 3 = 5", "2 - 3 = 5"]  # punctuation tells them apart
    keys = [f"{random.Random(text).getrandbits(64):016x}" for text in texts]

    def stays(order: list[int]) -> set[str]:
        mine = np.array([keys[n].encode() for n in order])
        found = exact_duplicates(np.array([exact_hash(texts[n]) for n in order]), mine)
        for n, stay in enumerate(found):
            assert mine[stay] <= mine[n]
        return {mine[n].decode() for n in found}

    first = stays(list(range(len(texts))))
    assert len(first) == 52
    for seed in range(3):
        assert stays(random.Random(seed).sample(range(len(texts)), len(texts))) == first


def test_no_documents_have_no_duplicates() -> None:
    assert len(exact_duplicates(np.empty((0, 2), np.uint64), np.empty(0, "S32"))) == 0
    assert NearDuplicates(np.empty((0, 25), np.uint64), np.empty(0, "S32"), 0.8).find(lambda n: np.empty(0)) == []


def test_bands_miss_a_pair_at_the_threshold_once_in_ten_thousand_at_most() -> None:
    for threshold in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0):
        plan = banding(threshold)
        assert plan.bands * plan.rows <= 128 and plan.missed <= 1e-4


def test_hashes_are_the_same_in_every_process() -> None:
    text = random_texts(1)[0]
    code = (
        "from raygpt.distill.dedup import *; from raygpt.distill.words import *\n"
        f"print(band_hashes(shingles(worded({text!r}).numbers), banding(0.8)).tolist(), exact_hash({text!r}).tolist())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        check=True,
        text=True,
    )
    here = band_hashes(shingles(worded(text).numbers), banding(0.8)).tolist(), exact_hash(text).tolist()
    assert there.stdout.split() == f"{here[0]} {here[1]}".split()
