"""PURE. The same step on 1…N workers: N processes under torchrun, rows of a result for any launcher.

Every worker has the same rows as the one of the first line, as in weak scaling: N workers have N times the batch, and
`efficiency` is their speed over N times that of one worker of the same launcher.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import raygpt
from raygpt.bench.pricing import Pricing
from raygpt.bench.result import Row, Spread, usd_per_billion
from raygpt.errors import UserError, one_line

# (number of workers, arguments of raygpt.bench.step) -> what that module measured; None where it was stopped before
Launch = Callable[[int, Sequence[str]], dict[str, Any] | None]
SETTINGS = (
    *("precision", "compile", "loss_tokens", "attention", "micro_batch_size", "grad_accum_steps", "strategy"),
    "activation_checkpointing",
)


def worker_counts(most: int) -> list[int]:
    """1, 2, 4, … and `most` itself."""
    powers = [2**k for k in range(most.bit_length()) if 2**k < most]
    return [*powers, most]


def under_torchrun(workers: int, words: Sequence[str]) -> dict[str, Any]:
    """What raygpt.bench.step measures on that many processes of this host. Raises UserError where they fail."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "step.json"
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={workers}"]
        command = [sys.executable, *launcher, "-m", "raygpt.bench.step", *words, f"--out={out}"]
        paths = [str(Path(raygpt.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode or not out.exists():
            raise UserError(f"torchrun with {workers} workers failed: {' '.join(done.stderr[-400:].split())}")
        return json.loads(out.read_text(encoding="utf-8"))


def scaling_rows(
    launchers: dict[str, Launch],
    most: int,
    words: Sequence[str],
    repeats: int,
    *,
    price: Pricing | None = None,
    say: Callable[[str], None] = print,
    keep: Callable[[list[Row]], object] = lambda rows: None,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Row]:
    """Rows "torchrun × 2", …: every launcher with every number of workers, in turns, `repeats` times. `keep` gets all
    rows after every measurement. What fails is not tried again: its row has what was measured before, and the failure
    as its note. Ends early, with what there is, once it is `stopped`."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    failed: dict[tuple[str, int], str] = {}
    for number in range(repeats):
        turn = [(name, workers) for workers in worker_counts(most) for name in launchers]
        for name, workers in turn if number % 2 == 0 else turn[::-1]:
            if stopped():
                break
            if (name, workers) in failed:
                continue
            try:
                measured = launchers[name](workers, words)
            except Exception as error:  # of any launcher: the others' rows, and a ladder's before them, are worth more
                failed[name, workers] = f"failed: {one_line(error, 300)}"
                say(f"{label(name, workers)}: {failed[name, workers]}")
                keep(_rows(list(launchers), found, failed, price))
                continue
            if measured is None:
                break
            found.setdefault((name, workers), []).append(measured)
            say(f"{label(name, workers)}: {measured['tokens_per_second']:,.0f} tok/s")
            keep(_rows(list(launchers), found, failed, price))
    return _rows(list(launchers), found, failed, price)


def _rows(
    launchers: list[str],
    found: dict[tuple[str, int], list[dict[str, Any]]],
    failed: dict[tuple[str, int], str],
    price: Pricing | None,
) -> list[Row]:
    rows = []
    alone = {name: _speed(runs).median for (name, workers), runs in found.items() if workers == 1}
    for name, workers in sorted({*found, *failed}, key=lambda each: (launchers.index(each[0]), each[1])):
        note, runs = failed.get((name, workers), ""), found.get((name, workers), [])
        if not runs:
            rows.append(Row(label(name, workers), {"world_size": workers}, note=note))
            continue
        figures: dict[str, Any] = {}
        speed = _speed(runs)
        if name in alone:
            figures["efficiency"] = speed.median / alone[name] / workers
        other = found.get((launchers[0], workers))
        if name != launchers[0] and other:
            figures["over_first_launcher"] = speed.median / _speed(other).median
        rows.append(step_row(label(name, workers), runs, price, figures, note))
    return rows


def label(launcher: str, workers: int) -> str:
    return f"{launcher} × {workers}"


def step_row(
    name: str,
    runs: Sequence[dict[str, Any]],
    price: Pricing | None = None,
    figures: dict[str, Any] | None = None,
    note: str = "",
) -> Row:
    """The row of one or several runs of raygpt.bench.step with the same settings."""
    first, speed = runs[0], _speed(runs)
    workers = first["world_size"]
    found = {"last_loss": first["loss_last"], **(figures or {})}
    if price is not None:
        found["priced"] = price.describe(workers)
    # of a worker's memory the process's own peak where it has no GPU
    return Row(
        name,
        {key: first[key] for key in SETTINGS if first.get(key) is not None}
        | {
            "seq_len": first["model"]["seq_len"],
            "rows": first["micro_batch_size"] * first["grad_accum_steps"],
            "model": first["model"],
            "parameters": first["parameters"],
            "world_size": first["world_size"],
            "threads": first["threads"],
        },
        tokens_per_second=speed,
        step_seconds=speed.per(first["tokens_per_step"]),
        mfu=Spread.of([run["mfu"] for run in runs]).median if "mfu" in first else None,
        mfu_of_matmul=Spread.of([run["mfu_of_measured_matmul"] for run in runs]).median,
        memory_bytes=max(run["peak_memory_bytes"] for run in runs),
        usd_per_billion_tokens=usd_per_billion(price.per_hour(workers) if price else None, speed.median),
        loss=first["loss_first"],
        figures=found,
        note=note,
    )


def _speed(runs: Sequence[dict[str, Any]]) -> Spread:
    return Spread.of([run["tokens_per_second"] for run in runs])
