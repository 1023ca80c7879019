"""The GPT-2 architecture (Radford et al., 2019), with the weight names of nanoGPT and Hugging Face.

Shapes: B batch, T tokens, C = n_embd, H = n_head, D = C / H, V = vocab_size, P = padded_vocab_size.
Linear weights lie [out, in]; Hugging Face's Conv1D keeps the transpose (see huggingface.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from raygpt.errors import UserError
from raygpt.model.architecture import LanguageModel
from raygpt.model.head_loss import IGNORE_INDEX, chunked_loss, product_dtype
from raygpt.model.slots import SlotCache, attend
from raygpt.model.tree import TreePass

INIT_STD = 0.02
LOGIT_ROWS = 1024  # tokens whose logits exist at a time under activation checkpointing
EVALUATION_LOGIT_ROWS = 8192  # the same where there are no gradients: 1.6 GB of GPT-2's logits in fp32
VOCAB_MULTIPLE = 128  # matrix sides in multiples of 128 fill tensor-core tiles: 50257 becomes 50304

Reduction = Literal["mean", "sum", "none"]


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model. Raises UserError when the numbers do not fit together."""

    architecture: ClassVar[str] = "gpt2"

    vocab_size: int
    seq_len: int = 1024  # longest context, in tokens
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True
    tie_weights: bool = True  # the output matrix is the token embedding

    def __post_init__(self) -> None:
        for name in ("vocab_size", "seq_len", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; it must be at least 1.")
        if self.n_embd % self.n_head:
            raise UserError(
                f"model.n_embd ({self.n_embd}) is not a multiple of model.n_head ({self.n_head}): "
                "set one so that every head gets the same width."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.dropout is {self.dropout}; it must be at least 0 and below 1.")

    @property
    def padded_vocab_size(self) -> int:
        """vocab_size rounded up to a multiple of 128: the rows the embedding really has."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    def num_parameters(self, non_embedding: bool = False) -> int:
        """Trainable numbers of the true vocabulary (the padding is not counted; GPT-2 small has 124,439,808).

        `non_embedding` leaves out what is only looked up: positions, and the token embedding unless it is
        also the output matrix.
        """
        c, bias = self.n_embd, int(self.bias)
        layer_norm = c * (1 + bias)
        attention = c * 3 * c + bias * 3 * c + c * c + bias * c
        mlp = 2 * c * 4 * c + bias * (4 * c + c)
        used = self.n_layer * (2 * layer_norm + attention + mlp) + layer_norm + self.vocab_size * c
        looked_up = self.seq_len * c + (0 if self.tie_weights else self.vocab_size * c)
        return used if non_embedding else used + looked_up

    def flops_per_token(self, seq_len: int | None = None) -> int:
        """Training FLOPs per token, forward and backward: 6N + 12 n_layer n_embd seq_len.

        The count of PaLM (Chowdhery et al., 2022, appendix B) as nanoGPT does it: N leaves out the
        position embeddings and keeps the output matrix, attention is counted in full though it is
        causal, recomputation is not counted.
        """
        length = self.seq_len if seq_len is None else seq_len
        return 6 * self.num_parameters(non_embedding=True) + 12 * self.n_layer * self.n_embd * length

    def describe(self) -> str:
        """The shape in a few words."""
        return f"{self.n_layer} layers, width {self.n_embd}"

    def to_dict(self) -> dict[str, Any]:
        return {"architecture": self.architecture, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GPTConfig:
        """Inverse of `to_dict`. Raises UserError on a key this version does not know, or without vocab_size.

        Values without "architecture", as checkpoints held before there was a second one, are taken as well.
        """
        values = dict(values)
        if (name := values.pop("architecture", cls.architecture)) != cls.architecture:
            raise UserError(f"the model is of architecture {name}, and this place needs one of {cls.architecture}.")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"model config has unknown keys {', '.join(unknown)}; the known ones: {', '.join(known)}.")
        if "vocab_size" not in values:
            raise UserError("model config has no vocab_size; set model.vocab_size or name a tokenizer.")
        return cls(**values)


class KVCache:
    """Keys and values of the tokens a model has seen, one pair of (B, H, seq_len, D) buffers per layer.

    The buffers are made at the first update, with the dtype the model computes in (autocast included).
    """

    def __init__(self, config: GPTConfig) -> None:
        self.capacity = config.seq_len
        self.length = 0  # tokens held, the same for every layer between two forward passes
        self.positions = torch.empty(0)  # (T,) int64 of the pass that has begun
        self.mask: Tensor | None = None  # (T, keys) bool, true where a token sees a key; None: what the shape says
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * config.n_layer

    def begin(self, tokens: int, device: torch.device) -> None:
        """Begin a pass of the next `tokens`. Raises UserError where they are too many."""
        past = self.length
        _check_context(past + tokens, self.capacity)
        self.positions = torch.arange(past, past + tokens, device=device)
        self.mask = None
        if past and tokens > 1:
            self.mask = torch.ones(tokens, past + tokens, dtype=torch.bool, device=device).tril(past)

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds (B, H, T, D) keys and values; returns all there are so far, as views."""
        pair = self._layers[layer]
        if pair is None:
            b, h, _, d = key.shape
            pair = (key.new_empty(b, h, self.capacity, d), value.new_empty(b, h, self.capacity, d))
            self._layers[layer] = pair
        end = self.length + key.size(2)
        for buffer, new in zip(pair, (key, value)):
            buffer[:, :, self.length : end] = new
        return pair[0][:, :, :end], pair[1][:, :, :end]

    def advance(self) -> None:
        """End the pass: its tokens are held now, by every layer."""
        self.length += self.positions.numel()


def _check_context(tokens: int, seq_len: int) -> None:
    if tokens > seq_len:
        raise UserError(
            f"a sequence of {tokens} tokens does not fit the model's context of {seq_len}: shorten it, or train with "
            "a larger model.seq_len."
        )


class Linear(nn.Linear):
    """nn.Linear without its own initialisation, which `GPT.init_weights` would only overwrite."""

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """nn.Embedding without its own initialisation."""

    def reset_parameters(self) -> None:
        pass


class Head(Linear):
    """The output matrix. Padding columns of the vocabulary come out as -inf: no probability, no gradient."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config.n_embd, config.padded_vocab_size, bias=False)
        self.vocab_size = config.vocab_size

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., C) -> logits (..., P)."""
        logits = F.linear(hidden, self.weight)
        if self.vocab_size < self.out_features:
            # Unrecorded, which is exact: the softmax gives these columns a gradient of zero anyhow. Recorded, it would
            # copy the gradient of all logits (1.6 GB at 8 rows of 1024 tokens); so would a bias of -inf going forward.
            with torch.no_grad():
                logits[..., self.vocab_size :] = float("-inf")
        return logits


class Attention(nn.Module):
    """Causal self-attention over fused query, key and value."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.layer = layer

    def forward(self, x: Tensor, cache: KVCache | SlotCache | TreePass | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        b, t, c = x.shape
        fused = self.c_attn(x)
        half = fused.dtype
        if fused.device.type == "cpu" and half in (torch.bfloat16, torch.float16):
            # torch's bf16 attention on the CPU takes 7 times as long backwards as its fp32 one (measured, 2.13)
            fused = fused.float()
        query, key, value = (
            part.view(b, t, self.n_head, c // self.n_head).transpose(1, 2) for part in fused.split(c, dim=2)
        )  # each (B, H, T, D), views of one buffer
        with torch.autocast(fused.device.type, enabled=False):
            if isinstance(cache, SlotCache):
                y = attend(query, *cache.update(self.layer, key, value), cache.mask)
            else:
                mask = None
                if cache is not None:
                    key, value = cache.update(self.layer, key, value)
                    mask = cache.mask
                y = F.scaled_dot_product_attention(
                    query,
                    key,
                    value,
                    attn_mask=mask,
                    dropout_p=self.dropout if self.training else 0.0,
                    # a single new token sees everything in the cache; is_causal would show it the first key only
                    is_causal=mask is None and t == key.size(2),
                )
        y = y.transpose(1, 2).reshape(b, t, c)
        if not torch.is_autocast_enabled(y.device.type):
            y = y.to(half)
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class MLP(nn.Module):
    """Two layers, four times as wide between them, with the tanh form of GELU that GPT-2 was trained with."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")), self.dropout, self.training)


class Block(nn.Module):
    """Attention and MLP, each on a normalised copy of the residual stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KVCache | SlotCache | TreePass | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class GPT(LanguageModel):
    """A GPT-2-class language model.

    Targets are the next tokens already: the caller shifts, once; the model never does. Works under
    autocast, DDP, torch.compile and on the meta device (then `to_empty` and `init_weights`).
    """

    takes_head_loss = True

    def __init__(self, config: GPTConfig, activation_checkpointing: bool = False, initialise: bool = True) -> None:
        """`activation_checkpointing` keeps only the input of every block, and of the output matrix, and computes the
        rest again backwards. Without `initialise` the weights hold whatever was in memory."""
        super().__init__()
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        # Tokens whose logits exist at a time in training, 0 for all; see head_loss. Ignored under activation
        # checkpointing, which has pieces of its own, and in fp16.
        self.loss_tokens = 0
        self.chunked_loss: Callable[..., Tensor] = chunked_loss  # may be replaced by its compiled form
        self.wte = Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = Embedding(config.seq_len, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.lm_head = Head(config)
        self.tie()
        if initialise:
            self.init_weights()

    def tie(self) -> None:
        """Makes the output matrix the token embedding where the config says so.

        `to_empty` gives every module a parameter of its own and so needs it again; `init_weights` does it too.
        """
        if self.config.tie_weights:
            self.lm_head.weight = self.wte.weight

    @torch.no_grad()
    def init_weights(self) -> None:
        """GPT-2's initialisation from torch's global generator; see `initial_weights`."""
        self.tie()
        parameters = dict(self.named_parameters())
        for name, value in initial_weights(self.config):
            parameters[name].copy_(value)

    def hidden(self, tokens: Tensor, cache: KVCache | SlotCache | TreePass | None = None) -> Tensor:
        """Final hidden states (B, T, C) of tokens (B, T) int64, normalised: what the output matrix takes.

        With a cache, the tokens follow those it holds and are added to it. Raises UserError when the
        context would be longer than config.seq_len.
        """
        length = tokens.size(1)
        if cache is None:
            _check_context(length, self.config.seq_len)
            positions = torch.arange(length, device=tokens.device)
        else:
            cache.begin(length, tokens.device)
            positions = cache.positions
        x = self.wte(tokens) + self.wpe(positions)
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.h:
            if self._checkpoints and cache is None:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x, cache)
        if cache is not None:
            cache.advance()
        return self.ln_f(x)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        reduction: Reduction = "mean",
        cache: KVCache | SlotCache | TreePass | None = None,
        head_loss: Callable[..., Any] | None = None,
        beside: Any = None,
    ) -> Any:
        """Logits (B, T, V) of tokens (B, T) int64, or with targets (B, T) int64 the loss in nats per token.

        targets[b, t] is the token after tokens[b, t]; -100 is ignored. The loss is float32 whatever the
        autocast: "mean" over the targets not ignored (nan when there is none), "sum", or "none" (B, T).

        A loss of somebody else's is `head_loss(hidden (B T, C), head, targets (B T,) or None, beside)`, where
        head(hidden) are logits (B T, P): its result is returned as it is.
        """
        hidden = self.hidden(tokens, cache)
        if head_loss is not None:
            return head_loss(
                hidden.flatten(0, 1), self.lm_head, None if targets is None else targets.reshape(-1), beside
            )
        if targets is None:
            return self.lm_head(hidden)[..., : self.config.vocab_size]
        flat, wanted = hidden.flatten(0, 1), targets.reshape(-1)
        if not torch.is_grad_enabled() and flat.size(0) > EVALUATION_LOGIT_ROWS:
            loss = self._loss_in_pieces(flat, wanted, reduction, EVALUATION_LOGIT_ROWS)
        elif self._checkpoints:
            loss = self._loss_in_pieces(flat, wanted, reduction, LOGIT_ROWS)
        elif self.loss_tokens and reduction != "none" and (dtype := product_dtype(flat)) != torch.float16:
            loss = self.chunked_loss(
                flat,
                self.lm_head.weight,
                wanted,
                vocab_size=self.config.vocab_size,
                tokens=self.loss_tokens,
                mean=reduction == "mean",
                dtype=dtype,
            )
        else:
            loss = self._loss(flat, wanted, reduction)
        return loss.view_as(targets) if reduction == "none" else loss

    @property
    def _checkpoints(self) -> bool:
        return self.activation_checkpointing and torch.is_grad_enabled()

    def _loss(self, hidden: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
        """Loss of (N, C) hidden states and (N,) targets."""
        logits = self.lm_head(hidden).float()
        return F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction=reduction)

    def _loss_in_pieces(self, hidden: Tensor, targets: Tensor, reduction: Reduction, tokens: int) -> Tensor:
        """The same without ever holding all logits: 8 rows of 1024 tokens make 1.6 GB of them, three times over in
        training."""
        each: Reduction = "none" if reduction == "none" else "sum"
        losses = []
        for piece, wanted in zip(hidden.split(tokens), targets.split(tokens)):
            if torch.is_grad_enabled():
                losses.append(checkpoint(self._loss, piece, wanted, each, use_reentrant=False))
            else:
                losses.append(self._loss(piece, wanted, each))
        if reduction == "none":
            return torch.cat(losses)
        total = hidden.new_zeros((), dtype=torch.float32)
        for loss in losses:
            total = total + loss
        return total / (targets != IGNORE_INDEX).sum() if reduction == "mean" else total

    def num_parameters(self, non_embedding: bool = False) -> int:
        """See GPTConfig.num_parameters."""
        return self.config.num_parameters(non_embedding)

    def flops_per_token(self, seq_len: int | None = None) -> int:
        """See GPTConfig.flops_per_token."""
        return self.config.flops_per_token(seq_len)


def initial_weights(config: GPTConfig) -> Iterator[tuple[str, Tensor]]:
    """(name, fp32 value on the CPU) of every parameter as GPT-2 starts, one at a time, from torch's global generator.

    Normal with std 0.02, biases zero; the projections that add to the residual stream are divided by
    sqrt(2 n_layer), so that its variance does not grow with depth. Padding rows are zero and stay so.
    """
    with torch.device("meta"):
        model = GPT(config, initialise=False)
    for prefix, module in model.named_modules():
        if module is model.lm_head and config.tie_weights:
            continue
        scale = 1 / math.sqrt(2 * config.n_layer) if prefix.endswith("c_proj") else 1.0
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                value = torch.zeros(parameter.shape, device="cpu")
            elif isinstance(module, nn.LayerNorm):
                value = torch.ones(parameter.shape, device="cpu")
            else:
                value = torch.empty(parameter.shape, device="cpu").normal_(0.0, INIT_STD * scale)
            if module in (model.wte, model.lm_head):
                value[config.vocab_size :] = 0.0
            yield f"{prefix}.{name}", value
