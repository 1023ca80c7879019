"""What a rank draws, dropout above all, after a start with another number of workers: nothing that was drawn before."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from raygpt.parallel import checkpoint
from raygpt.parallel.rng import rank_seed
from raygpt.storage import locate
from tests.train.gloo_pool import GlooPool
from tests.train.running import letters, run, settings


def mask(seed: int) -> tuple[bool, ...]:
    torch.manual_seed(seed)
    return tuple((F.dropout(torch.ones(64), 0.5) > 0).tolist())


def test_every_seed_rank_and_step_has_a_dropout_mask_of_its_own() -> None:
    with torch.random.fork_rng():
        masks = [mask(rank_seed(seed, rank, step)) for seed in (0, 1) for rank in range(8) for step in (0, 1, 2, 5000)]
        assert len(set(masks)) == len(masks)
        assert mask(rank_seed(1, 2, 3)) == mask(rank_seed(1, 2, 3))
    assert 0 <= rank_seed(2**31, 4095, 10**7) < 2**63


def seed_of(folder: Path, step: int, rank: int) -> int:
    """What the generator of a checkpoint was seeded with."""
    saved = checkpoint.read_rank(locate(folder / "r" / "checkpoints" / checkpoint.folder_name(step)), rank)
    assert saved is not None
    generator = torch.Generator()
    generator.set_state(saved["rng"]["torch"])
    return generator.initial_seed()


def test_a_run_that_goes_on_with_more_workers_starts_new_streams(gloo: GlooPool, tmp_path: Path) -> None:
    shards = letters(tmp_path / "data")
    own = {"data__backend": "mmap", "train__micro_batch_size": "16", "eval__every": "0", "train__keep_checkpoints": "9"}
    own |= {"optim__schedule": "constant", "train__checkpoint_every": "2", "model__n_layer": "1"}
    for workers, steps in (("1", "2"), ("2", "4")):
        run(settings(shards, tmp_path, scale__num_workers=workers, train__max_steps=steps, **own), pool=gloo)
    assert len({seed_of(tmp_path, 2, 0), seed_of(tmp_path, 4, 0), seed_of(tmp_path, 4, 1)}) == 3
