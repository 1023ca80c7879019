"""Training a classifier: it learns, goes on exactly where it stopped, and does not care about the order of a pair."""

# ruff: noqa: F811 - fixtures of tests/tune are imported by name
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raygpt.classify.shared import base_model, load_state, read_task, save_state
from raygpt.classify.tasks import Encoded, encode
from raygpt.classify.training import EncodedTask, Recipe, Training
from raygpt.config import Config
from raygpt.data.tokenizer import byte_tokenizer
from tests.tune.conftest import sweep_config, tiny_base, tiny_task  # noqa: F401

CPU = torch.device("cpu")


@pytest.fixture
def task(sweep_config: Callable[..., Config]) -> EncodedTask:
    found = read_task(sweep_config())
    parts = (encode(part, found.labels, byte_tokenizer()) for part in (found.train, found.selection, found.val))
    return EncodedTask("ends", found.labels, *parts, eot_id=256)


@pytest.fixture
def training(sweep_config: Callable[..., Config], task: EncodedTask) -> Callable[..., Training]:
    def make(keep_val: bool = False, **changes: object) -> Training:
        config = sweep_config()
        recipe = replace(Recipe.from_config(config), lr=3e-3, **changes)  # type: ignore[arg-type]
        return Training(base_model(config.model.init_from), task, recipe, CPU, keep_val=keep_val)

    return make


def test_it_learns_a_learnable_task_and_keeps_the_best_epochs_validation_logits(
    training: Callable[..., Training], task: EncodedTask
) -> None:
    run = training(epochs=8, dropout=0.1, label_smoothing=0.05, layer_decay=0.9, swap_train=False, keep_val=True)
    records = list(run.run())
    assert [record["epoch"] for record in records] == list(range(1, 9))
    assert records[-1]["train_loss"] < 0.8 * records[0]["train_loss"]
    assert run.progress.best > 0.9
    assert task.val is not None and run.best_val_logits is not None
    assert (run.best_val_logits.argmax(1) == task.val.labels).mean() > 0.8
    assert run.progress.best_epoch == 1 + int(np.argmax([record["accuracy"] for record in records]))


def test_a_training_that_stopped_after_any_epoch_ends_with_the_same_weights(
    training: Callable[..., Training], tmp_path: Path
) -> None:
    whole = training(epochs=3, dropout=0.1)
    records = list(whole.run())
    for stop in (1, 2):
        first = training(epochs=3, dropout=0.1)
        for _ in range(stop):
            first.epoch()
        save_state(first, tmp_path)
        second = training(epochs=3, dropout=0.1)
        load_state(second, tmp_path)
        rest = list(second.run())
        assert [r["accuracy"] for r in rest] == [r["accuracy"] for r in records[stop:]]
        for one, two in zip(whole.model.parameters(), second.model.parameters()):
            assert torch.equal(one, two)


def test_every_row_is_seen_once_per_epoch_whatever_the_batch(training: Callable[..., Training]) -> None:
    run = training(batch_size=7, swap_train=False)
    seen = [tuple(row[row != run.model.pad_id].tolist()) for batch, _ in run._batches(0) for row in batch]
    part = run.task.train
    assert part.second is not None
    expected = [(*a.tolist(), 256, *b.tolist(), 256) for a, b in zip(part.first, part.second)]
    assert sorted(seen) == sorted(expected)
    assert run.steps_per_epoch == -(-len(part) // 7)


def test_training_shows_both_orders_and_another_mix_each_epoch(training: Callable[..., Training]) -> None:
    run = training(swap_train=True)
    assert run.task.train.second is not None
    firsts = {tuple(ids.tolist()) for ids in run.task.train.first}

    def share(epoch: int) -> tuple[list[bool], float]:
        flags = [
            tuple(row[: int((row == 256).nonzero()[0])].tolist()) in firsts
            for batch, _ in run._batches(epoch)
            for row in batch
        ]
        return flags, sum(flags) / len(flags)

    assert 0.35 < share(0)[1] < 0.65 and share(0)[0] != share(1)[0] and share(0)[0] == share(0)[0]


def test_predictions_do_not_depend_on_the_order_of_a_pair(training: Callable[..., Training]) -> None:
    run = training()
    part = run.task.selection
    assert part.second is not None
    mirrored = Encoded(part.second, part.first, part.labels)
    assert np.allclose(run.predict(part), run.predict(mirrored), atol=1e-5)
    one_way = training(swap_eval=False)
    assert not np.allclose(one_way.predict(part), one_way.predict(mirrored), atol=1e-4)


def test_predictions_do_not_depend_on_the_other_rows(training: Callable[..., Training]) -> None:
    run = training()
    part = run.task.selection
    assert part.second is not None
    few = Encoded(part.first[3:5], part.second[3:5], part.labels[3:5])
    assert np.allclose(run.predict(part)[3:5], run.predict(few), atol=1e-5)


def test_the_seed_decides_everything(training: Callable[..., Training]) -> None:
    assert training(seed=5).epoch()["train_loss"] == training(seed=5).epoch()["train_loss"]
    assert training(seed=5).epoch()["train_loss"] != training(seed=6).epoch()["train_loss"]
