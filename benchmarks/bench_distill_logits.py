"""Does a teacher's distribution help? A teacher of four times the student's size, pretrained here on real text; a
student without it, with it, and without it for as much compute: held-out loss over three seeds.

python benchmarks/bench_distill_logits.py --data ../shared/data/pretrain_text --folder FOLDER

Some 25 minutes of a core in all. Every arm is a run of `raygpt pretrain` or `raygpt distill` in FOLDER: a script that
was stopped goes on, runs that are complete are not repeated. `--scale 0.02` tries the script out.

Equal compute counts the FLOPs of training: a distilled student's are its own and a forward pass of the teacher's, whose
own pretraining is not counted, as for a teacher that is there anyway; what it cost stands beside.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.provenance import provenance

FILES = ("openstax_ccby.parquet", "openwebtext_1k.parquet")
VOCABULARY, SEQ_LEN, BATCH_TOKENS = 2048, 64, 2048
SHAPES = {"student": {"n_layer": 2, "n_head": 4, "n_embd": 64}, "teacher": {"n_layer": 4, "n_head": 4, "n_embd": 120}}
STEPS = {"student": 1000, "teacher": 2500}
ALPHA, SEEDS = 0.5, (1, 2, 3)
T_95 = 4.303  # Student's t, two degrees of freedom: half of a 95 % interval of three seeds, in standard errors


def raygpt(folder: Path, job: str, **settings: Any) -> None:
    """One command, its output beside the runs."""
    words = [f"--{key.replace('__', '.')}={value}" for key, value in settings.items()]
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        subprocess.run(
            [sys.executable, "-m", "raygpt.cli", job, *words],
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )


def prepare(folder: Path, data: Path) -> None:
    """folder/shards/{train,val}."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = json.dumps([str(data / name) for name in FILES])
    tokenizer = {"data__tokenizer": f"train:{VOCABULARY}"}
    raygpt(folder, "prepare", prepare__sources=sources, prepare__output=folder / "shards", **tokenizer)


def train(folder: Path, name: str, kind: str, steps: int, seed: int, job: str = "pretrain", **more: Any) -> dict:
    """summary.json of a run, made where it is not there."""
    summary = folder / "runs" / name / "summary.json"
    if not summary.exists() or json.loads(summary.read_text())["steps"] < steps:
        raygpt(
            folder,
            job,
            run__storage=folder / "runs",
            run__name=name,
            run__seed=seed,
            data__train=folder / "shards",
            model__preset="nano",
            model__seq_len=SEQ_LEN,
            **{f"model__{key}": value for key, value in SHAPES[kind].items()},
            scale__num_workers=1,
            scale__cpus_per_worker=1,
            data__backend="mmap",
            optim__lr="5e-3",
            optim__warmup_fraction=0.05,
            optim__warmup_steps="none",
            optim__min_lr_ratio=0.05,
            train__max_steps=steps,
            train__global_batch_tokens=BATCH_TOKENS,
            train__log_every=max(1, steps // 20),
            train__checkpoint_every=0,
            eval__every=0,
            eval__batches="none",
            track__wandb="off",
            **more,
        )
    return json.loads(summary.read_text())


def flops(folder: Path, name: str) -> int:
    """Training FLOPs per token of a run's model."""
    from raygpt.parallel.weights import open_weights

    return open_weights(str(folder / "runs" / name)).config.flops_per_token(SEQ_LEN)


def interval(values: list[float]) -> dict[str, Any]:
    """Mean and half of its 95 % interval."""
    half = T_95 * stdev(values) / math.sqrt(len(values)) if len(values) > 2 else None
    return {"mean": mean(values), "half_interval_95": half, "values": values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/pretrain_text")
    parser.add_argument("--folder", type=Path, required=True, help="where shards and runs go, and are gone on with")
    parser.add_argument("--scale", type=float, default=1.0, help="share of all steps")
    parser.add_argument("--alpha", type=float, default=ALPHA)
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks/distill_logits.json")
    options = parser.parse_args()
    folder = options.folder.resolve()
    prepare(folder, options.data.resolve())
    steps = {kind: max(20, round(options.scale * number)) for kind, number in STEPS.items()}
    teacher = train(folder, "teacher", "teacher", steps["teacher"], 0)
    arms: dict[str, list[dict]] = {"without": [], "distilled": [], "equal_compute": []}
    for seed in SEEDS:
        arms["without"].append(train(folder, f"without-{seed}", "student", steps["student"], seed))
        whole = {
            "distill__mode": "logits",
            "distill__teacher": folder / "runs/teacher",
            "distill__alpha": options.alpha,
        }
        arms["distilled"].append(
            train(folder, f"distilled-{seed}", "student", steps["student"], seed, "distill", **whole)
        )
        share = 1 + flops(folder, "teacher") / 3 / flops(folder, f"without-{seed}")
        longer = round(share * steps["student"])
        arms["equal_compute"].append(train(folder, f"longer-{seed}", "student", longer, seed))
    losses = {name: [run["val_loss"] for run in runs] for name, runs in arms.items()}
    against = {
        name: interval([b - a for a, b in zip(losses["distilled"], losses[name])])
        for name in ("without", "equal_compute")
    }
    result = {
        "val_loss": {name: interval(values) for name, values in losses.items()},
        "teacher_val_loss": teacher["val_loss"],
        "distilled_is_better_by": against,  # nats per token, paired by seed: positive where it is
        "steps": {**steps, "equal_compute": longer, "tokens_per_step": BATCH_TOKENS},
        "flops": {
            "student_run": flops(folder, "without-1") * steps["student"] * BATCH_TOKENS,
            "distilled_run": round(share * flops(folder, "without-1") * steps["student"] * BATCH_TOKENS),
            "teacher_pretraining": flops(folder, "teacher") * steps["teacher"] * BATCH_TOKENS,
        },
        "train_seconds": {
            name: [round(run["effective_time_ratio"] * run["wall_seconds"], 1) for run in runs]
            for name, runs in arms.items()
        },
        "teacher_fraction_of_step": mean(run["teacher_fraction"] for run in arms["distilled"]),
        "alpha": options.alpha,
        "shapes": SHAPES,
        "data": list(FILES),
        **provenance("torch", "ray"),
    }
    print(json.dumps(result, indent=2))
    options.result.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
