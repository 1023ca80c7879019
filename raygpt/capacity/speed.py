"""PURE. How fast will it train? From a result that was measured, else from the datasheet and a stated share of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raygpt.capacity.fit import slowdown
from raygpt.capacity.memory import Setup
from raygpt.hardware import spec_named
from raygpt.model.architecture import ModelConfig

# Share of the datasheet's peak that is reckoned with where nothing was measured. bf16: LLM Foundry reports 43 % for
# 125M parameters on 8 A100-80GB, 41 % on A100-40GB, 42 % for 1.3B on H100, a public rerun of build-nanogpt 38 %. fp16
# on a V100: DeepSpeed's autotuning of GPT-2 124M, 774M and 1.5B on 16 of them reached 14 to 19 %, nanoGPT on one 38 %.
STATED_MFU = {"bf16": 0.40, "fp16": 0.20, "tf32": 0.40, "fp32": 0.40}


@dataclass(frozen=True)
class Speed:
    """Training tokens per second of all workers together, and where the figure comes from."""

    tokens_per_second: float
    source: str


@dataclass(frozen=True)
class Measured:
    """A result: `workers` GPUs of one kind trained a model of `parameters` at that many tokens per second together."""

    gpu: str
    parameters: int
    workers: int
    tokens_per_second: float
    seq_len: int | None
    strategy: str
    where: str


def measured_results(places: Sequence[str]) -> list[Measured]:
    """Results in JSON files, or folders of them: every object with gpu, parameters, workers and tokens_per_second.
    What is not there or no such result is passed over."""
    files = [file for place in places for file in ([Path(place)] if Path(place).is_file() else _json_files(place))]
    found = []
    for file in files:
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found += [_result(entry, file) for entry in _objects(tree) if _is_result(entry)]
    return found


def expected_speed(
    model: ModelConfig, setup: Setup, gpu: str | None, results: Sequence[Measured] = (), mfu: float | None = None
) -> Speed | None:
    """What `setup` does on that GPU; None where nothing was measured and the datasheet is not known (a CPU).

    A result of the same GPU, number of parameters, length and strategy comes first, that of the most similar number of
    workers, per worker. `mfu` in place of the stated share of the peak.
    """
    spec = spec_named(gpu) if gpu else None
    if spec is None:
        return None
    like = [each for each in results if _is_like(each, model, setup, spec.name)]
    if like and mfu is None:
        best = min(like, key=lambda each: abs(each.workers - setup.world_size))
        scaled = "" if best.workers == setup.world_size else f", scaled from {best.workers} to {setup.world_size} GPUs"
        return Speed(best.tokens_per_second / best.workers * setup.world_size, f"measured, {best.where}{scaled}")
    peak = spec.peak(setup.precision)
    if peak is None:
        return None
    share = STATED_MFU[setup.precision] if mfu is None else mfu
    factor = slowdown(setup)
    why = f" / {factor:.2f} for {_burden(setup)}" if factor > 1.0 else ""
    rate = peak * share / model.flops_per_token(setup.seq_len) * setup.world_size / factor
    stated = "stated" if mfu is None else "set"
    return Speed(rate, f"{share:.0%} ({stated}) of {spec.name}'s {peak / 1e12:.0f} TFLOP/s in {setup.precision}{why}")


def _burden(setup: Setup) -> str:
    parts = [setup.strategy] if setup.strategy != "ddp" else []
    parts += [f"offload {setup.offload}"] if setup.offload != "none" else []
    parts += ["recomputed activations"] if setup.activation_checkpointing else []
    return ", ".join(parts) or f"{setup.micro_batch_size} rows a pass"


def _is_like(result: Measured, model: ModelConfig, setup: Setup, gpu: str) -> bool:
    spec = spec_named(result.gpu)
    return (
        spec is not None
        and spec.name == gpu
        and result.parameters == model.num_parameters()
        and result.seq_len in (None, setup.seq_len)
        and result.strategy == setup.strategy
    )


def _json_files(place: str) -> list[Path]:
    return sorted(Path(place).glob("*.json")) if Path(place).is_dir() else []


def _objects(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _objects(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _objects(value)


def _is_result(entry: dict[str, Any]) -> bool:
    return (
        isinstance(entry.get("gpu"), str)
        and isinstance(entry.get("parameters"), int)
        and isinstance(entry.get("workers"), int)
        and entry["workers"] >= 1
        and isinstance(entry.get("tokens_per_second"), (int, float))
    )


def _result(entry: dict[str, Any], file: Path) -> Measured:
    day = f" of {entry['date']}" if isinstance(entry.get("date"), str) else ""
    return Measured(
        entry["gpu"],
        entry["parameters"],
        entry["workers"],
        float(entry["tokens_per_second"]),
        entry.get("seq_len") if isinstance(entry.get("seq_len"), int) else None,
        str(entry.get("strategy", "ddp")),
        f"{file.parent.name}/{file.name}{day}",
    )
