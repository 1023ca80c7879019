"""PURE. Benchmarks on a bare machine: torch and numpy are enough.

    python -m raygpt.bench --preset gpt2 --micro_batch 16 --out ladder.json
    python -m raygpt.bench --case step --preset gpt2 --micro_batch 32 --precision bf16 --compile --out step.json
    python -m raygpt.bench --preset gpt2 --workers 8 --machine gpu_8x_h100_sxm5 --out ladder.json
    python -m raygpt.bench --toy --out toy.json
    python -m raygpt.bench --compare before.json after.json

The ladder takes the training step from plain fp32 to the trainer's own, one change at a time; --workers N adds the step
on 1…N processes under torchrun. Beside the JSON file come its rows as CSV and Markdown. Options that are not listed
below go to raygpt.bench.step (case step).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from raygpt import prices
from raygpt.bench import step as step_bench
from raygpt.bench.anchors import beside
from raygpt.bench.compare import compare
from raygpt.bench.ladder import LadderSettings, measure_ladder, shrunk, toy_config
from raygpt.bench.provenance import provenance, this_command
from raygpt.bench.result import Result, Row, read, to_csv, to_markdown
from raygpt.bench.scaling import scaling_rows, step_row, under_torchrun
from raygpt.errors import UserError
from raygpt.model import registry
from raygpt.model.gpt import GPTConfig


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m raygpt.bench", description="Speed of training, case by case.")
    parser.add_argument("--case", choices=("ladder", "step"), default="ladder")
    parser.add_argument("--preset", choices=registry.preset_names(), default="gpt2")
    for key in ("n_layer", "n_head", "n_embd", "vocab_size", "seq_len"):
        parser.add_argument(f"--{key}", type=int, help=f"overrides the preset's {key}")
    parser.add_argument("--micro_batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--repeats", type=int, default=5, help="blocks that each rung is measured in")
    parser.add_argument("--steps", type=int, default=20, help="most steps of a block")
    parser.add_argument("--seconds", type=float, default=10.0, help="fewer steps where a block would take longer")
    parser.add_argument("--time_limit", type=float, help="seconds after which no further rung is begun")
    parser.add_argument("--workers", type=int, default=0, help="also the step on 1…N processes under torchrun")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--price_per_hour", type=float, help="US dollars, for the price of tokens")
    parser.add_argument("--machine", help="machine type of raygpt's price table, for the price of tokens")
    parser.add_argument("--toy", action="store_true", help="sizes for seconds, to see that it works")
    parser.add_argument("--compare", nargs="+", type=Path, help="result files, the first being what others are held to")
    parser.add_argument("--out", type=Path, help="JSON file for the result; CSV and Markdown come beside it")
    return parser.parse_known_args(list(arguments))


def main(arguments: Sequence[str] | None = None) -> int:
    options, rest = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        if options.compare:
            print(compare([read(path) for path in options.compare], [str(path) for path in options.compare]))
            return 0
        if rest and options.case != "step":
            raise UserError(f"{' '.join(rest)} is no option of the ladder: see python -m raygpt.bench --help.")
        result = measure(options, rest, this_command("raygpt.bench", arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"\n{to_markdown(result)}\n{beside(result)}")
    return 0


def measure(options: argparse.Namespace, rest: list[str], command: list[str]) -> Result:
    """Measure the case, writing what there is after every rung. Raises UserError."""
    if options.threads:
        torch.set_num_threads(options.threads)
    price = _price(options)
    device = step_bench.choose_device(options.device)
    facts = provenance(command, "numpy", device=device)

    def keep(rows: list[Row]) -> Result:
        result = Result(options.case, rows, facts)
        if options.out and int(os.environ.get("RANK", "0")) == 0:
            write(result, options.out)
        return result

    if options.case == "step":
        return keep([step_row("step", [step_bench.measure(step_bench.parse(_step_words(options, rest)))], price)])
    config = toy_config() if options.toy else _config(options)
    settings = LadderSettings(
        rows=options.micro_batch,
        repeats=options.repeats,
        steps=options.steps,
        seconds=options.seconds,
        time_limit=options.time_limit,
        price_per_hour=price,
    )
    rows = measure_ladder(config, device, shrunk(settings) if options.toy else settings, keep=keep)
    if options.workers:
        words = worker_words(config, shrunk(settings) if options.toy else settings, device, options.threads)
        repeats = 1 if options.toy else options.repeats
        rows += scaling_rows({"torchrun": under_torchrun}, options.workers, words, repeats, price_per_hour=price)
    return keep(rows)


def write(result: Result, out: Path) -> None:
    """The result as JSON at `out`, as CSV and Markdown beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(result.to_json() + "\n", encoding="utf-8")
    out.with_suffix(".csv").write_text(to_csv(result), encoding="utf-8")
    out.with_suffix(".md").write_text(to_markdown(result), encoding="utf-8")


def worker_words(config: GPTConfig, settings: LadderSettings, device: torch.device, threads: int | None) -> list[str]:
    """Arguments of raygpt.bench.step for the trainer's own step of this model: the device's own precision, compiled on
    a GPU, a thread per worker on a CPU."""
    shape = [f"--{key}={getattr(config, key)}" for key in ("n_layer", "n_head", "n_embd", "vocab_size", "seq_len")]
    words = ["--preset=gpt2", *shape, f"--micro_batch={settings.rows}", f"--steps={settings.steps}"]
    words += [f"--seconds={settings.seconds}", f"--device={device.type}"]
    return [*words, "--compile"] if device.type == "cuda" else [*words, f"--threads={threads or 1}"]


def _step_words(options: argparse.Namespace, rest: list[str]) -> list[str]:
    names = (
        "preset",
        "n_layer",
        "n_head",
        "n_embd",
        "vocab_size",
        "seq_len",
        "micro_batch",
        "steps",
        "device",
        "threads",
    )
    given = [f"--{name}={getattr(options, name)}" for name in names if getattr(options, name) is not None]
    if options.toy:
        given += ["--preset=nano", "--vocab_size=250", "--seq_len=32", "--micro_batch=2", "--steps=3"]
    return [*given, *rest]


def _config(options: argparse.Namespace) -> GPTConfig:
    config = step_bench.config_of(options)
    if not isinstance(config, GPTConfig):
        raise UserError(f"--preset={options.preset} is of another architecture: the ladder is for presets of gpt2.")
    return config


def _price(options: argparse.Namespace) -> float | None:
    if options.price_per_hour is not None or options.machine is None:
        return options.price_per_hour
    return prices.machine(options.machine).price


if __name__ == "__main__":
    sys.exit(main())
