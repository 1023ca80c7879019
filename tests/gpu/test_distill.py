"""Distillation on a GPU: bf16 and compiled close to float64, memory bounded by a piece of logits, nobody waited for."""

from __future__ import annotations

import copy

import pytest
import torch

from raygpt.distill.objective import PIECE_TOKENS, Blend, Distillation
from raygpt.distill.teacher_states import OnlineTeacher
from raygpt.distill.transport import Transport
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.parallel.distributed import World
from raygpt.train.replica import Replica

VOCAB, SEQ_LEN, ROWS = 50257, 256, 32


def model(seed: int, width: int) -> GPT:
    torch.manual_seed(seed)
    made = GPT(GPTConfig(VOCAB, SEQ_LEN, n_layer=2, n_head=4, n_embd=width))
    with torch.no_grad():
        made.wte.weight[:VOCAB] += 0.1 * torch.randn(VOCAB, width)
    return made


def objective(teacher: GPT, device: torch.device, **transport: object) -> Distillation:
    settings = Transport(**{"kind": "hidden", "width": teacher.config.n_embd, "vocab_size": VOCAB, **transport})  # type: ignore[arg-type]
    online = OnlineTeacher(copy.deepcopy(teacher), settings, torch.bfloat16, device)
    return Distillation(Blend(settings), output=online.output, teacher=online)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["hidden", "topk", "sampled"])
def test_a_step_in_bf16_is_the_blend_of_all_logits_in_float64(kind: str, compiled: bool) -> None:
    device = torch.device("cuda", 0)
    teacher, student = model(0, 256), model(1, 128)
    rows = torch.randint(0, VOCAB, (ROWS, SEQ_LEN + 1))
    loss = objective(teacher, device, kind=kind, top_k=64)
    replica = Replica(
        copy.deepcopy(student),
        World(0, 1, device),
        precision="bf16",
        micro_batch_size=ROWS // 2,
        local_rows=ROWS,
        seq_len=SEQ_LEN,
        lr=1e-3,
        weight_decay=0.0,
        betas=(0.9, 0.95),
        compile=compiled,
        objective=loss,
    )
    loss.figures()
    result = replica.step({"rows": rows.to(device)}, 1e-3)
    assert 0 < loss.figures()["teacher_seconds"] < 10
    few = rows[:2, :-1]
    with torch.no_grad():
        y = torch.log_softmax(teacher.double()(few), 2)
        z = torch.log_softmax(student.double()(few), 2)
    apart = float((y.exp() * (y - z)).sum(2).mean())
    if kind == "hidden":  # rows are alike: two of them tell the mean to some percent
        assert float(result.parts["kd_loss"]) == pytest.approx(apart, rel=0.1)
    assert torch.isfinite(result.loss) and torch.isfinite(result.grad_norm)


def test_memory_is_that_of_a_piece_of_logits() -> None:
    device = torch.device("cuda", 0)
    student, loss = model(1, 128).to(device), objective(model(0, 256), device)
    rows = torch.randint(0, VOCAB, (128, SEQ_LEN + 1), device=device)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.autocast("cuda", torch.bfloat16):
        total, _ = loss(student, {"rows": rows})
    total.backward()
    all_logits = 4 * 128 * SEQ_LEN * VOCAB
    assert torch.cuda.max_memory_allocated() - before < all_logits / 2 and PIECE_TOKENS * 8 < 128 * SEQ_LEN
