"""Answers on their way, kept part by part: what is there is never asked again, whatever ended the run.

    parts/hellaswag-1a2b3c4d5e6f/about.json   model, settings and items that these are answers to
    parts/hellaswag-1a2b3c4d5e6f/00007.jsonl  who answered, then the records of items 7 n to 8 n, n by the task

The name is a digest of all that decides an answer: model (every byte of its weights), task settings, items. Another
model or another setting is another folder beside it. A part is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from raygpt import storage
from raygpt.evaluate.tasks import Record, Task, digest
from raygpt.storage import Location

FOLDER, ABOUT = "parts", "about.json"
VERSION = 1  # of what a task records, and of the arithmetic behind it


class Parts:
    """The parts of one task's answers by one model, below a run's folder."""

    def __init__(self, run: Location, task: Task, model: str, items: Sequence[Any]) -> None:
        """`model` is its fingerprint."""
        self.task, self.items = task, items
        self.digest = digest(items)
        self.about = {
            "version": VERSION,
            "task": task.name,
            "settings": task.settings(),
            "model": model,
            "items": self.digest,
            "part_items": task.part_items,
        }
        told = json.dumps(self.about, sort_keys=True)
        self.key = hashlib.sha256(told.encode()).hexdigest()[:12]
        self.folder = run / FOLDER / f"{task.name}-{self.key}"
        self.count = -(-len(items) // task.part_items)
        self.done: set[int] = set()

    def look(self) -> set[int]:
        """The parts that are there."""
        names = {entry.base_name for entry in storage.list_folder(self.folder)}
        self.done = {part for part in range(self.count) if _name(part) in names}
        return self.done

    def of(self, part: int) -> Sequence[Any]:
        """The items of a part."""
        size = self.task.part_items
        return self.items[part * size : (part + 1) * size]

    @property
    def answered(self) -> int:
        """Items that are answered."""
        return sum(len(self.of(part)) for part in self.done)

    def write(self, part: int, records: Sequence[Record], facts: Mapping[str, Any]) -> None:
        """Keep the records of a part; `facts` are of who answered."""
        if not self.done:
            storage.write_text(self.folder / ABOUT, json.dumps(self.about, indent=2) + "\n")
        lines = [json.dumps({"answered_by": facts}), *(json.dumps(record, ensure_ascii=False) for record in records)]
        storage.write_text(self.folder / _name(part), "\n".join(lines) + "\n")
        self.done.add(part)

    def read(self) -> tuple[list[Record], list[dict[str, Any]]]:
        """(records of all items in their order, what is known of who answered, each once). Every part is there."""
        records: list[Record] = []
        answered: list[dict[str, Any]] = []
        for part in range(self.count):
            first, *lines = storage.read_text(self.folder / _name(part)).splitlines()
            if (facts := json.loads(first)["answered_by"]) not in answered:
                answered.append(facts)
            records += map(json.loads, lines)
        return records, answered


def _name(part: int) -> str:
    return f"{part:05d}.jsonl"
