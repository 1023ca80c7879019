"""A small GPT trained on general text by the project's own job, once per checkout: what drills fine-tune."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.drills.program import ROOT, raygpt

STORAGE = ROOT / ".cache" / "drill-base"
SETTINGS = [
    "--model.preset=nano",
    "--model.n_layer=4",
    "--model.seq_len=128",
    "--data.tokenizer=train:4096",
    "--prepare.val_fraction=0.02",
    "--train.max_steps=200",
    "--train.global_batch_tokens=4096",
    "--train.checkpoint_every=200",
    "--optim.lr=3e-3",
    "--optim.warmup_steps=40",
    "--scale.num_workers=2",
    "--eval.every=0",
    "--track.wandb=off",
]


def base_model(shared_data: Path) -> Path:
    """Run folder of the base; trained in a few minutes where it is not there yet."""
    texts = [shared_data / "pretrain_text" / name for name in ("openwebtext_1k.parquet", "openstax_ccby.parquet")]
    name = hashlib.sha256(json.dumps([SETTINGS, *map(str, texts)]).encode()).hexdigest()[:10]
    raygpt(
        "pretrain",
        f"--data.train={','.join(map(str, texts))}",
        f"--run.storage={STORAGE}",
        f"--run.name={name}",
        *SETTINGS,
    )
    return STORAGE / name
