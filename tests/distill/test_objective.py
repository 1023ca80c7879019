"""The objective `distillation` against the whole blend in float64, differentiated by torch through both models."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raygpt.model.gpt import GPT
from raygpt.train.objective import OBJECTIVES, Batch, LanguageModelling
from raygpt.train.precision import Precision
from raygpt.train.step import TrainStep
from tests.distill.small import SEQ_LEN, VOCAB, distillation, model, rows

CPU = torch.device("cpu")


def by_hand(
    student: GPT, teacher: GPT, batch: Batch, alpha: float, temperature: float, divergence: str
) -> tuple[float, dict[str, Tensor], float]:
    """(sum of the blend, its gradient by parameter, sum of T² KL) in float64, all logits at once."""
    student, teacher = copy.deepcopy(student).double(), copy.deepcopy(teacher).double().eval()
    tokens, targets = batch["rows"][:, :-1], batch["rows"][:, 1:]
    counted = batch["mask"][:, 1:] if "mask" in batch else torch.ones_like(targets, dtype=torch.bool)
    z, y = student(tokens), teacher(tokens).detach()
    q, p = torch.softmax(z / temperature, 2), torch.softmax(y / temperature, 2)
    forward, reverse = (p * (p.log() - q.log())).sum(2), (q * (q.log() - p.log())).sum(2)
    apart = {"forward": forward, "reverse": reverse, "mixed": (forward + reverse) / 2}[divergence] * temperature**2
    loss = -torch.log_softmax(z, 2).gather(2, targets[..., None])[..., 0]
    total = ((alpha * apart + (1 - alpha) * loss) * counted).sum()
    total.backward()
    gradients = {name: parameter.grad for name, parameter in student.named_parameters() if parameter.grad is not None}
    return float(total.detach()), gradients, float((apart * counted).sum().detach())


def gradients_of(student: nn.Module, objective: Any, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    student.zero_grad()
    total, _ = objective(student, batch)
    total.backward()
    return float(total.detach()), {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor], rtol: float = 1e-4) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(got[name].double(), value.double(), rtol=rtol, atol=rtol * scale, msg=name)


class InPieces:
    """Shows the objective a model whose output matrix ZeRO-3 has cut up: the pieces are computed again backwards."""

    def __init__(self, student: GPT) -> None:
        self.weight = student.lm_head.weight

    def __enter__(self) -> None:
        self.weight.ds_id = 0  # type: ignore[attr-defined]

    def __exit__(self, *_: object) -> None:
        del self.weight.ds_id


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize(
    ("divergence", "temperature", "masked"),
    [("forward", 1.0, False), ("forward", 2.0, True), ("reverse", 1.5, False), ("mixed", 1.0, True)],
)
@pytest.mark.parametrize("tied", [True, False])
def test_it_is_the_blend_over_the_whole_vocabulary(
    divergence: str, temperature: float, masked: bool, pieces: bool, tied: bool
) -> None:
    student, teacher = model(0, tie_weights=tied), model(1, 24)
    batch = {"rows": rows(2)} | ({"mask": torch.rand(6, SEQ_LEN + 1) < 0.6} if masked else {})
    want, gradients, apart = by_hand(student, teacher, batch, 0.7, temperature, divergence)
    objective = distillation(teacher, divergence=divergence, temperature=temperature)
    assert type(objective) is OBJECTIVES["distillation"]
    with InPieces(student) if pieces else nullcontext():
        got, ours = gradients_of(student, objective, batch)
    assert got == pytest.approx(want, rel=1e-5)
    assert float(objective.parts["kd_loss"]) == pytest.approx(apart, rel=1e-5)
    assert_close(ours, gradients)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    """No divergence, no gradient of it; what is left is (1 - alpha) times language modelling."""
    student = model(3)
    teacher = copy.deepcopy(student)
    batch = {"rows": rows(4)}
    for divergence, kind in [("forward", "hidden"), ("reverse", "hidden"), ("mixed", "topk")]:
        objective = distillation(teacher, alpha=1.0, divergence=divergence, kind=kind, top_k=5)
        total, gradients = gradients_of(student, objective, batch)
        assert abs(total) < 1e-9 and float(objective.parts["kd_loss"]) < 1e-9
        assert all(value.abs().max() < 1e-5 for value in gradients.values())
    total, gradients = gradients_of(student, distillation(teacher, alpha=0.7), batch)
    plain, want = gradients_of(student, LanguageModelling(), batch)
    assert total == pytest.approx(0.3 * plain, rel=1e-5)
    assert_close(gradients, {name: 0.3 * value for name, value in want.items()}, rtol=1e-3)


@pytest.mark.parametrize("kind", ["hidden", "topk", "sampled"])
def test_padding_to_the_right_changes_nothing(kind: str) -> None:
    """Rows with other tokens behind the last one that is learned: the same loss, parts, weight and gradient."""
    student, teacher = model(5), model(6, 24)
    inside = torch.arange(SEQ_LEN + 1) < 6
    batch = {"rows": rows(7), "mask": inside.expand(6, -1)}
    padded = {"rows": torch.where(inside, batch["rows"], 0), "mask": batch["mask"]}
    short = {"rows": batch["rows"][:, :6]}
    seen = []
    for one in (batch, padded, short):
        objective = distillation(teacher, kind=kind, top_k=4)
        if kind == "sampled":  # the draws of the same tokens
            objective.teacher.states = lambda inputs, other=objective.teacher: {  # type: ignore[union-attr, misc, method-assign]
                "ids": (inputs.reshape(-1, 1) + torch.arange(12)) % VOCAB,
                "log_probs": -inputs.reshape(-1, 1).expand(-1, 12).float() - 1,
            }
        total, gradients = gradients_of(student, objective, one)
        seen.append((total, float(objective.parts["kd_loss"]), int(objective.weight(one)), gradients))
    for other in seen[1:]:
        assert other[:3] == pytest.approx(seen[0][:3], rel=1e-6)
        assert_close(other[3], seen[0][3], rtol=1e-5)


def test_labels_are_shifted_once() -> None:
    """The state of token t is compared with the student's of token t, and both predict token t + 1."""
    student, teacher = model(8), model(9, 24)
    batch = {"rows": rows(10, 1)}
    for position in range(SEQ_LEN):
        mask = torch.zeros(1, SEQ_LEN + 1, dtype=torch.bool)
        mask[0, position + 1] = True
        objective = distillation(teacher, alpha=1.0)
        objective(student, batch | {"mask": mask})
        z, y = (torch.log_softmax(m(batch["rows"][:, :-1])[0, position].double(), 0) for m in (student, teacher))
        assert float(objective.parts["kd_loss"]) == pytest.approx(float((y.exp() * (y - z)).sum().detach()), rel=1e-4)
        assert float(objective.parts["ce_loss"]) == pytest.approx(
            -float(z[batch["rows"][0, position + 1]].detach()), rel=1e-4
        )


def test_micro_batches_of_any_size_give_one_step_and_the_teacher_keeps_its_weights() -> None:
    teacher = model(11, 24)
    before = copy.deepcopy(teacher.state_dict())
    results = []
    for size in (6, 4, 1):
        student = model(12)
        objective = distillation(teacher)
        step = TrainStep(
            student,
            torch.optim.SGD(student.parameters(), lr=0.1),
            Precision("fp32", CPU),
            micro_batch_size=size,
            objective=objective,
        )
        result = step({"rows": rows(13)}, 0.1)
        parts = result.parts
        blend = 0.7 * float(parts["kd_loss"]) + 0.3 * float(parts["ce_loss"])
        assert float(result.loss) == pytest.approx(blend, rel=1e-5)
        results.append((float(result.loss), float(result.grad_norm), float(parts["kd_loss"])))
        assert objective.figures()["teacher_seconds"] > 0 and objective.figures()["teacher_seconds"] == 0
    assert results[0] == pytest.approx(results[1], rel=1e-5) and results[0] == pytest.approx(results[2], rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(parameter.grad is not None for parameter in teacher.parameters())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_it_follows_fp32(precision: str) -> None:
    """The teacher computes in its own precision; fp16's gradients see the loss scale."""
    student, teacher = model(14), model(15, 24)
    batch = {"rows": rows(16)}
    want, gradients, _ = by_hand(student, teacher, batch, 0.7, 1.0, "forward")
    objective = distillation(teacher)
    student.zero_grad()
    with Precision(precision, CPU).autocast():
        total, _ = objective(student, batch)
    scale = 1024.0 if precision == "fp16" else 1.0
    (total * scale).backward()
    assert float(total.detach()) == pytest.approx(want, rel=0.02)
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:
            error = (parameter.grad / scale - gradients[name]).norm() / gradients[name].norm()
            assert error < 0.08, name
    assert objective.teacher.output.dtype == torch.float32  # type: ignore[union-attr]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activation_checkpointing_and_compiling_change_no_gradient(checkpointing: bool) -> None:
    teacher = model(17, 24)
    plain = model(18)
    student = GPT(plain.config, activation_checkpointing=checkpointing)
    student.load_state_dict(plain.state_dict())
    want = gradients_of(plain, distillation(teacher), {"rows": rows(19)})
    if not checkpointing:
        student.compile(dynamic=False, backend="aot_eager")
    got = gradients_of(student, distillation(teacher), {"rows": rows(19)})
    assert got[0] == pytest.approx(want[0], rel=1e-6)
    assert_close(got[1], want[1], rtol=1e-5)
