"""PURE. Speed of the training step alone, as the trainer makes it: no Ray, no data, whatever device there is.

    python -m raygpt.bench.step --preset gpt2 --micro_batch 8 --precision bf16 --compile --out bench.json
    python -m raygpt.bench.step --preset gpt2-xl --strategy zero2 --offload optimizer --activation_checkpointing \\
        --precision fp16 --micro_batch 8 --memory_limit_gb 16
    torchrun --nproc_per_node 8 -m raygpt.bench.step --preset gpt2 --micro_batch 64 --precision bf16 --compile

Needs torch and numpy alone (DeepSpeed for --strategy zero…, transformers for --compare). Under torchrun every process
is a worker under DDP, and figures are of all of them together; --process_group does the same with one process.

Says tokens per second, and what share that is of two ceilings: the datasheet's peak (absent where the device is not
in the table) and a large matrix product measured in the same run, in the same precision, on the same device.
"""

from __future__ import annotations

import argparse
import datetime
import gc
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
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend

import raygpt
from raygpt.capacity.memory import Setup, needs
from raygpt.errors import UserError
from raygpt.hardware import KERNELS, choose_precision, gpu_spec, indexed
from raygpt.model import registry
from raygpt.model.architecture import LanguageModel, ModelConfig
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.parallel.distributed import World
from raygpt.parallel.zero_config import deepspeed_config
from raygpt.train.optim import make_optimizer
from raygpt.train.precision import Precision
from raygpt.train.replica import Replica
from raygpt.train.step import StepFunction

WARMUP_STEPS = 5  # compilation, allocator, clocks: left out of every figure


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m raygpt.bench.step", description="Speed of one training step.")
    parser.add_argument("--preset", choices=registry.preset_names(), default="gpt2")
    for key in ("n_layer", "n_head", "n_embd", "vocab_size"):
        parser.add_argument(f"--{key}", type=at_least_one, help=f"overrides the preset's {key}")
    parser.add_argument("--seq_len", type=at_least_one, help="tokens per row (default: the preset's)")
    for key in ("bias", "tie_weights"):
        parser.add_argument(f"--{key}", action=argparse.BooleanOptionalAction, help=f"overrides the preset's {key}")
    parser.add_argument("--micro_batch", type=_rows, default=8, help="rows per forward pass, or auto")
    parser.add_argument("--grad_accum", type=at_least_one, default=1, help="forward passes per optimizer step")
    parser.add_argument("--precision", choices=("auto", "fp32", "tf32", "bf16", "fp16"), default="auto")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--compile_backend", default="inductor", help="torch.compile's backend")
    parser.add_argument("--compile_mode", help="torch.compile's mode, such as max-autotune-no-cudagraphs")
    parser.add_argument("--loss_tokens", type=int, help="tokens whose logits exist at a time, 0 for all")
    parser.add_argument("--attention", choices=("auto", *KERNELS), default="auto")
    parser.add_argument("--process_group", action="store_true", help="DDP even where this process is alone")
    parser.add_argument("--activation_checkpointing", action="store_true")
    parser.add_argument("--strategy", choices=("ddp", "zero1", "zero2", "zero3"), default="ddp")
    parser.add_argument("--offload", choices=("none", "optimizer", "all"), default="none")
    parser.add_argument("--memory_limit_gb", type=float, help="fail beyond this much memory of the GPU")
    parser.add_argument(
        "--steps", type=at_least_one, default=20, help=f"timed steps, after {WARMUP_STEPS} that are not"
    )
    parser.add_argument("--seconds", type=float, help="fewer timed steps, at least 3, where they would take longer")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--compare", action="store_true", help="also time transformers' model, forward and backward")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement as JSON-ready figures: seconds, tokens, bytes, FLOP/s. Absent rather than guessed."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    world = _world(options, device)
    name, reason = choose_precision(options.precision, device)
    config = config_of(options)
    if options.memory_limit_gb and device.type == "cuda":
        share = options.memory_limit_gb * 1e9 / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
    torch.manual_seed(0)
    began = time.perf_counter()
    trainer = _trainer(options, config, name, world)
    micro_batch, step = trainer.micro_batch_size, trainer.step
    rows = torch.randint(config.vocab_size, (micro_batch * options.grad_accum, config.seq_len + 1), device=device)
    losses: list[torch.Tensor] = []

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    warming = timed(lambda: losses.append(step(rows, 6e-4).loss), WARMUP_STEPS, device)
    warmup_seconds = time.perf_counter() - began
    steps = options.steps
    if options.seconds:
        steps = max(3, min(steps, int(options.seconds / max(min(warming), 1e-6))))
    gc.collect()
    gc.freeze()  # as the loop does
    seconds = timed(lambda: losses.append(step(rows, 6e-4).loss), steps, device)
    gc.unfreeze()
    memory = peak_memory(device)

    tokens = rows.shape[0] * config.seq_len * world.size
    tokens_per_second = tokens / statistics.median(seconds)
    flops_per_second = tokens_per_second / world.size * config.flops_per_token()  # of one device
    matmul = matmul_flops(name, device)
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
        "peak_memory_bytes": memory,
        "warmup_seconds": warmup_seconds,
        "loss_first": losses[0].item(),
        "loss_last": losses[-1].item(),
        "parameters": config.num_parameters(),
        "model": config.to_dict(),
        "precision": name,
        "precision_reason": reason,
        "compile": options.compile,
        "compile_mode": options.compile_mode,
        "loss_tokens": trainer.model.loss_tokens,
        "attention": sdpa_backend(config, name, device) if isinstance(config, GPTConfig) else None,
        "process_group": dist.is_initialized(),
        "world_size": world.size,
        "activation_checkpointing": options.activation_checkpointing,
        "strategy": options.strategy,
        "offload": options.offload,
        "memory_limit_gb": options.memory_limit_gb,
        "planned_memory_bytes": _planned_memory(options, config, name, device, micro_batch),
        "micro_batch_size": micro_batch,
        "grad_accum_steps": options.grad_accum,
        "steps": steps,
    }
    spec = gpu_spec(device)
    peak = spec.peak(name) if spec else None
    if peak:
        result |= {"mfu": flops_per_second / peak, "datasheet_flops_per_second": peak, "datasheet": spec and spec.name}
    if options.compare:
        result["against_transformers"] = _against_transformers(
            trainer.model, rows[:micro_batch], Precision(name, device), steps
        )
    return result | _circumstances(device)


def choose_device(wanted: str | None) -> torch.device:
    """The device named, or CUDA where there is one; with its number, and the current one from here on. Raises UserError
    for one that is not there."""
    try:
        chosen = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"--device={wanted} is no device: name cpu or cuda.") from None
    if chosen.type not in ("cpu", "cuda"):
        raise UserError(f"--device={wanted} is not supported: name cpu or cuda.")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device={wanted} needs a GPU that torch can see, and there is none: name cpu.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device={wanted} is not there: torch sees {torch.cuda.device_count()} GPUs.")
    if chosen.type == "cuda" and chosen.index is None and "LOCAL_RANK" in os.environ:
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    chosen = indexed(chosen)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen


def _world(options: argparse.Namespace, device: torch.device) -> World:
    """torchrun's processes, or this one alone: without a process group unless one is asked for."""
    if dist.is_initialized() or not (options.process_group or "RANK" in os.environ):
        return World.join(device)
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    else:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1
        )
    return World.join(device)


def sdpa_backend(config: GPTConfig, precision: str, device: torch.device) -> str:
    """Name of the kernel that torch takes for this attention: cudnn, flash, efficient or math."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    dtype = torch.float32 if device.type == "cpu" else dtype
    shape = (1, config.n_head, config.seq_len, config.n_embd // config.n_head)
    query = torch.empty(shape, dtype=dtype, device=device, requires_grad=True)
    chosen = SDPBackend(torch._fused_sdp_choice(query, query, query, None, config.dropout, True))
    return next((name for name, backend in KERNELS.items() if backend == chosen), str(chosen))


def _rows(text: str) -> int | str:
    return text if text == "auto" else at_least_one(text)


def at_least_one(text: str) -> int:
    """argparse's type of what is counted."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _trainer(options: argparse.Namespace, config: ModelConfig, precision: str, world: World) -> Replica | _Zero:
    """The trainer's own strategy, warmed up; `micro_batch_size`, `model` and `step` are what is needed of it."""
    if options.strategy != "ddp":
        return _Zero(options, config, precision, world.device)
    model = registry.of(config).build(config, options.activation_checkpointing)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for parameter, value in registry.of(config).initial_weights(config):
            parameters[parameter].copy_(value)
    trainer = Replica(
        model,
        world,
        precision=precision,
        micro_batch_size=options.micro_batch,
        local_rows=64 if options.micro_batch == "auto" else options.micro_batch,
        seq_len=config.seq_len,
        lr=6e-4,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        grad_clip=1.0,
        compile=options.compile,
        backend=options.compile_backend,
        compile_mode=options.compile_mode,
        loss_tokens=options.loss_tokens,
        attention=options.attention,
        always_wrap=dist.is_initialized(),
    )
    return trainer


class _Zero:
    def __init__(self, options: argparse.Namespace, config: ModelConfig, precision: str, device: torch.device) -> None:
        if options.micro_batch == "auto":
            raise UserError("--micro_batch=auto needs --strategy=ddp: name the rows.")
        engine = _zero_engine(options, config, precision, device)
        from raygpt.train.zero_step import ZeroStep

        self.micro_batch_size: int = options.micro_batch
        self.model: LanguageModel = engine.model
        self.step: StepFunction = ZeroStep(engine, options.micro_batch)


def _zero_engine(options: argparse.Namespace, config: ModelConfig, precision: str, device: torch.device) -> Any:
    from raygpt.parallel.zero import ZeroEngine

    # one process by itself is a group of one
    for key, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577", "RANK": "0", "WORLD_SIZE": "1"}.items():
        os.environ.setdefault(key, value)
    engine = ZeroEngine(
        config,
        device,
        deepspeed_config(
            strategy=options.strategy,
            offload=options.offload,
            precision=precision,
            micro_batch_size=options.micro_batch,
            grad_accum_steps=options.grad_accum,
            grad_clip=1.0,
            pin_memory=device.type == "cuda",
        ),
        partial(make_optimizer, "adamw", lr=6e-4, weight_decay=0.1, betas=(0.9, 0.95)),
        precision=precision,
        activation_checkpointing=options.activation_checkpointing,
    )
    engine.fill(registry.of(config).initial_weights(config))
    return engine


def _planned_memory(
    options: argparse.Namespace, config: ModelConfig, precision: str, device: torch.device, micro_batch: int
) -> int | None:
    """Bytes that the memory plan gives one GPU, its context and fragments left out as the allocator counts neither."""
    if device.type != "cuda":
        return None
    setup = Setup(
        strategy=options.strategy,
        offload=options.offload,
        precision=precision,
        seq_len=config.seq_len,
        micro_batch_size=micro_batch,
        activation_checkpointing=options.activation_checkpointing,
        grad_accum_steps=options.grad_accum,
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        workers_per_host=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        gpu=True,
    )
    moments = needs(config, setup).device
    return max(
        sum(size for name, size in parts.items() if name not in ("CUDA context", "fragmentation"))
        for moment, parts in moments.items()
        if "evaluation" not in moment  # which is not run here
    )


def config_of(options: argparse.Namespace) -> ModelConfig:
    shape = ("n_layer", "n_head", "n_embd", "vocab_size", "seq_len", "bias", "tie_weights")
    overrides = {key: getattr(options, key) for key in shape}
    chosen = {key: value for key, value in overrides.items() if value is not None}
    family = registry.of_preset(options.preset)
    return family.config({"vocab_size": 50257, **family.presets[options.preset], **chosen})


def timed(call: Callable[[], Any], times: int, device: torch.device) -> list[float]:
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


def matmul_flops(precision: str, device: torch.device) -> float:
    """FLOP/s of the best of several products of two square matrices."""
    side, times = (8192, 30) if device.type == "cuda" else (1024, 10)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, device=device, dtype=dtype)
    timed(lambda: torch.mm(a, b, out=out), 3, device)
    return 2 * side**3 / min(timed(lambda: torch.mm(a, b, out=out), times, device))


def peak_memory(device: torch.device) -> int:
    """Bytes: of the CUDA allocator, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _against_transformers(
    model: LanguageModel, rows: torch.Tensor, precision: Precision, steps: int
) -> dict[str, float]:
    """Forward and backward of both models on the same rows, taking turns so that a busy machine slows both."""
    if not isinstance(model, GPT):
        raise UserError("--compare needs a preset of the gpt2 architecture: leave it out.")
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

    pairs = [[timed(call, 1, rows.device)[0] for call in (ours_pass, theirs_pass)] for _ in range(WARMUP_STEPS + steps)]
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
        "command": shlex.join(["python", "-m", "raygpt.bench.step", *sys.argv[1:]]),
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
    except KeyboardInterrupt:
        print("Stopped before it was measured.", file=sys.stderr)
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if int(os.environ.get("RANK", "0")) != 0:
        return 0
    print(describe(result))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
