"""Losses per document: every token exactly once, each document by itself, whatever shares a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raygpt.errors import UserError
from raygpt.evaluate.document_losses import document_losses
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.scoring.losses import batches
from tests.train.test_evaluation import BigramModel

LENGTHS = (1, 5, 16, 17, 50, 3, 0, 33)


@pytest.fixture
def documents() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 90, length).astype(np.uint16) for length in LENGTHS]


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_losses_equal_a_float64_loop_over_each_document(documents: list[np.ndarray], batch_tokens: int) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=100, seq_len=16, n_layer=2, n_head=2, n_embd=32, dropout=0.5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    found = document_losses(model.train(), documents, 99, 16, batch_tokens=batch_tokens)
    assert model.training, "the mode is put back"
    model.eval()
    for ids, surprisals in zip(documents, found.surprisals):
        expected = []
        stream = torch.tensor([99, *ids.tolist()])
        for start in range(0, len(ids), 16):
            row = stream[start : start + 17]
            with torch.no_grad():
                logits = model(row[None, :-1])[0].double()
            expected += [-float(line.log_softmax(-1)[target]) for line, target in zip(logits, row[1:])]
        assert surprisals == pytest.approx(expected, abs=1e-5)
    assert found.tokens.tolist() == list(LENGTHS)
    assert found.nats == pytest.approx([losses.sum() for losses in found.surprisals])


def test_every_token_is_predicted_once_from_the_one_before_it(documents: list[np.ndarray]) -> None:
    bigram = BigramModel(100)
    seen: list[tuple[int, int]] = []
    done: list[tuple[int, int]] = []
    document_losses(bigram, documents, 99, 16, batch_tokens=64, on_progress=lambda *now: done.append(now))
    for ids in documents:
        seen += list(zip([99, *ids.tolist()], ids.tolist()))
    assert sorted(bigram.seen) == sorted(seen)
    assert done[-1] == (sum(LENGTHS), sum(LENGTHS)) and len(done) > 1


def test_batches_hold_rows_of_about_one_length() -> None:
    lengths = [16] * 5 + [2] * 20 + [40]
    made = batches(range(len(lengths)), lambda row: lengths[row], 64)
    assert sorted(row for batch in made for row in batch) == list(range(26))
    assert all(len(batch) * max(lengths[row] for row in batch) <= 64 for batch in made)
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in made)
    assert padded < 1.3 * sum(lengths)


def test_ids_the_model_does_not_know_are_one_sentence() -> None:
    model = GPT(GPTConfig(vocab_size=50, seq_len=16, n_layer=1, n_head=1, n_embd=8))
    with pytest.raises(UserError, match="token 60 but the model knows only 50"):
        document_losses(model, [np.array([60])], 49, 16)
