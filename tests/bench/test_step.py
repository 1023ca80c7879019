"""The bench's figures agree with each other, and an impossible wish ends in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raygpt.bench import step as bench
from raygpt.train.replica import Replica

TINY = [
    "--preset",
    "nano",
    "--vocab_size",
    "65",
    "--seq_len",
    "32",
    "--steps",
    "4",
    "--threads",
    "1",
    "--device",
    "cpu",
]


def test_figures_follow_from_the_measured_step() -> None:
    result = bench.measure(bench.parse([*TINY, "--micro_batch", "2", "--grad_accum", "2", "--compare"]))
    assert result["tokens_per_step"] == 2 * 2 * 32
    assert result["tokens_per_second"] == pytest.approx(128 / result["step_seconds_median"])
    assert result["model_flops_per_second"] == pytest.approx(result["tokens_per_second"] * result["flops_per_token"])
    assert 0 < result["mfu_of_measured_matmul"] < 1
    assert "mfu" not in result  # no datasheet for a CPU: absent, not guessed
    assert result["loss_last"] < result["loss_first"]  # it really trains
    assert set(result["against_transformers"]) == {"forward_backward_seconds", "transformers_seconds", "speedup"}
    assert "tok/s" in bench.describe(result)


def test_the_command_writes_json_and_says_what_the_device_cannot_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "raygpt.bench.step", *TINY, "--micro_batch", "1"]
    subprocess.run([*command, "--out", str(tmp_path / "new" / "bench.json")], check=True)
    result = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert result["precision"] == "fp32" and result["versions"]["torch"] and result["date"] and result["command"]
    refused = subprocess.run([*command, "--precision", "tf32"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("train.precision=tf32 needs") and "Traceback" not in refused.stderr


def test_zero_is_timed_without_ray(tmp_path: Path) -> None:
    out = tmp_path / "zero.json"
    words = ["--micro_batch", "2", "--grad_accum", "2", "--strategy", "zero3", "--offload", "all", "--out", str(out)]
    blocked = "import sys; sys.modules['ray'] = None; from raygpt.bench.step import main; raise SystemExit(main())"
    subprocess.run([sys.executable, "-c", blocked, *TINY, "--activation_checkpointing", *words], check=True)
    result = json.loads(out.read_text())
    assert result["tokens_per_step"] == 128 and result["loss_last"] < result["loss_first"]
    assert (result["strategy"], result["offload"]) == ("zero3", "all")


def test_a_gpu_is_named_with_its_number_as_the_memory_limit_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda.set_per_process_memory_fraction raises ValueError for "cuda" alone."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert bench.choose_device("cuda") == torch.device("cuda", 0) == chosen[0]
    monkeypatch.setenv("LOCAL_RANK", "2")  # torchrun's
    assert bench.choose_device("cuda") == torch.device("cuda", 2) == chosen[1]
    assert bench.choose_device("cpu") == torch.device("cpu")


def test_the_bench_takes_the_trainers_own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict] = []

    class Watched(Replica):
        def __init__(self, *words, **options) -> None:
            made.append(options)
            super().__init__(*words, **options)

    monkeypatch.setattr(bench, "Replica", Watched)
    words = ["--micro_batch", "2", "--compile", "--compile_backend", "eager", "--loss_tokens", "16"]
    result = bench.measure(bench.parse([*TINY, *words]))
    assert made[0]["compile"] and made[0]["loss_tokens"] == result["loss_tokens"] == 16
    assert (result["process_group"], result["world_size"], result["attention"]) == (False, 1, "flash")
    assert bench.measure(bench.parse([*TINY, "--micro_batch", "auto"]))["micro_batch_size"] == 64


def test_torchruns_processes_are_workers_of_one_world(tmp_path: Path) -> None:
    out = tmp_path / "two.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*command, "-m", "raygpt.bench.step", *TINY, "--micro_batch", "2", "--out", str(out)], check=True)
    result = json.loads(out.read_text())
    assert (result["world_size"], result["process_group"], result["tokens_per_step"]) == (2, True, 2 * 2 * 32)
