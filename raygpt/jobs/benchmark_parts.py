"""What the cases of `raygpt benchmark` share: prices, provenance, and the result in its folder."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygpt import storage
from raygpt.config import Config
from raygpt.config.job import Call
from raygpt.errors import UserError

if TYPE_CHECKING:
    from raygpt.bench.pricing import Pricing
    from raygpt.bench.result import Result
    from raygpt.storage import Location

RESULT, PLOTS = "benchmark.json", "plots"
MEASURED = {  # what the figures of ladder and step follow from
    "model": None,
    "train": ("micro_batch_size", "precision", "compile", "strategy", "activation_checkpointing"),
    "scale": ("num_workers", "use_gpu", "cpus_per_worker"),
    "data": ("seq_len",),
    "track": ("price_per_hour",),
    "benchmark": ("repeats", "steps", "seconds", "machine"),
}


def changed_settings(config: Config) -> list[str]:
    """Settings that speeds follow from, and that are not those which the folder's benchmark was started with."""
    from raygpt.run.frame import run_location, saved_config

    saved, now = saved_config(run_location(config)), config.to_dict()
    return [
        f"{section}.{key}"
        for section, keys in MEASURED.items()
        for key in keys or now[section]
        if section in saved and key in saved[section] and saved[section][key] != now[section][key]
    ]


def whole_command(call: Call) -> list[str]:
    """The command with the settings that come from this process's environment, as a result records it."""
    from raygpt.bench.provenance import settings_words

    return [*settings_words(os.environ), *shlex.split(call.command)]


def show_finished(folder: Location) -> None:
    """Print the result that is there."""
    from raygpt.bench.result import to_markdown

    print(f"\n{to_markdown(read_result(folder.uri))}\nFinished already: {(folder / RESULT).uri}", flush=True)
    print("To measure anew, choose another run.name.", flush=True)


def pricing_of(config: Config, use_gpu: bool) -> Pricing | None:
    """What a worker costs: of benchmark.machine's type, else by track.price_per_hour. None without a price."""
    from raygpt import prices
    from raygpt.bench.pricing import of_all, of_machine

    cpus, price = config.scale.cpus_per_worker, config.track.price_per_hour
    if config.benchmark.machine is not None:
        return of_machine(prices.machine(config.benchmark.machine), int(use_gpu), cpus)
    if price == "auto":
        from raygpt.bench.launchers import pricing_of_cluster

        return pricing_of_cluster(use_gpu, cpus)
    return of_all(float(price), config.scale.worker_range[1]) if price is not None else None


def provenance_of(command: list[str], use_gpu: bool) -> dict[str, Any]:
    """Of a node with a worker's devices."""
    import ray

    from raygpt.bench.provenance import provenance
    from raygpt.bench.step import choose_device

    def find() -> dict[str, Any]:
        return provenance(command, "ray", "numpy", device=choose_device("cuda" if use_gpu else "cpu"))

    return ray.get(ray.remote(num_cpus=1, num_gpus=1 if use_gpu else 0)(find).remote())


def write_result(result: Result, folder: Location) -> None:
    """benchmark.json, .csv and .md into the run's folder."""
    from raygpt.bench.result import to_csv, to_markdown

    storage.write_text(folder / RESULT, result.to_json() + "\n")
    storage.write_text(folder / "benchmark.csv", to_csv(result))
    storage.write_text(folder / "benchmark.md", to_markdown(result))


def show_result(result: Result, folder: Location, say: Any) -> None:
    """Write a result and its plots, and print its table and what has been published beside it."""
    from raygpt.bench.anchors import beside
    from raygpt.bench.plots import draw
    from raygpt.bench.resources import read_resources
    from raygpt.bench.result import to_markdown
    from raygpt.track.jsonl import read_metrics

    write_result(result, folder)
    records = read_metrics(folder / "metrics.jsonl") if result.case == "finetune" else []
    samples = read_resources(folder) if result.case == "finetune" else []
    with tempfile.TemporaryDirectory() as scratch:
        for path in draw(result, Path(scratch), records, samples):
            storage.write_bytes(folder / PLOTS / path.name, path.read_bytes())
    say(f"\n{to_markdown(result)}\n{beside(result)}".rstrip() + "\n")
    sys.stdout.flush()


def read_result(name: str) -> Result:
    """A result file, or that of a benchmark's run folder, by path or URI. Raises UserError."""
    from raygpt.bench.result import from_json

    where = storage.locate(name)
    if storage.exists(where / RESULT):
        where = where / RESULT
    try:
        return from_json(storage.read_text(where), where.uri)
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{name} cannot be read: name a result of raygpt benchmark, or its run folder.") from None
