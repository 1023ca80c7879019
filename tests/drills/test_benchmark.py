"""`raygpt benchmark` whole at toy size: a fine-tuning with its resources, and workers under both launchers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raygpt.bench.resources import FIELDS
from raygpt.bench.result import read
from tests.drills.program import raygpt

pytestmark = pytest.mark.timeout(240)
TINY = ("--model.n_layer=2", "--model.n_head=2", "--model.n_embd=32", "--track.tensorboard=false")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(f"{n} and {n} are {2 * n}, as everybody knows by now." for n in range(4000)))
    return path


def test_a_fine_tuning_is_measured_from_all_sides(
    ray_cluster: None, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYGPT_BENCHMARK__CASE", "finetune")
    monkeypatch.setenv("RAYGPT_BENCHMARK__SAMPLE_SECONDS", "0.3")
    settings = ["--train.max_steps=60", "--train.global_batch_tokens=512", "--data.seq_len=32", "--eval.every=20"]
    settings += [f"--data.train={text}", "--data.tokenizer=bytes", "--prepare.val_split=tail"]
    printed = raygpt("benchmark", f"--run.storage={tmp_path}", "--run.name=r", *TINY, *settings)
    run = tmp_path / "r"
    result = read(run / "benchmark.json")
    assert "| from random weights |" in printed and f"Result: {run / 'benchmark.json'}" in printed
    (row,) = result.rows
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["val_loss"] for record in records if "val_loss" in record]
    assert (row.figures["before"]["loss"], row.figures["after"]["loss"]) == (losses[0], losses[-1])
    assert row.figures["before"]["step"] == 0 and losses[-1] < losses[0] - 1
    assert row.tokens_per_second is not None and row.data_wait_fraction is not None and row.memory_bytes
    samples = [json.loads(line) for line in (run / "resources.jsonl").read_text().splitlines()]
    assert len(samples) > 3 and all(set(sample) <= set(FIELDS) for sample in samples)
    # the cluster's processes are among the run's, and the looks lie within it
    assert max(sample["run_rss_bytes"] for sample in samples) > 3e8
    assert samples[0]["time"] < records[0]["time"] < samples[-1]["time"] + 1
    assert row.figures["resources"]["run_cpu_percent"]["max"] > 5
    assert (run / "plots" / "over_time.png").stat().st_size > 20_000
    assert {"ray", "torch", "raygpt"} <= result.provenance["versions"].keys() and result.provenance["hardware"]["cpu"]
    assert (run / "benchmark.csv").exists() and (run / "summary.json").exists()
    assert row.settings["precision"] in ("fp32", "bf16") and row.settings["micro_batch_size"] == 16  # as resolved
    # a second call shows what is there: nothing is measured, dated or labelled anew
    files = ("benchmark.json", "resources.jsonl", "config.yaml", "attempts.json")
    before = [(run / name).read_bytes() for name in files]
    words = ["benchmark", f"--run.storage={tmp_path}", "--run.name=r", *TINY, *settings]
    assert f"Finished already: {run / 'benchmark.json'}" in raygpt(*words)
    monkeypatch.setenv("RAYGPT_TRAIN__PRECISION", "fp32")
    assert "with other settings (train.precision)" in raygpt(*words, status=2)
    assert [(run / name).read_bytes() for name in files] == before


def test_workers_of_ray_train_and_torchrun_stand_beside_each_other(ray_cluster: None, tmp_path: Path) -> None:
    settings = ["--benchmark.case=step", "--benchmark.repeats=1", "--benchmark.steps=3", "--train.micro_batch_size=2"]
    settings += ["--model.vocab_size=250", "--data.seq_len=32", "--scale.num_workers=2", "--track.price_per_hour=3.6"]
    printed = raygpt("benchmark", f"--run.storage={tmp_path}", "--run.name=steps", *TINY, *settings)
    rows = {row.name: row for row in read(tmp_path / "steps" / "benchmark.json").rows}
    assert list(rows) == ["torchrun × 1", "torchrun × 2", "Ray Train × 1", "Ray Train × 2"]
    # the same model, rows and seed: what the launcher is does not show in the loss
    assert len({row.loss for row in rows.values()}) == 1
    assert [row.settings["world_size"] for row in rows.values()] == [1, 2, 1, 2]
    assert all(row.usd_per_billion_tokens and row.mfu_of_matmul for row in rows.values())
    assert rows["torchrun × 1"].figures["efficiency"] == 1 and "| Ray Train × 2 |" in printed
    assert json.loads((tmp_path / "steps" / "summary.json").read_text())["outcome"] == "finished"
