"""Tasks whose figure is what text costs a model: WikiText as its protocols read it, and the loss on held-out data."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from raygpt import storage
from raygpt.data.corpus import held_out_units
from raygpt.data.shards import load_manifest
from raygpt.data.sources import is_path, raw_sources
from raygpt.evaluate.answering import OpenModel
from raygpt.evaluate.held_out import (
    LONGEST,
    evaluate_held_out,
    most_rows,
    open_held_out,
    rows_of,
    shard_folder,
)
from raygpt.evaluate.tasks import Record
from raygpt.scoring import wikitext
from raygpt.scoring.perplexity import Perplexity
from raygpt.scoring.rolling import Windows, text_losses

# Into so many pieces the windows of one long text are shared out: a worker answers some, a rerun what is missing.
PIECES = 32
# How WikiText is read: protocol, and whether windows overlap.
READINGS = {"lm_eval": "lm_eval", "huggingface": "huggingface", "huggingface_no_overlap": "huggingface"}


@dataclass(frozen=True)
class Piece:
    """Page `number` of a reading (`text` of `words` and `bytes` as published), or piece `number` of PIECES of the
    windows over the whole file, of which `sha256` tells the text."""

    id: str
    reading: str
    number: int
    text: str = ""
    words: int = 0
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class WikitextTask:
    """WikiText in three readings: lm-evaluation-harness's, and Hugging Face's with and without overlap. Windows have
    the model's context, but no more than `seq_len`, which is LONGEST unless given."""

    uri: str
    stride: int | None = None
    limit: int | None = None
    seq_len: int | None = None
    name: ClassVar[str] = "wikitext"
    part_items: ClassVar[int] = 4

    def settings(self) -> dict[str, Any]:
        return {"stride": self.stride, "longest": self.seq_len or LONGEST, "readings": list(READINGS), "pieces": PIECES}

    def read(self) -> list[Piece]:
        pages = self._texts("lm_eval")
        whole = self._texts("huggingface")
        found = [
            Piece(f"lm_eval/{n}", "lm_eval", n, text, words, size)
            for n, (text, words, size) in enumerate(zip(pages.texts, pages.words, pages.bytes))
        ]
        for reading in ("huggingface", "huggingface_no_overlap"):
            found += [
                Piece(f"{reading}/{n}", reading, n, words=whole.words[0], bytes=whole.bytes[0], sha256=whole.sha256)
                for n in range(PIECES)
            ]
        return found

    def answer(self, model: OpenModel, items: Sequence[Piece]) -> list[Record]:
        return [self._page(model, item) if item.text else self._piece(model, item) for item in items]

    def windows(self, reading: str, context: int) -> Windows:
        """How a reading cuts for a model of that context."""
        context = min(context, self.seq_len or LONGEST)
        if reading == "huggingface" and self.stride is not None:
            return Windows.of("strided", context, self.stride)
        return wikitext.windows(READINGS[reading], context, overlap=reading == "huggingface")  # type: ignore[arg-type]

    def _page(self, model: OpenModel, item: Piece) -> Record:
        windows = self.windows(item.reading, model.context)
        (ids,) = model.tokenizer.encode_batch([item.text])
        losses = text_losses(model.rows, [ids], windows, bos_id=model.bos_id)
        return _record(item, float(losses.nats[0]), int(losses.tokens[0]))

    def _piece(self, model: OpenModel, item: Piece) -> Record:
        """Its share of the windows, each as `text_losses` predicts it."""
        ids = _encoded(self.uri, self.limit, model).astype(np.int64)
        windows = self.windows(item.reading, model.context)
        model.rows.check(windows, int(ids.max()))
        every = windows.over(len(ids))
        mine = every[item.number * len(every) // PIECES : (item.number + 1) * len(every) // PIECES]
        sums = np.zeros(len(mine))
        for n, losses in model.rows.losses([ids[window.begin : window.end] for window in mine]):
            sums[n] = losses[mine[n].first - mine[n].begin - 1 :].sum(dtype=np.float64)
        return _record(item, float(sums.sum()), sum(window.end - window.first for window in mine))

    def summarise(self, items: Sequence[Piece], records: Sequence[Record], facts: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"items": sum(item.reading == "lm_eval" for item in items)}
        for reading, protocol in READINGS.items():
            texts = self._texts(protocol)
            nats = np.array([record["nats"] for record in records if record["reading"] == reading])
            tokens = np.array([record["tokens"] for record in records if record["reading"] == reading])
            paged = reading == "lm_eval"
            if not paged:  # one text: no spread over texts is known
                nats, tokens = nats.sum(keepdims=True), tokens.sum(keepdims=True)
            windows = self.windows(reading, facts["context"])
            result = Perplexity.of(
                texts,
                windows,
                nats,
                tokens,
                model=facts.get("name", ""),
                protocol=protocol,
                bos=facts.get("bos_id") if paged else None,
                vocabulary=facts.get("tokenizer_sha256", ""),
            )
            found[reading] = result.perplexities | result.record() | {"model_context": facts["context"]}
        return found

    def answers(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        return {}

    def losses(self, records: Sequence[Record]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Bits and bytes of every page."""
        pages = [record for record in records if record["reading"] == "lm_eval"]
        bits = np.array([record["nats"] for record in pages]) / math.log(2)
        return {"lm_eval bits_per_byte": (bits, np.array([record["bytes"] for record in pages], np.float64))}

    def _texts(self, protocol: str) -> Any:
        return _texts(self.uri, self.limit, protocol)


def _record(item: Piece, nats: float, tokens: int) -> Record:
    return {
        "id": item.id,
        "reading": item.reading,
        "nats": nats,
        "tokens": tokens,
        **({"words": item.words, "bytes": item.bytes} if item.text else {}),
    }


@lru_cache(4)
def _texts(uri: str, limit: int | None, protocol: Any) -> Any:
    text, name = wikitext.read(uri)
    return wikitext.texts(text, name, protocol, limit)


def _encoded(uri: str, limit: int | None, model: OpenModel) -> np.ndarray:
    """The whole file's tokens, kept with the model: every piece cuts its windows from them."""
    kept = model.__dict__.setdefault("_encoded", {})
    if (uri, limit) not in kept:
        (text,) = _texts(uri, limit, "huggingface").texts
        (kept[uri, limit],) = model.tokenizer.encode_batch([text])
    return kept[uri, limit]


@dataclass(frozen=True)
class LossTask:
    """Loss on the held-out data `val` as `raygpt evaluate` alone measures it: one item, the whole of it."""

    val: str
    seq_len: int | None = None
    batches: int | None = None
    global_batch_tokens: int = 0
    batch_rows: int | None = None
    reading: dict[str, Any] = field(default_factory=dict)  # options of open_held_out
    name: ClassVar[str] = "loss"
    part_items: ClassVar[int] = 1

    def settings(self) -> dict[str, Any]:
        kept = {key: value for key, value in asdict(self).items() if key not in ("batch_rows", "val")}
        kept["reading"].pop("cache_bytes", None)
        return kept

    def read(self) -> list[dict[str, Any]]:
        return [{"id": "0", "data": self.val, "sha256": _of_data(self.val, self.reading.get("subset"))}]

    def answer(self, model: OpenModel, items: Sequence[dict[str, Any]]) -> list[Record]:
        subject = model.subject
        held_out = open_held_out(self.val, subject.tokenizer, **self.reading)
        seq_len = rows_of(self.seq_len, subject)
        rows = most_rows(self.batches, self.global_batch_tokens, seq_len, subject)
        result = evaluate_held_out(subject, held_out, seq_len, batch_rows=self.batch_rows, max_rows=rows)
        return [
            {
                "id": item["id"],
                "loss": result.loss,
                "perplexity": result.perplexity,
                "bits_per_byte": result.bits_per_byte,
                "tokens": result.tokens,
                "rows": result.rows,
                "seq_len": seq_len,
                "data": held_out.uri,
                "fingerprint": held_out.fingerprint,
            }
            for item in items
        ]

    def summarise(
        self, items: Sequence[dict[str, Any]], records: Sequence[Record], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {key: value for key, value in records[0].items() if value is not None and key != "id"}

    def answers(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        return {}

    def losses(self, records: Sequence[Record]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {}


def _of_data(uri: str, subset: str | None) -> str:
    """Tells what lies there now: a shard folder's fingerprint, a file's digest, of folders and globs each file's size
    and time of change. What a data set of the hub holds by now is not known: it is another one every time."""
    if (folder := shard_folder(uri)) is not None:
        return load_manifest(folder).fingerprint
    if is_path(uri) and storage.is_file(storage.locate(uri)):
        return storage.sha256(storage.locate(uri))
    units = held_out_units(raw_sources(uri), subset, "data.val")
    if any(unit.kind == "hub" for unit in units):
        return f"unknown {uuid.uuid4().hex}"
    told = [(unit.uri, unit.part, unit.parts, unit.stamp) for unit in units]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
