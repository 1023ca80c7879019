"""Text generation, greedy or sampled, with or without the key-value cache: the same tokens either way."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from raygpt.errors import UserError
from raygpt.model import registry
from raygpt.model.architecture import Cache, LanguageModel

# All but cuDNN's: that prepares a plan for every length of the cache, 0.4 s each (modelscope/FunASR#3704), and gave
# wrong tokens on Blackwell (pytorch/pytorch#193893).
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def choose(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Next tokens (B, 1) int64 from logits (B, V); temperature 0 takes the most probable.

    top_k keeps the k most probable tokens; top_p keeps the fewest most probable ones that together reach
    probability p (nucleus sampling, Holtzman et al., 2020), counted after temperature and top_k. The most
    probable token is always kept.
    """
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.size(-1):
        kth = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if top_p is not None and top_p < 1.0:
        probs, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        more_probable = probs.cumsum(dim=-1) - probs  # mass of the tokens before each one
        drop = (more_probable >= top_p).scatter(-1, order, more_probable >= top_p)
        logits = logits.masked_fill(drop, float("-inf"))
    return torch.multinomial(logits.softmax(dim=-1), num_samples=1, generator=generator)


def stream(
    model: LanguageModel,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eot_id: int | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Generator[Tensor, None, None]:
    """Yields one column (B, 1) int64 of new tokens at a time, after prompts (B, T) int64, T >= 1.

    A row that has produced eot_id goes on with eot_id; when every row has, the stream ends. Only the last
    seq_len tokens are context: once it is full, the window slides, every position moves, and each token
    costs a pass over the whole window even with the cache. The model is in eval mode between two columns
    and is put back as it was at the end. Raises UserError for an empty prompt or impossible settings.
    """
    _check(tokens, max_new_tokens, temperature, top_k, top_p)
    was_training = model.training
    model.eval()
    try:
        window = tokens[:, -model.config.seq_len :]
        entry = registry.of(model.config)
        cache: Cache | None = None
        finished = torch.zeros(tokens.size(0), 1, dtype=torch.bool, device=tokens.device)
        for _ in range(max_new_tokens):
            with torch.no_grad(), sdpa_kernel(ATTENTION):
                if use_cache and cache is not None and cache.length < cache.capacity:
                    logits = entry.next_logits(model, window[:, -1:], cache)
                else:
                    cache = entry.new_cache(model.config) if use_cache else None
                    logits = entry.next_logits(model, window, cache)
                column = choose(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
            if eot_id is not None:
                column = column.masked_fill(finished, eot_id)
                finished = finished | (column == eot_id)
            yield column
            if eot_id is not None and bool(finished.all()):
                return
            window = torch.cat((window, column), dim=1)[:, -model.config.seq_len :]
    finally:
        model.train(was_training)


def generate(
    model: LanguageModel,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eot_id: int | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Prompts (B, T) int64 and their continuation, (B, T + new) int64 with new <= max_new_tokens: see `stream`."""
    columns = stream(
        model,
        tokens,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        eot_id=eot_id,
        generator=generator,
        use_cache=use_cache,
    )
    return torch.cat([tokens, *columns], dim=1)


def _check(tokens: Tensor, max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    if tokens.dim() != 2 or tokens.size(1) == 0:
        raise UserError("the prompt is empty: give at least one token, such as the end-of-text token.")
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens is {max_new_tokens}; it must be at least 0.")
    if temperature < 0:
        raise UserError(f"temperature is {temperature}; it must be 0 (greedy) or more.")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k is {top_k}; it must be at least 1, or left out.")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}; it must be above 0 and at most 1, or left out.")
