"""An engine from what the section `teacher` says, as plain arguments."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from raygpt.capacity.machine import host_memory
from raygpt.errors import UserError
from raygpt.hardware import choose_precision
from raygpt.model.slots import SlotCache
from raygpt.serve.answer import Coder
from raygpt.serve.batching import BatchingEngine
from raygpt.serve.decoder import Decoder, Network, SlotDecoder, WindowDecoder

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SPARE = 0.9  # of the free memory: what a cache may take, the rest is for the passes themselves


def load_engine(
    engine: str,
    model: str,
    *,
    max_sequences: int = 8,
    max_model_len: int | None = None,
    precision: str = "auto",
    use_gpu: bool | str = "auto",
    threads: int | None = None,
    name: str | None = None,
) -> BatchingEngine:
    """`engine` is transformers or raygpt, `model` as teacher.model. `name` is what the protocol calls it.

    Raises UserError where the model cannot be loaded, or its cache does not fit into memory.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    device = choose_device(use_gpu)
    dtype = choose_dtype(precision, device)
    network, coder = (_own if engine == "raygpt" else _foreign)(model, dtype, device)
    decoder = make_decoder(network, max_sequences, max_model_len)
    print(describe(model, decoder), flush=True)
    return BatchingEngine(name or model_name(model), decoder, coder, threads=threads)


def model_name(model: str) -> str:
    """The last part of a path or id, without .gguf."""
    path = Path(model.rstrip("/"))
    return path.stem if path.suffix == ".gguf" else path.name


def choose_device(use_gpu: bool | str) -> torch.device:
    """The first GPU where there is one and teacher.use_gpu allows it. UserError for true without a GPU."""
    if use_gpu is True and not torch.cuda.is_available():
        raise UserError("teacher.use_gpu=true but PyTorch finds no GPU here: leave it at auto, or set it to false.")
    return torch.device("cuda", torch.cuda.current_device()) if use_gpu and torch.cuda.is_available() else CPU


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of the weights. UserError for one that the device cannot do."""
    if precision == "auto":
        return DTYPES[choose_precision("auto", device)[0]]
    if precision == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8:
        raise UserError(
            f"teacher.precision=bf16 is not supported by {torch.cuda.get_device_name(device)}: use fp16 or fp32."
        )
    return DTYPES[precision]


def make_decoder(network: Network, max_sequences: int, max_model_len: int | None) -> Decoder:
    """With a cache where the model has one. UserError where it would not fit into memory, or the context is longer than
    the model's."""
    capacity = max_model_len or network.context
    if capacity > network.context:
        raise UserError(
            f"teacher.max_model_len is {capacity} and the model takes {network.context} tokens "
            f"({network.context_reason}): set it to at most {network.context}."
        )
    with torch.inference_mode():
        layers = network.layers()
    if layers is None:
        return WindowDecoder(network, max_sequences, capacity)
    needed, free = SlotCache.bytes(layers, max_sequences, capacity), free_memory(network.device)
    if needed > SPARE * free:
        fits = int(SPARE * free / SlotCache.bytes(layers, 1, 1))
        raise UserError(
            f"the cache of teacher.max_sequences={max_sequences} x teacher.max_model_len={capacity} tokens takes "
            f"{needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: lower one of them, {fits:,} tokens fit in all."
        )
    return SlotDecoder(network, layers, max_sequences, capacity)


def free_memory(device: torch.device) -> int:
    """Bytes: the GPU's, or the machine's or container's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(psutil.virtual_memory().available, host_memory() - psutil.Process().memory_info().rss)


def describe(model: str, decoder: Decoder) -> str:
    """One line: what, where, how many, and what it takes."""
    network = decoder.network
    where = torch.cuda.get_device_name(network.device) if network.device.type == "cuda" else "CPU"
    kept = f"cache {decoder.cache_bytes / 1e6:,.0f} MB"
    if isinstance(decoder, WindowDecoder):
        kept = f"no cache ({network.without_cache}), so that every token is a pass over its whole sequence"
    return (
        f"Teacher {model}: {where}, {str(network.dtype).removeprefix('torch.')}, {decoder.slots} sequences of up to "
        f"{decoder.capacity} tokens, weights {network.weight_bytes / 1e6:,.0f} MB, {kept}"
    )


def _foreign(model: str, dtype: torch.dtype, device: torch.device) -> tuple[Network, Coder]:
    from raygpt.serve.coders import HuggingFaceCoder
    from raygpt.serve.hf_network import HuggingFaceNetwork, load_model

    loaded = load_model(model, dtype, device)
    return HuggingFaceNetwork(loaded), HuggingFaceCoder(model, loaded)


def _own(model: str, dtype: torch.dtype, device: torch.device) -> tuple[Network, Coder]:
    from raygpt.parallel.weights import load
    from raygpt.serve.coders import OwnCoder
    from raygpt.serve.own_network import OwnNetwork

    loaded = load(model)
    return OwnNetwork(loaded.model.to(device=device, dtype=dtype)), OwnCoder(loaded.tokenizer, model_name(model))
