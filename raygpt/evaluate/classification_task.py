"""A classifier's scores as a task beside others: one answer per example of a labelled file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from raygpt import storage
from raygpt.classify.folder import ARCHITECTURE, EXPORT
from raygpt.errors import UserError
from raygpt.evaluate.answering import OpenModel, files
from raygpt.evaluate.classification import guess, scores_of
from raygpt.evaluate.tasks import Choices, Record
from raygpt.storage import Location

MISSING = "there is no classifier there: run `raygpt finetune` on the task first, or name its folder (model.init_from)."


def find_classifier(places: Sequence[str]) -> tuple[str, str]:
    """(folder, digest of what decides its answers) of the first classifier in a place, or in its export/. Raises
    UserError where there is none."""
    for where in (inside for place in map(storage.locate, places) for inside in (place / EXPORT, place)):
        if _is_classifier(where):
            told = json.dumps([where.uri, dict(files(where))], sort_keys=True)
            return where.uri, hashlib.sha256(told.encode()).hexdigest()
    raise UserError(MISSING)


def _is_classifier(where: Location) -> bool:
    try:
        values = json.loads(storage.read_text(where / "config.json"))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(values, dict) and ARCHITECTURE in (values.get("architectures") or [])


@dataclass(frozen=True)
class ClassificationTask(Choices):
    """The classifier in the folder `place` on the labelled file `uri`: one item, the whole of it. It need not be the
    model that the other tasks ask: `model_sha256` tells it."""

    place: str
    model_sha256: str
    uri: str
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    resamples: int = 2000
    limit: int | None = None
    name: ClassVar[str] = "classification"
    part_items: ClassVar[int] = 1

    def settings(self) -> dict[str, Any]:
        return {"text_columns": list(self.text_columns), "label_column": self.label_column, "limit": self.limit}

    def read(self) -> list[dict[str, Any]]:
        where = storage.locate(self.uri)
        return [{"id": "0", "place": self.uri, "sha256": storage.sha256(where) if storage.is_file(where) else self.uri}]

    def answer(self, model: OpenModel, items: Sequence[dict[str, Any]]) -> list[Record]:
        found = guess(
            [storage.locate(self.place)],
            self.uri,
            text_columns=self.text_columns,
            label_column=self.label_column,
            limit=self.limit,
            missing=MISSING,
        )
        logits = found.logits.astype(np.float64)
        shifted = logits - logits.max(1, keepdims=True)
        nats = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(found.labels)), found.labels]
        return [
            {
                "id": str(n),
                "label": int(label),
                "prediction": int(prediction),
                "acc": int(label == prediction),
                "nats": float(cost),
                "classes": len(found.names),
                "origin": found.origin,
            }
            for n, (label, prediction, cost) in enumerate(zip(found.labels, found.guesses, nats))
        ]

    def summarise(
        self, items: Sequence[dict[str, Any]], records: Sequence[Record], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        labels = np.array([record["label"] for record in records])
        guesses = np.array([record["prediction"] for record in records])
        nats = float(np.mean([record["nats"] for record in records]))
        first = records[0]
        scores = scores_of(first["origin"], self.uri, labels, first["classes"], guesses, nats, self.resamples)
        return {"items": len(records), **scores.to_dict()}

    def answers(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        return {"acc": np.array([record["acc"] for record in records], bool)}
