"""Runs training in this process on the module's Ray cluster and reads back what it logged."""

from __future__ import annotations

import io
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import psutil

from raygpt.config import Config
from raygpt.config.settings import load_config
from raygpt.parallel.checkpoint import complete_checkpoints, step_of
from raygpt.run.frame import Outcome
from raygpt.storage import locate
from raygpt.train.resolve import resolve
from raygpt.train.trainer import run_training
from tests.train.gloo_pool import GlooPool

OPTIONS = {
    "run.name": "r",
    "model.preset": "nano",
    "model.n_layer": "4",
    "model.n_embd": "64",
    "model.seq_len": "16",
    "model.dropout": "0.1",
    "optim.lr": "1e-2",
    "train.max_steps": "24",
    "train.global_batch_tokens": "512",
    "train.micro_batch_size": "1",
    "train.log_every": "1",
    "train.checkpoint_every": "5",
    "train.log_batch_digest": "true",
    "eval.every": "8",
    "track.wandb": "off",
    "track.tensorboard": "false",
}


class Screen(io.StringIO):
    """Where the driver prints; does something when it has printed a given text."""

    def __init__(self, on: dict[str, Callable[[], None]] | None = None) -> None:
        super().__init__()
        self.on = on or {}

    def write(self, text: str) -> int:
        for key in [key for key in self.on if key in text]:
            self.on.pop(key)()
        return super().write(text)


# on the pool nobody has to catch a step: as few passes as there can be
POOLED = {"train__micro_batch_size": "16", "data__backend": "mmap"}


def settings(train: str, storage: Path | str, **changes: str) -> Config:
    options = {**OPTIONS, "data.train": train, "data.val": train, "run.storage": str(storage)}
    return load_config("pretrain", None, {**options, **{k.replace("__", "."): v for k, v in changes.items()}}, {})


def run(
    config: Config,
    on: dict[str, Callable[[], None]] | None = None,
    pool: GlooPool | None = None,
    screen: Screen | None = None,
    again: str = "raygpt pretrain …",
) -> tuple[Outcome, list[dict], str]:
    """(outcome, records, what was printed) of a run under Ray Train, or on ranks of `pool`; `on` as in Screen."""
    screen = screen or Screen(on)
    start = run_training if pool is None else pool.run_training
    outcome = start(config, resolve(config), again, screen)
    return outcome, records(config), screen.getvalue()


def records(config: Config) -> list[dict]:
    from raygpt.track.jsonl import read_metrics

    return read_metrics(locate(config.run.storage) / config.run.name / "metrics.jsonl")


def sequence(rows: list[dict], key: str) -> dict[int, object]:
    return {row["step"]: row[key] for row in rows if key in row}


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def kill_a_worker() -> None:
    workers = [
        process
        for process in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline()) + process.name()
    ]
    assert workers
    workers[-1].kill()


def forget_after(run_folder: Path, step: int) -> None:
    """Delete the checkpoints after `step`: the folder is as a kill of everything would have left it."""
    for where in complete_checkpoints(locate(run_folder)):
        if step_of(where.name) > step:
            shutil.rmtree(where.path)


def letters(folder: Path, tokens: int = 2500) -> str:
    """A shard folder of random letters, the same every time, with a document's end after every 49."""
    import numpy as np

    from raygpt.data.shards import ShardWriter
    from raygpt.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("bytes")
    ids = np.random.default_rng(5).integers(97, 123, tokens).astype("<u2")
    ids[::50] = tokenizer.eot_id
    writer = ShardWriter(str(folder), "uint16", 999)
    writer.append(ids)
    writer.finish(tokenizer.info, tokenizer.to_json(), tokens // 50, tokens - tokens // 50, ["memory"])
    return writer.folder.uri


# every weight is cut up, the small ones that DeepSpeed would keep whole as well
CUT_ALL = "{zero_optimization: {stage3_param_persistence_threshold: 0, sub_group_size: 40000}}"


def zero_settings(train: str, storage: Path, strategy: str, offload: str = "none", **changes: str) -> Config:
    own = {"train__deepspeed": CUT_ALL} if strategy == "zero3" else {}
    own["train__micro_batch_size"] = "8"
    fixed = {"scale__num_workers": "2", "train__max_steps": "50", "train__checkpoint_every": "20", "eval__every": "25"}
    return settings(train, storage, train__strategy=strategy, train__offload=offload, **{**fixed, **own, **changes})


def assert_same_training(rows: list[dict], reference: list[dict], tolerance: float) -> None:
    assert sequence(rows, "batch_digest") == sequence(reference, "batch_digest")
    for key in ("train_loss", "val_loss", "grad_norm"):
        mine, theirs = sequence(rows, key), sequence(reference, key)
        assert mine.keys() == theirs.keys()
        worst = max(abs(mine[step] - theirs[step]) for step in theirs)  # type: ignore[operator]
        assert worst < tolerance, (key, worst)
