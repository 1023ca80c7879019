"""Fine-tuning a GPT for classification, epoch by epoch, on one device: no Ray, no files but the state it is given.

Everything random follows from (seed, epoch), so a training interrupted between two epochs and taken up again from its
state ends with the same weights as one that ran through.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raygpt.classify.classifier import Classifier, classification_metrics, layer_groups, pad_rows, reinit_top, with_pad
from raygpt.classify.predict import predict
from raygpt.classify.tasks import Encoded, assemble
from raygpt.config import Config
from raygpt.hardware import choose_precision
from raygpt.model.gpt import GPT
from raygpt.parallel.optimizer_state import load_optimizer_tensors, optimizer_tensors
from raygpt.train.objective import Classification
from raygpt.train.precision import Precision
from raygpt.train.schedule import Schedule
from raygpt.train.step import TrainStep

METRICS = ("accuracy", "f1", "loss", "train_loss")
# Batches of one pool are sorted by length before they are cut, so that a batch is padded little; 16 batches of 16 pairs
# bring MRPC's padding from 40 % of all tokens to 8 %.
POOL_BATCHES = 16


@dataclass(frozen=True)
class EncodedTask:
    """What a trial needs of a task, ready for the object store: token ids, classes, end-of-text id, label names."""

    name: str
    labels: list[str]
    train: Encoded
    selection: Encoded
    val: Encoded | None
    eot_id: int

    @property
    def digest(self) -> str:
        """Of what is trained on and chosen by, wherever its file lies: labels and token ids, in their order."""
        found = hashlib.sha256(json.dumps(self.labels).encode())
        for part in (self.train, self.selection):
            for texts in (part.first, part.second or []):
                for ids in texts:
                    found.update(len(ids).to_bytes(4, "little") + np.ascontiguousarray(ids, "<i4").tobytes())
            found.update(np.ascontiguousarray(part.labels, "<i8").tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class Recipe:
    """One configuration: everything that decides the result of a training but the model and the data."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    schedule: str
    warmup_fraction: float
    warmup_steps: int | None
    min_lr_ratio: float
    decay_fraction: float
    grad_clip: float
    dropout: float
    label_smoothing: float
    layer_decay: float
    reinit_layers: int
    swap_train: bool
    swap_eval: bool
    max_tokens: int
    seed: int
    precision: str

    @classmethod
    def from_config(cls, config: Config) -> Recipe:
        """Of a config whose train.epochs is set to a whole number."""
        optim, task = config.optim, config.task
        assert config.train.epochs is not None
        return cls(
            epochs=int(config.train.epochs),
            batch_size=task.batch_size,
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            betas=optim.betas,
            eps=optim.eps,
            schedule=optim.schedule,
            warmup_fraction=optim.warmup_fraction or 0.0,
            warmup_steps=optim.warmup_steps,
            min_lr_ratio=optim.min_lr_ratio,
            decay_fraction=optim.decay_fraction,
            grad_clip=optim.grad_clip,
            dropout=config.model.dropout,
            label_smoothing=task.label_smoothing,
            layer_decay=task.layer_decay,
            reinit_layers=task.reinit_layers,
            swap_train=task.swap_train,
            swap_eval=task.swap_eval,
            max_tokens=task.max_tokens,
            seed=config.run.seed,
            precision=config.train.precision,
        )


@dataclass
class Progress:
    """How far a training has come; saved with its tensors. `history` holds one record per finished epoch."""

    epoch: int = 0
    best_epoch: int = 0
    best: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)


class Training:
    """A classifier in training. `run()` yields a record after each epoch; `state()` may be taken between two.

    Epochs are compared by `metric` on the selection part. With `keep_val`, `best_val_logits` holds the validation
    logits of the best epoch so far: nobody chooses by them.
    """

    def __init__(
        self,
        base: GPT,
        task: EncodedTask,
        recipe: Recipe,
        device: torch.device,
        *,
        metric: str = "accuracy",
        keep_val: bool = False,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.task, self.recipe, self.device, self.metric = task, recipe, device, metric
        model = Classifier(with_pad(base), len(task.labels))
        reinit_top(model, recipe.reinit_layers)
        set_dropout(model, recipe.dropout)
        self.model = model.to(device)
        self.max_tokens = min(recipe.max_tokens, base.config.seq_len)
        groups = layer_groups(model, recipe.weight_decay, recipe.layer_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=True)
        self.precision = Precision(choose_precision(recipe.precision, device)[0], device)
        self.step = TrainStep(
            self.model,
            self.optimizer,
            self.precision,
            micro_batch_size=recipe.batch_size,
            grad_clip=recipe.grad_clip,
            objective=Classification(recipe.label_smoothing),
        )
        # the norm is added up in this order: not that of the groups, which changes its last bit
        self.step.parameters = list(self.model.parameters())
        self.steps_per_epoch = -(-len(task.train) // recipe.batch_size)
        total = recipe.epochs * self.steps_per_epoch
        warmup = recipe.warmup_steps if recipe.warmup_steps is not None else round(total * recipe.warmup_fraction)
        self.schedule = Schedule(recipe.schedule, recipe.lr, total, warmup, recipe.min_lr_ratio, recipe.decay_fraction)
        self.progress = Progress()
        self.keep_val = keep_val and task.val is not None
        self.best_val_logits: np.ndarray | None = None
        self.best_model: dict[str, Tensor] | None = None
        self.keep_best_model = False

    def run(self) -> Iterator[dict[str, float]]:
        """Train the epochs that are left; a record each: epoch, train_loss, accuracy, f1, loss, lr, seconds, tokens."""
        while self.progress.epoch < self.recipe.epochs:
            yield self.epoch()

    def epoch(self) -> dict[str, float]:
        """One pass over the training part and one look at the selection part."""
        began, progress, recipe = time.perf_counter(), self.progress, self.recipe
        torch.manual_seed((recipe.seed * 1_000_003 + progress.epoch) % 2**63)
        self.model.train()
        losses, tokens, step = [], 0, progress.epoch * self.steps_per_epoch
        for batch, labels in self._batches(progress.epoch):
            losses.append(self.step({"tokens": batch, "labels": labels}, self.schedule.lr(step)).loss)
            tokens += int((batch != self.model.pad_id).sum())
            step += 1
        train_loss = float(torch.stack(losses).mean())
        logits = self.predict(self.task.selection)
        scores = classification_metrics(logits, self.task.selection.labels)
        progress.epoch += 1
        value = -scores["loss"] if self.metric == "loss" else scores.get(self.metric, scores["accuracy"])
        if value > progress.best:
            progress.best, progress.best_epoch = value, progress.epoch
            if self.keep_val:
                assert self.task.val is not None
                self.best_val_logits = self.predict(self.task.val)
            if self.keep_best_model:
                self.best_model = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        record = {
            "epoch": progress.epoch,
            "train_loss": train_loss,
            **scores,
            "lr": self.schedule.lr(step - 1),
            "tokens": tokens,
            "epoch_seconds": time.perf_counter() - began,
        }
        progress.history.append(record)
        return record

    def predict(self, part: Encoded) -> np.ndarray:
        """(N, K) float32 logits of a part, in its order; pairs in both orders, averaged, where swap_eval is set."""
        return predict(
            self.model,
            part,
            eot_id=self.task.eot_id,
            max_tokens=self.max_tokens,
            swap=self.recipe.swap_eval,
            device=self.device,
            autocast=self.precision.autocast,
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain values) to go on from: weights, optimizer, best epoch and history."""
        tensors = {f"model.{name}": value.detach().cpu() for name, value in self.model.state_dict().items()}
        tensors |= {f"optim.{name}": value.detach().cpu() for name, value in optimizer_tensors(self.optimizer).items()}
        if self.best_val_logits is not None:
            tensors["best_val_logits"] = torch.from_numpy(self.best_val_logits)
        for name, value in (self.best_model or {}).items():
            tensors[f"best.{name}"] = value.cpu()
        progress = self.progress
        return {name: value.clone().contiguous() for name, value in tensors.items()}, {
            "epoch": progress.epoch,
            "best_epoch": progress.best_epoch,
            "best": progress.best if math.isfinite(progress.best) else None,
            "history": progress.history,
        }

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Inverse of `state`."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        load_optimizer_tensors(self.optimizer, part("optim."))
        best = values["best"]
        self.progress = Progress(
            values["epoch"], values["best_epoch"], -math.inf if best is None else best, list(values["history"])
        )
        if "best_val_logits" in tensors:
            self.best_val_logits = tensors["best_val_logits"].numpy()
        self.best_model = part("best.") or None

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Padded batches of one epoch: every row once, in a seeded order, rows of like length together."""
        part, recipe = self.task.train, self.recipe
        random = np.random.default_rng([recipe.seed, epoch])
        swaps = random.random(len(part)) < 0.5 if part.second is not None and recipe.swap_train else None
        order = random.permutation(len(part))
        rows = [
            assemble(part, i, self.task.eot_id, self.max_tokens, bool(swaps is not None and swaps[i])) for i in order
        ]
        batches: list[np.ndarray] = []
        pool = recipe.batch_size * POOL_BATCHES
        for start in range(0, len(order), pool):
            chosen = np.arange(start, min(start + pool, len(order)))
            chosen = chosen[np.argsort([len(rows[i]) for i in chosen], kind="stable")]
            batches += [chosen[i : i + recipe.batch_size] for i in range(0, len(chosen), recipe.batch_size)]
        for index in random.permutation(len(batches)):
            chosen = batches[index]
            tokens = pad_rows([rows[i] for i in chosen], self.model.pad_id)
            yield tokens.to(self.device), torch.from_numpy(part.labels[order[chosen]]).to(self.device)


def set_dropout(model: Classifier, probability: float) -> None:
    """Dropout of every block and of the embeddings: the trunk may have been loaded with another one."""
    from dataclasses import replace

    model.trunk.config = replace(model.trunk.config, dropout=probability)
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = probability  # type: ignore[assignment]
