"""A classifier's logits hang on the row alone: not on what shares its batch, nor on how far it is padded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raygpt.classify import predict as module
from raygpt.classify.classifier import Classifier, with_pad
from raygpt.classify.predict import predict
from raygpt.classify.tasks import Encoded
from raygpt.model.gpt import GPT, GPTConfig

LENGTHS = (1, 3, 40, 7, 7, 2, 25, 12)


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    base = GPT(GPTConfig(vocab_size=257, seq_len=96, n_layer=2, n_head=2, n_embd=32, dropout=0.5))
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(3)
    return Classifier(with_pad(base), 3)


def part(pairs: bool) -> Encoded:
    draw = np.random.default_rng(0)
    first, second = ([draw.integers(0, 256, length) for length in LENGTHS] for _ in range(2))
    return Encoded(first, second if pairs else None, np.zeros(len(LENGTHS), np.int64))


def by_hand(model: Classifier, one: np.ndarray, other: np.ndarray | None) -> np.ndarray:
    """Float64 logits of one row alone: an end of text behind each of its texts."""
    alone = model.double().eval()
    row = np.concatenate([one, [256]] if other is None else [one, [256], other, [256]])
    with torch.no_grad():
        hidden = alone.trunk.hidden(torch.from_numpy(row)[None])
        logits = alone.score(hidden[0, -1]).numpy()
    model.float()
    return logits


@pytest.mark.parametrize("pairs", [False, True])
def test_logits_are_those_of_each_row_by_itself_in_batches_of_any_size(
    model: Classifier, pairs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = part(pairs)
    expected = [
        by_hand(model, one, other) for one, other in zip(data.first, data.second or [None] * len(LENGTHS), strict=True)
    ]
    if pairs:
        turned = [by_hand(model, other, one) for one, other in zip(data.first, data.second or [], strict=True)]
        expected = [(one + other) / 2 for one, other in zip(expected, turned)]
    model.train()
    for batch_tokens in (1, 100, 10_000):  # a row at a time, some, all
        monkeypatch.setattr(module, "BATCH_TOKENS", batch_tokens)
        found = predict(model, data, eot_id=256, max_tokens=96, swap=True)
        assert found.dtype == np.float32 and found == pytest.approx(np.stack(expected), abs=1e-4)
    assert model.training, "the mode is put back"
