"""What the order and the compiler must not change: how well a model learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raygpt.data.order import Order
from raygpt.data.reader import TokenReader
from raygpt.data.shards import ShardWriter
from raygpt.data.stream import Source, batches, mapped_blocks
from raygpt.data.tokenizer import load_tokenizer
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.train.evaluation import ArrayTokens, evaluate_tokens
from raygpt.train.optim import make_optimizer
from raygpt.train.precision import Precision
from raygpt.train.schedule import Schedule
from raygpt.train.step import TrainStep
from tests.train.gloo_pool import GlooPool
from tests.train.running import POOLED, run, sequence, settings

CPU = torch.device("cpu")
STEPS = 500

pytestmark = pytest.mark.timeout(600)


class Single(Order):
    """A full shuffle: every row a run of its own."""

    @property
    def run_rows(self) -> int:
        return 1


class Runs(Order):
    """Runs of a length that a corpus of this size would not get by itself."""

    @property
    def run_rows(self) -> int:
        return 16


def learn(order: Order, train: str, val: np.ndarray, seed: int) -> float:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=257, seq_len=32, n_layer=2, n_head=2, n_embd=64))
    optimizer = make_optimizer("adamw", model, lr=2e-3, weight_decay=0.1, betas=(0.9, 0.99))
    step = TrainStep(model, optimizer, Precision("fp32", CPU), micro_batch_size=order.global_batch_rows, grad_clip=1.0)
    schedule = Schedule("cosine", 2e-3, STEPS, 50)
    source = Source(TokenReader(train).layout, order, 0, 1)
    for batch in batches(source, mapped_blocks(source, 0, STEPS), 0, STEPS):
        step(torch.from_numpy(batch.tokens.astype(np.int64)), schedule.lr(batch.step))
    return evaluate_tokens(model, ArrayTokens(val), 32, 64).loss


@pytest.mark.parametrize(
    "seeds", [pytest.param((1, 2), id="two-seeds"), pytest.param((1, 2, 3), id="three-seeds", marks=pytest.mark.long)]
)
def test_runs_of_neighbouring_rows_learn_as_well_as_a_full_shuffle(
    shared_data: Path, tmp_path: Path, seeds: tuple[int, ...]
) -> None:
    tokens = load_tokenizer("bytes").encode((shared_data / "shakespeare" / "input.txt").read_text())
    cut = int(0.9 * len(tokens))
    tokenizer = load_tokenizer("bytes")
    writer = ShardWriter(str(tmp_path), "uint16")
    writer.append(tokens[:cut])
    manifest = writer.finish(tokenizer.info, tokenizer.to_json(), 1, cut, ["input.txt"])
    shuffled, in_runs = [], []
    for seed in seeds:
        options = dict(
            seed=seed, seq_len=32, global_batch_rows=24, total_tokens=TokenReader(str(tmp_path)).total_tokens
        )
        shuffled.append(learn(Single(manifest.fingerprint, **options), str(tmp_path), tokens[cut:], seed))
        in_runs.append(learn(Runs(manifest.fingerprint, **options), str(tmp_path), tokens[cut:], seed))
    spread = max(np.std(shuffled, ddof=1), 0.005)
    assert np.mean(in_runs) - np.mean(shuffled) < 2 * spread, (shuffled, in_runs)


def test_compiled_training_on_two_workers_follows_the_uncompiled_one(gloo: GlooPool, tmp_path: Path) -> None:

    tokenizer = load_tokenizer("bytes")
    writer = ShardWriter(str(tmp_path / "shards"), "uint16")
    writer.append(np.random.default_rng(0).integers(97, 123, 5000).astype("<u2"))
    writer.finish(tokenizer.info, tokenizer.to_json(), 1, 5000, ["memory"])
    more = {"scale__num_workers": "2", "model__dropout": "0", "train__max_steps": "8", "model__n_layer": "1"}
    more |= {**POOLED, "train__micro_batch_size": "8", "optim__lr": "1e-3"}
    _, plain, _ = run(settings(str(tmp_path / "shards"), tmp_path / "plain", **more), pool=gloo)
    config = settings(str(tmp_path / "shards"), tmp_path / "compiled", train__compile="true", **more)
    _, compiled, _ = run(config, pool=gloo)
    for step, loss in sequence(plain, "train_loss").items():
        assert sequence(compiled, "train_loss")[step] == pytest.approx(loss, abs=1e-3)
