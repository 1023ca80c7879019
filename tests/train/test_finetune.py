"""What fine-tuning adds to training: a base model, adapters, early stopping, skipped steps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from raygpt.errors import UserError
from raygpt.model.gpt import GPT
from raygpt.parallel import checkpoint
from raygpt.parallel.lora import Adapters, add_adapters
from raygpt.parallel.weights import fill_model, load_weights, open_weights
from raygpt.storage import locate
from raygpt.train.resolve import resolve
from tests.train.gloo_pool import GlooPool
from tests.train.running import POOLED, forget_after, letters, run, sequence, settings

QUICK = {**POOLED, "train__checkpoint_every": "0", "eval__every": "0", "train__max_steps": "12"}
LORA = {
    "model__lora_rank": "4",
    "model__lora_dropout": "0.1",
    "train__checkpoint_every": "5",
    "train__keep_checkpoints": "3",
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return letters(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(gloo: GlooPool, shards: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    storage = tmp_path_factory.mktemp("base")
    run(settings(shards, storage, **QUICK), pool=gloo)
    return str(storage / "r")


@pytest.fixture(scope="module")
def tuned(gloo: GlooPool, base: str, shards: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """Storage folder and records of all the base's weights trained for 12 more steps."""
    storage = tmp_path_factory.mktemp("tuned")
    return storage, run(settings(shards, storage, model__init_from=base, eval__first="true", **QUICK), pool=gloo)[1]


@pytest.fixture(scope="module")
def adapted(
    gloo: GlooPool, base: str, shards: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict]]:
    """Storage folder and records of adapters trained on the base."""
    storage = tmp_path_factory.mktemp("adapted")
    return storage, run(settings(shards, storage, model__init_from=base, **{**QUICK, **LORA}), pool=gloo)[1]


def newest(storage: Path) -> checkpoint.Location:
    return checkpoint.complete_checkpoints(locate(storage / "r"))[0]


@contextmanager
def replaced(folder: str, other: Path | None) -> Iterator[None]:
    """For a while `folder` is a copy of `other`, or is gone."""
    aside = f"{folder}.aside"
    os.rename(folder, aside)
    try:
        if other is not None:
            shutil.copytree(other, folder)
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(aside, folder)


def test_training_starts_from_the_base_and_the_first_evaluation_is_its_own(
    base: str, tuned: tuple[Path, list[dict]]
) -> None:
    losses = sequence(tuned[1], "val_loss")
    state = checkpoint.read_state(newest(Path(base).parent))
    assert losses[0] == pytest.approx(state.val_loss, abs=1e-6)
    assert set(losses) == {0, 12}


def test_adapters_resume_bit_for_bit_and_leave_a_small_checkpoint(
    gloo: GlooPool, base: str, adapted: tuple[Path, list[dict]], shards: str, tmp_path: Path
) -> None:
    shutil.copytree(adapted[0] / "r", tmp_path / "r")
    forget_after(tmp_path / "r", 5)
    _, rows, text = run(settings(shards, tmp_path, model__init_from=base, **{**QUICK, **LORA}), pool=gloo)
    assert "Going on from step 5" in text
    assert sequence(rows, "train_loss") == sequence(adapted[1], "train_loss")
    whole = (Path(newest(Path(base).parent).path) / "model.safetensors").stat().st_size
    assert (Path(newest(tmp_path).path) / "model.safetensors").stat().st_size < whole / 5


def test_weights_read_from_adapters_are_merged_and_give_the_models_own_logits(
    base: str, adapted: tuple[Path, list[dict]]
) -> None:
    where = newest(adapted[0])
    state = checkpoint.read_state(where)
    live = GPT(open_weights(base).config)
    fill_model(live, open_weights(base).items())
    add_adapters(live, Adapters(**state.adapters))
    tensors = checkpoint.open_tensors(where)
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if ".lora_" in name:
                parameter.copy_(tensors.whole(name))
    merged, *_ = load_weights(str(adapted[0] / "r"))
    tokens = torch.arange(97, 113)[None]
    live.eval(), merged.eval()
    with torch.no_grad():
        assert not torch.allclose(merged(tokens), load_weights(base)[0].eval()(tokens), atol=1e-3)
        torch.testing.assert_close(merged(tokens), live(tokens), rtol=1e-4, atol=1e-5)


def test_adapters_refuse_a_base_that_changed(
    base: str, tuned: tuple[Path, list[dict]], adapted: tuple[Path, list[dict]]
) -> None:
    assert list(open_weights(str(adapted[0] / "r")).items())
    with replaced(base, tuned[0] / "r"):
        with pytest.raises(UserError, match="model.init_from=.*holds other weights than when this run began"):
            list(open_weights(str(adapted[0] / "r")).items())


def test_a_run_stops_when_evaluations_bring_nothing_better_and_goes_on_without_its_base(
    gloo: GlooPool, base: str, shards: str, tmp_path: Path
) -> None:
    changes = {**QUICK, "train__max_steps": "40", "eval__every": "2", "eval__first": "true", "optim__lr": "1.0"}
    config = settings(shards, tmp_path, model__init_from=base, eval__patience="3", **changes)
    outcome, _, text = run(config, pool=gloo)
    assert outcome.outcome == "early" and outcome.exit_status == 0 and "Stopped early after step 6 of 40" in text
    assert checkpoint.step_of(newest(tmp_path).name) == 6
    outcome, _, text = run(config, pool=gloo)
    assert outcome.outcome == "complete" and "set eval.patience=none to train on" in text
    on = settings(shards, tmp_path, model__init_from=base, **{**changes, "train__max_steps": "8"})
    with replaced(base, None):
        outcome, rows, _ = run(on, pool=gloo)
    assert outcome.outcome == "finished" and max(sequence(rows, "train_loss")) == 8


def test_the_best_evaluation_is_kept_though_no_checkpoint_was_due(gloo: GlooPool, shards: str, tmp_path: Path) -> None:
    changes = {**QUICK, "eval__every": "4", "train__save_best": "true", "train__keep_checkpoints": "1"}
    rows = run(settings(shards, tmp_path, optim__lr="3e-3", **changes), pool=gloo)[1]
    losses = sequence(rows, "val_loss")
    best = min(losses, key=losses.__getitem__)  # type: ignore[arg-type]
    kept = {checkpoint.step_of(where.name) for where in checkpoint.complete_checkpoints(locate(tmp_path / "r"))}
    assert kept == {best, 12}
    found = checkpoint.locate_checkpoint(str(tmp_path / "r" / "checkpoints" / "best"))
    assert found is not None and checkpoint.step_of(found.name) == best
    assert load_weights(str(tmp_path / "r" / "checkpoints" / "best"))[2] == found.uri


def test_steps_that_fp16_skips_are_counted_and_left_out_of_the_schedule(
    gloo: GlooPool, shards: str, tmp_path: Path
) -> None:
    if not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.skip("this CPU has no fp16 arithmetic")
    config = settings(
        shards,
        tmp_path,
        train__strategy="zero1",
        train__precision="fp16",
        train__deepspeed="{fp16: {initial_scale_power: 40, hysteresis: 1}}",
        optim__schedule="linear",
        optim__warmup_steps="10",
        **{**QUICK, "train__max_steps": "30"},
    )
    rows = run(config, pool=gloo)[1]
    skipped = rows[-1]["skipped_steps"]
    assert 10 < skipped < 28
    first_good = next(row for row in rows if "grad_norm" in row)
    assert first_good["skipped_steps"] == first_good["step"] - 1
    schedule = resolve(config).plan.schedule
    assert first_good["lr"] == schedule.lr(0)
    assert rows[-1]["lr"] == schedule.lr(29 - skipped)
    assert all("train_loss" not in row for row in rows if row["step"] < first_good["step"])
    assert checkpoint.read_state(newest(tmp_path)).optimizer_steps == 30 - skipped
