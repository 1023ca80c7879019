"""Named model shapes: the four GPT-2 sizes of Radford et al. (2019), and a tiny one for laptops and tests."""

from __future__ import annotations


def _shape(n_layer: int, n_head: int, n_embd: int, seq_len: int = 1024, **more: int) -> dict[str, int]:
    return {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "seq_len": seq_len, **more}


# Where a preset has no vocab_size it is the tokenizer's.
PRESETS: dict[str, dict[str, int]] = {
    "gpt2": _shape(12, 12, 768, vocab_size=50257),  # 124M parameters
    "gpt2-medium": _shape(24, 16, 1024, vocab_size=50257),  # 355M
    "gpt2-large": _shape(36, 20, 1280, vocab_size=50257),  # 774M
    "gpt2-xl": _shape(48, 25, 1600, vocab_size=50257),  # 1558M
    "nano": _shape(4, 4, 128, seq_len=128),  # 0.8M beside the vocabulary
}
