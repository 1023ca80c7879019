"""PURE. The objective `distillation`: alpha times the divergence from a teacher plus (1 - alpha) times the loss of the
next token, for the tokens and in the order of language modelling.

The student's logits, and the teacher's where hidden states are handed over, are made in pieces of tokens from hidden
states and output matrices, and never held: 64 rows of 1024 tokens of GPT-2's would take 13 GB in fp32, twice. All of it
happens inside the model's own forward pass (`head_loss`), so that DDP and ZeRO see one call. Two ways lead through a
piece:

- where the output matrix lies whole, what the logits tell the gradients is taken out of them at once, as in
  model/head_loss.py: as many matrix products as without a teacher, and one more for the teacher's logits;
- in fp16, whose loss scale reaches gradients in the backward pass alone, and under ZeRO-3, which puts the matrix
  together for as long as its module is called, the pieces are computed again in the backward pass.

Shapes: N tokens, C width of the student, V vocabulary without padding.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from raygpt.distill.divergence import Divergence, cross_entropy
from raygpt.distill.transport import States, Transport
from raygpt.model.head_loss import IGNORE_INDEX, product_dtype
from raygpt.train.objective import Batch, LanguageModelling, Weight, register

if TYPE_CHECKING:
    import numpy as np

    from raygpt.data.stream import Batch as Rows

# Tokens whose logits exist at a time. On a GPU 1,024 of GPT-2's take 0.2 GB in fp32, and some eight such tensors are
# there. On a CPU pieces that stay in its caches and in memory that glibc keeps are faster: a loss and its gradients
# took 91 ms with 128 tokens and 169 ms with 1,024 (2,048 tokens of a vocabulary of 2,048), with GPT-2's 1.9 and 3.0 s.
PIECE_TOKENS = 1024
CPU_PIECE_TOKENS = 128


def piece_tokens(device: torch.device) -> int:
    """Tokens whose logits exist at a time on that device."""
    return PIECE_TOKENS if device.type == "cuda" else CPU_PIECE_TOKENS


@dataclass(frozen=True)
class Blend:
    """What is minimised: alpha × divergence + (1 - alpha) × loss of the next token, in nats per token."""

    transport: Transport
    alpha: float = 0.5
    divergence: Divergence = "forward"

    def terms(
        self, logits: Tensor, targets: Tensor, states: States, output: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(divergences (n,), losses (n,), errors (n, V)) of a piece: logits (n, V) fp32, targets (n,) int64. The errors
        are those of the blend; a token whose target is IGNORE_INDEX has zeros everywhere."""
        counted = (targets != IGNORE_INDEX).to(logits.dtype)
        apart, errors = self.transport.compare(logits, states, self.divergence, output)
        loss, own = cross_entropy(logits, targets.clamp(min=0))
        errors = errors.mul_(self.alpha).add_(own, alpha=1 - self.alpha).mul_(counted[:, None])
        return apart * counted, loss * counted, errors


class HeadLoss:
    """What the model calls with its hidden states; see raygpt.model.gpt. Returns (sum of the blend over N tokens,
    (2,) sums of its parts, without a gradient), all float64."""

    def __init__(self, blend: Blend, output: Tensor | None, piece_tokens: int | None = None) -> None:
        """`output` (V or more, width) is the teacher's output matrix, of the transport hidden.
        `piece_tokens` in place of those that suit the device."""
        self.blend = blend
        self.output = output
        self.piece_tokens = piece_tokens

    @torch.compiler.disable
    def __call__(self, hidden: Tensor, head: nn.Module, targets: Tensor, states: States) -> tuple[Tensor, Tensor]:
        """Of hidden states (N, C), the model's head, targets (N,) int64 and what the teacher handed over of them."""
        weight, dtype = getattr(head, "weight", None), product_dtype(hidden)
        whole = weight is not None and not hasattr(weight, "ds_id")  # ZeRO-3 marks what it cuts up
        if whole and dtype != torch.float16:
            names = sorted(states)
            return _AtOnce.apply(hidden, weight, targets, self, dtype, names, *[states[name] for name in names])
        total, parts = hidden.new_zeros((), dtype=torch.float64), hidden.new_zeros(2, dtype=torch.float64)
        for piece in self.pieces(hidden):
            ours = {name: value[piece] for name, value in states.items()}
            if torch.is_grad_enabled():
                loss, more = checkpoint(self._piece, hidden[piece], head, targets[piece], ours, use_reentrant=False)
            else:
                loss, more = self._piece(hidden[piece], head, targets[piece], ours)
            total, parts = total + loss, parts + more
        return total, parts

    def pieces(self, hidden: Tensor) -> list[slice]:
        """Tokens whose logits exist together."""
        size = self.piece_tokens or piece_tokens(hidden.device)
        return [slice(begin, begin + size) for begin in range(0, hidden.size(0), size)]

    def _piece(self, hidden: Tensor, head: nn.Module, targets: Tensor, states: States) -> tuple[Tensor, Tensor]:
        logits = head(hidden)[:, : self.blend.transport.vocab_size].float()
        return _OfLogits.apply(logits, targets, self, sorted(states), *[states[name] for name in sorted(states)])

    def sums(self, logits: Tensor, targets: Tensor, states: States) -> tuple[Tensor, Tensor, Tensor]:
        """(sum of the blend, sums of its parts, errors) of a piece."""
        apart, loss, errors = self.blend.terms(logits, targets, states, self.output)
        parts = torch.stack([apart.sum(dtype=torch.float64), loss.sum(dtype=torch.float64)])
        return self.blend.alpha * parts[0] + (1 - self.blend.alpha) * parts[1], parts, errors


class _OfLogits(torch.autograd.Function):
    """The blend of a piece's logits, whose gradient is known."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, loss: HeadLoss, names: list[str], *states: Tensor
    ) -> tuple[Tensor, Tensor]:
        total, parts, errors = loss.sums(logits, targets, dict(zip(names, states)))
        ctx.save_for_backward(errors)
        ctx.mark_non_differentiable(parts)
        return total, parts

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (errors,) = ctx.saved_tensors
        return errors * grads[0].to(errors.dtype), *[None] * (len(ctx.needs_input_grad) - 1)


class _AtOnce(torch.autograd.Function):
    """The blend of all tokens, piece by piece, with the gradients of hidden states and output matrix."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        loss: HeadLoss,
        dtype: torch.dtype,
        names: list[str],
        *states: Tensor,
    ) -> tuple[Tensor, Tensor]:
        # products with the padding of the vocabulary: 50,257 columns fill no tiles, 50,304 do
        vocab_size = loss.blend.transport.vocab_size
        matrix = weight.to(dtype)
        total, parts = hidden.new_zeros((), dtype=torch.float64), hidden.new_zeros(2, dtype=torch.float64)
        weight_grad = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        hidden_grad = torch.empty_like(hidden)
        for piece in loss.pieces(hidden):
            part = hidden[piece].to(dtype)
            ours = {name: value[piece] for name, value in zip(names, states)}
            one, more, errors = loss.sums((part @ matrix.t())[:, :vocab_size].float(), targets[piece], ours)
            total, parts = total + one, parts + more
            padded = torch.zeros((part.size(0), matrix.size(0)), dtype=dtype, device=part.device)
            padded[:, :vocab_size] = errors
            hidden_grad[piece] = (padded @ matrix).to(hidden.dtype)
            weight_grad += padded.t() @ part
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(parts)
        return total, parts

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scaled = (weight_grad * grads[0].to(weight_grad.dtype)).to(ctx.weight_dtype)
        hidden_grad = hidden_grad * grads[0].to(hidden_grad.dtype)
        return hidden_grad, scaled, *[None] * (len(ctx.needs_input_grad) - 2)


class Teacher(Protocol):
    """A model that says of inputs (B, T) int64 what the transport hands over of their B T tokens."""

    def states(self, inputs: Tensor) -> States: ...


@register("distillation")
class Distillation(LanguageModelling):
    """Language modelling's batch, mask and weight. The teacher is asked for the inputs' states where it is there; else
    they are entries of the batch, (B, T, …), which `beside` reads for its rows.

    The last call's sums are in `parts`: `kd_loss`, the divergence times T², and `ce_loss`.
    """

    def __init__(
        self,
        blend: Blend,
        *,
        output: Tensor | None = None,
        teacher: Teacher | None = None,
        stored: Callable[[Rows], dict[str, np.ndarray]] | None = None,
        piece_tokens: int | None = None,
    ) -> None:
        """Either `teacher` or `stored`, which reads the states of a rank's rows of a step."""
        self.blend = blend
        self.teacher = teacher
        self.beside = stored
        self.loss = HeadLoss(blend, output, piece_tokens)
        self.parts: dict[str, Tensor] = {}
        self._watch = Stopwatch()

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Weight]:
        inputs, targets = self.pair(batch)
        total, parts = model(inputs, targets, head_loss=self.loss, beside=self._states(batch, inputs))
        self.parts = {"kd_loss": parts[0], "ce_loss": parts[1]}
        return total, self.weight(batch)

    def rehearsal(self, rows: Tensor) -> Batch:
        """A batch of any rows (B, T + 1), of the shapes that training has."""
        batch = {"rows": rows}
        if self.teacher is None:
            made = self.blend.transport.empty(rows.size(0), rows.size(1) - 1)
            batch |= {name: torch.from_numpy(values).to(rows.device) for name, values in made.items()}
        return batch

    def figures(self) -> dict[str, float]:
        """Sums since they were asked for last, for a record: seconds the teacher took. Waits for the device."""
        return {"teacher_seconds": self._watch.seconds()} if self.teacher is not None else {}

    def _states(self, batch: Batch, inputs: Tensor) -> States:
        if self.teacher is None:
            names = self.blend.transport.record.names or ()
            return {name: batch[name].flatten(0, 1) for name in names}
        with self._watch.running(inputs.device):
            return self.teacher.states(inputs)


class Stopwatch:
    """Seconds spent inside `running`, by the device's own clock where it has one: nobody waits for it meanwhile."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._pairs: list[tuple[Any, Any]] = []
        self._start: Any = None
        self._device = torch.device("cpu")

    def running(self, device: torch.device) -> Stopwatch:
        self._device = device
        return self

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(self, *_: object) -> None:
        end = self._now()
        if self._device.type == "cuda":
            self._pairs.append((self._start, end))
        else:
            self._seconds += end - self._start

    def seconds(self) -> float:
        """Since the last time. Waits for the device where it timed anything."""
        if self._pairs:
            self._pairs[-1][1].synchronize()
        for start, end in self._pairs:
            self._seconds += start.elapsed_time(end) / 1000
        self._pairs.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
