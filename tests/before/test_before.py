"""Run folders that an earlier commit's code left unfinished are gone on with, to the losses it had itself."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.before.make import FIGURES, HERE, RUNS, STEP, classifier_config, figures, train_classifier, training_config
from tests.golden.runs import machine
from tests.train.gloo_pool import GlooPool
from tests.train.running import records, run

EXPECTED = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
TOLERANCE = {"ddp": 1e-6, "zero2": 1e-6, "fp16": 1e-6, "classifier": 1e-6}
ELSEWHERE = 1e-4  # on another CPU or PyTorch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of everything: absolute paths differ from those of the earlier commit, and nothing tracked is written."""
    return Path(shutil.copytree(HERE, tmp_path / "before"))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_from_the_earlier_commits_checkpoint(name: str, gloo: GlooPool, folder: Path) -> None:
    outcome, rows, text = run(training_config(folder, name), pool=gloo)
    assert outcome.outcome == "finished" and f"Going on from step {STEP}" in text
    # the records up to the checkpoint stay, those of the two steps after it are trained again
    earlier = [json.loads(line) for line in (HERE / name / "metrics.jsonl").read_text().splitlines()]
    assert [row["train_loss"] for row in rows[:STEP]] == [row["train_loss"] for row in earlier[:STEP]]
    check(name, figures(rows, FIGURES["run"], STEP))


def test_a_classification_run_goes_on_after_the_earlier_commits_last_epoch(folder: Path) -> None:
    config = classifier_config(folder)
    train_classifier(config, io.StringIO())
    rows = records(config)
    assert [row["step"] for row in rows] == [1, 2]
    check("classifier", figures(rows, FIGURES["classifier"], 1))
    assert (folder / "classifier" / "export" / "model.safetensors").exists()


def check(name: str, found: dict[str, dict[str, Any]]) -> None:
    """Steps and figures are those expected, the values within the tolerance, relatively."""
    expected = EXPECTED["runs"][name]
    assert {step: list(row) for step, row in found.items()} == {step: list(row) for step, row in expected.items()}
    tolerance = TOLERANCE[name] if machine() == EXPECTED["machine"] else ELSEWHERE
    for step, row in expected.items():
        for key, value in row.items():
            assert float.fromhex(found[step][key]) == pytest.approx(float.fromhex(value), rel=tolerance), (step, key)
