"""The whole way on real data: a small base model of the project's own, a sweep on MRPC, an honest verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.drills.program import ROOT, Program

CONFIGS = ROOT / "jobs" / "configs"
BASES = ROOT / ".cache" / "bases"


@pytest.fixture(scope="module")
def small_base(shared_data: Path) -> Path:
    """Run folder of jobs/configs/small-base.yaml, trained once and kept in .cache (46 minutes of one core)."""
    run = BASES / "small-base"
    if not (run / "summary.json").exists():
        program = Program("pretrain", "--config", str(CONFIGS / "small-base.yaml"), f"--run.storage={BASES}")
        assert program.finish(5400) == 0, program.output[-3000:]
    return run


@pytest.mark.long
@pytest.mark.timeout(9000)
def test_a_sweep_on_mrpc_says_how_its_pick_does_beside_the_baseline_and_the_majority_class(
    small_base: Path, tmp_path: Path
) -> None:
    program = Program(
        "tune", "--config", str(CONFIGS / "mrpc-small.yaml"), f"--run.storage={tmp_path}",
        f"--model.init_from={small_base}",
    )  # fmt: skip
    assert program.finish(3600) == 0, program.output[-3000:]
    final = json.loads((tmp_path / "mrpc-small" / "summary.json").read_text())["final"]
    assert final["validation_examples"] == 408 and final["seeds"] == 5
    accuracy, f1 = final["validation"]["accuracy"], final["validation"]["f1"]
    assert accuracy["majority"] == pytest.approx(0.684, abs=5e-4) and f1["majority"] == pytest.approx(0.812, abs=5e-4)
    # from so small a model only this much is certain: no worse than saying "paraphrase" every time
    assert accuracy["over_majority"]["high"] >= 0 and f1["over_majority"]["high"] >= 0
    gain = accuracy["over_baseline"]
    says = (
        "beats the baseline on held-out seeds"
        if gain["low"] > 0
        else "is worse than the baseline"
        if gain["high"] < 0
        else "does not beat the baseline with confidence"
    )
    assert says in program.output and says in (tmp_path / "mrpc-small" / "report.html").read_text()
