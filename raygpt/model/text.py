"""PURE. A text's continuation as text, piece by piece, with whole characters only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch

from raygpt.model.architecture import LanguageModel
from raygpt.model.generate import stream

UNFINISHED = "\ufffd"


class Coder(Protocol):
    """What is needed of `raygpt.data.tokenizer.Tokenizer`."""

    eot_id: int

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, ids: list[int]) -> str: ...


def continue_text(
    model: LanguageModel,
    tokenizer: Coder,
    prompt: str,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[str]:
    """Yields the text after `prompt` as it comes; without a prompt, a text from its beginning.

    Joined, the pieces are what decoding all tokens at once gives: bytes of an unfinished character are held back
    until the character is complete. Ends at the end-of-text token, which is not part of the text.
    """
    ids = [int(token) for token in tokenizer.encode(prompt)] if prompt else []
    ids = ids or [tokenizer.eot_id]
    given = len(tokenizer.decode(ids))
    device = next(model.parameters()).device
    tokens = torch.tensor([ids], dtype=torch.int64, device=device)
    columns = stream(
        model,
        tokens,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        eot_id=tokenizer.eot_id,
        generator=generator,
    )
    # decoding everything again at every token is exact for any tokenizer, and small beside a forward pass
    text = ""
    for column in columns:
        if (token := int(column)) == tokenizer.eot_id:
            break
        ids.append(token)
        text = tokenizer.decode(ids)
        whole = len(text.rstrip(UNFINISHED))
        if whole > given:
            yield text[given:whole]
            given = whole
    if len(text) > given:
        yield text[given:]
