"""`<run>/samples.jsonl`: texts that a model wrote while it trained, a line for each evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from raygpt.storage import Location, read_text, write_text

SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class Written:
    """What stood in the place of `texts` at a step, the prompt included."""

    step: int
    texts: tuple[str, ...]


def read_samples(run: Location) -> list[Written]:
    """In their order; lines that are none, as the torn last one of a killed run, are left out."""
    try:
        lines = read_text(run / SAMPLES).splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        try:
            row = json.loads(line)
            found.append(Written(int(row["step"]), tuple(map(str, row["texts"]))))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return found


class SampleLog:
    """Keeps the samples of a run that goes on after `resume_step`; those after it are dropped."""

    def __init__(self, run: Location, resume_step: int) -> None:
        self._file = run / SAMPLES
        self._kept = [one for one in read_samples(run) if 0 < resume_step >= one.step]

    def append(self, step: int, texts: Sequence[str]) -> None:
        """Writes the file anew: a few kilobytes at an evaluation, and S3 cannot append. Raises UserError."""
        self._kept.append(Written(step, tuple(texts)))
        lines = [json.dumps({"step": one.step, "texts": list(one.texts)}) for one in self._kept]
        write_text(self._file, "\n".join(lines) + "\n")
