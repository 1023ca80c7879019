"""A tiny base model and task: seconds per epoch, and learnable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raygpt.config import Config
from raygpt.config.settings import load_config
from tests.conftest import save_byte_model


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Hugging Face folder of a byte model of 2 layers, random weights."""
    return save_byte_model(tmp_path_factory.mktemp("base") / "tiny", seq_len=48, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder with train.csv (160 pairs) and validation.csv (60): label 1 where the second text ends in y."""
    folder = tmp_path_factory.mktemp("task")
    random = np.random.default_rng(0)
    for name, count in (("train", 160), ("validation", 60)):
        rows = ["sentence1,sentence2,label"]
        for _ in range(count):
            one, two = ("".join(random.choice(list("abcd"), 6)) for _ in range(2))
            label = int(random.random() < 0.5)
            rows.append(f"{one},{two[:-1]}{'y' if label else 'n'},{label}")
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return str(folder)


@pytest.fixture
def sweep_config(tiny_base: str, tiny_task: str, tmp_path: Path):
    """`sweep_config(**{"tune.trials": 4, ...}) -> Config` of a sweep over two learning rates and two batch sizes."""

    def make(changes: dict[str, Any] | None = None, check: bool = True) -> Config:
        import yaml

        from raygpt.jobs import find_jobs

        tree: dict[str, Any] = {
            "run": {"name": "sweep", "storage": str(tmp_path)},
            "model": {"init_from": tiny_base},
            "task": {"name": "ends", "train": tiny_task, "batch_size": 16},
            "optim": {"lr": 1e-5},
            "train": {"epochs": 3},
            "tune": {
                "space": {"optim.lr": {"choice": [1e-5, 3e-3]}, "task.batch_size": {"grid": [8, 16]}},
                "search": "grid",
                "scheduler": "none",
                "trials": 1,
                "top": 0,
                "seeds": 2,
                "resamples": 200,
            },
            "track": {"wandb": "off", "tensorboard": False},
        }
        for key, value in (changes or {}).items():
            section, name = key.split(".", 1)
            tree.setdefault(section, {})[name] = value
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump(tree))
        return load_config("tune", str(file), {}, {}, check=check, base=find_jobs()["tune"].base)

    return make
