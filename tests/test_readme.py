"""The README's settings reference is the code's own."""

from __future__ import annotations

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
