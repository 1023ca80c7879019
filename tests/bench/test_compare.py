"""Results side by side: the schema, ratios with their spread, and labels for whatever else differs."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from raygpt.bench.anchors import ANCHORS, SIZES, beside, matching, of_model, of_result
from raygpt.bench.compare import compare, ratio
from raygpt.bench.result import Result, Row, Spread, from_json, read, to_csv, to_markdown, usd_per_billion
from raygpt.cli import main
from raygpt.errors import UserError
from raygpt.hardware import spec_named

HERE = {
    "hardware": {"device": "NVIDIA A100-SXM4-40GB", "cores": 8},
    "versions": {"torch": "2.12"},
    "date": "2026-11-01",
}
SETTINGS = {"rows": 16, "model": {"n_layer": 12}, "parameters": 124_439_808, "world_size": 1}


def result(median: float = 100.0, **provenance) -> Result:
    spread = Spread(median, 0.9 * median, 1.1 * median, 3)
    rows = [
        Row("bf16", dict(SETTINGS), spread, spread.per(16), mfu=0.4, memory_bytes=10**9, figures={"blocks": [1, 2]}),
        Row("tf32", dict(SETTINGS), note="not applicable: no GPU"),
    ]
    return Result("ladder", rows, {**HERE, **provenance})


def test_a_result_reads_back_as_it_was(tmp_path: Path) -> None:
    assert from_json(result().to_json(), "x") == result()
    assert "null" not in result().to_json()
    (tmp_path / "r.json").write_text(result().to_json())
    assert read(tmp_path / "r.json") == result()
    lines = list(csv.DictReader(io.StringIO(to_csv(result()))))
    assert [line["name"] for line in lines] == ["bf16", "tf32"] and lines[0]["tokens_per_second.median"] == "100.0"
    assert lines[0]["step_seconds.low"] == str(16 / 110.00000000000001) and lines[1]["tokens_per_second.median"] == ""
    text = to_markdown(result())
    assert "| bf16 | 100 (90–110, n=3) |" in text and "- tf32: not applicable: no GPU" in text
    assert "versions: torch 2.12" in text and "command: not recorded" in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "x is no JSON file"),
        ("[]", "x is no result of raygpt benchmark"),
        ('{"schema": 9, "rows": []}', "x has schema 9, and this raygpt reads 1"),
        ('{"schema": 1, "rows": [{"nome": 1}], "case": "step", "provenance": {}}', "x is a damaged result"),
        ('{"schema": 1, "rows": ["bf16"], "case": "step", "provenance": {}}', "x is a damaged result"),
        ('{"schema": 1, "rows": [{"name": "a", "loss": "1"}], "case": "step", "provenance": {}}', "loss of a"),
        ('{"schema": 1, "rows": [], "case": "step", "provenance": 3}', "x is a damaged result"),
        (
            '{"schema": 1, "rows": [{"name": "a", "tokens_per_second": {"median": "1", "low": 1, "high": 1, '
            '"repeats": 1}}], "case": "step", "provenance": {}}',
            "tokens_per_second of a is no measurement",
        ),
    ],
)
def test_what_is_no_result_is_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        from_json(text, "x")


def test_a_ratio_reaches_as_far_as_any_two_repeats() -> None:
    times = ratio(Spread(200, 190, 220, 3), Spread(100, 80, 110, 5))
    assert (times.median, times.low, times.high, times.repeats) == (2.0, 190 / 110, 220 / 80, 3)
    text = compare([result(), result(200.0)], ["a", "b"])
    assert "| bf16 | 100 (90–110, n=3) | 200 (180–220, n=3) | 2.000 (1.636–2.444) | faster |" in text
    assert "**" not in text  # nothing differs, so nothing is labelled
    assert "within the spread" in compare([result(), result(105.0)], ["a", "b"])
    assert "slower" in compare([result(), result(50.0)], ["a", "b"])


def test_other_hardware_versions_models_and_settings_are_labelled_in_words() -> None:
    other = result(hardware={"device": "NVIDIA H100 80GB HBM3", "cores": 8}, versions={"torch": "2.13", "ray": "2.60"})
    settings = {**SETTINGS, "rows": 32, "model": {"n_layer": 36}, "parameters": 774_030_080}
    other.rows[0] = replace(other.rows[0], settings=settings)
    text = compare([result(), other], ["a", "b"])
    assert "**Different hardware: device NVIDIA A100-SXM4-40GB against NVIDIA H100 80GB HBM3.**" in text
    assert "**Different versions: torch 2.12 against 2.13, ray not recorded against 2.60.**" in text
    assert "**Different model: 124,439,808 against 774,030,080 parameters.**" in text
    assert "**Different settings of bf16: rows 16 against 32.**" in text
    bare = Result("ladder", result().rows, {})
    text = compare([result(), bare], ["a", "b"])
    assert (
        "Hardware not recorded: these speeds may be of different machines." in text and "Versions not recorded" in text
    )


def test_a_result_of_a_busy_machine_says_so() -> None:
    facts = {"hardware": {"cores": "2 logical cores"}, "load_average": 19.3}
    assert "**The machine was busy with other work (load 19.3 on 2 cores)" in to_markdown(result(**facts))
    assert "busy" not in to_markdown(result(**{**facts, "load_average": 1.9}))


def test_a_busy_or_stopped_side_is_named_above_the_ratios() -> None:
    busy = result(hardware={**HERE["hardware"], "cores": "2 logical cores"}, load_average=19.3)
    text = compare([busy, result(stopped=True, planned_repeats=5)], ["a", "b"])
    assert "- **a: The machine was busy with other work (load 19.3 on 2 cores)" in text
    assert "- **b: Stopped before it was through: 5 repeats were planned.**" in text
    assert text.index("- **b:") < text.index("| bf16 |")


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="names one result"):
        compare([result()], ["a"])
    with pytest.raises(UserError, match="a is of case ladder and b of case step"):
        compare([result(), replace(result(), case="step")], ["a", "b"])
    with pytest.raises(UserError, match="no measured row in common"):
        compare([result(), Result("ladder", [], HERE)], ["a", "b"])


def test_the_command_compares_files_and_run_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(result().to_json())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "benchmark.json").write_text(result(200.0).to_json())
    assert main(["benchmark", "--compare", str(tmp_path / "a.json"), str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "2.000 (1.636–2.444) | faster" in printed and "Published for a model of this size on this GPU" in printed
    assert main(["benchmark", "--compare", str(tmp_path / "a.json"), str(tmp_path / "none.json")]) == 2
    assert "none.json cannot be read" in capsys.readouterr().err
    assert main(["benchmark", "--compare", str(tmp_path / "a.json")]) == 2
    assert "names one result" in capsys.readouterr().err


def test_every_setting_comes_from_the_environment_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    from raygpt.config.benchmark import Benchmark

    wanted = {
        "case": "finetune",
        "repeats": 7,
        "steps": 9,
        "seconds": 2.5,
        "machine": "m5.large",
        "sample_seconds": 0.5,
        "compare": ["/a.json", "/b.json"],
    }
    assert set(wanted) == set(Benchmark.model_fields)
    for name, value in wanted.items():
        text = "[/a.json, /b.json]" if isinstance(value, list) else str(value)
        monkeypatch.setenv(f"RAYGPT_BENCHMARK__{name.upper()}", text)
    assert main(["benchmark", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["benchmark"] == wanted


def test_every_anchor_has_its_source_date_and_hardware() -> None:
    for anchor in ANCHORS:
        assert "." in anchor.source.split("/")[0] and anchor.read == "2026-11-26" and anchor.size in SIZES
        assert spec_named(anchor.gpu) is not None and anchor.tokens_per_second > 1000, anchor
        text = anchor.describe()
        assert anchor.source in text and "read 2026-11-26" in text and anchor.gpu in text and "tok/s per GPU" in text
    # 16 rows of 1024 in 90 ms, as the video's last chapter says
    (last,) = [anchor for anchor in ANCHORS if anchor.rung == "fused optimizer"]
    assert last.tokens_per_second == pytest.approx(182_044, abs=1)


def test_anchors_stand_beside_their_own_class_and_are_labelled_elsewhere() -> None:
    assert {anchor.name for anchor in matching(774_030_080, "NVIDIA H100 80GB HBM3")} == {"llm-foundry"}
    assert not matching(774_030_080, "NVIDIA H100 PCIe") and not matching(124_000_000, "x86_64 CPU")
    same, other = of_result(result())
    assert {spec_named(anchor.gpu).name for anchor in same} == {"A100"}  # type: ignore[union-attr]
    assert all(anchor.parameters < 150 for anchor in (*same, *other)) and not set(same) & set(other)
    # made from GPT-2 Large's width, and so of its class with 600M parameters; HF's XL on the card of our p3 graphs
    assert "fgpt" in {anchor.name for anchor in matching(774_030_080, "GH200")}
    assert {anchor.tokens_per_second for anchor in matching(1_557_611_200, "Tesla V100-SXM2-16GB")} == {1760, 1800}
    assert "fgpt" not in {anchor.name for anchor in of_model(124_439_808)} and not of_model(600_000_000)
    text = beside(result(hardware={"device": "CPU"}))
    assert text.startswith("Published for a model of this size on other hardware, and so no measure of this one:")
    small = Result("ladder", [Row("bf16", {"parameters": 900_000})], HERE)
    assert beside(small) == "Published speeds: none is of a model of this size.\n"


def test_dollars_are_the_price_over_the_speed() -> None:
    # gpu_1x_h100_sxm5 at 4.29 $/h and 500,000 tokens/s: 10^9 tokens take 2,000 s
    assert usd_per_billion(4.29, 500_000) == pytest.approx(4.29 * 2000 / 3600)
    assert usd_per_billion(None, 500_000) is None
