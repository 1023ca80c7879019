"""The README's settings reference is the code's own."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import readme as speeds
from raygpt.reference import reference, replace

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_settings_reference_is_up_to_date() -> None:
    text = README.read_text(encoding="utf-8")
    assert replace(text) == text, "run: python -m raygpt.reference README.md"
    assert "`train.global_batch_tokens`" in reference()


def test_the_table_of_speeds_is_what_the_result_files_say() -> None:
    text = README.read_text(encoding="utf-8")
    assert speeds.replace(text) == text, "run: python benchmarks/readme.py"


def test_every_part_of_the_speeds_says_how_it_was_measured() -> None:
    for name, part in json.loads((README.parent / "benchmarks" / "training.json").read_text()).items():
        assert "bench_training.py" in part["command"] and {"date", "machine", "versions"} <= part.keys(), name
