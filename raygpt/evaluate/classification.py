"""Scores of a fine-tuned classifier on a labelled file: the only place where a test file is read."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raygpt import storage
from raygpt.classify.classifier import Classifier, classification_metrics, pad_rows
from raygpt.classify.folder import is_classifier, load_classifier
from raygpt.classify.tasks import assemble, encode, find_files, is_hub_task, read_examples
from raygpt.config import Config
from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError
from raygpt.evaluate.statistics import PairedBootstrap, Score
from raygpt.run.frame import run_location

BATCH = 32


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


def run_evaluation(config: Config) -> int:
    """`raygpt evaluate` where task.name is set: task.test, or else the validation file, and one line of JSON."""
    scores = score_classifier(config)
    print(f"Model {scores.origin}\nData {scores.data}\n{scores.sentence()}")
    print(json.dumps(scores.to_dict()), flush=True)
    return 0


def score_classifier(config: Config) -> ClassifierScores:
    """Score the classifier of `model.init_from` (a folder), or of the run of `run.storage`/`run.name`.

    Raises UserError where there is none, or the file has labels that the classifier does not know.
    """
    uri = config.task.test
    if uri is None:
        if config.task.train is None:
            raise UserError("task.test is not set: name the labelled file to score.")
        if is_hub_task(config.task.train) and config.task.val is None:
            raise UserError(
                f"task.test is not set and task.train={config.task.train} is no file: name the labelled file to score."
            )
        uri = config.task.val if is_hub_task(config.task.train) else find_files(config.task.train, config.task.val)[1]
        if uri is None:
            raise UserError("task.test is not set and there is no validation file: name the labelled file to score.")
    examples = read_examples(uri, tuple(config.task.text_columns), config.task.label_column, setting="task.test")
    with tempfile.TemporaryDirectory() as scratch:
        folder, origin = _folder(config, Path(scratch))
        model, values = load_classifier(folder)
        data = storage.read_bytes(storage.locate(folder / "tokenizer.json"))
    names = [values["id2label"][str(index)] for index in range(len(values["id2label"]))]
    if strange := sorted(set(examples.labels) - set(names)):
        raise UserError(
            f"task.test: {uri} has the label {', '.join(strange[:5])}, which the classifier was not trained on: "
            f"it knows {', '.join(names)}."
        )
    tokenizer = Tokenizer.from_json(data, origin, values["eos_token_id"])
    part = encode(examples, names, tokenizer)
    logits = predict(
        model,
        [
            [assemble(part, row, tokenizer.eot_id, values["raygpt"]["max_tokens"], swap) for row in range(len(part))]
            for swap in ((False, True) if part.second is not None and values["raygpt"]["swap_eval"] else (False,))
        ],
    )
    draws = PairedBootstrap(part.labels, len(names), {origin: logits.argmax(1)}, resamples=config.tune.resamples)
    accuracy, f1 = (draws.score(origin, metric) for metric in ("accuracy", "f1"))
    loss = classification_metrics(logits, part.labels)["loss"]
    return ClassifierScores(origin, uri, len(part), accuracy, f1, loss)


@torch.no_grad()
def predict(model: Classifier, orders: list[list[np.ndarray]]) -> np.ndarray:
    """(N, K) logits: the mean over the given orders of the same N rows."""
    out = np.zeros((len(orders[0]), model.num_labels), dtype=np.float32)
    for rows in orders:
        for start in range(0, len(rows), BATCH):
            batch = pad_rows(rows[start : start + BATCH], model.pad_id)
            out[start : start + BATCH] += model(batch).numpy() / len(orders)
    return out


def _folder(config: Config, scratch: Path) -> tuple[Path, str]:
    """(local folder of the classifier, where it came from)."""
    from raygpt.classify.finetune import EXPORT

    run = run_location(config) / EXPORT
    given = storage.locate(config.model.init_from) if config.model.init_from != "random" else None
    for where in (given and given / EXPORT, given, run):  # a base model is no classifier
        if where is None or not storage.exists(where / "config.json"):
            continue
        folder = Path(where.path) if where.is_local else scratch
        if not where.is_local:
            (folder / "config.json").write_bytes(storage.read_bytes(where / "config.json"))
        if not is_classifier(folder):
            continue
        for name in () if where.is_local else ("model.safetensors", "tokenizer.json"):
            (folder / name).write_bytes(storage.read_bytes(where / name))
        return folder, where.uri
    raise UserError(
        f"run {run_location(config).uri} has no classifier in {EXPORT}/: run `raygpt finetune` on the task first, or "
        "name a classifier's folder with model.init_from."
    )
