"""Made the run folders beside it, by the code of commit 7138e90: what later code must still go on with.

Not to be run again by later code: its folders would then say nothing about the past. It stays for how they came about,
and for the settings that test_before.py resumes them with. `python -m tests.before.make` wrote, from an empty place:

    data/  task/               token shards; train.csv and validation.csv
    ddp/  zero2/  fp16/        runs as a kill in step 12 of 20 left them, with the checkpoint of step 10
    classifier/                a classification run of two epochs, ended after the first; its base model is ddp/
    expected.json              the losses of the rest, float.hex(), as that commit's code resumed these very folders
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from raygpt.config import Config
from raygpt.config.settings import load_config
from tests.golden.runs import machine
from tests.train.gloo_pool import GlooPool
from tests.train.running import forget_after, letters, records, run, settings

HERE = Path(__file__).parent
STEP, KILLED, LAST = 10, 12, 20
TRAINING = {
    "model__n_layer": "1",
    "model__n_head": "2",
    "model__n_embd": "8",
    "model__seq_len": "16",
    "model__dropout": "0.1",
    "optim__lr": "1e-2",
    "train__max_steps": str(LAST),
    "train__global_batch_tokens": "256",
    "train__micro_batch_size": "8",
    "train__precision": "fp32",
    "train__checkpoint_every": "5",
    "train__keep_checkpoints": "4",
    "eval__every": "5",
    "data__backend": "mmap",
}
RUNS = {
    "ddp": {"scale__num_workers": "2"},
    "zero2": {"scale__num_workers": "2", "train__strategy": "zero2"},
    "fp16": {"scale__num_workers": "1", "train__precision": "fp16"},
}
FIGURES = {"run": ("train_loss", "val_loss", "grad_norm"), "classifier": ("train_loss", "accuracy", "loss")}
# as a driver on another machine leaves it when it is killed
ATTEMPT = {"id": "0" * 32, "host": "before", "pid": 1, "process_started": 1.7e9, "started": 1.7e9}
ATTEMPT |= {"last_seen": 1.7e9 + 60, "outcome": None}


def training_config(folder: Path | str, name: str) -> Config:
    """Of one of RUNS in `folder`, which holds data/ as well."""
    return settings(f"{folder}/data", folder, run__name=name, **{**TRAINING, **RUNS[name]})


def classifier_config(folder: Path | str) -> Config:
    """Of the classification run in `folder`, which holds task/ and ddp/ as well."""
    options = {
        "run.name": "classifier",
        "run.storage": str(folder),
        "model.init_from": f"{folder}/ddp",
        "model.dropout": "0.1",
        "task.name": "ends",
        "task.train": f"{folder}/task",
        "task.batch_size": "4",
        "task.selection_fraction": "0.25",
        "data.tokenizer": "base",
        "optim.lr": "1e-3",
        "train.epochs": "2",
        "train.precision": "fp32",
        "scale.use_gpu": "false",
        "track.wandb": "off",
        "track.tensorboard": "false",
    }
    return load_config("finetune", None, options, {})


def figures(rows: list[dict[str, Any]], keys: tuple[str, ...], after: int) -> dict[str, dict[str, str]]:
    """{step: {figure: float.hex()}} of the records after a step."""
    return {
        str(row["step"]): {key: float(row[key]).hex() for key in keys if key in row}
        for row in rows
        if row["step"] > after
    }


class _Local:
    """In place of the Ray task of the classification run: the same generator in this process."""

    def __init__(self, task: Any) -> None:
        self.remote = task._function

    def options(self, **_: Any) -> _Local:
        return self


class _KilledAfterTheFirstEpoch:
    def write(self, text: str) -> None:
        if "epoch 1/2" in text:
            raise KeyboardInterrupt

    def flush(self) -> None:
        pass


def train_classifier(config: Config, stream: Any) -> None:
    from types import SimpleNamespace
    from unittest.mock import patch

    from raygpt.classify import finetune

    with (
        patch.object(finetune, "_train", _Local(finetune._train)),
        patch.object(finetune, "ray", SimpleNamespace(get=lambda it: it, cancel=lambda *_, **__: None)),
    ):
        finetune.train_classifier(config, "", stream)


def cut_off(folder: Path) -> None:
    """Leave of a finished run what a kill in step 12 would have."""
    forget_after(folder, STEP)
    shutil.rmtree(folder / "checkpoints" / "step_00000005")
    for name in ("summary.json", "report.html"):
        (folder / name).unlink()
    shutil.rmtree(folder / "plots", ignore_errors=True)
    lines = (folder / "metrics.jsonl").read_text().splitlines()[:KILLED]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def write_task(folder: Path) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, count in (("train", 32), ("validation", 16)):
        rows = ["sentence1,sentence2,label"]
        for index in range(count):
            one, two = ("".join(random.choice(list("abcd"), 4)) for _ in range(2))
            rows.append(f"{one},{two}{'ny'[index % 2]},{index % 2}")
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")


def make(pool: GlooPool) -> None:
    """In the current folder, by relative paths alone: checkpoints hold their config, and a hash of it."""
    here, expected = Path(), {}
    letters(here / "data")
    write_task(here / "task")
    for name in RUNS:
        config = training_config(".", name)
        whole = figures(run(config, pool=pool)[1], FIGURES["run"], STEP)
        cut_off(here / name)
        shutil.copytree(name, f"{name}.aside")
        outcome, rows, text = run(config, pool=pool)
        assert outcome.outcome == "finished" and "Going on from step 10" in text
        expected[name] = figures(rows, FIGURES["run"], STEP)
        assert expected[name] == whole
        shutil.rmtree(name)
        os.rename(f"{name}.aside", name)
    config = classifier_config(".")
    with contextlib.suppress(KeyboardInterrupt):
        train_classifier(config, _KilledAfterTheFirstEpoch())
    shutil.copytree("classifier", "classifier.aside")
    train_classifier(config, io.StringIO())
    expected["classifier"] = figures(records(config), FIGURES["classifier"], 1)
    assert list(expected["classifier"]) == ["2"]
    shutil.rmtree("classifier")
    os.rename("classifier.aside", "classifier")
    for name in (*RUNS, "classifier"):
        (here / name / "attempts.json").write_text(json.dumps([ATTEMPT], indent=1) + "\n")
    text = json.dumps({"machine": machine(), "runs": expected}, indent=1) + "\n"
    (here / "expected.json").write_text(text)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        pool = GlooPool()
        make(pool)
        pool.close()
        for item in Path(scratch).iterdir():
            if item.is_dir():
                shutil.rmtree(HERE / item.name, ignore_errors=True)
                shutil.copytree(item, HERE / item.name)
            else:
                shutil.copy(item, HERE / item.name)
        os.chdir(HERE)
