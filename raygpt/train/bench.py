"""PURE. Speed of the training step alone: no Ray, no data, one process, whatever device there is.

    python -m raygpt.train.bench --preset gpt2 --micro_batch 8 --precision bf16 --compile --out bench.json
    python -m raygpt.train.bench --preset gpt2-xl --strategy zero2 --offload optimizer --activation_checkpointing \\
        --precision fp16 --micro_batch 8 --memory_limit_gb 16

Says tokens per second, and what share that is of two ceilings: the datasheet's peak (absent where the device is not
in the table) and a large matrix product measured in the same run, in the same precision, on the same device.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import raygpt
from raygpt.errors import UserError
from raygpt.hardware import choose_precision, gpu_spec
from raygpt.model.gpt import GPT, GPTConfig, initial_weights
from raygpt.model.presets import PRESETS
from raygpt.train.memory import Setup, needs
from raygpt.train.optim import make_adamw
from raygpt.train.precision import Precision
from raygpt.train.step import StepResult, TrainStep
from raygpt.train.zero_config import deepspeed_config

WARMUP_STEPS = 5  # compilation, allocator, clocks: left out of every figure


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m raygpt.train.bench", description="Speed of one training step.")
    parser.add_argument("--preset", choices=PRESETS, default="gpt2")
    for key in ("n_layer", "n_head", "n_embd", "vocab_size"):
        parser.add_argument(f"--{key}", type=int, help=f"overrides the preset's {key}")
    parser.add_argument("--seq_len", type=int, help="tokens per row (default: the preset's)")
    parser.add_argument("--micro_batch", type=int, default=8, help="rows per forward pass")
    parser.add_argument("--grad_accum", type=int, default=1, help="forward passes per optimizer step")
    parser.add_argument("--precision", choices=("auto", "fp32", "tf32", "bf16", "fp16"), default="auto")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--activation_checkpointing", action="store_true")
    parser.add_argument("--strategy", choices=("ddp", "zero1", "zero2", "zero3"), default="ddp")
    parser.add_argument("--offload", choices=("none", "optimizer", "all"), default="none")
    parser.add_argument("--memory_limit_gb", type=float, help="fail beyond this much memory of the GPU")
    parser.add_argument("--steps", type=int, default=20, help=f"timed steps, after {WARMUP_STEPS} that are not")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--compare", action="store_true", help="also time transformers' model, forward and backward")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement as JSON-ready figures: seconds, tokens, bytes, FLOP/s. Absent rather than guessed."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name, reason = choose_precision(options.precision, device)
    config = _config(options)
    if options.memory_limit_gb and device.type == "cuda":
        share = options.memory_limit_gb * 1e9 / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
    torch.manual_seed(0)
    precision = Precision(name, device)
    model, step = _model_and_step(options, config, precision)
    rows = torch.randint(
        config.vocab_size, (options.micro_batch * options.grad_accum, config.seq_len + 1), device=device
    )
    losses: list[torch.Tensor] = []

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    _timed(lambda: losses.append(step(rows, 6e-4).loss), WARMUP_STEPS, device)
    warmup_seconds = time.perf_counter() - began
    seconds = _timed(lambda: losses.append(step(rows, 6e-4).loss), options.steps, device)
    peak_memory = _peak_memory(device)

    tokens = rows.shape[0] * config.seq_len
    tokens_per_second = tokens / statistics.median(seconds)
    flops_per_second = tokens_per_second * config.flops_per_token()
    matmul = _matmul_flops(name, device)
    result: dict[str, Any] = {
        "tokens_per_second": tokens_per_second,
        "step_seconds_median": statistics.median(seconds),
        "step_seconds_min": min(seconds),
        "step_seconds_max": max(seconds),
        "tokens_per_step": tokens,
        "flops_per_token": config.flops_per_token(),
        "model_flops_per_second": flops_per_second,
        "matmul_flops_per_second": matmul,
        "mfu_of_measured_matmul": flops_per_second / matmul,
        "peak_memory_bytes": peak_memory,
        "warmup_seconds": warmup_seconds,
        "loss_first": losses[0].item(),
        "loss_last": losses[-1].item(),
        "parameters": config.num_parameters(),
        "model": config.to_dict(),
        "precision": name,
        "precision_reason": reason,
        "compile": options.compile,
        "activation_checkpointing": options.activation_checkpointing,
        "strategy": options.strategy,
        "offload": options.offload,
        "memory_limit_gb": options.memory_limit_gb,
        "planned_memory_bytes": _planned_memory(options, config, name, device),
        "micro_batch_size": options.micro_batch,
        "grad_accum_steps": options.grad_accum,
        "steps": options.steps,
    }
    spec = gpu_spec(device)
    peak = spec.peak(name) if spec else None
    if peak:
        result |= {"mfu": flops_per_second / peak, "datasheet_flops_per_second": peak, "datasheet": spec and spec.name}
    if options.compare:
        result["against_transformers"] = _against_transformers(
            model, rows[: options.micro_batch], precision, options.steps
        )
    return result | _circumstances(device)


def _model_and_step(
    options: argparse.Namespace, config: GPTConfig, precision: Precision
) -> tuple[GPT, Callable[[torch.Tensor, float], StepResult]]:
    if options.strategy == "ddp":
        model = GPT(config, options.activation_checkpointing).to(precision.device)
        optimizer = make_adamw(model, lr=6e-4, weight_decay=0.1, betas=(0.9, 0.95))
        module: Any = torch.compile(model) if options.compile else model
        return model, TrainStep(module, optimizer, precision, micro_batch_size=options.micro_batch, grad_clip=1.0)
    from raygpt.train.zero import ZeroEngine, ZeroStep

    # one process by itself is a group of one
    for key, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577", "RANK": "0", "WORLD_SIZE": "1"}.items():
        os.environ.setdefault(key, value)
    engine = ZeroEngine(
        config,
        precision.device,
        deepspeed_config(
            strategy=options.strategy,
            offload=options.offload,
            precision=precision.name,
            micro_batch_size=options.micro_batch,
            grad_accum_steps=options.grad_accum,
            grad_clip=1.0,
            pin_memory=precision.device.type == "cuda",
        ),
        precision=precision.name,
        activation_checkpointing=options.activation_checkpointing,
        lr=6e-4,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    engine.fill(initial_weights(config))
    return engine.model, ZeroStep(engine, options.micro_batch)


def _planned_memory(options: argparse.Namespace, config: GPTConfig, precision: str, device: torch.device) -> int | None:
    """Bytes that the memory plan gives one GPU, its context and fragments left out as the allocator counts neither."""
    if device.type != "cuda":
        return None
    setup = Setup(
        strategy=options.strategy,
        offload=options.offload,
        precision=precision,
        seq_len=config.seq_len,
        micro_batch_size=options.micro_batch,
        activation_checkpointing=options.activation_checkpointing,
        gpu=True,
    )
    moments = needs(config, setup).device
    return max(
        sum(size for name, size in parts.items() if name not in ("CUDA context", "fragmentation"))
        for moment, parts in moments.items()
        if "evaluation" not in moment  # which is not run here
    )


def _config(options: argparse.Namespace) -> GPTConfig:
    overrides = {key: getattr(options, key) for key in ("n_layer", "n_head", "n_embd", "vocab_size", "seq_len")}
    chosen = {key: value for key, value in overrides.items() if value is not None}
    return GPTConfig.from_dict({"vocab_size": 50257, **PRESETS[options.preset], **chosen})


def _timed(call: Callable[[], Any], times: int, device: torch.device) -> list[float]:
    """Seconds of each call. On a GPU between events in its own queue, so that the CPU may run ahead as in training."""
    if device.type != "cuda":
        seconds = []
        for _ in range(times):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        return seconds
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize(device)
    return [before.elapsed_time(after) / 1000 for before, after in itertools.pairwise(marks)]


def _matmul_flops(precision: str, device: torch.device) -> float:
    """FLOP/s of the best of several products of two square matrices."""
    side, times = (8192, 30) if device.type == "cuda" else (1024, 10)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, device=device, dtype=dtype)
    _timed(lambda: torch.mm(a, b, out=out), 3, device)
    return 2 * side**3 / min(_timed(lambda: torch.mm(a, b, out=out), times, device))


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the CUDA allocator, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _against_transformers(model: GPT, rows: torch.Tensor, precision: Precision, steps: int) -> dict[str, float]:
    """Forward and backward of both models on the same rows, taking turns so that a busy machine slows both."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = model.config
    shape: dict[str, Any] = {
        **{key: getattr(config, key) for key in ("vocab_size", "n_layer", "n_head", "n_embd")},
        "n_positions": config.seq_len,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        **dict.fromkeys(("bos_token_id", "eos_token_id"), 0),
    }
    theirs: Any = GPT2LMHeadModel(GPT2Config(use_cache=False, **shape))
    theirs = theirs.to(rows.device).train()
    tokens, targets = rows[:, :-1], rows[:, 1:].contiguous()

    def ours_pass() -> None:
        model.zero_grad(set_to_none=True)
        with precision.autocast():
            loss = model(tokens, targets)
        loss.backward()

    def theirs_pass() -> None:
        theirs.zero_grad(set_to_none=True)
        with precision.autocast():
            # shift_labels are next tokens already, as ours are
            loss = theirs(tokens, labels=targets, shift_labels=targets).loss
        loss.backward()

    pairs = [
        [_timed(call, 1, rows.device)[0] for call in (ours_pass, theirs_pass)] for _ in range(WARMUP_STEPS + steps)
    ]
    ours, other = (statistics.median(column) for column in zip(*pairs[WARMUP_STEPS:]))
    return {"forward_backward_seconds": ours, "transformers_seconds": other, "speedup": other / ours}


def _circumstances(device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    versions = {"raygpt": raygpt.__version__, "torch": torch.__version__, "python": platform.python_version()}
    if cuda:
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} CPU",
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "raygpt.train.bench", *sys.argv[1:]]),
    }


def describe(result: dict[str, Any]) -> str:
    """One line for a person."""
    ceiling = result["matmul_flops_per_second"] / 1e12
    parts = [
        f"{result['device']} {result['precision']}{' compiled' if result['compile'] else ''}",
        f"{result['tokens_per_second']:,.0f} tok/s",
        f"step {result['step_seconds_median'] * 1000:.1f} ms",
        f"mfu {result['mfu']:.1%}" if "mfu" in result else "",
        f"{result['mfu_of_measured_matmul']:.1%} of a matrix product's {ceiling:.2f} TFLOP/s",
        f"peak {result['peak_memory_bytes'] / 1e9:.2f} GB"
        + (f" (plan {result['planned_memory_bytes'] / 1e9:.2f})" if result["planned_memory_bytes"] else ""),
        f"{result['against_transformers']['speedup']:.2f}x transformers" if "against_transformers" in result else "",
    ]
    return " | ".join(part for part in parts if part)


def main() -> int:
    options = parse(sys.argv[1:])
    try:
        result = measure(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(describe(result))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
