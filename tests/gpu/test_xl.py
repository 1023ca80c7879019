"""GPT-2 XL on one GPU, with random weights: what the memory plan says, and what 16 GB allow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

XL = ["--preset", "gpt2-xl", "--activation_checkpointing", "--micro_batch", "8", "--grad_accum", "2", "--steps", "3"]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("strategy", "offload", "limit"), [("zero2", "optimizer", "16"), ("zero3", "all", "16"), ("zero3", "none", "")]
)
def test_peak_memory_is_the_planned_one(tmp_path: Path, strategy: str, offload: str, limit: str) -> None:
    out = tmp_path / "xl.json"
    words = ["--strategy", strategy, "--offload", offload, "--precision", "fp16", "--out", str(out)]
    if limit:
        words += ["--memory_limit_gb", limit]
    subprocess.run([sys.executable, "-m", "raygpt.bench.step", *XL, *words], check=True)
    result = json.loads(out.read_text())
    print(json.dumps({key: result[key] for key in ("tokens_per_second", "peak_memory_bytes", "planned_memory_bytes")}))
    assert result["peak_memory_bytes"] == pytest.approx(result["planned_memory_bytes"], rel=0.15)
