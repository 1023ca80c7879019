"""Models of other families than this package's, as its evaluation and sampling ask for them: any causal language model
that transformers loads, GGUF files too.

`load_foreign` gives what `raygpt.parallel.weights.load` gives. Such a model is read, scored and sampled, never trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError, one_line
from raygpt.model import registry
from raygpt.model.architecture import Architecture, LanguageModel, pieces_of_rows
from raygpt.model.tree import TreePass, grow, layout
from raygpt.parallel.checkpoint import locate_checkpoint
from raygpt.parallel.weights import Loaded

# Logits that exist at a time, in bytes: 4,096 tokens of a vocabulary of 128,256 would take 2.1 GB several times.
LOGIT_BYTES = 2**28
TREE_TOLERANCE = 1e-4  # of the largest logit, in fp32
# What configs of transformers call the places of a row that a layer looks back over.
_WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "window_size",
    "attention_window_size",
    "attention_chunk_size",
    "local_attention",
)


@dataclass(frozen=True)
class ForeignConfig:
    """Shape of a foreign model, as far as it is asked for: `kind` is its model_type, `parameters` are counted."""

    kind: str
    vocab_size: int
    seq_len: int
    parameters: int
    architecture: ClassVar[str] = "transformers"

    def num_parameters(self) -> int:
        return self.parameters

    def flops_per_token(self, seq_len: int | None = None) -> int:
        """6 a parameter (Kaplan et al., 2020); attention, which hangs on the family, is not in it."""
        return 6 * self.parameters

    def describe(self) -> str:
        return f"{self.kind} of transformers"

    def to_dict(self) -> dict[str, Any]:
        return {"architecture": self.architecture, "kind": self.kind}


class ForeignModel(LanguageModel):
    """A transformers model called as this package's models are; logits that fit `LOGIT_BYTES` at a time."""

    def __init__(self, net: nn.Module, config: ForeignConfig) -> None:
        super().__init__()
        self.net, self.config = net, config
        self.trees: bool | None = None  # whether it takes rows that branch; found out when it is asked

    def forward(self, tokens: Tensor, targets: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """Logits (B, T, V) of tokens (B, T), or with targets (B, T) the loss as `raygpt.model.architecture` has it."""
        if targets is None:
            return self.net(tokens, use_cache=False).logits
        flat = targets.flatten()
        where = torch.nonzero(flat != -100)[:, 0]
        at_once = max(1, LOGIT_BYTES // (self.config.vocab_size * 4))
        each = torch.zeros(flat.shape, device=flat.device)
        start = 0
        for logits in self.logits_at(tokens, where, at_once, None):
            here = where[start : start + len(logits)]
            each[here] = functional.cross_entropy(logits.float(), flat[here], reduction="none")
            start += len(logits)
        each = each.view_as(targets)
        if reduction == "none":
            return each
        return each.sum() if reduction == "sum" else each.sum() / len(where)

    def logits_at(self, tokens: Tensor, where: Tensor, at_once: int, tree: TreePass | None) -> Iterator[Tensor]:
        """Logits (N, V) after the tokens of (B, T) at `where` (N,), `at_once` of them at a time; the output matrix sees
        no others. The layers below it are gone through once, where the model calls them as a part of it."""
        net: Any = self.net
        extra = {}
        if tree is not None:
            mask = tree.mask
            if net.config._attn_implementation == "eager":
                dtype = next(net.parameters()).dtype
                mask = torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)
            extra = {"attention_mask": mask, "position_ids": tree.positions}

        head, below = net.get_output_embeddings(), net.base_model
        apart = below is not net and all(part is not head for part in below.modules())
        given: list[Any] = []
        for here in where.split(at_once):

            def choose(_: nn.Module, arguments: tuple[Tensor, ...], here: Tensor = here) -> tuple[Tensor, ...]:
                return (arguments[0].flatten(0, 1)[None, here], *arguments[1:])

            handle = head.register_forward_pre_hook(choose)
            try:
                with _given_once(below, given) if apart else nullcontext():
                    logits = net(tokens, use_cache=False, **extra).logits
            finally:
                handle.remove()
            yield logits[0] if logits.shape[:2] == (1, len(here)) else logits.flatten(0, 1)[here]


@contextmanager
def _given_once(layers: Any, given: list[Any]) -> Iterator[None]:
    """Inside, `layers` give what they gave the first time, which is kept in `given`; where a pass calls them more than
    once they are gone through again.

    A head may do more than multiply (it scales, or caps), and only the whole model's forward knows what: so that is
    called for every piece of logits.
    """
    if not given:
        hook = layers.register_forward_hook(lambda _, __, out: given.append(out))
        try:
            yield
        finally:
            hook.remove()
    elif len(given) > 1:
        yield
    else:
        before = vars(layers).get("forward")  # of a model shared out over devices
        layers.forward = lambda *_, **__: given[0]
        try:
            yield
        finally:
            if before is None:
                del layers.forward
            else:
                layers.forward = before


def _shortest_window(config: Any) -> int | None:
    """Places of a row that the layer of the shortest sight looks back over; None: all."""
    parts = [config, config.get_text_config()]
    parts += [part for name in ("attn_config", "text_config") if (part := getattr(config, name, None)) is not None]
    found = []
    for part in parts:
        values = part if isinstance(part, Mapping) else vars(part)
        for name in _WINDOWS:
            each = values.get(name)
            found += [size for size in (each if isinstance(each, (list, tuple)) else [each]) if isinstance(size, int)]
    return min((size for size in found if size > 0), default=None)


def _takes_trees(model: ForeignModel) -> bool:
    """Whether rows that branch give the logits of plain ones: a family may place its tokens, or let them see each
    other, in a way of its own. Costs two passes over a few tokens."""
    size = model.config.vocab_size
    begin, ends = [3 % size, 10 % size, 17 % size], ([24 % size, 31 % size], [38 % size, 45 % size, 52 % size])
    chains = [np.array([*begin, *end]) for end in ends]
    tree = grow(chains)
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            tokens, positions, mask = (torch.from_numpy(part).to(device) for part in layout([tree]))
            places = torch.arange(tokens.size(1), device=device)
            (found,) = model.logits_at(tokens, places, len(places), TreePass(positions, mask))
            for chain, path in zip(chains, tree.paths):
                row = torch.from_numpy(chain).to(device)[None]
                (plain,) = model.logits_at(row, places[: len(chain)], len(chain), None)
                if float((found[path] - plain).float().abs().max() / plain.abs().max()) > TREE_TOLERANCE:
                    return False
    except Exception:  # whatever a foreign model's code does with a mask it does not expect
        return False
    return True


class _Cache:
    """The model's own cache of keys and values."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length, self.past = capacity, 0, None


class Foreign(Architecture):
    """Their entry in the registry: evaluated and sampled as others are, built and exported never."""

    name = ForeignConfig.architecture
    presets: Mapping[str, Mapping[str, int]] = {}

    def config(self, values: Mapping[str, Any]) -> Any:
        raise UserError(_NOT_TRAINED)

    def build(self, config: Any, activation_checkpointing: bool = False) -> Any:
        raise UserError(_NOT_TRAINED)

    def initial_weights(self, config: Any) -> Any:
        raise UserError(_NOT_TRAINED)

    def forward_memory(self, config: Any, work: Any) -> dict[str, int]:
        raise UserError(_NOT_TRAINED)

    def new_cache(self, config: ForeignConfig) -> _Cache:
        return _Cache(config.seq_len)

    def tree_tokens(self, model: ForeignModel) -> int:
        """Up to its context, or the shortest window that a layer looks back through: windows count places in the row,
        and a tree's mask stands in their place."""
        if model.trees is None:
            model.trees = _takes_trees(model)
        net: Any = model.net
        return min(model.config.seq_len, _shortest_window(net.config) or model.config.seq_len) if model.trees else 0

    def logits_at(
        self, model: ForeignModel, tokens: Tensor, where: Tensor, at_once: int, tree: TreePass | None = None
    ) -> Iterator[Tensor]:
        """In pieces of rows, and of a row's tokens where these are more."""
        for start, stop, here in pieces_of_rows(tokens, where, at_once):
            rows = None if tree is None else tree.rows(start, stop)
            yield from model.logits_at(tokens[start:stop], here, at_once, rows)

    def next_logits(self, model: ForeignModel, tokens: Tensor, cache: _Cache | None = None) -> Tensor:
        if cache is None:
            return model.net(tokens, use_cache=False).logits[:, -1]
        out = model.net(tokens, past_key_values=cache.past, use_cache=True)
        cache.past = out.past_key_values
        cache.length += tokens.size(1)
        return out.logits[:, -1]


_NOT_TRAINED = "a model of another family than GPT-2's is evaluated and sampled here, not trained: name a GPT-2 model."


def is_foreign(uri: str) -> bool:
    """Whether `uri` is no run, checkpoint or GPT-2 of Hugging Face. Raises UserError where nothing lies there."""
    from raygpt.model.huggingface import open_folder, read_json

    if uri.endswith(".gguf"):
        return True
    try:
        if locate_checkpoint(uri) is not None:
            return False
    except FileNotFoundError:
        pass
    with open_folder(uri, weights=False) as folder:
        return registry.of_huggingface(read_json(folder / "config.json").get("model_type")) is None


def load_foreign(uri: str) -> Loaded:
    """Model (fp32, on the CPU) and tokenizer of a Hugging Face folder or id, or of a GGUF file.

    Raises UserError where transformers cannot load it, or its tokenizer is not one of the `tokenizers` library.
    """
    from raygpt.serve.hf_network import HuggingFaceNetwork, load_model, own_context

    registry.register(Foreign())
    net = load_model(uri, torch.float32, torch.device("cpu"))
    network = HuggingFaceNetwork(net)
    # rows are read whole, by the model's own masks: a layer's window does not cut them
    context, _ = own_context(net.config.get_text_config())
    parameters = sum(parameter.numel() for parameter in net.parameters())
    config = ForeignConfig(net.config.model_type, network.vocab_size, context, parameters)
    return Loaded(ForeignModel(net, config).eval(), _tokenizer(uri), uri)


def chat_template(uri: str) -> Callable[[str], str]:
    """What the template of a Hugging Face folder or id, or of a GGUF file, makes of a user's message, up to where the
    answer begins. Raises UserError where there is none."""
    from transformers import AutoTokenizer

    from raygpt.serve.hf_network import source

    try:
        where, arguments = source(uri)
        found = AutoTokenizer.from_pretrained(where, **arguments)
    except (UserError, OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"eval.chat: {uri} has no chat template that can be read ({one_line(error)}).") from error
    if not found.chat_template:
        raise UserError(
            f"eval.chat=true but {uri} has no chat template: leave it out for a model that is no chat model."
        )

    def wrap(text: str) -> str:
        message = [{"role": "user", "content": text}]
        return str(found.apply_chat_template(message, add_generation_prompt=True, tokenize=False))

    return wrap


def _tokenizer(uri: str) -> Tokenizer:
    from transformers import AutoTokenizer

    from raygpt.serve.hf_network import source

    where, arguments = source(uri)
    try:
        found = AutoTokenizer.from_pretrained(where, **arguments)
        text = found.backend_tokenizer.to_str()
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        raise UserError(
            f"{uri} has no tokenizer that can be read here ({one_line(error)}): put its tokenizer.json beside it."
        ) from error
    tokenizer = Tokenizer.from_json(text.encode(), Path(uri.rstrip("/")).name)
    tokenizer.bos_id = found.bos_token_id
    return tokenizer
