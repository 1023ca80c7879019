"""Probabilities and ranks of stretches, against logits of transformers' GPT2LMHeadModel with the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raygpt.data.tokenizer import load_tokenizer
from raygpt.evaluate.probes import Stretch, probe
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.model.huggingface import export_huggingface


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, torch.nn.Module]:
    """(ours, theirs) with equal weights, far from uniform."""
    from transformers import GPT2LMHeadModel

    torch.manual_seed(1)
    ours = GPT(GPTConfig(vocab_size=257, seq_len=24, n_layer=2, n_head=2, n_embd=32)).eval()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter[: 257 if name == "wte.weight" else None].mul_(6)
    folder: Path = tmp_path_factory.mktemp("hf") / "model"
    export_huggingface(ours, folder, tokenizer_json=load_tokenizer("bytes").to_json(), eot_id=256)
    return ours, GPT2LMHeadModel.from_pretrained(folder).eval()


def by_hand(theirs: torch.nn.Module, ids: np.ndarray, stretch: Stretch) -> tuple[float, int]:
    """Token by token, each from the last 24 tokens before the stretch's end at most."""
    stream = [256, *ids.tolist()]
    first, last = stretch.first + 1, stretch.last + 1
    begin = max(0, last - 24)
    with torch.no_grad():
        logits = theirs(torch.tensor([stream[begin:last]])).logits[0].double()
    log_probability = sum(float(logits[at - 1 - begin].log_softmax(-1)[stream[at]]) for at in range(first, last + 1))
    ranked = logits[first - 1 - begin].argsort(descending=True).tolist()
    return log_probability, ranked.index(stream[first]) + 1


def test_probability_and_rank_are_those_of_the_reference(models: tuple[GPT, torch.nn.Module]) -> None:
    ours, theirs = models
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, 257, length) for length in (10, 24, 70)]
    stretches = [
        Stretch(0, 0, 0),  # from the end of text alone
        Stretch(0, 3, 6),
        Stretch(0, 9, 9),
        Stretch(1, 20, 23),  # the last that the first row holds
        Stretch(2, 2, 5),
        Stretch(2, 22, 25),  # across the end of the first row
        Stretch(2, 60, 69),
        Stretch(2, 40, 63),  # as long as the context
    ]
    for batch_tokens in (1, 60, 10_000):
        found = probe(ours, documents, stretches, 256, 24, batch_tokens=batch_tokens)
        for number, stretch in enumerate(stretches):
            log_probability, rank = by_hand(theirs, documents[stretch.document], stretch)
            assert found.log_probability[number] == pytest.approx(log_probability, abs=2e-4), stretch
            assert found.rank[number] == rank, stretch


def test_no_stretches_are_no_work_and_too_long_ones_are_refused(models: tuple[GPT, torch.nn.Module]) -> None:
    ours, _ = models
    assert len(probe(ours, [], [], 256, 24).rank) == 0
    with pytest.raises(ValueError, match="25 tokens is longer than 24"):
        probe(ours, [np.zeros(40, int)], [Stretch(0, 1, 25)], 256, 24)
