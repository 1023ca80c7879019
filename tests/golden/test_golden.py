"""The six runs of runs.py against their record: to the bit on the machine that recorded them, closely elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden.runs import FILE, RUNS, machine
from tests.train.gloo_pool import GlooPool

RECORDED = json.loads(FILE.read_text(encoding="utf-8"))
TEXTS = ("batch_digest", "weights")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_losses_on_record(name: str, gloo: GlooPool, tmp_path: Path) -> None:
    rows, recorded = RUNS[name](gloo, tmp_path), RECORDED["runs"][name]
    assert _texts(rows, "batch_digest") == _texts(recorded, "batch_digest")
    if machine() == RECORDED["machine"]:
        assert rows == recorded
        return
    assert [list(row) for row in rows] == [list(row) for row in recorded]
    for row, expected in zip(rows, recorded):
        assert _numbers(row) == pytest.approx(_numbers(expected), rel=1e-4)


def test_every_run_is_on_record() -> None:
    assert list(RECORDED["runs"]) == list(RUNS)
    for name, rows in RECORDED["runs"].items():
        steps = [row["step"] for row in rows if row["step"]]
        assert steps == list(range(1, (4 if name == "classification" else 15) + 1))


def _texts(rows: list[dict[str, Any]], key: str) -> list[Any]:
    return [row.get(key) for row in rows]


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {
        key: float.fromhex(value) if isinstance(value, str) else value for key, value in row.items() if key not in TEXTS
    }
