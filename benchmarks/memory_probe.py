"""Memory of one training process, phase by phase: what the plan of raygpt.capacity.memory is held against.

    python benchmarks/memory_probe.py '{"strategy": "zero2", "world_size": 2, "n_layer": 8, "n_embd": 512}'

Runs a few optimizer steps of random tokens on the CPU with the package's own strategies, without Ray, and prints one
JSON object per process. Memory is anonymous memory (RssAnon of /proc/self/status): mapped files are not counted, the
kernel drops their pages when it needs them. Its peak within a phase is VmHWM, set back before, less the mapped files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raygpt.capacity.memory import Needs, Setup

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
DEFAULTS: dict[str, Any] = {
    "strategy": "ddp",
    "offload": "none",
    "precision": "fp32",
    "micro_batch_size": 4,
    "grad_accum_steps": 1,
    "activation_checkpointing": False,
    "world_size": 1,
    "seq_len": 256,
    "n_layer": 6,
    "n_head": 8,
    "n_embd": 512,
    "vocab_size": 50257,
    "bias": True,
    "loss_tokens": 0,  # tokens whose logits exist at a time under ddp, 0 for all
    "steps": 2,
    "save": True,  # and a step after it
}


def status() -> dict[str, int]:
    """Bytes by name from /proc/self/status: RssAnon, RssFile, VmHWM and the like."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if len(words) == 3 and words[2] == "kB"}


class Phases:
    """Peaks of anonymous memory by phase, in bytes; a phase ends where the next begins."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self.ends: dict[str, int] = {}
        self._name: str | None = None

    def begin(self, name: str | None) -> None:
        now = status()
        if self._name is not None:
            peak = now["VmHWM"] - now["RssFile"] - now["RssShmem"]
            self.peaks[self._name] = max(self.peaks.get(self._name, 0), peak)
            self.ends[self._name] = now["RssAnon"]
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what is resident now
        self._name = name


class AnonymousPeak:
    """Largest RssAnon while it is open, looked at every 2 ms: unlike in VmHWM, pages of mapped files do not count."""

    def __enter__(self) -> AnonymousPeak:
        self.bytes = status()["RssAnon"]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, status()["RssAnon"])


def run(case: dict[str, Any], rank: int, meeting: str) -> dict[str, Any]:
    """Peaks of this process."""
    import torch

    from raygpt.capacity.allocator import is_tight, return_freed_memory
    from raygpt.model.gpt import GPT, GPTConfig, initial_weights
    from raygpt.train.precision import Precision
    from raygpt.train.step import TrainStep

    if is_tight(case["strategy"], case["activation_checkpointing"]):
        return_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device("cpu")
    if case["strategy"] != "ddp" or case["world_size"] > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(case["world_size"]), LOCAL_RANK="0")
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=case["world_size"]
        )
    if case["strategy"] != "ddp":
        from raygpt.parallel.zero import import_deepspeed

        import_deepspeed(device)
    phases = Phases()
    start = status()["RssAnon"]
    config = GPTConfig(
        vocab_size=case["vocab_size"],
        seq_len=case["seq_len"],
        n_layer=case["n_layer"],
        n_head=case["n_head"],
        n_embd=case["n_embd"],
        bias=case["bias"],
    )
    phases.begin("build")
    rows = case["micro_batch_size"] * case["grad_accum_steps"]
    batch = torch.randint(0, config.vocab_size, (rows, config.seq_len + 1))
    if case["strategy"] == "ddp":
        from raygpt.parallel.optimizer_state import optimizer_tensors
        from raygpt.parallel.snapshot import SnapshotBuffers
        from raygpt.train.optim import make_optimizer

        model = GPT(config, case["activation_checkpointing"])
        model.loss_tokens = case["loss_tokens"]
        optimizer = make_optimizer("adamw", model, lr=1e-4, weight_decay=0.1, betas=(0.9, 0.95))
        wrapped: torch.nn.Module = model
        if case["world_size"] > 1:
            wrapped = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        step: Any = TrainStep(
            wrapped, optimizer, Precision(case["precision"], device), micro_batch_size=case["micro_batch_size"],
            grad_clip=1.0,
        )  # fmt: skip
        buffers = SnapshotBuffers()

        def save() -> None:
            if rank == 0:
                buffers.take(dict(model.named_parameters()) | optimizer_tensors(optimizer, counters=False))
    else:
        from functools import partial

        from raygpt.model.tensorfile import write_tensors
        from raygpt.parallel.pieces import piece_stream
        from raygpt.parallel.zero import ZeroEngine
        from raygpt.parallel.zero_config import deepspeed_config
        from raygpt.train.optim import make_optimizer
        from raygpt.train.zero_step import ZeroStep

        engine = ZeroEngine(
            config,
            device,
            deepspeed_config(
                strategy=case["strategy"],
                offload=case["offload"],
                precision=case["precision"],
                micro_batch_size=case["micro_batch_size"],
                grad_accum_steps=case["grad_accum_steps"],
                grad_clip=1.0,
            ),
            partial(make_optimizer, "adamw", lr=1e-4, weight_decay=0.1, betas=(0.9, 0.95)),
            precision=case["precision"],
            activation_checkpointing=case["activation_checkpointing"],
        )
        engine.fill(initial_weights(config))
        model = engine.model
        step = ZeroStep(engine, case["micro_batch_size"])

        def save() -> None:
            stream = piece_stream(engine.pieces())
            with open(os.devnull, "wb") as file:
                write_tensors(file, stream.specs, stream.values(), stream.metadata)

    for number in range(case["steps"]):
        phases.begin("step" if number else "first step")
        before = time.process_time()
        step(batch, 1e-4)
        cpu_seconds = time.process_time() - before
    if case["save"]:
        phases.begin("save")
        save()
        if case["steps"] > 1:
            phases.begin("step after save")
            step(batch, 1e-4)
    phases.begin(None)
    parameters = sum(int(getattr(p, "ds_numel", p.numel())) for p in model.parameters())
    return {
        "rank": rank,
        "start": start,
        "parameters": parameters,
        "cpu_seconds": cpu_seconds,
        "peaks": phases.peaks,
        "ends": phases.ends,
    }


def per_worker(need: Needs, setup: Setup) -> int:
    """Bytes that the plan of a host allows one worker's process on a CPU at its worst moment."""
    from raygpt.capacity.memory import process

    others = ("object store", "snapshot for checkpoints", "processes")
    moments = [sum(size for name, size in parts.items() if name not in others) for parts in need.host.values()]
    return max(moments) // setup.workers_per_host + process(setup)


def probe(timeout: float = 600, limit: int | None = None, **case: Any) -> list[dict[str, Any]]:
    """`run` in processes of their own, one per worker; their results in order of rank."""
    case = {**DEFAULTS, **case}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"}
        workers = [
            subprocess.Popen(
                [sys.executable, __file__, json.dumps(case), str(rank), f"{folder}/meeting"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for rank in range(case["world_size"])
        ]
        results = []
        try:
            for worker in workers:
                out, err = worker.communicate(timeout=timeout)
                if worker.returncode:
                    raise RuntimeError(f"probe of {case} failed:\n{err[-3000:]}")
                results.append(json.loads(out.splitlines()[-1]))
        finally:
            for worker in workers:
                worker.kill()
        return results


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(json.dumps(run(json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3])), flush=True)
        os._exit(0)  # no teardown of process groups: nothing is left to save
    for result in probe(**json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}")):
        print(json.dumps(result))
