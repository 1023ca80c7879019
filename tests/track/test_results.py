"""What is no training run on a page: each kind by the file its job leaves, and what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raygpt.errors import UserError
from raygpt.storage import locate
from raygpt.track.report import write_page
from raygpt.track.results import find_results, show
from tests.track.test_report import Page

HELLASWAG = {"items": 100, "lm_eval": {"acc": 0.3, "acc_norm": 0.4, "acc_norm_stderr": 0.05}}


def put(folder: Path, name: str, tree: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(tree))
    return folder


def drawn(*folders: Path) -> tuple[dict[str, list[list[str]]], dict[str, Any]]:
    """({title: rows}, {title: chart}) of all that lies in the folders."""
    tables, charts = show([result for folder in folders for result in find_results(locate(folder))])
    assert json.dumps(charts, allow_nan=False)
    return {table.title: [list(row) for row in table.rows] for table in tables}, {
        each["title"]: each for each in charts
    }


def test_evaluations_stand_in_one_table_with_their_intervals(tmp_path: Path) -> None:
    ours = {"model": {"name": "ours"}, "tasks": {"hellaswag": HELLASWAG, "loss": {"loss": 3.25, "bits_per_byte": 1.0}}}
    other = {"model": "other", "tasks": {"hellaswag": {"lm_eval": {"acc_norm": 0.5, "acc_norm_interval": [0.4, 0.6]}}}}
    tables, charts = drawn(put(tmp_path / "a", "evaluation.json", ours), put(tmp_path / "b", "evaluation.json", other))
    assert tables["Evaluation"] == [
        ["hellaswag lm_eval acc", "30.00", "–"],
        ["hellaswag lm_eval acc_norm", "40.00 (30.20 to 49.80)", "50.00 (40.00 to 60.00)"],
        ["loss loss", "3.2500", "–"],
        ["loss bits_per_byte", "1.0000", "–"],
    ]
    bars = charts["hellaswag lm_eval acc_norm"]["bars"]
    assert [(bar["label"], bar["value"], round(bar["low"], 3)) for bar in bars] == [
        ("ours", 0.4, 0.302),
        ("other", 0.5, 0.4),
    ]


def test_a_benchmark_says_what_was_measured_where(tmp_path: Path) -> None:
    speed = {"median": 2000.0, "low": 1900.0, "high": 2100.0, "repeats": 5}
    rows = [
        {"name": "fp32", "settings": {}, "tokens_per_second": speed, "mfu": 0.25},
        {"name": "bf16", "settings": {}, "tokens_per_second": {**speed, "median": 5000.0}},
        {"name": "flash", "settings": {}, "note": "needs a GPU"},
    ]
    tree = {"schema": 1, "case": "ladder", "rows": rows, "provenance": {"date": "2026-11-27", "hardware": {"cpus": 2}}}
    tables, charts = drawn(put(tmp_path, "benchmark.json", tree))
    table, facts = tables.values()
    assert [row[:4] for row in table] == [
        ["fp32", "2.00k (1.90k to 2.10k)", "1.00", "25.0%"],
        ["bf16", "5.00k (1.90k to 2.10k)", "2.50", "–"],
        ["flash", "–", "–", "–"],
    ]
    assert table[2][-1] == "needs a GPU" and ["hardware", "cpus 2"] in facts
    assert len(next(iter(charts.values()))["bars"]) == 2
    # the file itself means the same as its folder
    assert [each.kind for each in find_results(locate(tmp_path / "benchmark.json"))] == ["benchmark"]


def test_a_sweep_a_generation_and_models_side_by_side(tmp_path: Path) -> None:
    def trial(name: str, score: float | None) -> dict[str, Any]:
        history = [] if score is None else [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": score}]
        return {
            "id": name,
            "params": {"optim.lr": 0.1},
            "status": "finished",
            "metric": "loss",
            "history": history,
            "score": score,
        }

    quality = {"answers": 10, "documents": 6, "tokens": 900, "generation": {"teacher": "t", "cost_usd": 1.5}}
    quality["steps"] = [{"step": "dedup", "removed": 4, "kept": 6, "samples": []}]
    text = {"real": {"bits_per_byte": {"value": 1.5, "low": 1.4, "high": 1.6}}}
    tables, charts = drawn(
        put(tmp_path / "sweep", "sweep.json", [trial("a", 1.5), trial("b", 1.0), trial("c", None)]),
        put(tmp_path / "made", "quality.json", quality),
        put(tmp_path / "arms", "arms.json", {"arms": [{"name": "x", "tokens": 1000, "texts": text}]}),
    )
    assert [row[:2] for row in tables["Sweep sweep"]] == [["b", "1.0000"], ["a", "1.5000"]]
    assert charts["Trials"]["series"][-1]["label"] == "b", "the best is drawn last, over the others"
    assert ["cost_usd", "1.50"] in tables["Generation made"] and tables["Comparison arms"][0][2].startswith(
        "1.5000 (1.4"
    )
    assert [bar["value"] for bar in charts["What was kept of the answers"]["bars"]] == [10, 6]


def test_a_page_of_results_alone(tmp_path: Path) -> None:
    put(tmp_path / "a", "evaluation.json", {"model": "<b>m</b>", "tasks": {"hellaswag": HELLASWAG}})
    target = locate(tmp_path / "page.html")
    write_page([], find_results(locate(tmp_path / "a")), target)
    page = Page((tmp_path / "page.html").read_text())
    assert "<b>m</b>" in page.text and "40.00 (30.20 to 49.80)" in page.text and "Charts" in page.text


def test_a_file_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": 1}')
    with pytest.raises(UserError, match=r"a\.json is no result of raygpt"):
        find_results(locate(tmp_path / "a.json"))
    (tmp_path / "evaluation.json").write_text('{"tasks": ')
    with pytest.raises(UserError, match="is damaged"):
        find_results(locate(tmp_path))
    assert find_results(locate(tmp_path / "nowhere")) == []


def test_figures_that_are_no_number_and_a_speed_of_nothing(tmp_path: Path) -> None:
    history = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": float("nan")}]
    trial = {"id": "a", "params": {}, "status": "finished", "metric": "loss", "history": history, "score": 2.0}
    put(tmp_path / "s", "sweep.json", [trial, {**trial, "id": "b", "score": float("nan")}])
    speed = {"median": 0.0, "low": 0.0, "high": float("inf"), "repeats": 1}
    rows = [{"name": "none", "tokens_per_second": speed}]
    put(tmp_path / "s", "benchmark.json", {"case": "x", "rows": rows})
    results = find_results(locate(tmp_path / "s"))
    tables, charts = show(results)
    assert charts[0]["series"][0]["y"] == [2.0] and tables[1].rows[0][2] == "–"
    write_page([], results, locate(tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text()
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert data["charts"][1]["bars"][0]["high"] is None
