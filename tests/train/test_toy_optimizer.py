"""An optimizer that nothing in the package knows trains, is saved and resumes to the bit under every strategy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raygpt.errors import UserError
from raygpt.parallel import checkpoint
from raygpt.storage import locate
from raygpt.train.optim import OPTIMIZERS, check_name, register
from tests.train import toy_optimizer
from tests.train.gloo_pool import GlooPool
from tests.train.running import forget_after, letters, run, sequence, zero_settings


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])  # the others: tests/drills/test_strategies.py
def test_it_trains_and_resumes_bit_for_bit(
    gloo: GlooPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    monkeypatch.setenv("POOL_IMPORTS", toy_optimizer.__name__)
    own = {"optim__name": "three_means", "optim__lr": "1e-3", "train__max_steps": "8", "train__checkpoint_every": "4"}
    own |= {"eval__every": "0", "data__backend": "mmap", "train__keep_checkpoints": "3"}
    shards = letters(tmp_path / "data")
    _, whole, _ = run(zero_settings(shards, tmp_path, strategy, **own), pool=gloo)
    assert whole[-1]["train_loss"] < whole[0]["train_loss"]
    saved = checkpoint.open_tensors(locate(tmp_path / "r" / "checkpoints" / "step_00000008"))
    assert set(saved.kinds) == {"fast", "slow", "slower"}
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "r", again / "r")
    forget_after(again / "r", 4)
    _, rows, text = run(zero_settings(shards, again, strategy, **own), pool=gloo)
    assert "Going on from step 4" in text
    assert sequence(rows, "train_loss") == sequence(whole, "train_loss")
    other = checkpoint.open_tensors(locate(again / "r" / "checkpoints" / "step_00000008"))
    state = list(saved.state())
    assert len(state) == 3 * len(saved.names)
    assert all((other.whole(name, kind) == value).all() for name, kind, value in state)
    assert all((other.whole(name) == value).all() for name, value in saved.items())


def test_an_unknown_name_and_one_that_zero_cannot_cut_up_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"optim.name is 'adam': must be adamw \|"):
        check_name("adam")
    monkeypatch.setattr("raygpt.train.optim.registry.OPTIMIZERS", dict(OPTIMIZERS))
    register("whole", elementwise=False)(toy_optimizer.three_means)
    check_name("whole")
    with pytest.raises(UserError, match="optim.name=whole works on whole matrices.*set train.strategy=ddp"):
        check_name("whole", "zero2")
