"""PURE. The repetition filter: texts that say the same again, by the limits of Gopher (Rae et al. 2021, table A1).

Shares are of the characters of the text's words (or lines); FineWeb (Penedo et al. 2024) takes the same limits.
- The most frequent run of 2, 3 or 4 words fills at most 20, 18 or 16 %. A run counts from the third time on: in an
  answer of ten words any pair that comes twice would be over it.
- Words inside a run of 5 to 10 words that was there before fill at most 15, 14, 13, 12, 11 or 10 %.
- Lines (paragraphs) that were there before are at most 30 % of all, and hold at most 20 % of the characters.
"""

from __future__ import annotations

import re

import numpy as np

from raygpt.distill.words import Worded
from raygpt.evaluate.overlap import window_hashes

TOP_RUN = {2: 0.20, 3: 0.18, 4: 0.16}
TOP_RUN_TIMES = 3
REPEATED_RUN = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
REPEATED_PARTS, REPEATED_PART_CHARACTERS = 0.30, 0.20
_PARTS = {"lines": re.compile(r"\n+"), "paragraphs": re.compile(r"\n{2,}")}


def repetition(text: str, counted: Worded) -> str | None:
    """Which limit a text is over, None where it is within all. `counted` are its words."""
    words, numbers = counted.words, counted.numbers
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    return _parts(text) or _top_runs(words, numbers, lengths) or _repeated_runs(numbers, lengths)


def _parts(text: str) -> str | None:
    for name, border in _PARTS.items():
        parts = border.split(text.strip())
        seen: set[str] = set()
        times = characters = 0
        for part in parts:
            if part in seen:
                times += 1
                characters += len(part)
            seen.add(part)
        if times > REPEATED_PARTS * len(parts):
            return f"{times / len(parts):.0%} of its {name} were there before"
        if characters > REPEATED_PART_CHARACTERS * len(text):
            return f"{characters / len(text):.0%} of its characters are {name} that were there before"
    return None


def _top_runs(words: list[str], numbers: np.ndarray, lengths: np.ndarray) -> str | None:
    for size, most in TOP_RUN.items():
        hashes = window_hashes(numbers, size)
        if not len(hashes):
            return None
        _, first, times = np.unique(hashes, return_index=True, return_counts=True)
        widths = np.convolve(lengths, np.ones(size, np.int64), "valid")[first]
        held = np.where(times >= TOP_RUN_TIMES, times * widths, 0)
        top = int(held.argmax())
        share = held[top] / lengths.sum()
        if share > most:
            run = " ".join(words[first[top] : first[top] + size])
            return f"{share:.0%} of it is {run!r}"
    return None


def _repeated_runs(numbers: np.ndarray, lengths: np.ndarray) -> str | None:
    for size, most in REPEATED_RUN.items():
        hashes = window_hashes(numbers, size)
        first = np.unique(hashes, return_index=True)[1]
        if len(first) == len(hashes):
            return None  # no longer run repeats either
        again = np.ones(len(hashes), np.int64)
        again[first] = 0
        inside = np.convolve(again, np.ones(size, np.int64)) > 0
        share = lengths[inside].sum() / lengths.sum()
        if share > most:
            return f"{share:.0%} of it are runs of {size} words that were there before"
    return None
