"""benchmarks/README.md is what the result files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import pages, readme
from raygpt.bench.result import Result, Row, Spread

FILES = sorted(pages.HERE.glob("*.json"))


def test_the_page_is_up_to_date() -> None:
    assert (pages.HERE / "README.md").read_text(encoding="utf-8") == pages.page(), "run: python benchmarks/pages.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_has_its_place_with_where_it_comes_from(path: Path) -> None:
    text = pages.section(path)
    assert text.startswith(f"## {path.name}\n") and "Hardware: " in text and "; date: " in text
    assert "not recorded" not in text.splitlines()[2] or pages.script_of(path, None) is None


def test_figures_are_those_of_the_file() -> None:
    tree = {"a": {"b_c": 1234.5678, "each": [3.0, 1.0, 2.0]}, "rows": [{"n": 10000, "ok": True}, {"n": 2}], "date": "d"}
    assert pages.tables(tree) == [
        "| figure | value |", "|---|---|", "| a, b c | 1235 |", "| a, each | 2 (1–3, n=3) |", "",
        "rows:", "", "| n | ok |", "|---|---|", "| 10,000 | yes |", "| 2 |  |", "",
    ]  # fmt: skip


def test_an_interval_is_no_median_of_repeats() -> None:
    tree = {"acc_interval": [0.1, 0.3], "load_average": [5.0, 1.0], "part": {"rss_by_tenths": [3.0, 1.0, 2.0]}}
    lines = pages.tables(tree)
    assert "| acc interval | 0.1–0.3 |" in lines and "| part, rss by tenths | 3, 1, 2 |" in lines
    assert "n=2" not in "".join(lines)


def test_results_of_a_gpu_stand_on_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpu").mkdir()
    result = Result("ladder", [Row("fp32", {}, Spread.of([123.0]))], {"command": "python -m raygpt.bench"})
    (tmp_path / "gpu" / "ladder.json").write_text(result.to_json())
    (tmp_path / "gpu" / "once.json").write_text('[{"part": "ladder", "status": "done", "seconds": 3.5}]')
    for module in (pages, readme):
        monkeypatch.setattr(module, "HERE", tmp_path)
    text = pages.page()
    assert "- [gpu/ladder.json](#gpuladderjson)" in text and "## gpu/ladder.json" in text and "| fp32 | 123 |" in text
    assert "| ladder | done | 3.5 |" in text
    assert "gpu/ladder.json`:\n\n" in readme.ladder() and "| fp32 | 123 |" in readme.ladder()


def test_a_file_that_does_not_say_where_it_comes_from_is_said_to(tmp_path: Path) -> None:
    path = tmp_path / "unheard_of.json"
    path.write_text(json.dumps({"speed": 3}))
    text = pages.section(path)
    assert "What was measured: not recorded." in text
    assert "Hardware: not recorded; versions: not recorded; date: not recorded; commit: not recorded" in text
