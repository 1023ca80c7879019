"""What a resumed run must leave alone."""

from __future__ import annotations

import pytest

from raygpt.config import Config
from raygpt.config.fixed import changed_fixed, fixed_keys
from raygpt.config.settings import config_with


@pytest.mark.parametrize(
    "change", [{"tune.top": 1}, {"tune.seeds": 2}, {"tune.baseline": {"optim.lr": 1.0}}, {"optim.lr": 1.0}]
)
def test_a_sweep_keeps_its_finals_and_what_trials_start_from(change: dict) -> None:
    before, now = Config(), config_with(Config(), change, "test")
    (key, old, new, why), *more = changed_fixed(before.to_dict(), now.to_dict(), "sweep")
    assert key in change and new == change[key] and old != new and why and not more
    assert not changed_fixed(before.to_dict(), now.to_dict(), "train")


def test_a_key_that_an_older_run_did_not_know_has_its_default() -> None:
    assert set(fixed_keys("train")) >= {"run.seed", "data.seq_len", "train.global_batch_tokens", "model.lora_rank"}
    now = config_with(Config(), {"model.lora_rank": 4}, "test").to_dict()
    assert not changed_fixed({}, Config().to_dict(), "train")
    assert [change[:3] for change in changed_fixed({}, now, "train")] == [("model.lora_rank", 0, 4)]
