"""Text as it comes: whole characters only, and in the end exactly what decoding everything at once gives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from raygpt.data.tokenizer import load_tokenizer
from raygpt.model import text as text_module
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.model.text import continue_text

MODEL = GPT(GPTConfig(vocab_size=257, seq_len=8, n_layer=1, n_head=1, n_embd=8))


def pieces(monkeypatch: pytest.MonkeyPatch, ids: list[int], prompt: str = "") -> list[str]:
    """What comes when the model writes these ids."""

    def scripted(model: GPT, tokens: torch.Tensor, *_: object, **__: object) -> Iterator[torch.Tensor]:
        yield from (torch.tensor([[token]]) for token in ids)

    monkeypatch.setattr(text_module, "stream", scripted)
    return list(continue_text(MODEL, load_tokenizer("bytes"), prompt, len(ids)))


def test_a_character_comes_when_its_last_byte_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pieces(monkeypatch, list("aé🚀b".encode())) == ["a", "é", "🚀", "b"]


@pytest.mark.parametrize(
    "data",
    [
        b"ok\xff",
        b"\xf0\x9f\x9aX",
        b"\xe2\x82",
        b"\xc3\xc3\xa9",
        "an honest \ufffd and on".encode(),
        b"\x80\x80\x80 x",
        b"",
    ],
)
@pytest.mark.parametrize("prompt", ["", "prompt é "])
def test_joined_pieces_are_the_text_decoded_at_once(monkeypatch: pytest.MonkeyPatch, data: bytes, prompt: str) -> None:
    whole = load_tokenizer("bytes").decode([*prompt.encode(), *data])
    assert prompt + "".join(pieces(monkeypatch, list(data), prompt)) == whole


def test_the_end_of_text_ends_the_text_and_is_not_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "".join(pieces(monkeypatch, [*b"end", 256, *b"more"])) == "end"
