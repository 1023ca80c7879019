"""What is measured, one class a task: which items it has, what a model answers them, and what the answers come to.

A task is a picklable description. Its items are read by the driver and answered anywhere, some at a time, in any order;
an answer is one or more records, plain JSON values with an `id`. The same items, settings and model make the same
records whatever is asked beside them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from raygpt.evaluate.answering import OpenModel
from raygpt.scoring import hellaswag, lambada
from raygpt.scoring.questions import Scored

Record = dict[str, Any]


class Task(Protocol):
    """`part_items` are the most that one worker answers at a time, and are kept or lost together."""

    name: ClassVar[str]
    part_items: ClassVar[int]

    def settings(self) -> dict[str, Any]:
        """Everything but the items and the model that decides a record; plain values."""

    def read(self) -> list[Any]:
        """The items. Raises UserError for what is no such file."""

    def answer(self, model: OpenModel, items: Sequence[Any]) -> list[Record]:
        """Records of these items, in their order."""

    def summarise(self, items: Sequence[Any], records: Sequence[Record], facts: Mapping[str, Any]) -> dict[str, Any]:
        """The figures, from the records of all items in their order; `facts` are those of the model."""

    def answers(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        """What two models are compared by, item by item: {"protocol metric": (items,) bool}, right or wrong."""

    def losses(self, records: Sequence[Record]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The same of losses: {"protocol metric": (nats, sizes)}, (items,) each; sizes are alike for all models."""


def digest(items: Sequence[Any]) -> str:
    """Hex digest of what is asked, wherever it was read from."""
    told = hashlib.sha256()
    for item in items:
        values = asdict(item) if is_dataclass(item) and not isinstance(item, type) else item
        kept = {key: value for key, value in values.items() if key != "place"} if isinstance(values, dict) else values
        told.update(json.dumps(kept, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    return told.hexdigest()


class Choices:
    """What tasks of right and wrong answers have in common."""

    def losses(self, records: Sequence[Record]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {}


@dataclass(frozen=True)
class HellaswagTask(Choices):
    """HellaSwag in every protocol asked for, together: all endings of a part stand in the same batches."""

    uri: str
    protocols: tuple[hellaswag.ProtocolName, ...] = hellaswag.PROTOCOLS
    limit: int | None = None
    chat: bool = False  # contexts through the model's chat template
    name: ClassVar[str] = "hellaswag"
    part_items: ClassVar[int] = 32

    def settings(self) -> dict[str, Any]:
        return {"protocols": list(self.protocols), "chat": self.chat}

    def read(self) -> list[hellaswag.Item]:
        items = hellaswag.read_items(self.uri, self.limit)
        for protocol in self.protocols:
            hellaswag.questions(items, protocol)  # what a protocol lacks is told before a model is opened
        return items

    def answer(self, model: OpenModel, items: Sequence[hellaswag.Item]) -> list[Record]:
        chat = model.chat
        asked = [each for protocol in self.protocols for each in hellaswag.questions(items, protocol, chat=chat)]
        scored = iter(model.scorer.ask(asked))
        by_protocol = [
            [hellaswag.judge(item, protocol, next(scored)).record() for item in items] for protocol in self.protocols
        ]
        return [record for records in zip(*by_protocol) for record in records]

    def summarise(
        self, items: Sequence[hellaswag.Item], records: Sequence[Record], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {"items": len(items)}
        for protocol in self.protocols:
            judged = [
                hellaswag.judge(item, protocol, _scored(record))
                for item, record in zip(items, _of(records, protocol), strict=True)
            ]
            found[protocol] = hellaswag.summarise(judged, bos=facts.get("bos")) | {"chat_template": self.chat}
        return found

    def answers(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        return {
            f"{protocol} {metric}": np.array([record[metric] for record in _of(records, protocol)], bool)
            for protocol in self.protocols
            for metric in ("acc", "acc_norm")
        }


@dataclass(frozen=True)
class LambadaTask(Choices):
    """The last word of passages that give it away only when read whole."""

    uri: str
    limit: int | None = None
    name: ClassVar[str] = "lambada"
    part_items: ClassVar[int] = 64

    def settings(self) -> dict[str, Any]:
        return {"protocols": list(lambada.PROTOCOLS)}

    def read(self) -> list[lambada.Item]:
        return lambada.read_items(self.uri, self.limit)

    def answer(self, model: OpenModel, items: Sequence[lambada.Item]) -> list[Record]:
        scored = model.scorer.ask(lambada.questions(items))
        return [lambada.judge(item, "lm_eval", one).record() for item, one in zip(items, scored, strict=True)]

    def summarise(
        self, items: Sequence[lambada.Item], records: Sequence[Record], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        judged = [lambada.Judged(r["id"], r["protocol"], bool(r["acc"]), r["logprob"], r["tokens"]) for r in records]
        return {"items": len(items), "lm_eval": lambada.summarise(judged, bos=facts.get("bos"))}

    def answers(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        return {"lm_eval acc": np.array([record["acc"] for record in records], bool)}


def _of(records: Sequence[Record], protocol: str) -> list[Record]:
    return [record for record in records if record["protocol"] == protocol]


def _scored(record: Mapping[str, Any]) -> tuple[Scored, ...]:
    return tuple(Scored(logprob, tokens, False) for logprob, tokens in zip(record["logprobs"], record["tokens"]))
