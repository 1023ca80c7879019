"""Weights to and from Hugging Face's GPT2LMHeadModel folders, without importing transformers.

Theirs and ours differ in three ways only: Conv1D keeps matrices [in, out] where nn.Linear keeps [out, in];
our vocabulary is padded to a multiple of 128 rows; their causal-mask buffers are not weights.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raygpt.errors import UserError
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.storage import child, list_folder, locate, read_bytes

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
MASKS = (".attn.bias", ".attn.masked_bias")
# single file, index of several files; safetensors first: mapped, and data rather than code
WEIGHT_FILES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_huggingface(
    folder_or_hub_id: str | os.PathLike[str], *, dropout: float = 0.0, seq_len: int | None = None
) -> GPT:
    """GPT in float32 on the CPU from a GPT-2 folder (local or s3://) or a Hugging Face id, tied or not.

    A smaller seq_len keeps the first positions of the embedding. Raises UserError for another architecture,
    a missing or truncated file, weights that do not fit config.json, and a seq_len the model has no
    positions for. Draws no random numbers.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = _local_folder(os.fspath(folder_or_hub_id), Path(scratch))
        config = read_config(folder, dropout=dropout, seq_len=seq_len)
        with torch.device("meta"):
            model = GPT(config)
        model.to_empty(device="cpu")
        model.tie()
        _fill(model, folder)
    return model


def read_config(folder: Path, *, dropout: float = 0.0, seq_len: int | None = None) -> GPTConfig:
    """Our config of a folder's config.json. Raises UserError where the model is not one we compute exactly."""
    path = folder / "config.json"
    values = _read_json(path)
    if values.get("model_type") != "gpt2":
        raise UserError(f"{path} says model_type {values.get('model_type')!r}: choose a GPT-2 model ('gpt2').")
    wanted = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "n_inner": (None, 4 * int(values.get("n_embd", 768))),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "layer_norm_epsilon": (1e-5,),
    }
    odd = [f"{key}={values[key]!r}" for key, allowed in wanted.items() if values.get(key, allowed[0]) not in allowed]
    if odd:
        raise UserError(f"{path} asks for {', '.join(odd)}, which this GPT-2 does not have: choose a plain GPT-2.")
    positions = int(values.get("n_positions", 1024))
    if seq_len is not None and seq_len > positions:
        raise UserError(
            f"model.seq_len is {seq_len} but {path} has only {positions} positions: set it to {positions} or less."
        )
    return GPTConfig(
        vocab_size=int(values.get("vocab_size", 50257)),
        seq_len=positions if seq_len is None else seq_len,
        n_layer=int(values.get("n_layer", 12)),
        n_head=int(values.get("n_head", 12)),
        n_embd=int(values.get("n_embd", 768)),
        dropout=dropout,
        tie_weights=bool(values.get("tie_word_embeddings", True)),
    )


def export_huggingface(
    model: GPT,
    folder: Path,
    *,
    tokenizer_json: bytes | None,
    eot_id: int,
    card: str = "",
    dtype: str = "float32",
) -> Path:
    """Writes a folder that transformers' `pipeline("text-generation", model=folder)` loads; returns it.

    config.json, generation_config.json, model.safetensors with the vocabulary cut to its true size, the
    tokenizer, and README.md (`card`, or a short one). A model without biases gets biases of zero, which give
    equal logits. Written beside `folder` and renamed, so `folder` is the old export, the new one or absent;
    anything else that stands there is refused with UserError. Works on a model on any device.
    """
    from safetensors.torch import save_file

    if dtype not in DTYPES:
        raise UserError(f"export dtype is {dtype!r}; choose one of {', '.join(DTYPES)}.")
    if not 0 <= eot_id < model.config.vocab_size:
        raise UserError(f"the end-of-text id {eot_id} is outside the model's vocabulary of {model.config.vocab_size}.")
    if folder.exists() and not (folder / "config.json").exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an exported model: choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    tag = uuid.uuid4().hex[:8]
    aside, old = (folder.with_name(f".{folder.name}.{kind}-{tag}") for kind in ("new", "old"))
    aside.mkdir()
    try:
        weights = {name: tensor.to(DTYPES[dtype]).contiguous() for name, tensor in _their_weights(model)}
        save_file(weights, aside / "model.safetensors", metadata={"format": "pt"})
        _write_json(aside / "config.json", _their_config(model.config, eot_id, dtype))
        _write_json(
            aside / "generation_config.json",
            {"bos_token_id": eot_id, "eos_token_id": eot_id, "pad_token_id": eot_id},
        )
        if tokenizer_json is not None:
            (aside / "tokenizer.json").write_bytes(tokenizer_json)
            _write_json(aside / "tokenizer_config.json", _tokenizer_config(tokenizer_json, eot_id, model.config))
        (aside / "README.md").write_text(card or _plain_card(model.config), encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


# --- reading -----------------------------------------------------------------------------------------------


def _local_folder(spec: str, scratch: Path) -> Path:
    """A local folder with the files of a local path, an s3:// folder (copied to scratch) or a Hugging Face id."""
    if "://" in spec:
        where = locate(spec)
        for entry in list_folder(where):
            if entry.is_file and (entry.base_name == "config.json" or _is_weights(entry.base_name)):
                (scratch / entry.base_name).write_bytes(read_bytes(child(where, entry)))
        return scratch
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", spec) or spec.startswith("."):
        raise UserError(
            f"{spec} is not a folder: name one with config.json and model.safetensors, or a Hugging Face id."
        )
    try:
        return _fetch(spec)
    except Exception as error:
        raise UserError(
            f"{spec} is neither a local folder nor could it be fetched from the Hugging Face Hub "
            f"({type(error).__name__}): check the name and the network, or download it and name the folder."
        ) from error


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    def fetch(patterns: list[str]) -> Path:
        try:
            return Path(snapshot_download(hub_id, allow_patterns=patterns))
        except Exception:
            # the network is away, but an earlier run may have left the model in the cache
            return Path(snapshot_download(hub_id, allow_patterns=patterns, local_files_only=True))

    folder = fetch(["config.json", "model*.safetensors", "model.safetensors.index.json"])
    if not any(folder.glob("model*.safetensors")):
        folder = fetch(["config.json", "pytorch_model*.bin", "pytorch_model.bin.index.json"])
    return folder


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".index.json")) or re.fullmatch(r"pytorch_model.*\.bin", name) is not None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}: it is not a Hugging Face model folder.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): fetch it again.") from error


def _weight_files(folder: Path) -> list[Path]:
    for single, index in WEIGHT_FILES:
        if (folder / single).exists():
            return [folder / single]
        if (folder / index).exists():
            parts = sorted(set(_read_json(folder / index)["weight_map"].values()))
            missing = [name for name in parts if not (folder / name).exists()]
            if missing:
                raise UserError(f"{folder} lacks {', '.join(missing)}, which {index} names: fetch the model again.")
            return [folder / name for name in parts]
    raise UserError(f"{folder} has neither model.safetensors nor pytorch_model.bin: no weights to load.")


def _read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, one after the other, mapped into memory. Raises UserError for a broken file."""
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    yield name, file.get_tensor(name)
        else:
            # weights_only: tensors are read, no pickled code runs; files from before torch 1.6 cannot be mapped
            from zipfile import is_zipfile

            yield from torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path)).items()
    except UserError:
        raise
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise _broken(path, error) from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise _broken(path, error) from error
        raise


def _broken(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:160].rstrip(".")
    return UserError(f"{path} is truncated or not a weight file ({reason}): fetch it again.")


@torch.no_grad()
def _fill(model: GPT, folder: Path) -> None:
    """Copies a folder's weights into the model, every one exactly once."""
    config = model.config
    targets = dict(model.named_parameters())  # a tied lm_head is not listed twice
    missing, unknown, misfits = set(targets), [], []
    for path in _weight_files(folder):
        for theirs, found in _read_tensors(path):
            name = theirs.removeprefix("transformer.")
            if name.endswith(MASKS) or (name == "lm_head.weight" and config.tie_weights):
                continue
            if name not in targets:
                unknown.append(theirs)
                continue
            target: Tensor = targets[name]
            value = found.t() if name.endswith(CONV1D) else found
            if name in ("wte.weight", "lm_head.weight"):
                target[config.vocab_size :] = 0.0
                target = target[: config.vocab_size]
            elif name == "wpe.weight":
                value = value[: config.seq_len]
            missing.discard(name)
            if value.shape == target.shape:
                target.copy_(value)
            else:
                misfits.append(f"{theirs} {tuple(found.shape)}")
    problems = [
        f"{label} {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
        for label, names in (
            ("there is no place for", unknown),
            ("config.json does not fit the shape of", misfits),
            ("there are no weights for", sorted(missing)),
        )
        if names
    ]
    if problems:
        raise UserError(f"{folder} cannot be loaded as a plain GPT-2 language model: {'; '.join(problems)}.")


# --- writing -----------------------------------------------------------------------------------------------


def _their_weights(model: GPT) -> Iterator[tuple[str, Tensor]]:
    """Their names and layouts, on the CPU."""
    vocab_size = model.config.vocab_size
    for name, parameter in model.named_parameters():
        value = parameter.detach().cpu()
        if name in ("wte.weight", "lm_head.weight"):
            value = value[:vocab_size]
        yield (
            (name if name == "lm_head.weight" else f"transformer.{name}"),
            value.t() if name.endswith(CONV1D) else value,
        )
    if not model.config.bias:
        for name, module in model.named_modules():
            if getattr(module, "bias", 0) is None and name != "lm_head":
                yield f"transformer.{name}.bias", torch.zeros(_width(module))


def _width(module: torch.nn.Module) -> int:
    return int(module.weight.shape[0])  # type: ignore[union-attr, operator, index]


def _their_config(config: GPTConfig, eot_id: int, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.seq_len,
        "n_ctx": config.seq_len,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "use_cache": True,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "tie_word_embeddings": config.tie_weights,
        "torch_dtype": dtype,
    }


def _tokenizer_config(tokenizer_json: bytes, eot_id: int, config: GPTConfig) -> dict[str, Any]:
    spec = json.loads(tokenizer_json)
    names = {entry["id"]: entry["content"] for entry in spec.get("added_tokens") or []}
    vocabulary = spec.get("model", {}).get("vocab") or {}
    if eot_id not in names and isinstance(vocabulary, dict):
        names |= {index: token for token, index in vocabulary.items() if index == eot_id}
    special = names.get(eot_id, "<|endoftext|>")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.seq_len,
        "bos_token": special,
        "eos_token": special,
        "unk_token": special,
        "clean_up_tokenization_spaces": False,
    }


def _plain_card(config: GPTConfig) -> str:
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
        f"GPT-2 architecture, {config.num_parameters():,} parameters: {config.n_layer} layers, {config.n_head} heads, "
        f"width {config.n_embd}, context {config.seq_len} tokens, vocabulary {config.vocab_size}.\n"
    )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
