from __future__ import annotations

import numpy as np
import pytest
import torch

from raygpt.track.record import METRICS, make_record

CONTRACT = [
    "step",
    "tokens",
    "train_loss",
    "val_loss",
    "lr",
    "grad_norm",
    "tokens_per_second",
    "mfu",
    "step_seconds",
    "data_wait_seconds",
    "checkpoint_stall_seconds",
    "eta_seconds",
    "cost_usd",
    "gpu_memory_bytes",
    "loss_scale",
    "world_size",
    "batch_digest",
]


def test_the_record_has_every_metric_of_the_contract() -> None:
    assert list(METRICS)[: len(CONTRACT)] == CONTRACT


def test_an_unknown_figure_is_absent_rather_than_none() -> None:
    assert make_record(step=3, train_loss=1.5, mfu=None) == {"step": 3, "train_loss": 1.5}


def test_the_order_of_the_keys_does_not_depend_on_the_caller() -> None:
    assert list(make_record(lr=1.0, train_loss=2.0, step=1)) == ["step", "train_loss", "lr"]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(TypeError, match="trian_loss"):
        make_record(step=1, trian_loss=2.0)


def test_a_record_without_a_step_is_refused() -> None:
    with pytest.raises(TypeError, match="step"):
        make_record(train_loss=2.0)


def test_tensor_and_numpy_scalars_become_the_same_python_numbers() -> None:
    loss = torch.tensor(0.1, dtype=torch.float32)
    record = make_record(step=np.int64(7), train_loss=loss, lr=np.float64(1e-3), world_size=2.0)
    assert record == {"step": 7, "train_loss": float(np.float32(0.1)), "lr": 1e-3, "world_size": 2}
    assert {name: type(value) for name, value in record.items()} == {
        "step": int,
        "train_loss": float,
        "lr": float,
        "world_size": int,
    }
