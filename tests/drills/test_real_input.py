"""The main job on real text with the real GPT-2 vocabulary, everything on S3: prepare, train, kill, resume, export."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from raygpt import storage
from raygpt.parallel import checkpoint
from raygpt.storage import locate
from raygpt.track.jsonl import read_metrics
from tests.drills.program import Program, raygpt

MODEL = {
    "model.preset": "nano",
    "model.n_layer": "2",
    "model.n_embd": "64",
    "model.n_head": "2",
    "model.seq_len": "64",
    "model.dropout": "0.1",
}


def options(values: dict[str, object]) -> list[str]:
    return [f"--{key}={value}" for key, value in values.items()]


@pytest.mark.timeout(900)
def test_real_text_through_s3_survives_a_kill_and_becomes_a_hugging_face_model(
    ray_cluster: str, bucket: str, shared_data: Path, tmp_path: Path
) -> None:
    for name in ("openwebtext_1k.parquet", "openstax_ccby.parquet"):
        storage.write_bytes(locate(bucket) / "text" / name, (shared_data / "pretrain_text" / name).read_bytes())
    prepare = ["prepare", f"--prepare.sources={bucket}/text", f"--prepare.output={bucket}/tokens"]
    prepare += [f"--data.tokenizer={shared_data / 'gpt2_bpe'}", "--prepare.shard_tokens=1000000"]
    printed = raygpt(*prepare)
    assert "Prepared 3,554 documents" in printed and "of 50,257" in printed

    run = {
        **MODEL,
        "run.storage": f"{bucket}/runs",
        "run.name": "real",
        "data.train": f"{bucket}/tokens/train",
        "scale.num_workers": 2,
        "optim.lr": 3e-3,
        "optim.warmup_steps": 5,
        "train.max_steps": 24,
        "train.global_batch_tokens": 512,
        "train.log_every": 1,
        "train.checkpoint_every": 8,
        "train.log_batch_digest": "true",
        "eval.every": 12,
        "eval.batches": 2,
        "track.wandb": "off",
    }
    raygpt("pretrain", *options({**run, "run.name": "whole"}))
    broken = Program("pretrain", *options(run))
    broken.wait_for("step 12/24", 300)
    broken.kill()
    assert "Going on from step" in raygpt("pretrain", *options(run))

    left, right = (read_metrics(locate(f"{bucket}/runs/{name}/metrics.jsonl")) for name in ("whole", "real"))
    for key in ("batch_digest", "train_loss", "val_loss"):
        assert [row.get(key) for row in left] == [row.get(key) for row in right], key
    assert right[-1]["train_loss"] < math.log(50_257) - 2
    assert checkpoint.verify(checkpoint.complete_checkpoints(locate(f"{bucket}/runs/real"))[0]) is None

    exported = tmp_path / "hf"
    raygpt("export", f"--model.init_from={bucket}/runs/real", f"--export.output={exported}")
    from transformers import pipeline

    written = pipeline("text-generation", model=str(exported))("The history of", max_new_tokens=5, do_sample=False)
    assert written[0]["generated_text"].startswith("The history of")

    # a small part of it: the large vocabulary makes every token dear on a CPU
    wikitext = tmp_path / "wikitext2.txt"
    wikitext.write_bytes((shared_data / "pretrain_text" / "wikitext2" / "test.txt").read_bytes()[:40_000])
    losses = []
    for model in (f"{bucket}/runs/real", str(exported)):
        printed = raygpt("evaluate", f"--model.init_from={model}", f"--data.val={wikitext}")
        line = next(line for line in printed.splitlines() if line.startswith("{"))
        losses.append(json.loads(line))
    assert losses[0]["loss"] == pytest.approx(losses[1]["loss"], abs=1e-5)
    assert 4 < losses[0]["loss"] < math.log(50_257) and losses[0]["bits_per_byte"] > 1
