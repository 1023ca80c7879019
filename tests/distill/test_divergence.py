"""Divergences and their gradients against plain float64 sums over the whole vocabulary, differentiated by torch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from raygpt.distill.divergence import against_all, against_drawn, against_top, cross_entropy
from raygpt.distill.transport import Transport

N, V = 7, 23
KINDS = ("forward", "reverse", "mixed")


def logits(seed: int, spread: float = 3.0, rows: int = N) -> Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * spread


def by_hand(student: Tensor, teacher: Tensor, temperature: float, divergence: str) -> tuple[Tensor, Tensor]:
    """(T² KL of each token, its gradient) in float64."""
    z = student.double().requires_grad_()
    q, p = torch.softmax(z / temperature, 1), torch.softmax(teacher.double() / temperature, 1)
    forward = (p * (p.log() - q.log())).sum(1)
    reverse = (q * (q.log() - p.log())).sum(1)
    losses = {"forward": forward, "reverse": reverse, "mixed": (forward + reverse) / 2}[divergence] * temperature**2
    return losses.detach(), torch.autograd.grad(losses.sum(), z)[0]


def top(teacher: Tensor, k: int, temperature: float) -> dict[str, Tensor]:
    return Transport("topk", 1, V, temperature, top_k=k).take(teacher)


@pytest.mark.parametrize(("divergence", "temperature"), itertools.product(KINDS, (1.0, 2.5)))
def test_of_all_logits_it_is_the_sum_over_the_vocabulary(divergence: str, temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    want, gradient = by_hand(student, teacher, temperature, divergence)
    got, errors = against_all(student, teacher, temperature, divergence)  # type: ignore[arg-type]
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(errors.double(), gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("divergence", "temperature"), itertools.product(KINDS, (1.0, 2.5)))
def test_the_likeliest_tokens_and_the_rest_are_a_coarser_distribution(divergence: str, temperature: float) -> None:
    """Of k tokens and a bucket: a true divergence, never above the full one, and its gradient; of all the full one."""
    student, teacher = logits(2), logits(3)
    full, full_gradient = by_hand(student, teacher, temperature, divergence)
    before = torch.zeros(N, dtype=torch.float64)
    for k in (1, 5, 12, V - 1, V):
        states = top(teacher, k, temperature)
        z = student.double().requires_grad_()
        q, p = torch.softmax(z / temperature, 1), torch.softmax(teacher.double() / temperature, 1)
        inside = torch.zeros(N, V, dtype=torch.bool).scatter(1, states["ids"], True)
        buckets = [torch.cat([x.gather(1, states["ids"]), (x * ~inside).sum(1, keepdim=True)], 1) for x in (q, p)]
        q, p = (bucket if k < V else bucket[:, :-1] for bucket in buckets)
        forward, reverse = (p * (p / q).log()).sum(1), (q * (q / p).log()).sum(1)
        want = {"forward": forward, "reverse": reverse, "mixed": (forward + reverse) / 2}[divergence] * temperature**2
        got, errors = against_top(student, *states.values(), temperature, divergence)  # type: ignore[arg-type]
        torch.testing.assert_close(got.double(), want.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(errors.double(), torch.autograd.grad(want.sum(), z)[0], rtol=1e-3, atol=1e-6)
        assert (want.detach() >= before - 1e-9).all() and (want.detach() <= full + 1e-9).all()  # finer tells more
        before = want.detach()
    torch.testing.assert_close(got.double(), full, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(errors.double(), full_gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_drawn_tokens_give_the_forward_divergence_on_average(temperature: float) -> None:
    student, teacher = logits(4, 1.5, rows=2), logits(5, 1.5, rows=2)
    want, gradient = by_hand(student, teacher, temperature, "forward")
    times = 20_000
    transport = Transport("sampled", 1, V, temperature, samples=12)
    draw = torch.Generator().manual_seed(0)
    many = transport.take(teacher.repeat(times, 1), draw)
    losses, errors = transport.compare(student.repeat(times, 1), many, "forward", None)
    losses, errors = losses.double().view(times, 2), errors.double().view(times, 2, V)
    for got, expected in ((losses, want), (errors, gradient)):
        deviation = (got.mean(0) - expected).abs() / (got.std(0) / times**0.5)
        assert deviation.max() < 4.5  # standard errors, of 48 means
    direct, _ = against_drawn(student, many["ids"][:2], many["log_probs"][:2], temperature)
    torch.testing.assert_close(direct.double(), losses[0], rtol=1e-5, atol=1e-6)


def test_cross_entropy_has_the_gradient_of_the_next_token() -> None:
    student, targets = logits(6), torch.arange(N)
    z = student.double().requires_grad_()
    want = torch.nn.functional.cross_entropy(z, targets, reduction="none")
    got, errors = cross_entropy(student, targets)
    torch.testing.assert_close(got.double(), want.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(errors.double(), torch.autograd.grad(want.sum(), z)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("divergence", KINDS)
@pytest.mark.parametrize("away", [0.0, 1e-7, 1e-4, 1e-2, 1.0, 300.0])
def test_no_divergence_is_ever_negative(divergence: str, away: float) -> None:
    """A student next to its teacher, where a plain sum in fp32 falls below zero, and one worlds apart."""
    teacher = logits(7, 4.0, rows=400)
    student = teacher + away * logits(8, 1.0, rows=400)
    for k in (None, 1, 8, V):
        if k is None:
            losses, errors = against_all(student, teacher, 1.0, divergence)  # type: ignore[arg-type]
        else:
            losses, errors = against_top(student, *top(teacher, k, 1.0).values(), 1.0, divergence)  # type: ignore[arg-type]
        assert losses.isfinite().all() and errors.isfinite().all()
        assert (losses >= 0).all()
        if away == 0:
            assert losses.max() < 1e-10 and errors.abs().max() < 1e-6
            assert k is not None or (not losses.any() and not errors.any())


def test_mass_that_leaves_the_likeliest_tokens_costs() -> None:
    """The known fault of a reverse divergence over k tokens alone: there a student with nothing on them is perfect."""
    teacher = torch.zeros(1, V)
    teacher[0, :3] = 8.0
    gone = torch.zeros(1, V)
    gone[0, 10] = 20.0
    losses, _ = against_top(gone, *top(teacher, 3, 1.0).values(), 1.0, "reverse")
    q, p = torch.softmax(gone.double(), 1), torch.softmax(teacher.double(), 1)
    assert (q[:, :3] * (q[:, :3] / p[:, :3]).log()).sum().abs() < 1e-6  # what the truncated sum would say
    assert losses.item() == pytest.approx(float((1 / p[:, 3:].sum()).log()), rel=1e-3)
