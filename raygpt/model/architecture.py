"""PURE. What the rest asks of a family of models: one class per family, one object of it in the registry.

A config (`ModelConfig`) is a shape: frozen, hashable, plain numbers. A model (`LanguageModel`) is called as
`model(tokens)` for logits (B, T, V) of tokens (B, T) int64, and as `model(tokens, targets, reduction="mean")` for the
loss in nats, float32: "mean", "sum" or "none" (B, T); targets are the next tokens already, -100 is ignored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, device, dtype, nn

from raygpt.errors import UserError
from raygpt.model.slots import LayerShape, SlotCache
from raygpt.model.tree import TreePass

if TYPE_CHECKING:
    from raygpt.storage import Location  # needs pyarrow, which a machine that only measures may lack


class ModelConfig(Protocol):
    """The shape of a model, of whatever family."""

    architecture: ClassVar[str]  # name of its entry in the registry

    def __hash__(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def seq_len(self) -> int:
        """Longest context in tokens."""

    def num_parameters(self) -> int:
        """Trainable numbers of the true vocabulary."""

    def flops_per_token(self, seq_len: int | None = None) -> int:
        """Training FLOPs per token, forward and backward, in rows of `seq_len` (none: the longest context)."""

    def describe(self) -> str:
        """The shape in a few words, such as "12 layers, width 768"."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint, "architecture" among them; `Architecture.config` is the inverse."""


class LanguageModel(nn.Module):
    """What the trainer, evaluation and generation use of a model, beside calling it (see above).

    `h` holds the blocks, where there are any: under DDP they are compiled one by one.
    """

    config: Any  # a ModelConfig
    h: Any
    # Tokens whose logits exist at a time in training, 0 for all: a wish, which a model may leave unheard.
    loss_tokens: int = 0
    # Whether it can be called as model(tokens, targets, head_loss=…, beside=…) and hands its hidden states over, of
    # which lm_head.weight (P, C) makes logits (see GPT).
    takes_head_loss: ClassVar[bool] = False

    def tie(self) -> None:
        """Share what the config says is shared: `to_empty` gives every module a parameter of its own."""


class Cache(Protocol):
    """What a model remembers of the tokens it has seen."""

    @property
    def capacity(self) -> int: ...

    @property
    def length(self) -> int:
        """Tokens held, at most `capacity`."""


@dataclass(frozen=True)
class Work:
    """A pass over rows of seq_len tokens. `width` is the size in bytes of a number of the residual stream.

    `loss_tokens`: of how many tokens logits shall exist at a time (`LanguageModel.loss_tokens`), 0 for all.
    """

    tokens: int
    seq_len: int
    half: bool
    autocast: bool
    width: int
    gpu: bool
    activation_checkpointing: bool
    loss_tokens: int = 0


class Architecture(ABC):
    """A family of models. What cannot be done is refused with UserError that says why."""

    name: str  # saved as "architecture" in every checkpoint
    presets: Mapping[str, Mapping[str, int]]  # model.preset -> shape; without vocab_size it is the tokenizer's
    overrides: tuple[str, ...] = ("vocab_size", "seq_len")  # keys of the section `model` that shape it
    adapter_targets: tuple[str, ...] = ()  # modules that low-rank adapters stand beside; none: refused
    huggingface_types: tuple[str, ...] = ()  # model_type of the config.json that `read_config` understands
    no_export: str | None = "nothing here writes it in a form that transformers loads"  # None: `export` does

    # --- shape and weights -------------------------------------------------------------------------------------

    @abstractmethod
    def config(self, values: Mapping[str, Any]) -> Any:
        """A ModelConfig from `ModelConfig.to_dict`'s values without "architecture", or a preset's with overrides.

        Raises UserError for unknown keys and numbers that do not fit together.
        """

    @abstractmethod
    def build(self, config: Any, activation_checkpointing: bool = False) -> Any:
        """A LanguageModel on torch's current device ("meta" too); its weights hold whatever was in memory."""

    @abstractmethod
    def initial_weights(self, config: Any) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 value on the CPU) of every parameter at step 0, one at a time, from torch's global generator."""

    # --- memory ------------------------------------------------------------------------------------------------

    @abstractmethod
    def forward_memory(self, config: Any, work: Work) -> dict[str, int]:
        """Bytes by purpose besides weights and gradients when the loss is there: all the backward pass will want."""

    def backward_memory(self, config: Any, work: Work) -> dict[str, int]:
        """The same near the end of the backward pass, when all gradients are there."""
        return self.forward_memory(config, work)

    def evaluation_memory(self, config: Any, work: Work) -> dict[str, int]:
        """The same for a forward pass without gradients."""
        return self.forward_memory(config, work)

    # --- generation --------------------------------------------------------------------------------------------

    def new_cache(self, config: Any) -> Any:
        """An empty Cache, or None where the family has none: every token is a pass over the whole window then."""
        return None

    def next_logits(self, model: Any, tokens: Tensor, cache: Any = None) -> Tensor:
        """Logits (B, V) of the token after `tokens` (B, T), which follow those in the cache and are added to it."""
        return model(tokens)[:, -1]

    def slot_layers(self, config: Any, dtype: dtype, device: device) -> list[LayerShape] | None:
        """What each layer remembers of a token of a model of that dtype, for a `SlotCache`; None where `next_logits`
        and `all_logits` take none: a server then makes a pass over the whole window for every token."""
        return None

    def all_logits(self, model: Any, tokens: Tensor, cache: SlotCache | None = None) -> Tensor:
        """Logits (B, T, V) after every token of (B, T); with a cache as `next_logits`."""
        return model(tokens)

    # --- likelihood --------------------------------------------------------------------------------------------

    def tree_tokens(self, model: Any) -> int:
        """How long a row that branches (`raygpt.model.tree`) `logits_at` takes; 0: rows that do not branch alone."""
        return 0

    def logits_at(
        self, model: Any, tokens: Tensor, where: Tensor, at_once: int, tree: TreePass | None = None
    ) -> Iterator[Tensor]:
        """Logits (N, V) after some tokens of (B, T), in pieces of about `at_once` tokens' that follow each other.

        `where` (N,) int64 counts through all B T tokens, upwards. Without a tree every token sees all before it.
        """
        assert tree is None
        for start, stop, here in pieces_of_rows(tokens, where, at_once):
            yield model(tokens[start:stop]).flatten(0, 1)[here]

    # --- Hugging Face ------------------------------------------------------------------------------------------

    def read_config(self, folder: Path, *, dropout: float = 0.0, seq_len: int | None = None) -> Any:
        """ModelConfig of a folder's config.json, its context cut to `seq_len`."""
        raise UserError(f"{folder} cannot be read: models of architecture {self.name} come from runs alone.")

    def read_weights(self, folder: Path, config: Any, dtype: dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """(name, value) of every parameter in this package's layout, one at a time."""
        raise UserError(f"{folder} cannot be read: models of architecture {self.name} come from runs alone.")

    def check_export(self) -> None:
        """Raises UserError where `export` would."""
        if self.no_export is not None:
            raise UserError(
                f"a model of architecture {self.name} cannot be exported to Hugging Face: {self.no_export}; its "
                "checkpoints serve `raygpt sample` and `raygpt evaluate` as they are."
            )

    def export(self, config: Any, weights: Iterator[tuple[str, Tensor]], target: Location, **options: Any) -> Location:
        """Write a Hugging Face folder; options as of `raygpt.model.export.export_weights`."""
        self.check_export()
        raise NotImplementedError

    # --- what follows from these -------------------------------------------------------------------------------

    def shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every parameter as it lies in memory (padding included), a shared one once."""
        with device("meta"):
            return shapes_of(self.build(config))


def pieces_of_rows(tokens: Tensor, where: Tensor, at_once: int) -> Iterator[tuple[int, int, Tensor]]:
    """(first row, row after the last, which of their tokens) of the pieces that `Architecture.logits_at` makes of
    (B, T) tokens, each of whose logits exist: `at_once` of them at a time, one row at least."""
    rows, width = tokens.shape
    some = max(1, at_once // width)
    for start in range(0, rows, some):
        inside = (where >= start * width) & (where < (start + some) * width)
        yield start, min(start + some, rows), where[inside] - start * width


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter, a shared one once."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
