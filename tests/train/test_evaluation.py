"""Evaluation: every token of the stream but the first is predicted exactly once, whatever the batch or the ranks."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from raygpt.data.reader import TokenReader
from raygpt.errors import UserError
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.train.evaluation import ArrayTokens, evaluate_tokens, rows_in_training


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=257, seq_len=16, n_layer=2, n_head=2, n_embd=32, dropout=0.5))
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.mul_(3)  # far from uniform, so that a wrong token costs something
    return gpt.train()


class BigramModel(nn.Module):
    """Loss of a token is table[token before, token]: what was predicted from what can be read off exactly."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = torch.rand(vocab_size, vocab_size, generator=generator)
        self.seen: list[tuple[int, int]] = []

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "none" and not self.training
        real = targets != -100
        self.seen += list(zip(tokens[real].tolist(), targets[real].tolist()))
        return torch.where(real, self.table[tokens, targets.clamp(min=0)], 0.0)


@pytest.mark.parametrize("total", [2, 17, 18, 33, 100])
def test_loss_equals_a_float64_loop_over_the_rows(model: GPT, total: int) -> None:
    tokens = np.random.default_rng(total).integers(0, 257, total)
    reference = copy.deepcopy(model).eval()
    losses = []
    for start in range(0, total - 1, 16):
        row = torch.from_numpy(tokens[start : start + 17])
        with torch.no_grad():
            logits = reference(row[None, :-1])[0].double()
        losses += [-logits[i].log_softmax(-1)[row[i + 1]].item() for i in range(len(row) - 1)]
    assert len(losses) == total - 1
    result = evaluate_tokens(reference, ArrayTokens(tokens), 16, 3)
    assert result.loss == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert (result.tokens, result.rows, result.bits_per_byte) == (total - 1, math.ceil((total - 1) / 16), None)


@pytest.mark.parametrize("batch_rows", [1, 4, 1000])
def test_every_neighbouring_pair_of_the_stream_is_scored_exactly_once(batch_rows: int) -> None:
    tokens = np.random.default_rng(0).integers(0, 100, 1003)
    bigram = BigramModel(100)
    result = evaluate_tokens(bigram, ArrayTokens(tokens), 10, batch_rows)
    assert sorted(bigram.seen) == sorted(zip(tokens[:-1].tolist(), tokens[1:].tolist()))
    expected = bigram.table[tokens[:-1], tokens[1:]].double().mean().item()
    assert result.loss == pytest.approx(expected, rel=1e-9)
    assert result.tokens == 1002


def test_shards_give_what_the_array_gives_and_bits_per_byte(model: GPT, make_shards: Callable[..., str]) -> None:
    tokens = np.frombuffer(b"The quick brown fox jumps over the lazy dog. " * 30, dtype=np.uint8).astype(np.uint16)
    tokens[-1] = 256
    reader = TokenReader(make_shards(tokens, shard_tokens=100))
    result = evaluate_tokens(model, reader, 16, 8)
    in_memory = evaluate_tokens(model, ArrayTokens(tokens), 16, 8)
    assert result.loss == pytest.approx(in_memory.loss, rel=1e-9)
    assert reader.manifest.bytes == len(tokens) - 1
    assert result.bits_per_byte == pytest.approx(result.loss * result.tokens / math.log(2) / (len(tokens) - 1))


def test_any_number_of_ranks_agrees_with_one(model: GPT) -> None:
    tokens = np.random.default_rng(3).integers(0, 257, 500)
    alone = evaluate_tokens(model, ArrayTokens(tokens), 16, 4)
    for world_size in (2, 3, 50):  # more ranks than rows: some have nothing to do
        results = run_ranks(model, tokens, world_size)
        assert all(result == results[0] for result in results)
        assert results[0].loss == pytest.approx(alone.loss, rel=1e-7)
        assert (results[0].tokens, results[0].rows) == (alone.tokens, alone.rows)


def run_ranks(model: GPT, tokens: np.ndarray, world_size: int) -> list:
    parts: list[list[float]] = [[] for _ in range(world_size)]
    for rank in range(world_size):  # first what each rank adds, then what each gets back

        def note(*values: float, rank: int = rank) -> list[float]:
            parts[rank] = list(values)
            return [values[0], max(values[1], 1.0)]

        evaluate_tokens(model, ArrayTokens(tokens), 16, 4, rank=rank, world_size=world_size, reduce=note)
    sums = [sum(column) for column in zip(*parts)]
    return [
        evaluate_tokens(
            model, ArrayTokens(tokens), 16, 4, rank=rank, world_size=world_size, reduce=lambda *values: list(sums)
        )
        for rank in range(world_size)
    ]


def test_fewer_rows_are_evenly_spaced_and_give_no_bits_per_byte(make_shards: Callable[..., str]) -> None:
    bigram = BigramModel(257)
    reader = TokenReader(make_shards(np.arange(1001) % 250))
    result = evaluate_tokens(bigram, reader, 10, 4, max_rows=5)
    assert (result.rows, result.tokens, result.bits_per_byte) == (5, 50, None)
    firsts = [bigram.seen[i][0] for i in range(0, 50, 10)]
    assert firsts == [0, 200, 400 % 250, 600 % 250, 800 % 250]
    assert evaluate_tokens(bigram, reader, 10, 4, max_rows=100).bits_per_byte is not None, "100 rows are all there are"


def test_evaluation_leaves_mode_and_random_numbers_as_they_were(model: GPT) -> None:
    model.train()
    before = torch.get_rng_state()
    first = evaluate_tokens(model, ArrayTokens(np.arange(100)), 16, 4)
    assert evaluate_tokens(model, ArrayTokens(np.arange(100)), 16, 4) == first, "dropout was on"
    assert model.training and torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_mode_is_restored_when_reading_fails(model: GPT) -> None:
    class Broken(ArrayTokens):
        def read_rows(self, starts: np.ndarray, length: int) -> np.ndarray:
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        evaluate_tokens(model.train(), Broken(np.arange(100)), 16, 4)
    assert model.training


def test_the_next_batch_is_read_while_this_one_is_computed() -> None:
    class Watched(ArrayTokens):
        readers: ClassVar[set[str]] = set()

        def read_rows(self, starts: np.ndarray, length: int) -> np.ndarray:
            self.readers.add(threading.current_thread().name)
            return super().read_rows(starts, length)

    evaluate_tokens(BigramModel(100), Watched(np.arange(100)), 10, 2)
    assert threading.current_thread().name not in Watched.readers


def test_bf16_autocast_is_close_to_fp32(model: GPT) -> None:
    tokens = ArrayTokens(np.random.default_rng(4).integers(0, 257, 400))
    exact = evaluate_tokens(model, tokens, 16, 8).loss
    rough = evaluate_tokens(model, tokens, 16, 8, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16)).loss
    assert rough != exact and rough == pytest.approx(exact, rel=0.02)


def test_too_little_data_or_another_vocabulary_is_one_sentence(model: GPT, make_shards: Callable[..., str]) -> None:
    with pytest.raises(UserError, match=r"1 tokens, too few to predict one.*data\.val"):
        evaluate_tokens(model, ArrayTokens(np.array([1])), 16, 4)
    small = GPT(GPTConfig(vocab_size=100, seq_len=16, n_layer=1, n_head=1, n_embd=8))
    with pytest.raises(UserError, match=r"prepared with bytes \(257 tokens\) but the model knows 100.*data\.val"):
        evaluate_tokens(small, TokenReader(make_shards(200)), 16, 4)


def test_an_evaluation_in_training_costs_a_thirtieth_of_it_and_a_small_text_is_read_whole() -> None:
    # the defaults: 250 steps of 524,288 tokens between two, 13.1 million validation tokens
    rows = rows_in_training(None, seq_len=1024, batch_rows=512, steps_between=250)
    assert rows * 1024 == 0.1 * 250 * 524_288
    # short runs and small batches: a million tokens all the same, so that the figure is worth something
    assert rows_in_training(None, seq_len=1000, batch_rows=16, steps_between=10) == math.ceil(2**20 / 1000)
    assert rows_in_training(20, seq_len=1024, batch_rows=512, steps_between=250) == 20 * 512, "as eval.batches says"


def test_every_evaluation_of_a_run_takes_the_same_rows(model: GPT) -> None:
    tokens = ArrayTokens(np.random.default_rng(5).integers(0, 257, 3000))
    found = {evaluate_tokens(model, tokens, 16, batch, max_rows=20).loss for batch in (4, 4, 4)}
    assert len(found) == 1
    bigram = BigramModel(257)
    for batch in (3, 20):  # another micro-batch, as after a resume, takes the same tokens
        evaluate_tokens(bigram, tokens, 16, batch, max_rows=20)
    assert sorted(bigram.seen[:320]) == sorted(bigram.seen[320:]) and len(bigram.seen) == 640


def test_batch_size_changes_no_loss(model: GPT) -> None:
    tokens = ArrayTokens(np.random.default_rng(6).integers(0, 257, 700))  # a ragged last row and a ragged last batch
    one, many = (evaluate_tokens(model, tokens, 16, batch) for batch in (1, 32))
    assert one.loss == pytest.approx(many.loss, abs=1e-4) and one.tokens == many.tokens == 699
