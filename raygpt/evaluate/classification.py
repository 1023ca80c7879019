"""Scores of a fine-tuned classifier on a labelled file: the only place where a test file is read."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raygpt import storage
from raygpt.classify.classifier import classification_metrics
from raygpt.classify.folder import EXPORT, is_classifier, load_classifier
from raygpt.classify.predict import predict
from raygpt.classify.tasks import encode, find_files, is_hub_task, read_examples
from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError
from raygpt.evaluate.statistics import PairedBootstrap, Score
from raygpt.storage import Location


@dataclass(frozen=True)
class ClassifierScores:
    """Scores of one classifier on one file, with 95 % intervals over its examples."""

    origin: str
    data: str
    examples: int
    accuracy: Score
    f1: Score
    loss: float

    def sentence(self) -> str:
        """The figures in one line."""
        return (
            f"{self.examples:,} examples: accuracy {self.accuracy.mean:.4f} [{self.accuracy.low:.4f}, "
            f"{self.accuracy.high:.4f}], f1 {self.f1.mean:.4f} [{self.f1.low:.4f}, {self.f1.high:.4f}], "
            f"loss {self.loss:.4f}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.origin,
            "data": self.data,
            "examples": self.examples,
            "accuracy": self.accuracy.mean,
            "accuracy_interval": [self.accuracy.low, self.accuracy.high],
            "f1": self.f1.mean,
            "f1_interval": [self.f1.low, self.f1.high],
            "loss": self.loss,
        }


@dataclass(frozen=True)
class Guesses:
    """What a classifier says of every example. `logits` are (N, len(names)); `labels` (N,) indices into `names`."""

    origin: str
    names: list[str]
    labels: np.ndarray
    logits: np.ndarray

    @property
    def guesses(self) -> np.ndarray:
        """(N,) classes."""
        return self.logits.argmax(1)


def score_classifier(places: Sequence[Location], data: str, *, resamples: int, **options: Any) -> ClassifierScores:
    """Score the classifier that `guess` finds; `options` are its. `resamples` are behind the intervals."""
    found = guess(places, data, **options)
    loss = classification_metrics(found.logits, found.labels)["loss"]
    return scores_of(found.origin, data, found.labels, len(found.names), found.guesses, loss, resamples)


def scores_of(
    origin: str,
    data: str,
    labels: np.ndarray,
    num_labels: int,
    guesses: np.ndarray,
    loss: float,
    resamples: int,
) -> ClassifierScores:
    """Accuracy and F1 of (N,) guesses with intervals over examples."""
    draws = PairedBootstrap(labels, num_labels, {origin: guesses}, resamples=resamples)
    accuracy, f1 = (draws.score(origin, metric) for metric in ("accuracy", "f1"))
    return ClassifierScores(origin, data, len(labels), accuracy, f1, loss)


def guess(
    places: Sequence[Location],
    data: str,
    *,
    text_columns: Sequence[str],
    label_column: str | None,
    limit: int | None = None,
    missing: str = "there is no classifier.",
) -> Guesses:
    """Ask the classifier of the first of `places` that has one (or in its export/) about the labelled file `data`.

    Raises UserError where there is no classifier (`missing` says so), or the file has labels that it does not know.
    """
    examples = read_examples(data, tuple(text_columns), label_column, setting="task.test")
    with tempfile.TemporaryDirectory() as scratch:
        folder, origin = _folder(places, Path(scratch), missing)
        model, values = load_classifier(folder)
        tokenizer_json = storage.read_bytes(storage.locate(folder / "tokenizer.json"))
    names = [values["id2label"][str(index)] for index in range(len(values["id2label"]))]
    if strange := sorted(set(examples.labels) - set(names)):
        raise UserError(
            f"task.test: {data} has the label {', '.join(strange[:5])}, which the classifier was not trained on: "
            f"it knows {', '.join(names)}."
        )
    tokenizer = Tokenizer.from_json(tokenizer_json, origin, values["eos_token_id"])
    part = encode(examples if limit is None else examples.take(range(len(examples))[:limit]), names, tokenizer)
    rows = values["raygpt"]
    logits = predict(model, part, eot_id=tokenizer.eot_id, max_tokens=rows["max_tokens"], swap=rows["swap_eval"])
    return Guesses(origin, names, part.labels, logits)


def labelled_file(test: str | None, train: str | None, val: str | None) -> str:
    """The file to score: task.test, or the validation file of the task. Raises UserError where there is neither."""
    if test is not None:
        return test
    if train is None:
        raise UserError("task.test is not set: name the labelled file to score.")
    if is_hub_task(train) and val is None:
        raise UserError(f"task.test is not set and task.train={train} is no file: name the labelled file to score.")
    found = val if is_hub_task(train) else find_files(train, val)[1]
    if found is None:
        raise UserError("task.test is not set and there is no validation file: name the labelled file to score.")
    return found


def _folder(places: Sequence[Location], scratch: Path, missing: str) -> tuple[Path, str]:
    """(local folder of the classifier, where it came from)."""
    for where in (inside for place in places for inside in (place / EXPORT, place)):
        if not storage.exists(where / "config.json"):
            continue
        folder = Path(where.path) if where.is_local else scratch
        if not where.is_local:
            (folder / "config.json").write_bytes(storage.read_bytes(where / "config.json"))
        if not is_classifier(folder):
            continue  # a base model is none
        for name in () if where.is_local else ("model.safetensors", "tokenizer.json"):
            (folder / name).write_bytes(storage.read_bytes(where / name))
        return folder, where.uri
    raise UserError(missing)
