"""Peak memory of loading, saving and exporting a large model, and of training, beside what the plan says.

    python benchmarks/bench_memory.py --preset gpt2-xl --limit-gb 12

Every stage runs in a process of its own, in a memory cgroup of --limit-gb where one can be made (version 1 or 2 of
cgroups, as root), so that a stage that needed more would be killed. Anonymous memory is measured (RssAnon): mapped
files are the kernel's to drop. Weights are random; the folder of a Hugging Face model is made first, one tensor at a
time. Stages:

load     Hugging Face folder -> the model in fp32 (raygpt.parallel.weights.load_weights)
stream   Hugging Face folder -> nothing, one tensor at a time: what every rank of a ZeRO run does
save     one rank's part of a sharded checkpoint of --parts ranks (fp32 weights and both moments), each in turn
export   `raygpt export` of that checkpoint to a Hugging Face folder in shards of export.shard_gb
train    optimizer steps with ZeRO on this CPU (only with --train PRESET)
cases    the same of a small model, without and with offload (only with --cases)

With --only-training the stages before are left out, and their rows in the file stay.

Prints a table and writes memory.json beside this script (--out); `planned` is host memory from raygpt.capacity.memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for _folder in (str(ROOT), str(ROOT / "benchmarks")):
    if _folder not in sys.path:
        sys.path.insert(0, _folder)

from memory_probe import AnonymousPeak, status

STEP = "step_00000001"


def make_folder(preset: str, folder: Path) -> None:
    """A Hugging Face folder of random weights."""
    import torch

    from raygpt.model.export import export_weights
    from raygpt.model.gpt import initial_weights

    torch.manual_seed(0)
    config = shape(preset)
    export_weights(config, initial_weights(config), folder, tokenizer_json=None, eot_id=config.vocab_size - 1)


def load(preset: str, folder: Path, part: int, parts: int) -> None:
    from raygpt.parallel.weights import load_weights

    model, _, _ = load_weights(str(folder / "hf"))
    assert model.num_parameters() == shape(preset).num_parameters()


def stream(preset: str, folder: Path, part: int, parts: int) -> None:
    from raygpt.parallel.weights import open_weights

    assert sum(1 for _ in open_weights(str(folder / "hf")).items()) > 10


def save(preset: str, folder: Path, part: int, parts: int) -> None:
    """Rank `part` of `parts` holds its run of all values, flat, as ZeRO does, and writes it."""
    import torch

    from raygpt.config.settings import dump, load_config
    from raygpt.data.tokenizer import load_tokenizer
    from raygpt.model.registry import parameter_shapes
    from raygpt.parallel import checkpoint, saving
    from raygpt.parallel.pieces import Piece, piece_stream
    from raygpt.storage import locate

    config = shape(preset)
    shapes = parameter_shapes(config)
    total = sum(torch.Size(one).numel() for one in shapes.values())
    first, last = total * part // parts, total * (part + 1) // parts
    flat = {kind: torch.full((last - first,), 0.5) for kind in ("weight", "exp_avg", "exp_avg_sq")}
    pieces, begin = [], 0
    for name, size in shapes.items():
        count = torch.Size(size).numel()
        low, high = max(first, begin), min(last, begin + count)
        if low < high:
            views = {kind: tensor[low - first : high - first] for kind, tensor in flat.items()}
            pieces.append(Piece(name, size, low - begin, views))
        begin += count
    files: dict[str, Any] = {
        f"zero-{part:05d}.safetensors": piece_stream(pieces),
        checkpoint.rank_file(part): checkpoint.rank_bytes({}),
    }
    if part == 0:
        tokenizer = load_tokenizer("bytes")
        state = checkpoint.RunState(
            step=1, world_size=parts, tokenizer_name=tokenizer.name, eot_id=tokenizer.eot_id, model=config.to_dict()
        )
        files |= {"state.json": state.to_json().encode(), "tokenizer.json": tokenizer.to_json()}
        files["config.yaml"] = dump(load_config("sample", None, {}, {})).encode()
    where = locate(folder / "run" / "checkpoints" / STEP)
    saving.write_part(where, part, parts, files, attempt="bench")
    if part == parts - 1:  # the parts come one after another
        saving.commit(where, parts, "bench")


def export(preset: str, folder: Path, part: int, parts: int) -> None:
    from raygpt.cli import main

    options = [f"--run.storage={folder}", "--run.name=run", f"--export.output={folder / 'exported'}"]
    assert main(["export", *options, "--export.dtype=float16"]) == 0


STAGES = {"load": load, "stream": stream, "save": save, "export": export}


def shape(preset: str) -> Any:
    from raygpt.model.gpt import GPTConfig
    from raygpt.model.presets import PRESETS

    return GPTConfig(**PRESETS[preset])


def planned(preset: str, stage: str, parts: int) -> int:
    """Bytes of host memory that the plan allows one process of a stage."""
    from raygpt.capacity.memory import Counts, Setup, process, reading

    setup = Setup("zero3", gpu=False, world_size=parts)
    counts, bare = Counts.of(shape(preset)), process(setup, deepspeed=False)
    if stage == "load":  # a whole model in fp32, one tensor on its way
        return bare + 4 * counts.total + reading(counts)
    if stage == "save":  # the state, one tensor on its way
        return bare + 12 * -(-counts.total // parts) + 4 * counts.largest
    return bare + reading(counts)


@contextmanager
def limited(limit: int) -> Iterator[str | None]:
    """Path of a new memory cgroup's cgroup.procs, or None where none can be made."""
    base = Path("/sys/fs/cgroup/memory")
    first = base.is_dir()
    group = (base if first else Path("/sys/fs/cgroup")) / f"raygpt-bench-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        try:
            (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
        except OSError:
            yield None
            return
        yield str(group / "cgroup.procs")
    finally:
        for _ in range(50):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def measure(stage: str, preset: str, folder: Path, part: int, parts: int, limit: int) -> dict[str, Any]:
    """Runs one stage in a process of its own; its peaks in bytes, and whether the limit was enforced."""
    with limited(limit) as procs:
        enter = f"echo $$ > {procs}; " if procs else ""
        words = [sys.executable, __file__, "--stage", stage, "--preset", preset, "--folder", str(folder)]
        command = enter + "exec " + " ".join([*words, "--part", str(part), "--parts", str(parts)])
        start = time.perf_counter()
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env={**os.environ, **QUIET})
        if done.returncode:
            killed = " (killed: over the limit)" if done.returncode in (-9, 137) else ""
            raise RuntimeError(f"{stage} ended with {done.returncode}{killed}: {done.stderr[-2000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        return {**found, "seconds": round(time.perf_counter() - start, 1), "limited": procs is not None}


QUIET = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "false"}


def run_stage(stage: str, preset: str, folder: Path, part: int, parts: int) -> None:
    """What a measured process does."""
    import torch

    from raygpt.capacity.allocator import return_freed_memory

    return_freed_memory()
    torch.set_num_threads(1)
    before = status()["RssAnon"]
    with AnonymousPeak() as peak:
        STAGES[stage](preset, folder, part, parts)
    print(json.dumps({"before": before, "peak": peak.bytes}))


def drill(preset: str, parts: int, limit: int, folder: Path) -> list[dict[str, Any]]:
    """All stages; one row each, the largest of the ranks' saves for `save`."""
    if not (folder / "hf" / "config.json").exists():
        make = f"from bench_memory import *; make_folder({preset!r}, Path({str(folder / 'hf')!r}))"
        subprocess.run([sys.executable, "-c", make], check=True, cwd=ROOT / "benchmarks", env={**os.environ, **QUIET})
    rows = []
    for stage in STAGES:
        runs = [measure(stage, preset, folder, part, parts, limit) for part in range(parts if stage == "save" else 1)]
        worst = max(runs, key=lambda one: one["peak"])
        rows.append({"stage": stage, "planned": planned(preset, stage, parts), **worst, "preset": preset})
        print(as_row(rows[-1]), flush=True)
    return rows


SMALL = "102M"
SMALL_SHAPE = {"vocab_size": 1000, "seq_len": 64, "n_layer": 8, "n_head": 8, "n_embd": 1024}
CASES = [  # strategy, offload, workers, micro-batches; gradients in bf16
    ("zero1", "none", 1, 2),
    ("zero1", "none", 2, 1),
    ("zero1", "optimizer", 1, 2),
    ("zero1", "optimizer", 2, 1),
    ("zero2", "none", 1, 2),
    ("zero2", "none", 2, 1),
    ("zero2", "optimizer", 1, 2),
    ("zero3", "none", 1, 2),
    ("zero3", "none", 2, 1),
    ("zero3", "all", 1, 2),
]


def train_small() -> list[dict[str, Any]]:
    """CASES, one row each."""
    common = {"precision": "bf16", "micro_batch_size": 1, "seq_len": 64, "activation_checkpointing": False}
    return [
        train(SMALL, workers, strategy=strategy, offload=offload, grad_accum_steps=accumulation, **common)
        for strategy, offload, workers, accumulation in CASES
    ]


def train(preset: str, workers: int, **case: Any) -> dict[str, Any]:
    """A real optimizer step with ZeRO on this CPU beside the plan for the same."""
    from memory_probe import per_worker, probe

    from raygpt.capacity.memory import Setup, needs
    from raygpt.model.gpt import GPTConfig

    model = GPTConfig(**SMALL_SHAPE) if preset == SMALL else shape(preset)
    sizes = {name: getattr(model, name) for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    results = probe(timeout=3600, **{"steps": 2, "world_size": workers, **sizes, **case})
    setup = Setup(
        strategy=case["strategy"],
        offload=case.get("offload", "none"),
        precision=case["precision"],
        micro_batch_size=case["micro_batch_size"],
        seq_len=case["seq_len"],
        grad_accum_steps=case.get("grad_accum_steps", 1),
        activation_checkpointing=case["activation_checkpointing"],
        world_size=workers,
        gpu=False,
    )
    measured = max(max(result["peaks"].values()) for result in results)
    row = {"stage": "train", "preset": preset, "planned": per_worker(needs(model, setup), setup), "peak": measured}
    print(as_row(row), flush=True)
    return {**row, "case": asdict(setup)}


def as_row(row: dict[str, Any]) -> str:
    peak, plan = row["peak"] / 1e9, row["planned"] / 1e9
    return f"{row['preset']:12s} {row['stage']:8s} {peak:7.2f} GB of {plan:7.2f} planned ({peak / plan:.0%})"


def measured_stages(preset: str, parts: int, limit: int, folder: Path | None) -> list[dict[str, Any]]:
    """`drill` in `folder`, or in a temporary one that is removed."""
    place = folder or Path(tempfile.mkdtemp(prefix="raygpt-memory-"))
    place.mkdir(parents=True, exist_ok=True)
    try:
        return drill(preset, parts, limit, place)
    finally:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="gpt2-xl")
    parser.add_argument("--parts", type=int, default=4, help="ranks of the sharded checkpoint")
    parser.add_argument("--limit-gb", type=float, default=12)
    parser.add_argument(
        "--folder", type=Path, help="where the weights go (25 bytes per parameter); none: a temporary one"
    )
    parser.add_argument("--train", help="also one optimizer step of this preset with ZeRO-3 and everything offloaded")
    parser.add_argument("--cases", action="store_true", help="also a few steps of a small model in every ZeRO stage")
    parser.add_argument("--only-training", action="store_true", help="leave the other stages' rows as they are")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "memory.json")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--part", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        run_stage(arguments.stage, arguments.preset, arguments.folder, arguments.part, arguments.parts)
        return
    before = json.loads(arguments.out.read_text()) if arguments.only_training else {}
    rows = [row for row in before.get("rows", []) if row["stage"] != "train"]
    if not arguments.only_training:
        rows = measured_stages(arguments.preset, arguments.parts, int(arguments.limit_gb * 1e9), arguments.folder)
    if arguments.train:
        rows.append(
            train(
                arguments.train,
                1,
                strategy="zero3",
                offload="all",
                precision="bf16",
                micro_batch_size=1,
                seq_len=256,
                activation_checkpointing=True,
            )
        )
    if arguments.cases:
        rows += train_small()
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    result = {
        "date": before.get("date", today),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "limit_bytes": before.get("limit_bytes", int(arguments.limit_gb * 1e9)),
        **({"training_date": today} if arguments.train or arguments.cases else {}),
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
