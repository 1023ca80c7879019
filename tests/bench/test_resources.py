"""What a node uses over time, held to what a process is known to use; and the graphs of it."""

from __future__ import annotations

import json
import mmap
import os
import time
from pathlib import Path

import pytest

from raygpt.bench import resources
from raygpt.bench.plots import draw, time_panels
from raygpt.bench.resources import FIELDS, Sampler, parse_nvidia_smi, summary
from raygpt.bench.result import Result, Row, Spread

CSV = "97, 70123, 651.32, 61\n12, 512, [N/A], [Not Supported]\n"


def test_the_samplers_rates_are_what_was_used_between_two_looks(tmp_path: Path) -> None:
    sampler = Sampler("here", [os.getpid()])
    first = sampler.look()
    assert set(first) <= set(FIELDS) and "run_cpu_percent" not in first  # a rate needs two looks
    began, used = time.monotonic(), time.process_time()
    held = mmap.mmap(-1, 60_000_000)  # new pages, where an allocator may have freed ones at hand
    held.write(b"x" * len(held))
    while time.process_time() - used < 0.3:
        pass
    second = sampler.look()
    share = 100 * 0.3 / (time.monotonic() - began) / (os.cpu_count() or 1)
    assert second["run_cpu_percent"] == pytest.approx(share, rel=0.35)
    assert second["run_rss_bytes"] - first["run_rss_bytes"] > 0.8 * len(held)
    assert second["node"] == "here" and 0 <= second["cpu_percent"] <= 100 and second["memory_bytes"] > len(held)
    assert second["network_received"] >= 0 and json.loads(json.dumps(second)) == second


def test_processes_of_others_are_not_the_runs() -> None:
    sampler = Sampler("here", [])
    sampler.look()
    assert sampler.look()["run_rss_bytes"] == 0


def test_gpus_are_read_from_nvidia_smi_where_there_is_no_nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole, bare = parse_nvidia_smi(CSV)
    assert whole == {
        "util_percent": 97,
        "memory_bytes": 70123 * 2**20,
        "power_watts": 651.32,
        "temperature_celsius": 61,
    }
    assert bare == {"util_percent": 12, "memory_bytes": 512 * 2**20}  # what a card does not tell is absent
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{CSV.strip()}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert Sampler().look()["gpus"] == [whole, bare]
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert resources._nvidia_smi() == []


def test_means_and_peaks_are_over_all_nodes_and_gpus() -> None:
    samples = [
        {"time": 0, "node": "a", "cpu_percent": 10, "gpus": [{"power_watts": 300}, {"power_watts": 500}]},
        {"time": 1, "node": "b", "cpu_percent": 30},
    ]
    assert summary(samples) == {
        "cpu_percent": {"mean": 20, "max": 30},
        "gpu_power_watts": {"mean": 400, "max": 500},
    }


def test_a_fine_tunings_graphs_show_what_was_seen_and_nothing_else(tmp_path: Path) -> None:
    records = [
        {"step": step, "time": 100.0 + step, "train_loss": 9 - step, "tokens_per_second": 50.0, "step_seconds": 1.0}
        for step in range(1, 6)
    ]
    records[4] |= {"val_loss": 4.5, "hellaswag_acc_norm": 0.31, "checkpoint_stall_seconds": 0.1}
    samples = [{"time": 98.0 + k, "node": "a", "cpu_percent": 50.0, "run_rss_bytes": 3e9} for k in range(8)]
    panels = {title: lines for title, _, lines in time_panels(records, samples)}
    assert set(panels) == {"Loss", "Speed", "Evaluation", "Processor", "Memory"}  # no GPU, no network: no empty graph
    assert panels["Evaluation"] == {"hellaswag_acc_norm": ([7.0], [31.0])}
    assert panels["Memory"]["this run"][1] == [3.0] * 8 and panels["Loss"]["training"][0][0] == 3.0
    row = Row("x", {"parameters": 10}, Spread.of([1.0, 2.0]))
    (path,) = draw(Result("finetune", [row], {}), tmp_path, records, samples)
    assert path.name == "over_time.png" and path.read_bytes().startswith(b"\x89PNG")


def test_the_ladders_bars_and_the_workers_lines_are_drawn(tmp_path: Path) -> None:
    shape = {"parameters": 124_439_808, "world_size": 1}
    rows = [Row("fp32", shape, Spread.of([1e4, 2e4])), Row("tf32", shape, note="not applicable: no GPU")]
    rows += [Row(f"torchrun × {n}", {**shape, "world_size": n}, Spread.of([n * 1e4])) for n in (1, 2)]
    written = draw(Result("ladder", rows, {"hardware": {"device": "NVIDIA A100-SXM4-40GB"}}), tmp_path)
    assert [path.name for path in written] == ["ladder.png", "scaling.png"]
