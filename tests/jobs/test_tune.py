"""A sweep of training jobs on raw text: prepared once, before its trials."""

# ruff: noqa: F811 - fixtures of tests/tune are imported by name
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raygpt.config import Config
from raygpt.errors import UserError
from raygpt.jobs.tune import with_shards
from raygpt.train.resolve import resolve
from raygpt.tune.plan import make_plan
from tests.tune.conftest import sweep_config, tiny_base, tiny_task  # noqa: F401


@pytest.fixture
def raw_sweep(sweep_config: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    """A sweep of pretraining on a text file, with `changes`."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {number} of a small text, enough for some batches.\n" for number in range(400)))

    def make(**changes: Any) -> Config:
        settings = {
            "task.name": None, "task.train": None, "model.init_from": "random", "data.tokenizer": "bytes",
            "data.train": str(text), "prepare.val_split": "tail", "prepare.val_fraction": 0.1, "model.preset": "nano",
            "model.n_layer": 1, "model.n_embd": 16, "model.n_head": 2, "model.seq_len": 16, "scale.num_workers": 1,
            "tune.space": {"optim.lr": {"grid": [1e-5, 1e-2]}}, "train.epochs": None, "train.max_steps": 2,
            "train.global_batch_tokens": 64, "train.micro_batch_size": 4,
        }  # fmt: skip
        return sweep_config({**settings, **changes})

    return make


def test_raw_text_is_prepared_once_and_every_trial_finds_its_shards(
    ray_cluster: str, raw_sweep: Callable[..., Config]
) -> None:
    plan = make_plan(raw_sweep())
    with pytest.raises(UserError):
        resolve(plan.config)  # what every trial said
    ready = with_shards(plan)
    assert with_shards(plan).config == ready.config
    jobs = [resolve(ready.space.apply(ready.config, point)) for point in ready.space.grid()]
    assert len(jobs) == 2 and len({job.train_uri for job in jobs}) == 1
    made = Path(ready.config.run.storage) / "prepared"
    assert len(list(made.iterdir())) == 1 and jobs[0].train_uri.startswith(str(made))
    assert 8 * jobs[0].val.tokens < jobs[0].train.tokens < 10 * jobs[0].val.tokens


def test_a_space_that_would_change_what_is_prepared_is_refused(raw_sweep: Callable[..., Config]) -> None:
    for key, value in (("data.tokenizer", "bytes"), ("prepare.val_fraction", 0.2), ("data.text_column", "body")):
        with pytest.raises(UserError, match=rf"{key} cannot be searched while data.train .* run raygpt prepare"):
            make_plan(raw_sweep(**{"tune.space": {key: {"grid": [value]}}}))


def test_a_choice_of_data_names_shard_folders(
    raw_sweep: Callable[..., Config], make_shards: Callable[..., str], tmp_path: Path
) -> None:
    shards, text = make_shards(2000), str(tmp_path / "text.txt")
    change = {"data.train": shards, "data.val": shards, "tune.space": {"data.train": {"grid": [shards, text]}}}
    with pytest.raises(UserError, match=r"data.train names .*text.txt, no shard folder: run raygpt prepare"):
        make_plan(raw_sweep(**change))
    make_plan(raw_sweep(**{**change, "tune.space": {"data.train": {"grid": [shards]}}}))
