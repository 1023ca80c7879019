"""Ten questions to a GPU that has never run this code; under three minutes.

    python tests/gpu/first_contact.py                 # all of them; exit status 1 where one fails
    python tests/gpu/first_contact.py --out fc.json ddp generation
    python tests/gpu/first_contact.py --device cpu    # the same at toy size, to see that the script itself works

Needs Python, torch and numpy, nothing else that raygpt depends on: a machine lent for minutes has no time for them.
Every case prints what it found, and the JSON file is complete after each. tests/gpu/test_first_contact.py runs them
under pytest.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
import torch._dynamo
import torch.distributed as dist
from torch._dynamo.utils import counters

from raygpt.bench.step import choose_device, sdpa_backend
from raygpt.hardware import choose_precision, prefer_attention
from raygpt.model.generate import generate
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.parallel.distributed import World
from raygpt.train.ahead import Ahead
from raygpt.train.evaluation import ArrayTokens, evaluate_tokens
from raygpt.train.precision import Precision
from raygpt.train.replica import Replica

TOY = GPTConfig(vocab_size=300, seq_len=32, n_layer=2, n_head=2, n_embd=64)
SMALL = GPTConfig(vocab_size=50257, seq_len=1024, n_layer=4, n_head=12, n_embd=768)
# Largest relative distance of a gradient from fp32's, as the norm of the difference over the norm: about three times
# what rounding to a type's digits gives in a few layers.
DISTANCE = {"fp32": 1e-3, "tf32": 1e-2, "fp16": 1e-2, "bf16": 6e-2}


class Site:
    """The device and the shapes that suit it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.gpu = device.type == "cuda"
        self.config = SMALL if self.gpu else TOY
        self.rows = 8 if self.gpu else 4
        self.backend = "inductor" if self.gpu else "aot_eager"  # a CPU would need minutes for its C++ compiler
        self.loss_tokens = 2048 if self.gpu else 48
        self.half = choose_precision("auto", device)[0] if self.gpu else "bf16"
        names = ["fp32", "tf32", "bf16", "fp16"] if self.half == "bf16" else ["fp32", "fp16"]
        self.precisions = [name for name in names if self.gpu or name != "tf32"]

    def model(self, seed: int = 0) -> GPT:
        torch.manual_seed(seed)
        return GPT(self.config)

    def tokens(self, count: int | None = None, seed: int = 1) -> torch.Tensor:
        shape = (count or self.rows, self.config.seq_len + 1)
        drawn = torch.randint(0, self.config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))
        return drawn.to(self.device)

    def trainer(self, model: GPT | None = None, **changes: Any) -> Replica:
        options: dict[str, Any] = {
            "precision": self.half,
            "micro_batch_size": self.rows // 2,
            "local_rows": self.rows,
            "seq_len": self.config.seq_len,
            "lr": 1e-3,
            "weight_decay": 0.1,
            "betas": (0.9, 0.95),
            "grad_clip": 1.0,
            "backend": self.backend,
            "loss_tokens": self.loss_tokens,
        }
        return Replica(model or self.model(), World.join(self.device), **{**options, **changes})


def gradients(site: Site, precision: str, loss_tokens: int) -> tuple[float, torch.Tensor]:
    model = site.model().to(site.device)
    model.loss_tokens = loss_tokens
    rows = site.tokens()
    chosen = Precision(precision, site.device)
    with chosen.autocast():
        loss = model(rows[:, :-1], rows[:, 1:])
    scale = 2.0**12 if precision == "fp16" else 1.0
    (loss * scale).backward()
    grads = [parameter.grad.flatten() / scale for parameter in model.parameters() if parameter.grad is not None]
    return loss.item(), torch.cat(grads)


def flat(model: GPT) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def attention(site: Site) -> str:
    """Says which kernel attention takes, by precision, and that Hopper's is cuDNN's in half precision."""
    order = prefer_attention(site.device)
    kernels = {name: sdpa_backend(site.config, name, site.device) for name in site.precisions}
    if site.gpu and torch.cuda.get_device_capability(site.device) == (9, 0):
        assert kernels["bf16"] == "cudnn", kernels
    return f"{order}; " + ", ".join(f"{name}: {kernel}" for name, kernel in kernels.items())


def forward_parity(site: Site) -> str:
    """The loss of every precision is fp32's of the CPU."""
    rows = site.tokens()
    with torch.no_grad():
        want = site.model()(rows[:2, :-1].cpu(), rows[:2, 1:].cpu()).item()
    found = {}
    model = site.model().to(site.device)
    for name in site.precisions:
        with torch.no_grad(), Precision(name, site.device).autocast():
            found[name] = model(rows[:2, :-1], rows[:2, 1:]).item()
        assert abs(found[name] - want) < (1e-4 if name == "fp32" else 0.02) * want, (name, found[name], want)
    return f"CPU fp32 {want:.6f}; " + ", ".join(f"{name} {loss:.6f}" for name, loss in found.items())


def gradient_parity(site: Site) -> str:
    """The gradients of every precision are fp32's, with all logits at once and in pieces."""
    _, want = gradients(site, "fp32", 0)
    found = {}
    for name in site.precisions:
        for tokens in (0, site.loss_tokens):
            _, got = gradients(site, name, tokens)
            distance = ((got - want).norm() / want.norm()).item()
            found[f"{name}{' in pieces' if tokens else ''}"] = distance
            assert distance < DISTANCE[name], (name, tokens, distance)
    return ", ".join(f"{name} {distance:.1e}" for name, distance in found.items())


def compiled(site: Site) -> str:
    """One graph without a break serves training, accumulation and what follows an evaluation; losses are eager's."""
    counters.clear()
    torch._dynamo.reset()
    began = time.perf_counter()
    trainer = site.trainer(compile=True)
    seconds = time.perf_counter() - began
    plain = site.trainer()
    losses = []
    for step in range(3):
        rows = site.tokens(seed=step)
        losses.append((trainer.step(rows, 1e-3).loss.item(), plain.step(rows, 1e-3).loss.item()))
        stream = np.arange(site.config.seq_len * (site.rows + 1) + 7) % site.config.vocab_size  # a ragged last batch
        evaluate_tokens(
            trainer.model, ArrayTokens(stream), site.config.seq_len, site.rows, site.device, trainer.autocast
        )
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert counters["stats"]["unique_graphs"] == 1, dict(counters["stats"])
    assert all(abs(mine - theirs) < 0.02 * theirs for mine, theirs in losses), losses
    return f"{site.backend} took {seconds:.1f} s; losses beside eager's: {losses}"


def ddp(site: Site) -> str:
    """DDP in a world of one, compiled block by block: two graphs, the losses of a worker alone."""
    counters.clear()
    torch._dynamo.reset()
    backend = "nccl" if site.gpu else "gloo"
    alone = [site.trainer().step(site.tokens(seed=step), 1e-3).loss.item() for step in (0,)]
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        trainer = site.trainer(compile=True, always_wrap=True)
        together = [trainer.step(site.tokens(seed=step), 1e-3).loss.item() for step in range(3)]
    finally:
        dist.destroy_process_group()
    assert abs(together[0] - alone[0]) < 0.02 * alone[0], (together, alone)
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert counters["stats"]["unique_graphs"] == 2, dict(counters["stats"])
    return f"{backend}: {together}, alone {alone}"


def snapshot_and_restore(site: Site) -> str:
    """A snapshot holds what the device held, and a trainer restored from it goes on as the first one does."""
    trainer = site.trainer()
    for step in range(2):
        trainer.step(site.tokens(seed=step), 1e-3)
    began = time.perf_counter()
    files = {
        name: dict(zip([spec.name for spec in stream.specs], stream.values(), strict=True))
        for name, stream in trainer.tensor_files().items()
    }
    seconds = time.perf_counter() - began
    weights, moments = files["model.safetensors"], files["optimizer.safetensors"]
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(weights[name], parameter.detach().cpu()), name
    assert len(moments) == 2 * len(weights) and all(tensor.device.type == "cpu" for tensor in moments.values())
    other = site.model(seed=9)
    other.load_state_dict(weights, strict=False)
    again = site.trainer(other)
    state = ((*key.rpartition(".")[::2], value.clone()) for key, value in moments.items())
    again.restore(state, SimpleNamespace(optimizer_steps=2, scaler=trainer.step.scaler_state()))  # type: ignore[arg-type]
    before = flat(trainer.model)
    for each in (trainer, again):
        each.step(site.tokens(seed=5), 1e-3)
    apart = ((flat(trainer.model) - flat(again.model)).norm() / (flat(trainer.model) - before).norm()).item()
    # attention's backward pass on a GPU adds in any order, so there the next step is the same but for rounding
    assert apart <= (0.05 if site.gpu else 0.0), apart
    return f"{len(weights) + len(moments)} tensors in {seconds * 1000:.0f} ms; the next step differs by {apart:.1e}"


def auto_micro_batch(site: Site) -> str:
    """The micro-batch that is found trains, and an evaluation of it fits."""
    if not site.gpu:
        trainer = site.trainer(micro_batch_size="auto", local_rows=12)
        assert trainer.micro_batch_size == 12
        return "12 of 12 rows (a CPU does not try)"
    total = torch.cuda.get_device_properties(site.device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 12e9 / total), site.device)
    try:
        trainer = site.trainer(micro_batch_size="auto", local_rows=64, loss_tokens=None)
        size = trainer.micro_batch_size
        trainer.step(site.tokens(64), 1e-3)
        stream = np.zeros(2 * size * site.config.seq_len + 1, dtype=np.int64)
        evaluate_tokens(
            trainer.model, ArrayTokens(stream), site.config.seq_len, 2 * size, site.device, trainer.autocast
        )
        peak = torch.cuda.max_memory_allocated(site.device) / 1e9
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, site.device)
    return f"{size} of 64 rows in 12 GB, peak {peak:.1f} GB"


def loss_scaling(site: Site) -> str:
    """An fp16 step that overflows is skipped and halves the scale; with a sensible scale the model learns."""
    trainer = site.trainer(precision="fp16", micro_batch_size=site.rows)
    rows = site.tokens()
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.precision.scaler = torch.amp.GradScaler(site.device.type, init_scale=2.0**60)
    skipped = trainer.step(rows, 1e-3)
    assert skipped.skipped and trainer.step.loss_scale() == 2.0**59
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))
    trainer.precision.scaler = torch.amp.GradScaler(site.device.type, init_scale=2.0**12)
    results = [trainer.step(rows, 1e-3) for _ in range(6)]
    assert not any(result.skipped for result in results)
    losses = [result.loss.item() for result in results]
    assert losses[-1] < losses[0] - 0.1, losses
    return f"skipped at 2^60, then {losses[0]:.3f} to {losses[-1]:.3f} in 6 steps"


def generation(site: Site) -> str:
    """Greedy continuations are the same with and without the cache."""
    model = site.model().to(site.device)
    Precision("fp32", site.device)
    prompt = site.tokens(2)[:, :5]
    count = 24
    began = time.perf_counter()
    cached = generate(model, prompt, count, temperature=0.0)
    seconds = time.perf_counter() - began
    plain = generate(model, prompt, count, temperature=0.0, use_cache=False)
    assert torch.equal(cached, plain), (cached.tolist(), plain.tolist())
    return f"{2 * count / seconds:.0f} tokens per second in two rows, the first ones included"


def evaluation(site: Site) -> str:
    """Batches reach the device whole, and an evaluation in pieces gives the CPU's loss."""
    arrays = [np.random.default_rng(seed).integers(0, 300, (3, 9)).astype(np.uint16) for seed in range(3)]
    ahead = Ahead(iter([SimpleNamespace(tokens=array) for array in arrays]), site.device)  # type: ignore[arg-type]
    for array in arrays:
        rows = ahead.take()[1]["rows"]
        ahead.fetch()
        assert np.array_equal(rows.cpu().numpy(), array)
    rows_wanted = 10 if site.gpu else 3  # over 8192 tokens: more than one piece
    stream = np.random.default_rng(0).integers(0, site.config.vocab_size, rows_wanted * site.config.seq_len - 5)
    Precision("fp32", site.device)
    model = site.model()
    want = evaluate_tokens(copy.deepcopy(model), ArrayTokens(stream), site.config.seq_len, 1).loss
    got = evaluate_tokens(
        model.to(site.device), ArrayTokens(stream), site.config.seq_len, rows_wanted, site.device
    ).loss
    assert abs(got - want) < 1e-4 * want, (got, want)
    return f"{got:.6f}, on the CPU {want:.6f}"


CASES: dict[str, Callable[[Site], str]] = {
    case.__name__: case
    for case in (
        attention,
        forward_parity,
        gradient_parity,
        compiled,
        ddp,
        snapshot_and_restore,
        auto_micro_batch,
        loss_scaling,
        generation,
        evaluation,
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="all where none is named")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--out", type=Path, help="JSON file, written anew after every case")
    options = parser.parse_args()
    site = Site(choose_device(options.device))
    name = torch.cuda.get_device_name(site.device) if site.gpu else "CPU"
    print(f"{name}, torch {torch.__version__}", flush=True)
    results = []
    for case in options.cases or CASES:
        began = time.perf_counter()
        try:
            passed, found = True, CASES[case](site)
        except Exception:
            passed, found = False, traceback.format_exc()
        seconds = time.perf_counter() - began
        print(f"{'pass' if passed else 'FAIL'} {case} ({seconds:.1f} s): {found}", flush=True)
        results.append({"case": case, "passed": passed, "seconds": seconds, "found": found})
        if options.out:
            options.out.write_text(json.dumps({"device": name, "torch": torch.__version__, "cases": results}, indent=2))
        if site.gpu:
            torch.cuda.empty_cache()
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
