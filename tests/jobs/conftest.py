"""A finished run without the training: a small random model's checkpoint, its shards, its records."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from raygpt.config.settings import dump, load_config
from raygpt.data.shards import Manifest, ShardWriter
from raygpt.data.tokenizer import Tokenizer, load_tokenizer
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.model.tensorfile import TensorStream
from raygpt.parallel import checkpoint, saving
from raygpt.parallel.checkpoint import RunState
from raygpt.storage import locate

TRAIN = ["It was the best of times, it was the worst of times.", "Call me Ishmael.\nSome years ago..."] * 8
VAL = ["Ground control to Major Tom.", "Zwölf Boxkämpfer jagen Eva quer über den Sylter Deich 🚀.", "x"]


@dataclass
class FinishedRun:
    """`root` is run.storage; `model` is what the checkpoint of step 30 holds."""

    root: Path
    folder: Path
    model: GPT
    tokenizer: Tokenizer
    train: Manifest
    val: Manifest

    @property
    def options(self) -> list[str]:
        return [f"--run.storage={self.root}", "--run.name=tiny"]


def write_shards(folder: Path, documents: list[str], tokenizer: Tokenizer) -> Manifest:
    writer = ShardWriter(str(folder), tokenizer.dtype, 200)
    for document in documents:
        writer.append(tokenizer.encode(document))
        writer.append(torch.tensor([tokenizer.eot_id]).numpy())
    size = sum(len(document.encode()) for document in documents)
    return writer.finish(tokenizer.info, tokenizer.to_json(), len(documents), size, ["books.txt"])


def make_run(root: Path) -> FinishedRun:
    tokenizer = load_tokenizer("bytes")
    train = write_shards(root / "data" / "train", TRAIN, tokenizer)
    val = write_shards(root / "data" / "val", VAL, tokenizer)
    torch.manual_seed(3)
    model = GPT(GPTConfig(vocab_size=257, seq_len=16, n_layer=2, n_head=2, n_embd=32)).eval()
    with torch.no_grad():  # far from uniform, so that a wrong token or position shows
        for name, parameter in model.named_parameters():
            parameter[: 257 if name == "wte.weight" else None].mul_(8)
    options = {
        "run.name": "tiny",
        "run.storage": str(root),
        "data.train": str(root / "data"),
        "data.tokenizer": "bytes",
    }
    options |= {"train.max_steps": "30", "train.global_batch_tokens": "32", "model.preset": "nano"}
    config = load_config("pretrain", None, options, {})
    state = RunState(
        step=30,
        tokens=960,
        val_loss=5.25,
        best_val_loss=5.125,
        best_step=20,
        fingerprint=train.fingerprint,
        tokenizer_sha256=tokenizer.sha256,
        tokenizer_name=tokenizer.name,
        eot_id=tokenizer.eot_id,
        model=model.config.to_dict(),
    )
    folder = root / "tiny"
    files: dict[str, bytes | TensorStream] = {
        "model.safetensors": TensorStream.of(dict(model.named_parameters())),
        "state.json": state.to_json().encode(),
        "config.yaml": dump(config).encode(),
        "tokenizer.json": tokenizer.to_json(),
    }
    saving.write(locate(folder / "checkpoints" / checkpoint.folder_name(30)), files)
    (folder / "config.yaml").write_text(dump(config))
    records = [{"step": step, "tokens": 32 * step, "train_loss": 5.5 - step / 60} for step in (10, 20, 30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "summary.json").write_text(
        json.dumps({"steps": 30, "train_loss": 5.0, "val_loss": 5.25, "cost_usd": 1.5})
    )
    return FinishedRun(root, folder, model, tokenizer, train, val)


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Shared: tests only add to it."""
    return make_run(tmp_path_factory.mktemp("finished"))
