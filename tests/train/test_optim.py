"""Decay groups and optimizer state by name."""

from __future__ import annotations

import torch

from raygpt.model.gpt import GPT, GPTConfig
from raygpt.parallel.optimizer_state import load_optimizer_tensors, optimizer_tensors
from raygpt.train.optim import make_optimizer


def build(seed: int = 0) -> tuple[GPT, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=40, seq_len=8, n_layer=2, n_head=2, n_embd=16))
    return model, make_optimizer("adamw", model, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95))


def step(model: GPT, optimizer: torch.optim.Optimizer, seed: int) -> None:
    tokens = torch.randint(0, 40, (4, 9), generator=torch.Generator().manual_seed(seed))
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_matrices_decay_and_vectors_do_not_and_nothing_is_left_out() -> None:
    model, optimizer = build()
    decayed, free = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0.0
    assert all(parameter.dim() >= 2 for parameter in decayed["params"])
    assert all(parameter.dim() == 1 for parameter in free["params"])
    named = {name for name, _ in model.named_parameters()}
    assert {*decayed["names"], *free["names"]} == named
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == sum(
        p.numel() for p in model.parameters()
    )


def test_a_step_is_the_textbook_adamw() -> None:
    model, optimizer = build()
    reference, _ = build()
    plain = torch.optim.AdamW(
        [
            {"params": [p for p in reference.parameters() if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in reference.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(0.9, 0.95),
        foreach=False,
    )
    for seed in range(3):
        step(model, optimizer, seed)
        step(reference, plain, seed)
    for left, right in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)  # key biases have no gradient but noise


def test_state_saved_by_name_continues_bit_for_bit() -> None:
    model, optimizer = build()
    for seed in range(3):
        step(model, optimizer, seed)
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    other, fresh = build(seed=9)
    other.load_state_dict(model.state_dict())
    load_optimizer_tensors(fresh, saved)
    step(model, optimizer, 7)
    step(other, fresh, 7)
    assert all(torch.equal(left, right) for left, right in zip(model.parameters(), other.parameters()))
