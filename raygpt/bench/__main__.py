"""PURE. Benchmarks on a bare machine: torch and numpy are enough.

    python -m raygpt.bench --preset gpt2 --micro_batch 16 --out ladder.json
    python -m raygpt.bench --case step --preset gpt2 --micro_batch 32 --precision bf16 --compile --out step.json
    python -m raygpt.bench --preset gpt2 --workers 8 --machine gpu_8x_h100_sxm5 --out ladder.json
    python -m raygpt.bench --toy --out toy.json
    python -m raygpt.bench --compare before.json after.json

The ladder takes the training step from plain fp32 to the trainer's own, one change at a time; --workers N adds the step
on 1…N processes under torchrun, as in case step. Beside the JSON file come its rows as CSV and Markdown. Options that
are not listed below go to raygpt.bench.step (case step).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from raygpt import prices
from raygpt.bench import pricing
from raygpt.bench import step as step_bench
from raygpt.bench.anchors import beside
from raygpt.bench.compare import compare
from raygpt.bench.ladder import LadderSettings, measure_ladder, shrunk, toy_config
from raygpt.bench.provenance import provenance, this_command
from raygpt.bench.result import Result, Row, read, to_csv, to_markdown
from raygpt.bench.scaling import Launch, scaling_rows, step_row, under_torchrun
from raygpt.bench.step import at_least_one
from raygpt.errors import UserError
from raygpt.model import registry
from raygpt.model.gpt import GPTConfig


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m raygpt.bench", description="Speed of training, case by case.")
    parser.add_argument("--case", choices=("ladder", "step"), default="ladder")
    parser.add_argument("--preset", choices=registry.preset_names(), default="gpt2")
    for key in ("n_layer", "n_head", "n_embd", "vocab_size", "seq_len"):
        parser.add_argument(f"--{key}", type=at_least_one, help=f"overrides the preset's {key}")
    for key in ("bias", "tie_weights"):
        flag = argparse.BooleanOptionalAction
        parser.add_argument(f"--{key}", action=flag, help=f"overrides the preset's {key}")
    parser.add_argument("--micro_batch", type=at_least_one, default=8, help="rows of a step")
    parser.add_argument("--repeats", type=at_least_one, default=5, help="blocks of a rung, runs of N workers")
    parser.add_argument("--steps", type=at_least_one, default=20, help="most steps of a block")
    parser.add_argument("--seconds", type=float, help="fewer steps where a block would take longer (ladder: 10)")
    parser.add_argument("--time_limit", type=float, help="seconds after which no further rung is begun")
    parser.add_argument("--workers", type=at_least_one, help="also the step on 1…N processes under torchrun")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--threads", type=at_least_one, help="CPU threads (default: torch's choice)")
    parser.add_argument("--price_per_hour", type=float, help="US dollars of all workers' machines, for $ per token")
    parser.add_argument("--machine", help="machine type of raygpt's price table, for $ per token")
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
    except KeyboardInterrupt:
        kept = f": {options.out} has what was measured" if options.out and options.out.exists() else ""
        print(f"Stopped{kept}.", file=sys.stderr)
        return 130
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"\n{to_markdown(result)}\n{beside(result)}")
    return 0


def measure(options: argparse.Namespace, rest: list[str], command: list[str]) -> Result:
    """Measure the case, writing what there is after every rung and every run of workers. Raises UserError."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = step_bench.choose_device(options.device)
    _check_workers(options, device)
    facts = provenance(command, "numpy", device=device) | {"planned_repeats": options.repeats}
    found: list[Row] = []

    def keep(rows: list[Row], whole: bool = False) -> Result:
        result = Result(options.case, [*found, *rows], facts if whole else facts | {"stopped": True})
        if options.out and int(os.environ.get("RANK", "0")) == 0:
            write(result, options.out)
        return result

    def workers(words: list[str], price: pricing.Pricing | None) -> list[Row]:
        repeats = 1 if options.toy else options.repeats
        ways: dict[str, Launch] = {"torchrun": under_torchrun}
        return scaling_rows(ways, options.workers, words, repeats, price=price, keep=keep)

    threads = options.threads or 1
    if options.case == "step":
        words = _step_words(options, rest)
        if options.workers:
            facts["planned_repeats"] = 1 if options.toy else options.repeats
            if device.type == "cpu":
                words += [f"--threads={threads}"]
            return keep(workers(words, _price(options, device, threads)), whole=True)
        measured = step_bench.measure(step_bench.parse(words))
        del facts["planned_repeats"]
        price = _price(options, device, torch.get_num_threads(), measured["world_size"])
        return keep([step_row("step", [measured], price)], whole=True)
    config = toy_config() if options.toy else _config(options)
    settings = LadderSettings(
        rows=options.micro_batch,
        repeats=options.repeats,
        steps=options.steps,
        seconds=options.seconds or 10.0,
        time_limit=options.time_limit,
        price=_price(options, device, torch.get_num_threads()),
    )
    if options.toy:
        settings = shrunk(settings)
        facts["planned_repeats"] = settings.repeats
    found += measure_ladder(config, device, settings, keep=keep)
    rows: list[Row] = []
    if options.workers:
        rows = workers(worker_words(config, settings, device, threads), _price(options, device, threads))
    return keep(rows, whole=True)


def _check_workers(options: argparse.Namespace, device: torch.device) -> None:
    """Before anything is measured. Raises UserError."""
    if options.case == "step" and options.time_limit is not None:
        raise UserError("--time_limit is for the ladder: case step has --seconds.")
    if options.workers and "RANK" in os.environ:
        raise UserError("--workers starts torchrun itself: leave it out under torchrun.")
    if options.workers and device.type == "cuda" and options.workers > torch.cuda.device_count():
        raise UserError(
            f"--workers={options.workers} needs a GPU each, and there are {torch.cuda.device_count()}: name fewer."
        )


def write(result: Result, out: Path) -> None:
    """The result as JSON at `out`, as CSV and Markdown beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(result.to_json() + "\n", encoding="utf-8")
    out.with_suffix(".csv").write_text(to_csv(result), encoding="utf-8")
    out.with_suffix(".md").write_text(to_markdown(result), encoding="utf-8")


def worker_words(
    config: GPTConfig,
    settings: LadderSettings,
    device: torch.device,
    threads: int,
    *,
    precision: str = "auto",
    compile: bool | None = None,
    activation_checkpointing: bool = False,
) -> list[str]:
    """Arguments of raygpt.bench.step for the trainer's own step of this model; compiled on a GPU unless told otherwise,
    a worker having so many threads on a CPU."""
    numbers = ("n_layer", "n_head", "n_embd", "vocab_size", "seq_len")
    words = ["--preset=gpt2", *(f"--{key}={getattr(config, key)}" for key in numbers)]
    words += [f"--{'' if getattr(config, key) else 'no-'}{key}" for key in ("bias", "tie_weights")]
    words += [f"--micro_batch={settings.rows}", f"--steps={settings.steps}", f"--seconds={settings.seconds}"]
    words += [f"--precision={precision}", f"--device={device.type}"]
    if compile or (compile is None and device.type == "cuda"):
        words.append("--compile")
    if activation_checkpointing:
        words.append("--activation_checkpointing")
    return words if device.type == "cuda" else [*words, f"--threads={threads}"]


def _step_words(options: argparse.Namespace, rest: list[str]) -> list[str]:
    names = ("preset", "n_layer", "n_head", "n_embd", "vocab_size", "seq_len", "micro_batch", "steps", "seconds")
    given = [
        f"--{name}={getattr(options, name)}"
        for name in (*names, "device", "threads")
        if getattr(options, name) is not None
    ]
    for name in ("bias", "tie_weights"):
        if (value := getattr(options, name)) is not None:
            given.append(f"--{'' if value else 'no-'}{name}")
    if options.toy:
        given += ["--preset=nano", "--vocab_size=250", "--seq_len=32", "--micro_batch=2", "--steps=3"]
    return [*given, *rest]


def _config(options: argparse.Namespace) -> GPTConfig:
    config = step_bench.config_of(options)
    if not isinstance(config, GPTConfig):
        raise UserError(f"--preset={options.preset} is of another architecture: the ladder is for presets of gpt2.")
    return config


def _price(options: argparse.Namespace, device: torch.device, threads: int, world: int = 1) -> pricing.Pricing | None:
    """Of a worker with a GPU of its own, or with so many threads."""
    if options.price_per_hour is not None:
        return pricing.of_all(options.price_per_hour, max(world, options.workers or 1))
    if options.machine is None:
        return None
    return pricing.of_machine(prices.machine(options.machine), int(device.type == "cuda"), threads)


if __name__ == "__main__":
    sys.exit(main())
