"""Answers on their way, kept part by part: what is there is never asked again, whatever ended the run.

    parts/hellaswag-1a2b3c4d5e6f/about.json           model, settings and items that these are answers to
    parts/hellaswag-1a2b3c4d5e6f/000096-000128.jsonl  who answered, then the records of items 96 to 127

The name is a digest of all that decides an answer: model (every byte of its weights), task settings, items. Another
model or another setting is another folder beside it. A part is there whole or not at all; how many items it has is
whatever was answered at once, at most the task's `part_items`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from raygpt import storage
from raygpt.evaluate.tasks import Record, Task, digest
from raygpt.storage import Location

FOLDER, ABOUT = "parts", "about.json"
VERSION = 2  # of what a task records, and of the arithmetic behind it

_PART = re.compile(r"(\d{6,})-(\d{6,})\.jsonl")


class Parts:
    """The parts of one task's answers by one model, below a run's folder."""

    def __init__(self, run: Location, task: Task, model: str, items: Sequence[Any]) -> None:
        """`model` is its fingerprint; a task that asks another has that one's."""
        self.task, self.items = task, items
        self.digest = digest(items)
        self.about = {
            "version": VERSION,
            "task": task.name,
            "settings": task.settings(),
            "model": getattr(task, "model_sha256", model),
            "items": self.digest,
        }
        told = json.dumps(self.about, sort_keys=True)
        self.key = hashlib.sha256(told.encode()).hexdigest()[:12]
        self.folder = run / FOLDER / f"{task.name}-{self.key}"
        self.done: list[range] = []

    def look(self) -> None:
        """Find the parts that are there."""
        found = (_PART.fullmatch(entry.base_name) for entry in storage.list_folder(self.folder))
        self.done = sorted((range(int(name[1]), int(name[2])) for name in found if name), key=lambda part: part.start)

    @property
    def answered(self) -> int:
        """Items that are answered."""
        return sum(map(len, self.done))

    def missing(self) -> list[range]:
        """The items that are not answered, in runs of `part_items` at most."""
        there = {item for part in self.done for item in part}
        found: list[range] = []
        for item in range(len(self.items)):
            if item in there:
                continue
            last = found[-1] if found else range(0)
            if last.stop == item and 0 < len(last) < self.task.part_items:
                found[-1] = range(last.start, item + 1)
            else:
                found.append(range(item, item + 1))
        return found

    def write(self, part: range, records: Sequence[Record], facts: Mapping[str, Any], seconds: float) -> None:
        """Keep the records of a part; `facts` are of who answered, `seconds` what it took of the run's time."""
        if not self.done:
            storage.write_text(self.folder / ABOUT, json.dumps(self.about, indent=2) + "\n")
        head = json.dumps({"answered_by": facts, "seconds": round(seconds, 3)})
        lines = [head, *(json.dumps(record, ensure_ascii=False) for record in records)]
        storage.write_text(self.folder / f"{part.start:06d}-{part.stop:06d}.jsonl", "\n".join(lines) + "\n")
        self.done = sorted([*self.done, part], key=lambda one: one.start)

    def read(self) -> tuple[list[Record], list[dict[str, Any]], float]:
        """(records of all items in their order, what is known of who answered, each once, seconds that all took). Every
        part is there."""
        records: list[Record] = []
        answered: list[dict[str, Any]] = []
        seconds = 0.0
        for part in self.done:
            text = storage.read_text(self.folder / f"{part.start:06d}-{part.stop:06d}.jsonl")
            first, *lines = text.splitlines()
            head = json.loads(first)
            if (facts := head["answered_by"]) not in answered:
                answered.append(facts)
            seconds += head["seconds"]
            records += map(json.loads, lines)
        return records, answered, seconds
