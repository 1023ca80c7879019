"""A teacher beside each student: opened from wherever it lies, refused where its tokens are not the student's.

The factory that a worker calls for its objective lives here as well: it is what the driver may pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from raygpt import hardware
from raygpt.data.order import Order
from raygpt.data.shards import TokenizerInfo
from raygpt.data.tokenizer import Tokenizer, load_tokenizer
from raygpt.distill.divergence import Divergence
from raygpt.distill.foreign_teacher import ARCHITECTURE, foreign_shape, is_foreign, load_foreign
from raygpt.distill.objective import PIECE_TOKENS, Blend, Distillation, piece_tokens
from raygpt.distill.stored import StoredStates
from raygpt.distill.transport import States, Transport
from raygpt.errors import UserError
from raygpt.model import registry
from raygpt.parallel.distributed import World
from raygpt.parallel.loading import once_per_node
from raygpt.parallel.weights import WeightSource, fill_model, open_tokenizer, open_weights
from raygpt.train.objective import make_objective
from raygpt.train.plan import TrainPlan

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class OnlineTeacher:
    """A frozen model that says what it makes of tokens, in a precision of its own, whatever the student trains in.

    Its logits exist a piece of tokens at a time. `output` (P, C) is its output matrix, padding rows included.
    """

    def __init__(self, model: Any, transport: Transport, dtype: torch.dtype, device: torch.device) -> None:
        """`model` is a LanguageModel that takes a head_loss; it is changed."""
        self.model = model.eval().requires_grad_(False).to(device, dtype)
        self.transport = transport
        self.output: Tensor = model.lm_head.weight

    @torch.no_grad()
    def states(self, inputs: Tensor, generator: torch.Generator | None = None) -> States:
        """What the transport hands over of the B T tokens of (B, T) int64, each after those before it in its row."""
        # without autocast, which is the student's
        with torch.autocast(inputs.device.type, enabled=False):
            hidden = self.model(inputs, head_loss=_hidden)
            if self.transport.kind == "hidden":
                return {"hidden": hidden}
            size = piece_tokens(hidden.device)
            pieces = ((piece @ self.output.t())[:, : self.transport.vocab_size] for piece in hidden.split(size))
            made = [self.transport.take(logits, generator) for logits in pieces]
        return {name: torch.cat([part[name] for part in made]) for name in made[0]}


def _hidden(hidden: Tensor, head: nn.Module, targets: Tensor | None, beside: Any) -> Tensor:
    return hidden


@dataclass(frozen=True)
class TeacherSource:
    """A teacher that was found and fits: its weights lie at `uri`. Picklable."""

    uri: str
    precision: str  # auto, fp32, bf16, fp16
    config: dict[str, Any]  # of the ModelConfig; of a foreign one (foreign_teacher.py) vocab_size and seq_len
    width: int  # of its hidden states
    parameters: int

    @property
    def vocab_size(self) -> int:
        return self.config["vocab_size"]

    @property
    def seq_len(self) -> int:
        """The longest context it reads."""
        return self.config["seq_len"]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, value) of every parameter."""
        if self.config["architecture"] == ARCHITECTURE:
            return iter(load_foreign(self.uri, torch.float32).state_dict().items())
        return open_weights(self.uri).items()

    def load(self, transport: Transport, world: World) -> OnlineTeacher:
        """On this rank's device; one rank of each machine reads. Called on every rank alike."""
        dtype = teacher_dtype(self.precision, world.device)
        if self.config["architecture"] == ARCHITECTURE:
            return OnlineTeacher(load_foreign(self.uri, dtype), transport, dtype, world.device)
        config = registry.model_config(self.config)
        with torch.device("meta"):
            model = registry.of(config).build(config).to(dtype)
        model.to_empty(device=world.device)
        model.tie()
        fill_model(model, once_per_node(world, open_weights(self.uri).items))  # type: ignore[arg-type]
        return OnlineTeacher(model, transport, dtype, world.device)


@dataclass(frozen=True)
class MakeDistillation:
    """What the driver sends and each worker calls: see `raygpt.train.worker.MakeObjective`."""

    name: ClassVar[str] = "distillation"

    transport: Transport
    alpha: float
    divergence: Divergence
    teacher: TeacherSource | None = None  # beside the student
    stored: str | None = None  # folder of stored states
    cache_bytes: int = 0

    @property
    def teacher_uri(self) -> str:
        """Where the weights lie of a teacher beside the student; empty without one."""
        return self.teacher.uri if self.teacher is not None else ""

    def __call__(self, world: World, plan: TrainPlan) -> Distillation:
        blend = Blend(self.transport, self.alpha, self.divergence)
        if self.teacher is not None:
            with _quiet_generator(world.device):
                teacher = self.teacher.load(self.transport, world)
            objective = make_objective("distillation", blend=blend, output=teacher.output, teacher=teacher)
        else:
            assert self.stored is not None and isinstance(plan.order, Order)  # distill.real was refused
            states = StoredStates(self.stored, plan.order, world.rank, world.size, self.cache_bytes)
            output = states.output_matrix(teacher_dtype("auto", world.device), world.device)
            objective = make_objective("distillation", blend=blend, output=output, stored=states)
        assert isinstance(objective, Distillation)
        return objective


def teacher_bytes(make: MakeDistillation) -> int:
    """What a teacher takes of a worker's device: its weights, or its output matrix alone, and the pieces of logits, of
    which as many exist as there are of the student's."""
    transport, width = make.transport, 4  # of a number, where it is largest
    pieces = 8 * PIECE_TOKENS * transport.vocab_size * 4
    if make.teacher is None:
        return pieces + (width * transport.vocab_size * transport.width if transport.kind == "hidden" else 0)
    width = 2 if make.teacher.precision in DTYPES else 4
    return pieces + width * make.teacher.parameters


@contextmanager
def _quiet_generator(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside, torch's generators are as before: a student's first weights hang on them."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def teacher_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of the teacher's weights. `auto`: bf16 on a GPU that has it, fp16 on others, fp32 on a CPU."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        precision = hardware.choose_precision("auto", device)[0]
    return DTYPES.get(precision, torch.float32)


def find_teacher(
    uri: str, made_with: TokenizerInfo, tokenizer_json: bytes, *, precision: str, seq_len: int, student: Any
) -> TeacherSource:
    """The teacher at `uri` for data that were `made_with` a tokenizer (`tokenizer_json`), in rows of `seq_len`.

    Raises UserError where there is none, it knows other tokens than the data or another number of them than the
    `student` (a ModelConfig), or its context is shorter than the rows.
    """
    if is_foreign(uri):
        teacher = TeacherSource(uri, precision, *foreign_shape(uri))
        check_vocabulary(uri, lambda: load_tokenizer(uri), made_with, tokenizer_json)
    else:
        source = _open(uri)
        check_vocabulary(uri, lambda: open_tokenizer(source), made_with, tokenizer_json)
        config = source.config
        with torch.device("meta"):
            shape = registry.of(config).build(config)
        if not shape.takes_head_loss:
            raise UserError(
                f"distill.teacher={uri} is of architecture {config.architecture}, which does not hand over its hidden "
                "states: choose a GPT-2 model, or distill.mode=sequence."
            )
        width = shape.lm_head.weight.size(1)
        teacher = TeacherSource(source.origin, precision, config.to_dict(), width, config.num_parameters())
    if student is not None and teacher.vocab_size != student.vocab_size:
        raise UserError(
            f"distill.teacher={uri} has {teacher.vocab_size:,} outputs and the student {student.vocab_size:,}: set "
            f"model.vocab_size={teacher.vocab_size}, or distill.mode=sequence."
        )
    if teacher.seq_len < seq_len:
        raise UserError(
            f"distill.teacher={uri} reads at most {teacher.seq_len} tokens and rows have data.seq_len={seq_len}: lower "
            "data.seq_len, or choose a teacher with a longer context."
        )
    return teacher


def check_found(uri: str) -> None:
    """UserError where no teacher lies at `uri`; whether it fits the data is for `find_teacher`."""
    if not is_foreign(uri):
        _open(uri)


def _open(uri: str) -> WeightSource:
    try:
        return open_weights(uri)
    except FileNotFoundError:
        raise UserError(
            f"distill.teacher={uri} does not exist: name a run, a checkpoint, or a Hugging Face folder or id."
        ) from None
    except UserError as error:
        raise UserError(f"distill.teacher: {error}") from error


def check_vocabulary(
    uri: str, tokenizer: Callable[[], Tokenizer], made_with: TokenizerInfo, tokenizer_json: bytes
) -> None:
    """UserError, naming both vocabularies, unless the teacher's tokenizer gives every token the id that it has in the
    data: its probabilities would be those of other words."""
    way_out = "; distill.mode=sequence takes any teacher: it learns from its text"
    try:
        theirs = tokenizer()
    except UserError as error:
        reason = str(error).rstrip(".")
        raise UserError(
            f"distill.teacher={uri} comes without a tokenizer that can be compared with {_named(made_with)} of "
            f"data.train ({reason}){way_out}."
        ) from error
    if theirs.sha256 == made_with.sha256:
        return
    ours = Tokenizer.from_json(tokenizer_json, made_with.name, made_with.eot_id)
    if theirs.backend.get_vocab(with_added_tokens=True) != ours.backend.get_vocab(with_added_tokens=True):
        raise UserError(
            f"distill.teacher={uri} speaks {_named(theirs.info)} but data.train was made with {_named(made_with)}: at "
            "logit level both must give every token the same id. Prepare data.train with the teacher's tokenizer "
            f"(data.tokenizer){way_out}."
        )


def _named(tokenizer: TokenizerInfo) -> str:
    return f"tokenizer {tokenizer.name} of {tokenizer.vocab_size:,} ids ({tokenizer.sha256[:8]})"
