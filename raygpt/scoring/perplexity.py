"""PURE. Perplexity by its full name: of which text, per what, read how; and which figures may stand side by side.

Perplexity is exp(nats / units). One model has as many of them as there are units: its own tokens, which only models of
one vocabulary share, the words of the original text, its UTF-8 bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from raygpt.data.tokenizer import Tokenizer
from raygpt.scoring.rolling import OnProgress, RowLosses, Windows, text_losses

Unit = Literal["token", "word", "byte"]
Z95 = 1.959964  # a normal distribution has 95 % within so many standard deviations


@dataclass(frozen=True)
class Texts:
    """Texts that a model is measured on. `texts` is what it reads; words and bytes are those of the text as it was
    published, before any detokenizing, as lm-evaluation-harness counts them. (texts,) int64 each."""

    name: str
    texts: tuple[str, ...]
    words: tuple[int, ...]
    bytes: tuple[int, ...]
    detokenised: bool

    @property
    def sha256(self) -> str:
        """Hex digest of what is read."""
        digest = hashlib.sha256()
        for text in self.texts:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Figure:
    """Nats per unit and what follows. The interval of 95 % is of the mean over such texts (the texts are what is drawn;
    ratio estimator, Cochran 1977, §6); None for a single text."""

    unit: Unit
    units: int
    nats: float
    perplexity: float
    stderr: float | None  # of nats
    low: float | None  # of the perplexity
    high: float | None


@dataclass(frozen=True)
class Perplexity:
    """One model on one data set by one protocol. `vocabulary` identifies the tokenizer (its sha256), `bos` is the
    token before each text, None for none: then its first token is not predicted. `word` and `byte` are None where the
    first token of every window is not predicted: part of the text would cost nothing, and yet be counted."""

    model: str
    data: str
    data_sha256: str
    protocol: str
    cut: str
    context: int
    stride: int
    overlap: int
    bos: int | None
    detokenised: bool
    vocabulary: str
    texts: int
    token: Figure
    word: Figure | None
    byte: Figure | None

    @classmethod
    def of(
        cls,
        texts: Texts,
        windows: Windows,
        nats: np.ndarray,
        tokens: np.ndarray,
        *,
        model: str,
        protocol: str,
        bos: int | None,
        vocabulary: str,
    ) -> Perplexity:
        """From the nats and the predicted tokens of each of the texts, (texts,)."""
        return cls(
            model=model,
            data=texts.name,
            data_sha256=texts.sha256,
            protocol=protocol,
            cut=windows.cut,
            context=windows.context,
            stride=windows.stride,
            overlap=windows.overlap,
            bos=bos,
            detokenised=texts.detokenised,
            vocabulary=vocabulary,
            texts=len(texts.texts),
            token=figure("token", nats, tokens),
            word=figure("word", nats, np.array(texts.words)) if windows.predicts_all else None,
            byte=figure("byte", nats, np.array(texts.bytes)) if windows.predicts_all else None,
        )

    @property
    def bits_per_byte(self) -> float | None:
        return None if self.byte is None else self.byte.nats / math.log(2)

    @property
    def perplexities(self) -> dict[str, float]:
        """By unit: token_perplexity, word_perplexity, byte_perplexity, as far as there are."""
        return {f"{each.unit}_perplexity": each.perplexity for each in (self.token, self.word, self.byte) if each}

    def record(self) -> dict[str, Any]:
        """Plain JSON values; what is None is left out but for `bos`."""
        values = {name: value for name, value in asdict(self).items() if value is not None or name == "bos"}
        return values if self.byte is None else {**values, "bits_per_byte": self.bits_per_byte}


def measure(
    source: RowLosses,
    tokenizer: Tokenizer,
    texts: Texts,
    windows: Windows,
    *,
    model: str,
    protocol: str,
    bos_id: int | None,
    on_progress: OnProgress | None = None,
) -> tuple[Perplexity, list[dict[str, Any]]]:
    """The figures of a model, named `model` in them, and a record of each text: its number, nats, tokens, words, bytes.

    Raises UserError as `text_losses` does.
    """
    ids = [tokenizer.encode(text) for text in texts.texts]
    losses = text_losses(source, ids, windows, bos_id=bos_id, on_progress=on_progress)
    nats, tokens = losses.nats, losses.tokens
    result = Perplexity.of(
        texts, windows, nats, tokens, model=model, protocol=protocol, bos=bos_id, vocabulary=tokenizer.sha256
    )
    columns = zip(nats.tolist(), tokens.tolist(), texts.words, texts.bytes)
    records = [
        {"id": str(n), "nats": cost, "tokens": count, "words": words, "bytes": size}
        for n, (cost, count, words, size) in enumerate(columns)
    ]
    return result, records


def figure(unit: Unit, nats: np.ndarray, units: np.ndarray) -> Figure:
    """Of (texts,) sums of nats and counts of units."""
    total = int(units.sum())
    if not total:
        return Figure(unit, 0, math.nan, math.nan, None, None, None)
    mean = float(nats.sum()) / total
    if len(nats) < 2:
        return Figure(unit, total, mean, _exp(mean), None, None, None)
    off = nats - mean * units
    error = math.sqrt(len(nats) / (len(nats) - 1) * float(off @ off)) / total
    return Figure(unit, total, mean, _exp(mean), error, _exp(mean - Z95 * error), _exp(mean + Z95 * error))


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


@dataclass(frozen=True)
class Table:
    """Perplexities that may be read beside each other: `rows` are (model and what is particular to it, figures by
    column); `notes` say in a sentence what is left out or differs."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, dict[str, float]], ...]
    notes: tuple[str, ...]


def table(results: Sequence[Perplexity]) -> Table:
    """One table of `results`. Per-token figures are left out where vocabularies differ; a row whose data or way of
    reading differs from others' says its own."""
    alike = len({result.vocabulary for result in results}) <= 1
    columns: tuple[str, ...] = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    notes = []
    if alike:
        columns = ("token_perplexity", *columns)
    else:
        notes.append(
            "The models have different vocabularies: figures per token do not compare and are left out; those per "
            "original word and per byte do."
        )
    data = {(result.data, result.data_sha256, result.detokenised) for result in results}
    reading = {_reading(result) for result in results}
    if len(data) > 1:
        notes.append("The rows are of different data, which each names: no two of different data compare.")
    if len(reading) > 1:
        notes.append("The rows are read in different ways, which each names: part of what differs is the reading.")
    same_name = len({name for name, _, _ in data}) < len(data)
    rows = []
    for result in results:
        label = result.model
        if len(data) > 1:
            label += f", {result.data}" + (f" ({result.data_sha256[:8]})" if same_name else "")
        if len(reading) > 1:
            label += f", {_reading(result)}"
        figures = result.perplexities
        if result.bits_per_byte is not None:
            figures["bits_per_byte"] = result.bits_per_byte
        rows.append((label, {column: figures[column] for column in columns if column in figures}))
    return Table(columns, tuple(rows), tuple(notes))


def _reading(result: Perplexity) -> str:
    """How a text was read, in words."""
    overlap = f"overlap {result.overlap:,}" if result.overlap else "no overlap"
    bos = "" if result.bos is None else f", token {result.bos} before each text"
    return f"{result.protocol}: {result.cut} windows, context {result.context:,}, {overlap}{bos}"
