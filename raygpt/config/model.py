"""`model`: architecture and starting weights."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from raygpt.config.section import AlsoCalled, Fixed, Section


class Model(Section):
    # a training run compares the shape itself with its checkpoint's
    fixed_whole: ClassVar = (Fixed(("sweep",), "its trials are compared under it"),)

    preset: str = Field(
        "gpt2",
        description="architecture and size: gpt2, gpt2-medium, gpt2-large, gpt2-xl, nano; the keys below override "
        "parts of it",
    )
    n_layer: Annotated[int | None, AlsoCalled(("num_layers", "num_hidden_layers"))] = Field(
        None, description="transformer blocks", ge=1
    )
    n_head: Annotated[int | None, AlsoCalled(("num_heads", "num_attention_heads"))] = Field(
        None, description="attention heads", ge=1
    )
    n_embd: Annotated[int | None, AlsoCalled(("hidden_size", "d_model", "n_embed"))] = Field(
        None, description="width", ge=1
    )
    vocab_size: int | None = Field(None, description="vocabulary; none: the tokenizer's", ge=2)
    seq_len: Annotated[int | None, AlsoCalled(("n_positions", "context_length"))] = Field(
        None, description="longest context in tokens", ge=1
    )
    dropout: float = Field(0.0, description="dropout probability", ge=0, lt=1)
    bias: bool = Field(True, description="biases in linear layers and norms, as GPT-2 has them")
    tie_weights: bool = Field(True, description="output layer shares the token embedding, as GPT-2 does")
    init_from: Annotated[
        str,
        AlsoCalled(("model_name_or_path", "from_pretrained")),
    ] = Field(
        "random",
        description="weights: random, a Hugging Face id or folder, or a run folder or checkpoint (path or s3://)",
    )
    lora_rank: Annotated[int, AlsoCalled(("lora_r",)), Fixed(("train",), "the adapters have it")] = Field(
        0, description="train low-rank adapters of this rank instead of all weights; 0: all", ge=0
    )
    lora_alpha: Annotated[float | None, Fixed(("train",), "the adapters are scaled by it")] = Field(
        None, description="scale of the adapters; none: twice their rank", gt=0
    )
    lora_dropout: float = Field(0.0, description="dropout before the adapters", ge=0, lt=1)
