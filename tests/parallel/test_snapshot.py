"""What a checkpoint of DDP copies from the device: every trained tensor once, no counters, and a restore goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from raygpt.model.gpt import GPT, GPTConfig
from raygpt.parallel.distributed import World
from raygpt.train.replica import Replica

CONFIG = GPTConfig(vocab_size=50, seq_len=8, n_layer=2, n_head=2, n_embd=16)


def trainer(seed: int, **changes: Any) -> Replica:
    torch.manual_seed(seed)
    options: dict[str, Any] = {"precision": "fp32", "micro_batch_size": 2, "local_rows": 4, "seq_len": 8, "lr": 1e-2}
    options |= {"weight_decay": 0.1, "betas": (0.9, 0.95)}
    return Replica(GPT(CONFIG), World.join(torch.device("cpu")), **{**options, **changes})


def rows(seed: int) -> torch.Tensor:
    return torch.randint(0, 50, (4, 9), generator=torch.Generator().manual_seed(seed))


def contents(files: dict[str, Any], name: str) -> dict[str, torch.Tensor]:
    return dict(zip([spec.name for spec in files[name].specs], files[name].values(), strict=True))


def test_three_copies_for_each_parameter_and_none_of_a_counter() -> None:
    ours = trainer(0)
    ours.step(rows(0), 1e-2)
    files = ours.tensor_files()
    count = len(list(ours.model.parameters()))
    assert len(ours.parallel._buffers._buffers) == 3 * count
    assert all(buffer.dim() > 0 for buffer in ours.parallel._buffers._buffers.values())
    weights, moments = contents(files, "model.safetensors"), contents(files, "optimizer.safetensors")
    assert set(weights) == {name for name, _ in ours.model.named_parameters()}
    assert set(moments) == {f"{name}.{kind}" for name in weights for kind in ("exp_avg", "exp_avg_sq")}
    for name, parameter in ours.model.named_parameters():
        assert torch.equal(weights[name], parameter) and weights[name].data_ptr() != parameter.data_ptr()
        assert torch.equal(moments[f"{name}.exp_avg"], ours.optimizer.state[parameter]["exp_avg"])
    place = weights["wpe.weight"].data_ptr()
    ours.step(rows(1), 1e-2)
    again = contents(ours.tensor_files(), "model.safetensors")
    assert again["wpe.weight"].data_ptr() == place, "the buffers are used again"
    assert torch.equal(again["wpe.weight"], ours.model.wpe.weight)


def test_a_trainer_restored_from_the_copies_goes_on_bit_for_bit() -> None:
    ours, other = trainer(0), trainer(9)
    for seed in range(3):
        ours.step(rows(seed), 1e-2)
    files = ours.tensor_files()
    moments = contents(files, "optimizer.safetensors")
    other.model.load_state_dict(contents(files, "model.safetensors"), strict=False)
    state = ((*key.rpartition(".")[::2], value.clone()) for key, value in moments.items())
    other.restore(state, SimpleNamespace(optimizer_steps=3, scaler={}))  # type: ignore[arg-type]
    for each in (ours, other):
        each.step(rows(7), 1e-2)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours.model.parameters(), other.model.parameters()))
