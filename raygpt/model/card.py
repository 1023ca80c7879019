"""PURE. The README.md of an exported model: what it is, what it was trained on and how well, how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from raygpt.model.gpt import GPTConfig


def model_card(
    name: str,
    config: GPTConfig,
    *,
    tokenizer: str,
    training: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    base: str | None = None,
) -> str:
    """Markdown with the Hub's metadata on top. Tables hold what is known: `training`, `data` and `results` by name.

    `base` is what it was fine-tuned from: a Hub id, which the metadata then names, or a path or URI.
    """
    shape = {
        "parameters": config.num_parameters(),
        "layers": config.n_layer,
        "heads": config.n_head,
        "width": config.n_embd,
        "context": f"{config.seq_len:,} tokens",
        "vocabulary": f"{config.vocab_size:,} ({tokenizer})",
        "biases": config.bias,
        "tied embeddings": config.tie_weights,
    }
    on_hub = f"base_model: {base}\n" if base and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", base) else ""
    parts = [
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n{on_hub}tags: [gpt2, raygpt]\n---",
        f"# {name}",
        "A language model of the GPT-2 architecture, "
        + (f"fine-tuned from `{base}` with raygpt." if base else "trained with raygpt."),
        "## How to load it",
        "```python\n"
        "from transformers import pipeline\n\n"
        'write = pipeline("text-generation", model="path/to/this/folder")\n'
        'print(write("Once upon a time", max_new_tokens=50)[0]["generated_text"])\n'
        "```",
        _table("Model", shape),
        _table("Results", results),
        _table("Training", training),
        _table("Data", data),
    ]
    if not config.bias:
        parts.append("The model was trained without biases; those in this folder are zeros, which give equal logits.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(title: str, rows: Mapping[str, Any] | None) -> str:
    known = [(name, _shown(value)) for name, value in (rows or {}).items() if value is not None]
    if not known:
        return ""
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in known)])


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}" if 0.01 <= abs(value) < 1000 else f"{value:.6g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_shown(part) for part in value)
    # a bar would end the cell
    return str(value).replace("|", "\\|")
