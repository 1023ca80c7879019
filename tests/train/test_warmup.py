"""Before the first step: a micro-batch that fits, and one compiled graph for everything that training does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from torch._dynamo.utils import counters

from raygpt.errors import UserError
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.parallel.distributed import World
from raygpt.train import replica
from raygpt.train.evaluation import ArrayTokens, evaluate_tokens
from raygpt.train.precision import Precision
from raygpt.train.replica import Replica
from raygpt.train.warmup import find_micro_batch

CPU = torch.device("cpu")
CONFIG = GPTConfig(vocab_size=50, seq_len=8, n_layer=3, n_head=2, n_embd=16)


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def trainer(**changes: Any) -> Replica:
    torch.manual_seed(0)
    options: dict[str, Any] = {"precision": "fp32", "micro_batch_size": 2, "local_rows": 8, "seq_len": 8, "lr": 1e-2}
    options |= {"weight_decay": 0.1, "betas": (0.9, 0.95), "backend": "aot_eager"}
    return Replica(GPT(CONFIG), World.join(CPU), **{**options, **changes})


def rows(seed: int) -> torch.Tensor:
    return torch.randint(0, 50, (8, 9), generator=torch.Generator().manual_seed(seed))


def find(limit: int, tried: list[int] | None = None, **changes: Any) -> int:
    """find_micro_batch where `limit` rows fit, with the model's own passes of every size."""
    model, precision = changes.pop("model", None) or GPT(CONFIG), Precision("fp32", CPU)

    def fits(size: int) -> bool:
        if tried is not None:
            tried.append(size)
        batch = torch.zeros((size, 9), dtype=torch.int64)
        model(batch[:, :-1], batch[:, 1:]).backward()
        return size <= limit

    return find_micro_batch(model, precision, World.join(CPU), "auto", local_rows=24, seq_len=8, fits=fits, **changes)


def test_the_largest_divisor_that_fits_is_taken() -> None:
    assert [find(limit) for limit in (100, 23, 7, 1)] == [24, 12, 6, 1]


def test_the_size_of_a_checkpoint_is_kept_where_it_fits_and_tried_again_where_it_does_not() -> None:
    tried: list[int] = []
    assert find(24, tried, previous=6) == 6 and tried == [6]
    tried.clear()
    assert find(4, tried, previous=6) == 4 and tried[0] == 6
    assert find(24, previous=5) == 24, "it does not divide the rows"


def test_where_one_row_does_not_fit_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Pretend GPU")
    with pytest.raises(UserError, match=r"micro_batch_size=1 does not fit the memory of Pretend GPU.*checkpointing"):
        find(0)


@pytest.mark.parametrize("loss_tokens", [0, 5])
def test_one_graph_serves_the_search_training_and_evaluation(monkeypatch: pytest.MonkeyPatch, loss_tokens: int) -> None:
    def search(model: GPT, *_: Any, **__: Any) -> int:
        return find(4, model=model)

    monkeypatch.setattr(replica, "find_micro_batch", search)  # the real one, of which a CPU would try no size
    ours = trainer(compile=True, micro_batch_size="auto", loss_tokens=loss_tokens)
    monkeypatch.undo()
    plain = trainer(micro_batch_size=4, loss_tokens=loss_tokens)
    assert ours.micro_batch_size == 4
    for step in range(3):
        mine, theirs = ours.step(rows(step), 1e-2), plain.step(rows(step), 1e-2)
        assert mine.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
        stream = ArrayTokens(np.arange(8 * 11 + 3) % 50)  # the last batch is smaller and its last row is cut off
        for batch_rows in (8, 3):
            evaluate_tokens(ours.model, stream, 8, batch_rows)
    assert counters["stats"]["unique_graphs"] == 1, "nothing was compiled again"
    assert not counters["graph_break"]
    assert all(not isinstance(size, torch.SymInt) for size in ours.model.wte.weight.shape)


def test_under_ddp_each_block_and_the_loss_have_a_graph_of_their_own() -> None:
    plain = trainer(micro_batch_size=4)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        ours = trainer(compile=True, micro_batch_size=4, always_wrap=True, loss_tokens=5)
        for step in range(3):
            mine, theirs = ours.step(rows(step), 1e-2), plain.step(rows(step), 1e-2)
            assert mine.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
            assert mine.grad_norm.item() == pytest.approx(theirs.grad_norm.item(), rel=1e-4)
    finally:
        dist.destroy_process_group()
    assert counters["stats"]["unique_graphs"] == 2, "all three blocks share one"
    assert not counters["graph_break"]
