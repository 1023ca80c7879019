"""One optimizer step: one label shift, one gradient for every way of splitting a batch, honest loss scaling."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raygpt.model.gpt import GPT, GPTConfig
from raygpt.parallel.distributed import World, parallel
from raygpt.train.optim import make_optimizer
from raygpt.train.precision import Precision
from raygpt.train.step import TrainStep

CPU = torch.device("cpu")
CONFIG = GPTConfig(vocab_size=50, seq_len=12, n_layer=2, n_head=2, n_embd=16)


def rows(seed: int = 0, count: int = 8) -> torch.Tensor:
    return torch.randint(0, 50, (count, CONFIG.seq_len + 1), generator=torch.Generator().manual_seed(seed))


def build(micro: int, precision: str = "fp32", lr: float = 1e-2, world: World | None = None) -> tuple[GPT, TrainStep]:
    torch.manual_seed(3)
    model = GPT(CONFIG)
    optimizer = make_optimizer("adamw", model, lr=lr, weight_decay=0.1, betas=(0.9, 0.95))
    wrapped = parallel(model, world) if world else model
    return model, TrainStep(wrapped, optimizer, Precision(precision, CPU), micro_batch_size=micro, grad_clip=1.0)


def gradients(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_labels_are_shifted_exactly_once() -> None:
    """Fault 1: the loss at position t is that of token t + 1 given tokens up to t, by a float64 reference."""
    model, step = build(8)
    batch = rows()
    got = step.backward(batch)
    logits = model.double()(batch[:, :-1])
    want = 0.0
    for b in range(batch.size(0)):
        for t in range(CONFIG.seq_len):
            want -= float(torch.log_softmax(logits[b, t], dim=-1)[batch[b, t + 1]])
    assert float(got) == pytest.approx(want / (batch.size(0) * CONFIG.seq_len), rel=1e-6)


def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    reference = None
    for micro in (8, 4, 2, 1):
        model, step = build(micro)
        step.backward(rows())
        got = gradients(model)
        reference = got if reference is None else reference
        torch.testing.assert_close(got, reference, rtol=1e-5, atol=1e-7)


def _rank(rank: int, world_size: int, port: int, precision: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    world = World.join(CPU)
    model, step = build(8 // world_size // (4 // world_size), precision, world=world)
    local = rows().chunk(world_size)[rank]
    scales = []
    if precision == "fp16":
        step.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # overflows on purpose
        if rank == 1:
            local = local.flip(0)
    step.backward(local)
    grads = gradients(model)
    for parameter in model.parameters():
        parameter.grad = None
    for k in range(3):
        result = step(rows(k).chunk(world_size)[rank], 1e-2)
        scales.append((step.precision.scaler.get_scale() if precision == "fp16" else 1.0, result.skipped))
    torch.save(
        {"grads": grads, "weights": [p.detach() for p in model.parameters()], "scales": scales}, f"{out}/{rank}.pt"
    )
    dist.destroy_process_group()


def run_ranks(world_size: int, folder: Path, precision: str = "fp32") -> list[dict]:
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # forked from one process that has imported torch, which takes each of them seconds of a core
    mp.get_context("forkserver").set_forkserver_preload([__name__])
    arguments = (world_size, port, precision, str(folder))
    mp.start_processes(_rank, arguments, nprocs=world_size, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def test_one_by_four_two_by_two_and_four_by_one_give_one_gradient(tmp_path: Path) -> None:
    """Fault 5: accumulation on one worker equals the same batch on more workers."""
    model, step = build(2)
    step.backward(rows())
    want = gradients(model)
    for world_size in (2, 4):
        for result in run_ranks(world_size, tmp_path / str(world_size)):
            torch.testing.assert_close(result["grads"], want, rtol=1e-5, atol=1e-7)


def test_an_overflow_on_any_rank_skips_the_step_on_all_and_keeps_the_scale_equal(tmp_path: Path) -> None:
    first, second = run_ranks(2, tmp_path / "fp16", "fp16")
    assert first["scales"] == second["scales"]
    assert first["scales"][0][1], "a scale of 2^40 must overflow"
    assert first["scales"][0][0] == 2.0**39
    for left, right in zip(first["weights"], second["weights"]):
        assert torch.equal(left, right) and torch.isfinite(left).all()


def test_a_skipped_step_leaves_the_weights_alone() -> None:
    model, step = build(8, "fp16")
    step.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert step(rows(), 1e-2).skipped
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters()))


def test_an_fp16_step_never_asks_the_device_for_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each get_scale would wait for everything queued; whether a step was skipped is read when somebody asks."""
    _, step = build(8, "fp16")
    step.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)

    def ask() -> float:
        raise AssertionError("a synchronisation")

    monkeypatch.setattr(step.precision.scaler, "get_scale", ask)
    result = step(rows(), 1e-2)
    monkeypatch.undo()
    assert isinstance(result.overflow, torch.Tensor) and result.skipped is True
    assert step.loss_scale() == 2.0**59
    step.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    assert step(rows(), 1e-2).skipped is False and step.loss_scale() == 2.0**10
    assert build(8)[1](rows(), 1e-2).skipped is False


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_learns(precision: str) -> None:
    _, step = build(4, precision)
    losses = [float(step(rows(), 1e-2).loss) for _ in range(30)]
    assert losses[-1] < losses[0] - 1.0


def test_the_learning_rate_is_the_one_given_whatever_the_world() -> None:
    """Fault 4: nothing multiplies it."""
    _, step = build(4, lr=5.0)
    step(rows(), 3e-4)
    assert {group["lr"] for group in step.optimizer.param_groups} == {3e-4}


def test_clipping_limits_the_gradient_and_reports_the_norm_before_it() -> None:
    model, step = build(8)
    step.backward(rows())
    norm = gradients(model).norm()
    for parameter in model.parameters():
        parameter.grad = None
    step.grad_clip = float(norm) / 10
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    sgd = torch.optim.SGD([{"params": list(model.parameters())}], lr=1.0)
    step.optimizer = sgd
    result = step(rows(), 1.0)
    moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    assert float(result.grad_norm) == pytest.approx(float(norm), rel=1e-5)
    assert float(moved.norm()) == pytest.approx(float(norm) / 10, rel=1e-3)


def test_gradients_that_are_not_finite_move_neither_weights_nor_moments_nor_counters() -> None:
    model, step = build(4)
    step(rows(), 1e-2)
    before = [value.clone() for value in model.parameters()]

    def moments() -> dict:
        states = enumerate(step.optimizer.state.values())
        return {(index, key): value.clone() for index, state in states for key, value in state.items()}

    kept_moments = moments()
    with torch.no_grad():
        kept = model.ln_f.weight[0].item()
        model.ln_f.weight[0] = float("inf")
    result = step(rows(1), 1e-2)
    assert result.skipped and not torch.isfinite(result.grad_norm)
    with torch.no_grad():
        model.ln_f.weight[0] = kept
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters()))
    assert len(kept_moments) == 3 * len(before)
    assert all(torch.equal(kept_moments[key], value) for key, value in moments().items())
    assert not step(rows(2), 1e-2).skipped and step.weights_finite()


@pytest.mark.parametrize("micro", [1, 3, 5, 8])
def test_ragged_and_masked_micro_batches_give_the_gradient_of_the_mean_over_what_is_learned(micro: int) -> None:
    mask = torch.rand(8, CONFIG.seq_len + 1, generator=torch.Generator().manual_seed(1)) < 0.3
    mask[:micro] = False  # a micro-batch without anything to learn
    if micro == 8:
        mask[0] = True
    for chosen in (None, mask):
        model, step = build(micro)
        step.backward({"rows": rows()} | ({} if chosen is None else {"mask": chosen}))
        got = gradients(model)
        model.zero_grad()
        logits = model(rows()[:, :-1])
        losses = -torch.log_softmax(logits, -1).gather(-1, rows()[:, 1:, None])[..., 0]
        weight = torch.ones_like(losses) if chosen is None else chosen[:, 1:].float()
        ((losses * weight).sum() / weight.sum()).backward()
        torch.testing.assert_close(got, gradients(model), rtol=1e-4, atol=1e-6)
