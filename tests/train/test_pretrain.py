"""The whole job on a real Ray cluster: order, exact resume, stopping, lost workers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from raygpt.errors import UserError
from raygpt.parallel import checkpoint
from raygpt.storage import locate, write_bytes
from raygpt.train.resolve import resolve
from tests.train.gloo_pool import GlooPool
from tests.train.running import (
    POOLED,
    forget_after,
    kill_a_worker,
    letters,
    press_ctrl_c,
    run,
    sequence,
    settings,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return letters(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def unbroken(ray_cluster: object, shards: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """Two workers, never interrupted: what every other run must equal."""
    storage = tmp_path_factory.mktemp("unbroken")
    outcome, rows, text = run(settings(shards, storage, scale__num_workers="2", train__keep_checkpoints="3"))
    assert outcome.outcome == "finished"
    assert "step 24/24 100%" in text and "Finished 24 steps" in text
    return storage / "r", rows


def test_an_elastic_run_on_s3_takes_as_many_workers_as_fit_and_is_the_same_run(
    unbroken: tuple[Path, list[dict]], shards: str, bucket: str
) -> None:
    for path in Path(shards).iterdir():
        write_bytes(locate(bucket) / "data" / path.name, path.read_bytes())
    outcome, rows, _ = run(settings(f"{bucket}/data", f"{bucket}/runs", scale__num_workers="[1, 2]"))
    assert outcome.outcome == "finished" and rows[-1]["world_size"] == 2
    for key in ("batch_digest", "train_loss", "val_loss"):
        assert sequence(rows, key) == sequence(unbroken[1], key)


def test_a_run_stopped_on_ray_data_that_lost_a_worker_on_the_memory_map_equals_the_unbroken_one_bit_for_bit(
    unbroken: tuple[Path, list[dict]], shards: str, tmp_path: Path
) -> None:
    config = settings(shards, tmp_path, scale__num_workers="2")
    outcome, _, text = run(config, {"step 2/24": press_ctrl_c})
    assert outcome.outcome == "stopped"
    assert "finishing this step and saving" in text and "To go on: raygpt pretrain …" in text
    config = settings(shards, tmp_path, scale__num_workers="2", data__backend="mmap", track__price_per_hour="3600")
    outcome, rows, text = run(config, {"step 12/24": kill_a_worker})
    assert outcome.outcome == "finished" and text.count("Going on from step") == 2
    for key in ("batch_digest", "train_loss", "val_loss", "grad_norm"):
        assert sequence(rows, key) == sequence(unbroken[1], key), key
    assert [row["step"] for row in rows] == list(range(1, 25))
    assert outcome.summary["restarts"] == 2  # Ctrl-C, and a lost worker
    # a dollar a second, those of the first attempt included; the driver tells rank 0 what it has cost
    cost = sequence(rows[12:], "cost_usd")
    assert list(cost.values()) == sorted(cost.values()) and outcome.summary["cost_usd"] - cost[24] < 10
    assert cost[24] > 0.5 * outcome.summary["wall_seconds"]
    for name in ("model-00000.safetensors", "model-00001.safetensors", "optimizer-00001.safetensors"):
        left = (tmp_path / "r" / "checkpoints" / "step_00000024" / name).read_bytes()
        assert left == (unbroken[0] / "checkpoints" / "step_00000024" / name).read_bytes()


def test_four_workers_go_on_with_the_tokens_of_two(
    gloo: GlooPool, unbroken: tuple[Path, list[dict]], shards: str, tmp_path: Path
) -> None:
    shutil.copytree(unbroken[0], tmp_path / "r")
    forget_after(tmp_path / "r", 15)
    _, rows, text = run(
        settings(shards, tmp_path, scale__num_workers="4", **{**POOLED, "train__micro_batch_size": "8"}), pool=gloo
    )
    assert "Going on from step 15" in text
    assert sequence(rows, "batch_digest") == sequence(unbroken[1], "batch_digest")


def test_the_run_folder_holds_what_the_contract_says(unbroken: tuple[Path, list[dict]]) -> None:
    folder = unbroken[0]
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "summary.json", "report.html", "plots"} <= {
        path.name for path in folder.iterdir()
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 24 and summary["tokens"] == 24 * 512
    assert summary["tokens_lost"] == summary["tokens_repeated"] == 0
    assert 0 <= summary["data_wait_fraction"] < 1 and 0 < summary["effective_time_ratio"] <= 1
    steps = [where.name for where in checkpoint.complete_checkpoints(locate(folder))]
    assert steps[:2] == ["step_00000024", "step_00000020"] and len(steps) <= 3
    row = unbroken[1][7]
    assert {"step", "tokens", "train_loss", "val_loss", "lr", "grad_norm", "tokens_per_second", "step_seconds"} <= set(
        row
    )
    assert row["world_size"] == 2 and "mfu" not in row and "cost_usd" not in row


def test_every_rank_keeps_random_numbers_of_its_own(unbroken: tuple[Path, list[dict]]) -> None:
    """Fault 8: ranks that draw the same dropout, or start over on a resume, train on less than they seem to."""
    newest = checkpoint.complete_checkpoints(locate(unbroken[0]))[0]
    first, second = (checkpoint.read_rank(newest, rank) for rank in (0, 1))
    assert first is not None and second is not None
    assert not torch.equal(first["rng"]["torch"], second["rng"]["torch"])


def test_fp16_goes_on_with_its_loss_scale(gloo: GlooPool, shards: str, tmp_path: Path) -> None:
    """Fault 8: a scaler that starts over skips its first steps again."""
    fp16 = {**POOLED, "train__precision": "fp16", "train__max_steps": "12", "model__n_layer": "2"}
    fp16 |= {"train__keep_checkpoints": "3"}
    _, whole, _ = run(settings(shards, tmp_path / "whole", **fp16), pool=gloo)
    # as a kill after step 5 leaves it
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    forget_after(tmp_path / "broken" / "r", 5)
    state = checkpoint.read_state(checkpoint.complete_checkpoints(locate(tmp_path / "broken" / "r"))[0])
    assert state.scaler["good_steps"] + 2 * state.skipped_steps > 0
    _, rows, text = run(settings(shards, tmp_path / "broken", **fp16), pool=gloo)
    assert "Going on from step 5" in text
    for key in ("train_loss", "loss_scale", "batch_digest"):
        assert sequence(rows, key) == sequence(whole, key)


def test_training_starts_from_a_hugging_face_folder(gloo: GlooPool, unbroken, shards: str, tmp_path: Path) -> None:
    from raygpt.model.huggingface import export_huggingface
    from raygpt.parallel.weights import load

    loaded = load(str(unbroken[0]))
    export_huggingface(loaded.model, tmp_path / "hf", tokenizer_json=loaded.tokenizer.to_json(), eot_id=256)
    short = {"train__max_steps": "1", "eval__every": "1", "model__dropout": "0", "optim__lr": "1e-9"}
    config = settings(shards, tmp_path, model__init_from=str(tmp_path / "hf"), **POOLED, **short)
    _, rows, _ = run(config, pool=gloo)
    assert rows[0]["val_loss"] == pytest.approx(sequence(unbroken[1], "val_loss")[24], abs=1e-5)


def test_a_complete_run_says_so_and_a_longer_one_goes_on(unbroken, shards: str, ray_cluster: object) -> None:
    config = settings(shards, unbroken[0].parent, scale__num_workers="2")
    outcome, _, text = run(config)
    assert outcome.outcome == "complete" and "is complete at step 24" in text


def test_a_run_killed_after_its_last_checkpoint_gets_its_summary_and_report(
    unbroken, shards: str, ray_cluster: object, tmp_path: Path
) -> None:
    folder = tmp_path / unbroken[0].name
    shutil.copytree(unbroken[0], folder)
    before = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").unlink()
    (folder / "report.html").unlink()
    outcome, _, _ = run(settings(shards, tmp_path, scale__num_workers="2"))
    after = json.loads((folder / "summary.json").read_text())
    assert outcome.outcome == "complete" and (folder / "report.html").exists()
    for key in ("outcome", "steps", "tokens", "val_loss", "best_val_loss"):
        assert after[key] == before[key]


def test_a_diverging_run_stops_in_one_sentence_and_saves_nothing_bad(
    gloo: GlooPool, shards: str, tmp_path: Path
) -> None:
    config = settings(shards, tmp_path, optim__lr="1e12", optim__grad_clip="0", train__checkpoint_every="1", **POOLED)
    with pytest.raises(UserError, match="diverged: its (loss|gradients|weights) .*lower optim.lr"):
        run(config, pool=gloo)
    for where in checkpoint.complete_checkpoints(locate(tmp_path / "r")):
        assert all(tensor.isfinite().all() for _, tensor in checkpoint.open_tensors(where).items())


def test_a_changed_dataset_is_refused_and_the_escape_hatch_opens(
    unbroken, shards: str, make_shards: Callable[..., str]
) -> None:
    other = make_shards(3000)
    longer = {"train__max_steps": "26"}
    with pytest.raises(UserError, match="data.train holds other tokens.*data.ignore_fingerprint=true"):
        resolve(settings(other, unbroken[0].parent, **longer))
    job = resolve(settings(other, unbroken[0].parent, data__ignore_fingerprint="true", **longer))
    assert (job.done_steps, job.plan.total_steps, job.train_uri) == (24, 26, other)
