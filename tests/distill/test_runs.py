"""Distillation as a training run: order, resume, worker count, ZeRO and checkpoints are those of any objective."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raygpt import storage
from raygpt.config import Config
from raygpt.config.settings import load_config
from raygpt.data.tokenizer import byte_tokenizer
from raygpt.errors import UserError
from raygpt.jobs.distill import distillation
from raygpt.jobs.pretrain import check_objective
from raygpt.model.huggingface import export_huggingface
from raygpt.train.resolve import resolve
from tests.distill.small import model
from tests.train.gloo_pool import GlooPool
from tests.train.running import OPTIONS, Screen, assert_same_training, forget_after, letters, records, sequence

SMALL = {
    "model.n_layer": "1",
    "model.n_head": "2",
    "model.n_embd": "16",
    "model.dropout": "0",
    "data.backend": "mmap",
    "train.max_steps": "6",
    "train.global_batch_tokens": "160",
    "train.micro_batch_size": "4",
    "train.checkpoint_every": "3",
    "train.keep_checkpoints": "5",
    "eval.every": "6",
    "distill.mode": "logits",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ and teacher/, a model whose distributions are far from even."""
    folder = tmp_path_factory.mktemp("distill")
    letters(folder / "data", 1500)
    tokenizer = byte_tokenizer()
    teacher = model(0, 24, vocab_size=tokenizer.vocab_size, seq_len=16)
    tokenizer_json = tokenizer.to_json()
    export_huggingface(teacher, folder / "teacher", tokenizer_json=tokenizer_json, eot_id=tokenizer.eot_id)
    return folder


def settings(folder: Path, storage: Path, **changes: str) -> Config:
    data = {"data.train": str(folder / "data"), "data.val": str(folder / "data"), "run.storage": str(storage)}
    options = {**OPTIONS, **SMALL, **data, "distill.teacher": str(folder / "teacher")}
    return load_config("distill", None, {**options, **{k.replace("__", "."): v for k, v in changes.items()}}, {})


def train(pool: GlooPool, config: Config) -> list[dict[str, Any]]:
    job = resolve(config)
    pool.run_training(config, job, "raygpt distill …", Screen(), None, None, distillation(config, job)[0])
    return records(config)


@pytest.fixture(scope="module")
def alone(gloo: GlooPool, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return train(gloo, settings(folder, tmp_path_factory.mktemp("alone")))


def test_one_then_three_then_two_workers_train_as_one(
    gloo: GlooPool, folder: Path, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    """10 rows on three workers in micro-batches of 4; every start goes on from the checkpoint before."""
    for workers, steps in (("1", 2), ("3", 4), ("2", 6)):
        train(gloo, settings(folder, tmp_path, scale__num_workers=workers, train__checkpoint_every="2"))
        forget_after(tmp_path / "r", steps)
    rows = records(settings(folder, tmp_path))
    assert [row["world_size"] for row in rows] == [1, 1, 3, 3, 2, 2]
    assert_same_training(rows, alone, 1e-5)
    for key in ("kd_loss", "ce_loss"):
        assert sequence(rows, key) == pytest.approx(sequence(alone, key), rel=1e-5)
    for row in alone:
        assert row["train_loss"] == pytest.approx(0.5 * row["kd_loss"] + 0.5 * row["ce_loss"], rel=1e-5)
        assert 0 < row["teacher_seconds"] < row["step_seconds"]
    assert alone[-1]["kd_loss"] < 0.9 * alone[0]["kd_loss"]
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert 0 < summary["teacher_fraction"] < 1 and summary["kd_loss"] == rows[-1]["kd_loss"]


def test_a_run_that_goes_on_is_equal_to_the_bit_and_refuses_another_loss(
    gloo: GlooPool, folder: Path, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The record at step 6 spans steps 4 to 6, of which the first two lie before the checkpoint it goes on from."""
    options = {"train__log_every": "3", "train__checkpoint_every": "5"}
    whole = train(gloo, settings(folder, tmp_path, **options))
    forget_after(tmp_path / "r", 5)
    again = train(gloo, settings(folder, tmp_path, **options))
    for key in ("train_loss", "kd_loss", "ce_loss", "grad_norm", "val_loss"):
        assert sequence(again, key) == sequence(whole, key)
    with pytest.raises(UserError, match=r"distill.alpha is 0.9 but run .* was started with 0.5"):
        resolve(settings(folder, tmp_path, **options, distill__alpha="0.9"))
    # the same settings, read by a job that knows no teacher
    with pytest.raises(UserError, match="learned by distillation until step .* go on with `raygpt distill`"):
        check_objective(resolve(settings(folder, tmp_path, **options)), None)


def test_a_run_keeps_the_teacher_it_began_with_though_that_trains_on(
    gloo: GlooPool, folder: Path, tmp_path: Path
) -> None:
    """distill.teacher names a run: its newest checkpoint when the student began, not the newest of the day."""
    teacher = {"run__name": "t", "train__checkpoint_every": "2", "model__n_embd": "24", "distill__teacher": "none"}
    teach = settings(folder, tmp_path, **teacher, distill__mode="sequence", train__max_steps="2")
    gloo.run_training(teach, resolve(teach), "raygpt pretrain …", Screen(), None, None, None)
    options = {"distill__teacher": str(tmp_path / "t"), "train__checkpoint_every": "3"}
    student = settings(folder, tmp_path, **options, train__max_steps="6")
    train(gloo, student)
    forget_after(tmp_path / "r", 3)
    longer = settings(folder, tmp_path, **teacher, distill__mode="sequence", train__max_steps="4")
    gloo.run_training(longer, resolve(longer), "raygpt pretrain …", Screen(), None, None, None)
    job = resolve(student)
    make = distillation(student, job)[0]
    assert make.teacher is not None and make.teacher.uri.endswith("t/checkpoints/step_00000002")
    storage.delete(storage.locate(make.teacher.uri))
    with pytest.raises(UserError, match="learned from .*step_00000002, which is gone"):
        distillation(student, job)
