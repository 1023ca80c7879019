"""PURE. The ladder: one model and the same rows, from plain fp32 to the trainer's own step, one change at a time.

On a CPU all rungs live at once and take turns, block by block, in an order that alternates: a machine that is busy for
a while slows all of them. On a GPU, which is nobody else's, they follow one another, so that each has the memory to
itself and its peak can be told.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from raygpt.bench.pricing import Pricing
from raygpt.bench.result import Row, Spread, usd_per_billion
from raygpt.bench.rungs import LR, Rung, build, ladder, make_step
from raygpt.bench.step import matmul_flops, peak_memory, sdpa_backend, timed
from raygpt.errors import UserError
from raygpt.hardware import gpu_spec
from raygpt.model.gpt import GPTConfig
from raygpt.train.precision import Precision
from raygpt.train.step import TrainStep

WARMUP_STEPS = 3  # the first one compiles
LEAST_STEPS = 3  # the median of two is their mean, which one slow step moves

Say = Callable[[str], None]
Keep = Callable[[list[Row]], object]


@dataclass(frozen=True)
class LadderSettings:
    """`rows` of config.seq_len tokens make a step. Every rung is measured in `repeats` blocks of the same number of
    steps: `steps`, or as many fewer (at least LEAST_STEPS) as the slowest rung (on a GPU: the first) does in `seconds`.
    `time_limit` seconds for all of it: rungs beyond are left out, and say so. `price` is for a worker as large as the
    one that measures."""

    rows: int = 8
    repeats: int = 5
    steps: int = 20
    seconds: float = 10.0
    time_limit: float | None = None
    backend: str = "inductor"
    price: Pricing | None = None


@dataclass
class _Measured:
    """A rung that is ready, and what its blocks took."""

    rung: Rung
    step: TrainStep
    step_seconds: float  # the fastest after the first
    warmup_seconds: float
    first_loss: float
    steps: int = 0  # of a block
    blocks: list[float] = field(default_factory=list)  # median seconds per step of each
    last_loss: float = float("nan")
    memory: int | None = None


def measure_ladder(
    config: GPTConfig, device: torch.device, settings: LadderSettings, say: Say = print, keep: Keep | None = None
) -> list[Row]:
    """A row per rung. `say` hears of each; `keep` gets all rows after every rung, so that a killed ladder has them."""
    torch.manual_seed(1)
    rows = torch.randint(config.vocab_size, (settings.rows, config.seq_len + 1), device=device)
    rungs = ladder(config, device, settings.backend, settings.rows * config.seq_len)
    began = time.monotonic()
    peaks: dict[str, float] = {}
    done: dict[str, _Measured] = {}
    steps = 0
    notes: dict[str, str] = {rung.name: f"not applicable: {rung.why_not}" for rung in rungs if rung.why_not}

    def all_rows() -> list[Row]:
        return _rows(config, device, settings, rungs, done, notes, peaks)

    for rung in rungs:
        if rung.name in notes:
            say(f"{rung.name}: {notes[rung.name]}")
            continue
        if done and settings.time_limit is not None and time.monotonic() - began > settings.time_limit:
            notes[rung.name] = f"left out: the {settings.time_limit:.0f} s were over"
            continue
        try:
            ready = _prepare(config, rung, rows, device, settings)
            if device.type == "cuda":
                steps = steps or _steps(ready.step_seconds, settings)
                for _ in range(settings.repeats):
                    _block(ready, rows, device, steps)
                ready.memory = peak_memory(device)
                del ready.step
        except torch.cuda.OutOfMemoryError:
            notes[rung.name] = "out of memory: take fewer rows"
            continue
        except torch._dynamo.exc.BackendCompilerFailed as error:
            notes[rung.name] = f"torch.compile failed: {str(error).splitlines()[0][:160]}"
            continue
        done[rung.name] = ready
        say(f"{rung.name}: ready after {ready.warmup_seconds:.1f} s")
        name = rung.setting.precision
        if name not in peaks:
            Precision(name, device)  # tf32 or not
            peaks[name] = matmul_flops(name, device)
        if keep is not None and device.type == "cuda":
            keep(all_rows())
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if not done:
        raise UserError(f"no rung of the ladder could be measured ({'; '.join(notes.values())}).")
    if device.type != "cuda":
        steps = _steps(max(ready.step_seconds for ready in done.values()), settings)
        for number in range(settings.repeats):
            order = list(done.values()) if number % 2 == 0 else list(done.values())[::-1]
            for ready in order:
                _block(ready, rows, device, steps)
            say(f"repeat {number + 1} of {settings.repeats}")
            if keep is not None:
                keep(all_rows())
    return all_rows()


def _prepare(
    config: GPTConfig, rung: Rung, rows: torch.Tensor, device: torch.device, settings: LadderSettings
) -> _Measured:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    model = build(config, rung.setting, device)
    step = make_step(model, rung.setting, settings.rows, device, settings.backend)
    first = step(rows, LR).loss.item()
    warm = timed(lambda: step(rows, LR), WARMUP_STEPS - 1, device)
    return _Measured(rung, step, min(warm), time.perf_counter() - began, first)


def _steps(step_seconds: float, settings: LadderSettings) -> int:
    return max(LEAST_STEPS, min(settings.steps, int(settings.seconds / max(step_seconds, 1e-6))))


def _block(ready: _Measured, rows: torch.Tensor, device: torch.device, steps: int) -> None:
    Precision(ready.rung.setting.precision, device)  # tf32 or not is a switch of the process
    last: list[torch.Tensor] = []

    def one() -> None:
        last[:] = [ready.step(rows, LR).loss]

    gc.collect()
    gc.disable()
    try:
        seconds = timed(one, steps, device)
    finally:
        gc.enable()
    ready.steps = steps
    ready.blocks.append(statistics.median(seconds))
    ready.last_loss = last[0].item()


def _rows(
    config: GPTConfig,
    device: torch.device,
    settings: LadderSettings,
    rungs: list[Rung],
    done: dict[str, _Measured],
    notes: dict[str, str],
    peaks: dict[str, float],
) -> list[Row]:
    tokens = settings.rows * config.seq_len
    found: list[Row] = []
    first = before = None
    rate = settings.price.per_hour(1) if settings.price is not None else None
    spec = gpu_spec(device)
    for rung in rungs:
        shared = {
            **asdict(rung.setting),
            "rows": settings.rows,
            "seq_len": config.seq_len,
            "model": config.to_dict(),
            "parameters": config.num_parameters(),
            "world_size": 1,
        }
        ready = done.get(rung.name)
        if ready is None or not ready.blocks:
            found.append(Row(rung.name, shared, note=notes.get(rung.name, "not measured yet")))
            continue
        seconds = Spread.of(ready.blocks)
        speed = seconds.per(tokens)
        flops = speed.median * config.flops_per_token()
        peak = spec.peak(rung.setting.precision) if spec else None
        figures: dict[str, Any] = {
            "warmup_seconds": ready.warmup_seconds,
            "last_loss": ready.last_loss,
            "matmul_flops_per_second": peaks[rung.setting.precision],
            "blocks_of_steps": ready.steps,
        }
        if settings.price is not None:
            figures["priced"] = settings.price.describe(1)
        if rung.setting.attention == "sdpa":
            shared["kernel"] = sdpa_backend(config, rung.setting.precision, device)
        if before is not None and first is not None:
            figures |= {"over_previous": speed.median / before, "over_first": speed.median / first}
        first, before = first or speed.median, speed.median
        found.append(
            Row(
                rung.name,
                shared,
                tokens_per_second=speed,
                step_seconds=seconds,
                mfu=flops / peak if peak else None,
                mfu_of_matmul=flops / peaks[rung.setting.precision],
                memory_bytes=ready.memory,
                usd_per_billion_tokens=usd_per_billion(rate, speed.median),
                loss=ready.first_loss,
                figures=figures,
            )
        )
    return found


def toy_config() -> GPTConfig:
    """A model for seconds: a layer of 32, a vocabulary that can be padded."""
    return GPTConfig(vocab_size=250, seq_len=32, n_layer=1, n_head=2, n_embd=32)


def shrunk(settings: LadderSettings) -> LadderSettings:
    """Settings for seconds, with a compiler's backend that generates no code."""
    return replace(settings, rows=2, repeats=2, steps=3, seconds=0.2, backend="eager")
