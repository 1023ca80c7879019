"""An objective that nothing in the package knows is one file (toy_objective.py), and trains whatever the splitting."""

from __future__ import annotations

import copy

import pytest
import torch

from raygpt.model.gpt import GPT, GPTConfig
from raygpt.train.objective import OBJECTIVES, Batch, make_objective
from raygpt.train.precision import Precision
from raygpt.train.step import TrainStep
from tests.train.toy_objective import ZLoss

CONFIG = GPTConfig(vocab_size=30, seq_len=6, n_layer=1, n_head=2, n_embd=8)
STRENGTH, LR, STEPS = 0.1, 0.5, 3


def batch(step: int) -> Batch:
    """8 rows; the first three count for nothing, so a micro-batch of 3 has nothing to learn."""
    draw = torch.Generator().manual_seed(step)
    worth = torch.tensor([0, 0, 0, 1, 2, 3, 1, 5])
    return {"rows": torch.randint(0, CONFIG.vocab_size, (8, CONFIG.seq_len + 1), generator=draw), "worth": worth}


def by_hand(model: GPT) -> list[float]:
    """Trains by plain gradient descent in float64, one token after the other; returns the losses."""
    model.double()
    seen = []
    for step in range(STEPS):
        rows, worth = batch(step)["rows"], batch(step)["worth"]
        total, count = torch.zeros((), dtype=torch.float64), 0
        for row, times in zip(rows, worth.tolist()):
            logits = model(row[None, :-1])[0]
            for position in range(CONFIG.seq_len):
                log_z = logits[position].exp().sum().log()
                total = total + times * (log_z - logits[position, row[position + 1]] + STRENGTH * log_z * log_z)
                count += times
        model.zero_grad()
        (total / count).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= LR * parameter.grad
        seen.append(float(total.detach()) / count)
    return seen


@pytest.mark.parametrize("micro", [3, 8])
def test_it_trains_as_a_plain_loop_in_float64_does(micro: int) -> None:
    assert OBJECTIVES["toy_z_loss"] is ZLoss
    torch.manual_seed(0)
    model = GPT(CONFIG)
    reference = copy.deepcopy(model)
    step = TrainStep(
        model,
        torch.optim.SGD(model.parameters(), lr=LR),
        Precision("fp32", torch.device("cpu")),
        micro_batch_size=micro,
        objective=make_objective("toy_z_loss", strength=STRENGTH),
    )
    losses = [float(step(batch(number), LR).loss) for number in range(STEPS)]
    assert losses == pytest.approx(by_hand(reference), rel=1e-5)
    assert losses[-1] < losses[0]
    for got, want in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)
