"""What each way of handing over a teacher's states costs and loses, on a trained pair: the divergence and its gradient
against those of all logits in float64, bytes a token, and the time of a step beside one without a teacher.

python benchmarks/bench_logits.py --folder FOLDER

FOLDER is bench_distill_logits.py's, whose teacher and first distilled student are the pair; without their runs they are
made, in some five minutes of a core.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor

from benchmarks import bench_distill_logits as pair
from benchmarks.provenance import provenance
from raygpt.data.reader import TokenReader
from raygpt.data.shards import load_manifest
from raygpt.distill.objective import Blend, Distillation
from raygpt.distill.storing import StatesPlan, write_part
from raygpt.distill.teacher_states import OnlineTeacher
from raygpt.distill.transport import Transport
from raygpt.parallel.distributed import World
from raygpt.parallel.weights import load_weights
from raygpt.train.objective import LanguageModelling, Objective
from raygpt.train.replica import Replica

CPU = torch.device("cpu")
ROWS, DRAWS = 64, 100
XL = {"width": 1600, "vocab_size": 50257}
SETTINGS: list[dict[str, Any]] = [
    {"kind": "hidden"},
    *({"kind": "topk", "top_k": k} for k in (8, 32, 64, 128, 512)),
    *({"kind": "sampled", "samples": m} for m in (4, 12, 50)),
]


def exact(student: Tensor, teacher: Tensor, divergence: str) -> tuple[Tensor, Tensor]:
    """(divergences (n,), gradients (n, V)) of all logits, by torch in float64."""
    z = student.double().requires_grad_()
    log_q, log_p = torch.log_softmax(z, 1), torch.log_softmax(teacher.double(), 1)
    q, p = log_q.exp(), log_p.exp()
    losses = (p * (log_p - log_q)).sum(1) if divergence == "forward" else (q * (log_q - log_p)).sum(1)
    return losses.detach(), torch.autograd.grad(losses.sum(), z)[0]


def errors(student: Any, teacher: Any, rows: Tensor, divergence: str) -> list[dict[str, Any]]:
    """Of each transport, stored in half precision and read back."""
    inputs = rows[:, :-1]
    with torch.no_grad():
        z, y = (model(inputs).flatten(0, 1).float() for model in (student, teacher))
        hidden = teacher.hidden(inputs).flatten(0, 1)
    want, gradient = exact(z, y, divergence)
    output = teacher.lm_head.weight[: y.size(1)].detach()
    size, found = gradient.norm(dim=1).mean(), []
    for settings in SETTINGS:
        if settings["kind"] == "sampled" and divergence != "forward":
            continue
        transport = Transport(**{"width": hidden.size(1), "vocab_size": y.size(1), **settings})
        drawn = settings["kind"] == "sampled"
        torch.manual_seed(0)
        values, gradients, off = [], torch.zeros_like(gradient), []
        for _ in range(DRAWS if drawn else 1):
            states = {"hidden": hidden} if settings["kind"] == "hidden" else transport.take(y)
            records = transport.unpack(transport.pack(states))
            back = {name: torch.from_numpy(array) for name, array in records.items()}
            losses, given = transport.compare(z, back, divergence, output)  # type: ignore[arg-type]
            values.append(float(losses.double().mean()))
            gradients += given.double()
            off.append(float((given.double() - gradient).norm(dim=1).mean() / size))
        gradients /= len(values)
        found.append(
            {
                **settings,
                "bytes_per_token": transport.bytes_per_token,
                "bytes_per_token_gpt2_xl": Transport(**{**settings, **XL}).bytes_per_token,
                "divergence": values[0],
                "divergence_error": float(np.mean(values)) / float(want.mean()) - 1,
                "gradient_error": float(np.mean(off)),  # of a token, against the mean norm
                **(
                    {"gradient_error_of_mean": float((gradients - gradient).norm(dim=1).mean() / size)} if drawn else {}
                ),
                **({"draws": DRAWS, "divergence_one_draw_std": float(np.std(values))} if drawn else {}),
                "least_token": float(losses.min()),
            }
        )
    return [{"full": float(want.mean())}, *found]


def step_times(folder: Path, teacher: Any, student: Path, rows: Tensor, steps: int) -> dict[str, Any]:
    """Seconds of a step without a teacher and with each kind, beside the student and stored, taken in turns."""
    width, vocab = teacher.config.n_embd, teacher.config.vocab_size
    objectives: dict[str, tuple[Objective, dict[str, Tensor]]] = {"no teacher": (LanguageModelling(), {})}
    output = teacher.lm_head.weight[:vocab].detach()
    for settings in ({"kind": "hidden"}, {"kind": "topk", "top_k": 64}, {"kind": "sampled", "samples": 12}):
        transport = Transport(**{"width": width, "vocab_size": vocab, **settings})
        online = OnlineTeacher(teacher, transport, torch.float32, CPU)
        blend = Blend(transport)
        objectives[f"{transport.kind}, beside"] = Distillation(blend, output=output, teacher=online), {}
        states = transport.unpack(transport.pack(online.states(rows[:, :-1])))
        given = {name: torch.from_numpy(array).unflatten(0, (len(rows), -1)) for name, array in states.items()}
        objectives[f"{transport.kind}, stored"] = Distillation(blend, output=output, stored=lambda _: {}), given
    replicas, seconds, shares = {}, {name: [] for name in objectives}, {name: [] for name in objectives}
    for name, (objective, _) in objectives.items():
        replicas[name] = Replica(
            load_weights(str(student))[0],
            World(0, 1, CPU),
            precision="fp32",
            micro_batch_size=len(rows),
            local_rows=len(rows),
            seq_len=rows.size(1) - 1,
            lr=1e-3,
            weight_decay=0.1,
            betas=(0.9, 0.95),
            objective=objective,
        )
    for _ in range(steps):
        for name, replica in replicas.items():
            objective, given = objectives[name]
            getattr(objective, "figures", dict)()
            began = time.perf_counter()
            replica.step({"rows": rows, **given}, 1e-3)
            seconds[name].append(time.perf_counter() - began)
            shares[name].append(getattr(objective, "figures", dict)().get("teacher_seconds", 0.0) / seconds[name][-1])
    plain = median(seconds["no teacher"])
    return {
        name: {
            "step_seconds": median(values),
            "against_no_teacher": median(values) / plain,
            **({"teacher_fraction": median(shares[name])} if "beside" in name else {}),
        }
        for name, values in seconds.items()
    }


def storing(folder: Path, teacher: Any, shards: str) -> dict[str, Any]:
    """Tokens per second of writing hidden states."""
    transport = Transport("hidden", teacher.config.n_embd, teacher.config.vocab_size)
    layout = load_manifest(shards).layout(shards)
    plan = StatesPlan(layout, "", "bench", "", transport, teacher.config.seq_len, 0, part_bytes=2**24)
    with tempfile.TemporaryDirectory() as target:
        began = time.perf_counter()
        part = write_part(
            replace(plan, folder=target), 0, OnlineTeacher(teacher, transport, torch.float32, CPU), TokenReader(shards)
        )
        seconds = time.perf_counter() - began
    return {"tokens_per_second": part.tokens / seconds, "tokens": part.tokens, "window": plan.context}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/pretrain_text")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30, help="of each kind that is timed")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps of runs that have to be made")
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks/logits.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.folder.resolve()
    pair.prepare(folder, options.data.resolve())
    steps = {kind: max(20, round(options.scale * number)) for kind, number in pair.STEPS.items()}
    pair.train(folder, "teacher", "teacher", steps["teacher"], 0)
    own = {"distill__mode": "logits", "distill__teacher": folder / "runs/teacher", "distill__alpha": pair.ALPHA}
    pair.train(folder, "distilled-1", "student", steps["student"], 1, "distill", **own)
    teacher, student = (load_weights(str(folder / "runs" / name))[0].eval() for name in ("teacher", "distilled-1"))
    shards = str(folder / "shards/val")
    reader = TokenReader(shards)
    starts = np.arange(ROWS) * ((reader.total_tokens - pair.SEQ_LEN - 1) // ROWS)
    rows = torch.from_numpy(reader.read_rows(starts, pair.SEQ_LEN + 1).astype(np.int64))
    result = {
        "forward": errors(student, teacher, rows, "forward"),
        "reverse": errors(student, teacher, rows, "reverse"),
        "steps": step_times(folder, teacher, folder / "runs/distilled-1", rows[:32], options.steps),
        "storing": storing(folder, teacher, shards),
        "tokens": ROWS * pair.SEQ_LEN,
        "shapes": pair.SHAPES,
        "trained_steps": steps,
        **provenance("torch"),
    }
    print(json.dumps(result, indent=2))
    options.result.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
